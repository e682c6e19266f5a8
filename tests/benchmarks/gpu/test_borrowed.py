"""`make gpu-run`: every part runs whatever becomes of the others, and few files hold all that was found."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import borrowed, kernel_profile, unpack
from benchmarks.gpu.borrowed import Prepared, parts
from benchmarks.report import ROOT
from mpmmu_rt.engines.shared.gpu import Gpu, gpu
from mpmmu_rt.errors import EngineError, MissingPackage, UsageError


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that has a GPU, by its own word."""
    monkeypatch.setattr(borrowed, "gpu", lambda: Gpu("H100", 90))
    monkeypatch.setattr(borrowed, "PLACE", tmp_path / "run")
    return tmp_path


def child(folder: Path, code: str) -> list[str]:
    """A part that writes `said` to the folder that it is given, as a script of its own."""
    script = folder / "child.py"
    script.write_text(code)
    return [sys.executable, str(script)]


CODE = """
import pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
name, seconds = sys.argv[1], float(sys.argv[-1])
assert sys.argv[-2] == "--seconds" and 15 <= seconds < 300
if name == "kernel":
    sys.exit("the kernel is wrong")
(out / f"{name}.md").write_text("found")
"""


@pytest.mark.slow
def test_each_part_runs_and_few_files_hold_all(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command_of(name: str, prepared: Prepared, common: list[str]) -> list[str]:
        if name == "onnxruntime":
            raise EOFError("the pack ends early")
        return [*child(here, CODE), name, *common]

    monkeypatch.setattr(borrowed, "command_of", command_of)
    out = here / "out"
    assert not borrowed.prove(["torch", "kernel", "onnxruntime", "profile"], out, "abc", 300, Prepared())
    assert sorted(path.name for path in out.iterdir()) == ["evidence.json", "evidence.md", "results.tar.gz"]
    found = json.loads((out / "evidence.json").read_text())["stages"]
    assert [(name, one.get("failed", False)) for name, one in found.items()] == [
        ("torch", False),
        ("kernel", True),
        ("onnxruntime", True),
        ("profile", False),
    ]
    assert "the kernel is wrong" in (out / "evidence.md").read_text()
    assert found["onnxruntime"]["result"] == "not run: EOFError: the pack ends early"
    with tarfile.open(out / "results.tar.gz") as opened:
        assert {"results/torch.md", "results/profile.md", "results/kernel.log", "results/evidence.md"} <= set(
            opened.getnames()
        )


def test_a_part_without_its_pack_says_so_and_costs_no_other(tmp_path: Path) -> None:
    found = {one.name: one.command for one in parts(list(borrowed.WEIGHTS), Prepared(tmp_path, tmp_path), ["--x"])}
    for name in ("torch", "onnxruntime", "convolution", "compile"):
        assert str(found[name]).startswith("UsageError: ")
        assert "bundle is not here, expected a pack" in found[name]
    for name, module in {"kernel": "kernel", "blocks": "blocks", "profile": "kernel_profile"}.items():
        assert found[name][:3] == [sys.executable, "-m", f"benchmarks.gpu.{module}"]
        assert (ROOT / "benchmarks/gpu" / f"{module}.py").is_file()


def test_a_pack_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a machine is still warm it need not be carried again."""
    made: list[str] = []

    def unpack_bundle(pack: Path, into: Path) -> None:
        made.append("bundle")
        (into / unpack.BUNDLE).mkdir(parents=True)
        if len(made) == 1:
            raise UsageError("the pack is damaged")

    def environment(pack: Path, into: Path) -> None:
        made.append("environment")
        (into / "bin").mkdir(parents=True)

    monkeypatch.setattr(borrowed, "unpack_bundle", unpack_bundle)
    monkeypatch.setattr(borrowed, "environment", environment)
    packs, place = tmp_path / "packs", tmp_path / "place"
    for name in ("bundle", "onnxruntime"):
        (packs / name).mkdir(parents=True)
    with pytest.raises(UsageError, match="damaged"):
        Prepared(packs, place).bundle()
    Prepared(packs, place).bundle()
    Prepared(packs, place).python()
    shutil.rmtree(packs)
    found = {one.name: one.command for one in parts(list(borrowed.WEIGHTS), Prepared(packs, place), [])}
    assert made == ["bundle", "bundle", "environment"]
    assert found["onnxruntime"][0] == str(place / "onnxruntime/bin/python")
    assert found["convolution"][:4] == [
        *(str(place / "onnxruntime/bin/python"), "-m", "benchmarks.gpu.convolution"),
        str(place / "bundle/reference.bundle"),
    ]
    for part, targets in {
        "torch": ["torch:fp16", "torch:fp32"],
        "onnxruntime": ["onnxruntime-cuda:fp32", "onnxruntime-cuda:fp16"],
        "compile": ["torch-compile:fp16", "torch-compile:fp32"],
    }.items():
        command = list(found[part])
        assert command[3:6] == [
            str(place / "bundle/reference.bundle"),
            "--expected",
            str(place / "bundle/expected.npz"),
        ]
        assert command[command.index("--targets") + 1 :][:2] == targets
        assert command[command.index("--name") + 1] == f"device_path_{part}"


def test_without_a_gpu_it_ends_at_once_and_writes_nothing(tmp_path: Path) -> None:
    """The very recipe of the Makefile."""
    if gpu() is not None:
        pytest.skip("there is a GPU")
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "--silent", "gpu-run", f"PYTHON={sys.executable}", f"OUT={tmp_path / 'out'}", "SECONDS=30"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert [line.partition(":")[0] for line in said] == ["error", "hint"]
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------ Nsight Compute

METRICS = """==PROF== Connected to process 7
==PROF== Profiling "attention_pool": 0%....50%....100% - 38 passes
cluster of 8
==PROF== Disconnected from process 7
"ID","Process ID","Kernel Name","gpu__time_duration.sum","launch__registers_per_thread","dram__bytes_read.sum"
"","","","us","register/thread","Mbyte"
"0","7","attention_pool_statistics","7.2","72","5.0"
"1","7","attention_pool_hidden","52.1","150","12.9"
"""


def tool(folder: Path, body: str) -> None:
    path = folder / "ncu"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_metrics_are_read_from_what_the_profiler_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "said").write_text(METRICS)
    tool(tmp_path, f'echo "$@" > {tmp_path}/asked; cat {tmp_path}/said')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = kernel_profile.profile("float16", 32, 20)
    assert found["attention_pool_hidden"]["gpu__time_duration.sum"] == "52.1 us"
    assert found["attention_pool_hidden"]["launch__registers_per_thread"] == "150 register/thread"
    assert found["attention_pool_statistics"]["gpu__time_duration.sum"] == "7.2 us"
    asked = (tmp_path / "asked").read_text()
    assert "--clock-control none" in asked
    assert f"{sys.executable} -m benchmarks.gpu.kernel_profile --launch --element float16 --batch 32" in asked
    report: dict[str, Any] = dict.fromkeys(("gpu", "command", "date", "commit", "element", "batch"), "x")
    text = kernel_profile.markdown(report | {"metrics": found})
    assert "| gpu__time_duration.sum | 7.2 us | 52.1 us |" in text
    assert "| smsp__inst_executed.sum | *not measured* | *not measured* |" in text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo '==ERROR== ERR_NVGPUCTRPERM'; exit 1", "ncu ended with status 1 .*ERR_NVGPUCTRPERM"),
        ("echo '==WARNING== No kernels were profiled.'", "ncu gave no metrics: ==WARNING== No kernels were profiled"),
    ],
)
def test_a_profiler_that_may_not_or_finds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    tool(tmp_path, body)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(EngineError, match=words):
        kernel_profile.profile("float16", 32, 20)


def test_a_profiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(kernel_profile, "_PLACES", ("/nowhere",))
    with pytest.raises(MissingPackage, match="expected Nsight Compute"):
        kernel_profile.profiler()
