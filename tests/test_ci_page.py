"""docs/ci.md: its jobs fit the schemas of their services, and what they run is run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mpmmu_rt import conditions
from mpmmu_rt.baseline_file import Baseline, Session
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.compare import TURN_S
from mpmmu_rt.counts import count
from mpmmu_rt.spec import Target

from .test_pytest_plugin import STORED, run  # noqa: F401
from .test_readme import PAGES, blocks, parse

pytest_plugins = "pytester"
SERVICES = {"github": "vendor.github-workflows", "gitlab": "vendor.gitlab-ci"}
TEXTS = dict(zip(SERVICES, blocks("docs/ci.md", "yaml"), strict=True))
# A key that is none, a wrong type, a job of nothing.
HARM = {
    "github": [("runs-on:", "run-on:"), ("timeout-minutes: 40", "timeout-minutes: soon"), ("steps:", "stops:")],
    "gitlab": [("exit_codes: 5", "exit_codes: five"), ("paths: [compare.json]", "paths: 7"), ("script:", "skript:")],
}


def problems(text: str, service: str, folder: Path) -> str:
    """What check-jsonschema has against it; nothing else is asked, and no network."""
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    (folder / "ci.yml").write_text(text)
    transform = ["--data-transform", "gitlab-ci"] if service == "gitlab" else []
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SERVICES[service], *transform]
    done = subprocess.run([*command, str(folder / "ci.yml")], capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("service", SERVICES)
def test_the_jobs_fit_their_schema(service: str, tmp_path: Path) -> None:
    assert problems(TEXTS[service], service, tmp_path) == ""


@pytest.mark.slow
@pytest.mark.parametrize(("service", "right", "wrong"), [(name, *one) for name, some in HARM.items() for one in some])
def test_what_does_not_fit_is_seen(service: str, right: str, wrong: str, tmp_path: Path) -> None:
    assert right in TEXTS[service]
    assert problems(TEXTS[service].replace(right, wrong, 1), service, tmp_path)


def scripts(service: str) -> dict[str, str]:
    """The shell of each job, or of each of its steps."""
    yaml = pytest.importorskip("ruamel.yaml", reason="check-jsonschema, which brings ruamel.yaml, is not installed")
    entry: Any = yaml.YAML(typ="safe").load(TEXTS[service])
    if service == "gitlab":
        return {name: "\n".join(job["script"]) for name, job in entry.items() if name != "variables"}
    steps = [step for job in entry["jobs"].values() for step in job["steps"] if "run" in step]
    return {step["name"]: step["run"] for step in steps}


@pytest.mark.parametrize("service", SERVICES)
def test_what_they_run_is_shell_and_ours_parses(service: str) -> None:
    found = 0
    for script in scripts(service).values():
        subprocess.run(["bash", "-n", "-c", script], check=True)
        for line in script.replace("../base-venv/bin/", "").splitlines():
            _, program, rest = line.partition("mpmmu-rt ")
            if program:
                words = shlex.split(rest.replace('"$TARGET"', "a:fp32").replace('"$BATCH"', "8").partition(" ||")[0])
                parse(words)
                found += 1
    assert found == 6


@pytest.mark.slow
def test_the_comparison_runs(tmp_path: Path) -> None:
    """With a budget in which nobody can tell: a warning. GitLab runs the same command, and has a key for the rest."""
    for name in ("base.bundle", "head.bundle"):
        shutil.copytree(STORED, tmp_path / name)
    script, theirs = scripts("github")["Compare"], scripts("gitlab")["latency-compare"].splitlines()[-1]
    assert theirs in script
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    root = str(Path(__file__).resolve().parents[1])
    given = {"PATH": path, "PYTHONPATH": root, "TARGET": "onnxruntime:fp32", "BATCH": "1", "BUDGET": "1s"}
    command = ["bash", "-e", "-c", script]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | given, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, "::warning title=latency::cannot tell within 1s" in done.stdout) == (0, True), done.stderr
    assert (tmp_path / "compare.json").is_file()


@pytest.mark.slow
def test_the_example_in_pytest_runs(run: Any, pytester: pytest.Pytester) -> None:  # noqa: F811
    """Against a baseline of this machine that takes ten times as long, with the example's own numbers."""
    (text,) = blocks("docs/ci.md", "python")
    target = Target.parse("onnxruntime:fp32")
    shutil.copytree(STORED, pytester.path / "model.bundle")
    here = conditions.conditions(Bundle.open(STORED), target, 32, TURN_S)
    held = Session("2026-11-26T12:00:00+00:00", [[1e3] * 3] * 40, [conditions.control_ms()] * 40)
    Baseline(here, "b", "0" * 64, count(STORED, target, 32), [held]).write(pytester.path / "baseline.json")
    pytester.makepyfile(text.replace("p99_ms=2000", 'p99_ms=2000, budget="1s"'))
    result = run()
    result.assert_outcomes(passed=1)
    assert "expected" not in result.stdout.str()


def test_the_page_tells_every_exit_code() -> None:
    assert [line.split("|")[1].strip() for line in PAGES["docs/ci.md"].splitlines() if line.startswith("| ")][1:] == [
        *"045"
    ]
