"""Dockerfile.cuda, by its structure: no Docker is needed to see what it must never do."""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mpmmu_rt.engines import known_engine
from mpmmu_rt.spec import Target

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile.cuda").read_text(encoding="utf-8")
FINAL = ("export", "runtime")  # what is run; the other stage only makes the wheel
PINNED = re.compile(r"[a-z0-9./-]+:(\d+\.\d+\.\d+[a-z0-9.-]*)(@sha256:[0-9a-f]{64})?")


@dataclass
class Stage:
    """FROM `base` AS `name`, and the instructions that follow: (instruction, its text)."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, kind: str) -> list[str]:
        return [text for instruction, text in self.instructions if instruction == kind]


def parse(text: str) -> dict[str, Stage]:
    """The stages by name; raises ValueError for an instruction outside of a stage, and one without a name."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    stages: dict[str, Stage] = {}
    for line in joined.splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "FROM":
            base, _, name = rest.split()
            stages[name] = Stage(name, base)
        else:
            list(stages.values())[-1].instructions.append((kind, rest))
    return stages


def findings(text: str) -> set[str]:
    """What is wrong with it, in words."""
    found: set[str] = set()
    stages = parse(text)
    for stage in stages.values():
        if not PINNED.fullmatch(stage.base):
            found.add(f"{stage.name}: the base {stage.base} is not pinned by its full version")
        if stage.all("ADD"):
            found.add(f"{stage.name}: ADD, which fetches URLs and unpacks archives")
        if re.search(r"https?://|--(extra-)?index-url", " ".join(text for _, text in stage.instructions)):
            found.add(f"{stage.name}: names a host")
        for copied in stage.all("COPY"):
            *sources, _ = (word for word in shlex.split(copied) if not word.startswith("--"))
            origin = re.search(r"--from=(\S+)", copied)
            if origin:
                if origin[1] not in stages:
                    found.add(f"{stage.name}: copies from {origin[1]}, which is no stage")
            else:
                found |= {
                    f"{stage.name}: copies {one}, which is not there" for one in sources if not (ROOT / one).exists()
                }
    for name in FINAL:
        stage = stages[name]
        last = [kind for kind, _ in stage.instructions]
        if stage.all("USER")[-1:] in ([], ["root"], ["0"]):
            found.add(f"{name}: runs as root")
        elif any(kind in ("RUN", "COPY") for kind in last[last.index("USER") :]):
            found.add(f"{name}: changes files after USER")
        for kind in ("HEALTHCHECK", "ENTRYPOINT", "CMD"):
            if len(stage.all(kind)) != 1:
                found.add(f"{name}: has no {kind}")
    return found


def packages(extra: str) -> set[str]:
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return {re.split(r"[><=!~\[; ]", one)[0] for one in entries[extra]}


def test_nothing_is_wrong_with_it() -> None:
    assert findings(TEXT) == set()
    assert "latest" not in TEXT
    assert set(parse(TEXT)) == {"wheel", *FINAL}


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        (
            "python:3.12.8-slim-bookworm AS wheel",
            "python:latest AS wheel",
            "wheel: the base python:latest is not pinned",
        ),
        ("nvidia/cuda:13.0.1-", "nvidia/cuda:13.0-", "runtime: the base nvidia/cuda:13.0-"),
        ("COPY export ./export", "ADD export ./export", "wheel: ADD"),
        ("COPY export ./export", "COPY exporter ./export", "wheel: copies exporter, which is not there"),
        ("--from=wheel", "--from=wheels", "runtime: copies from wheels"),
        ("USER 10001\n", "", "runtime: runs as root"),
        ("USER 10001", "USER root", "export: runs as root"),
        ("USER 10001\n", "USER 10001\nRUN true\n", "runtime: changes files after USER"),
        ("HEALTHCHECK", "LABEL", "runtime: has no HEALTHCHECK"),
        ('ARG PIP_EXTRA_INDEX_URL=""', "ARG PIP_EXTRA_INDEX_URL=https://some.host/cpu", "export: names a host"),
    ],
)
def test_the_lint_finds(old: str, new: str, finding: str) -> None:
    assert old in TEXT
    assert any(one.startswith(finding) for one in findings(TEXT.replace(old, new)))


def installed(stage: Stage) -> set[str]:
    """What its pip is told to install: the packages of the extras, and those that are named."""
    commands = re.findall(r"pip install (.*?)(?: && |$)", " ".join(stage.all("RUN")))
    text = " ".join(commands)
    defaults = dict(argument.split("=", 1) for argument in stage.all("ARG"))
    names = re.search(r"whl\)\[(.*?)\]", text)
    assert names, "installs the wheel with extras"
    extras = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], names[1]).split(",")
    return {name for extra in extras for name in packages(extra)} | set(re.findall(r'"([a-z][\w-]+)[\[><=]', text))


def test_the_runtime_has_neither_torch_nor_scikit_learn() -> None:
    stages = parse(TEXT)
    forbidden = {"torch", "scikit-learn", "skops"}
    assert forbidden <= installed(stages["export"])
    assert "tensorrt-rtx" in installed(stages["export"])
    assert forbidden.isdisjoint(installed(stages["runtime"]))
    assert forbidden.isdisjoint(packages("cuda")), "the other EXTRAS"
    # onnxruntime: without a GPU it is the one target that works, and `doctor` runs while the image is built.
    assert {"tensorrt-rtx", "cupy-cuda13x", "onnxruntime"} <= installed(stages["runtime"])
    assert "find_spec, ('torch', 'sklearn')" in " ".join(stages["runtime"].all("RUN"))


def test_doctor_is_the_smoke_test() -> None:
    stages = parse(TEXT)
    assert "&& mpmmu-rt doctor " in " ".join(stages["runtime"].all("RUN"))
    assert stages["export"].all("HEALTHCHECK")[0].endswith('CMD ["mpmmu-rt", "doctor"]')
    # A CPU target works without a GPU as well: it must not hide that the GPU is gone.
    assert stages["runtime"].all("HEALTHCHECK")[0].endswith('CMD mpmmu-rt doctor --require "$TARGET"')
    (target,) = (text.partition("=")[2] for text in stages["runtime"].all("ARG") if text.startswith("TARGET="))
    assert known_engine(Target.parse(target)).name in ("tensorrt-rtx", "tensorrt")
    assert "TARGET=${TARGET}" in " ".join(stages["runtime"].all("ENV"))
    for name in FINAL:
        assert stages[name].all("ENTRYPOINT") == ['["mpmmu-rt"]']


def test_who_runs_it_may_write_where_it_is_told_to() -> None:
    """A folder of the host belongs to somebody there, who is not 10001."""
    (mounted,) = (line for line in TEXT.splitlines() if ' -v "$PWD:/data" ' in line)
    assert '--user "$(id -u):$(id -g)"' in mounted


def test_the_wheel_is_made_of_what_pyproject_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    copied = " ".join(parse(TEXT)["wheel"].all("COPY"))
    folders = {"mpmmu_rt", *project["tool"]["setuptools"]["package-dir"].values()}
    assert all(f"COPY {folder} ./{folder}\n" in TEXT for folder in folders)
    assert project["project"]["readme"] in copied
