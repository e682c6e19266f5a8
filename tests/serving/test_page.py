"""docs/serving.md: its manifest by Kubernetes' schemas, its container by what the wheel brings. Its clients are run by
test_server.py."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from mpmmu_rt import __version__
from mpmmu_rt.serving.models import MAX_SENT_BYTES, OUTPUTS
from mpmmu_rt.serving.server import Addresses
from tests.test_readme import EXTRAS, GROUP

PAGE = (Path(__file__).resolve().parents[2] / "docs/serving.md").read_text(encoding="utf-8")
(MANIFEST,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
VERSION = "1.31"


def validated(text: str) -> list[Any]:
    """Raises for what Kubernetes does not know."""
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    found = list(yaml.safe_load_all(text))
    for one in found:
        schemas.validate(one, VERSION, strict=True)
    return found


def test_the_manifest_is_kubernetes() -> None:
    deployment, service = validated(MANIFEST)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/v2/models/mpmmu/ready", "port": "http"}
    assert {one["name"]: one["containerPort"] for one in container["ports"]} == Addresses().ports
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    # Longer than the server takes at the most: the pause before it is told, its 30 s, and the end.
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 5 + 30 + 10


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("replicas: 2", "replicas: two"),
        ("readinessProbe", "readynessProbe"),
        ("containerPort: 8000", "containerPort: http"),
    ],
)
def test_a_wrong_manifest_is_seen(old: str, new: str) -> None:
    assert old in MANIFEST
    with pytest.raises(Exception, match=r"two|readynessProbe|http"):
        validated(MANIFEST.replace(old, new))


def test_the_container_runs_what_there_is() -> None:
    block = re.findall(r"^    FROM [\s\S]*?^    ENTRYPOINT .*$", PAGE, re.MULTILINE)[0]
    (wheel,) = set(re.findall(r"mpmmu_rt-([\d.]+)-py3", block))
    assert wheel == __version__
    (extras,) = re.findall(r"whl\[(.*?)\]", block)
    assert set(extras.split(",")) <= set(EXTRAS)
    name, command, *arguments = json.loads(re.findall(r"ENTRYPOINT (.*)", block)[0])
    assert (name, command) == ("mpmmu-rt", "serve")
    GROUP.commands[command].make_context(command, arguments)
    assert shlex.split(re.findall(r"USER (.*)", block)[0]) != ["root"]


def test_what_it_says_of_the_models_is_so() -> None:
    for name in OUTPUTS:
        assert f"`{name}`" in PAGE
    assert f"above {MAX_SENT_BYTES >> 20} MiB" in PAGE
