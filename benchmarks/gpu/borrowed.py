"""Everything that a borrowed GPU without a network can prove, in one command: `make gpu-run`.

    python -m benchmarks.gpu.borrowed [--parts PART …] [--seconds 390] [--out FOLDER]

In this order (what GPUs have said least of comes first), each in a process of its own, with a deadline in proportion to
what it needs (seconds; `kernel`, `blocks`, `torch` and `compile` took 108, 90, 119 and 123 on an H200, of which `torch`
alone had time for all):

    100 s   onnxruntime   onnxruntime-cuda, FP32 and FP16, on the device path and not; and with its own CUDA graphs
    140 s   torch         the device path with torch's encoders and head, FP32 and FP16, beside torch eager
     25 s   profile       the kernel under Nsight Compute
    120 s   kernel        the attention pool kernel: right, how fast beside its rivals, and clean under sanitizers
    100 s   blocks        in-block attention by our kernels: right, and how fast
    120 s   compile       torch.compile on the whole model, which compiles for half a minute for each batch size
     45 s   convolution   which of cuDNN's convolutions are FP32 at which batch, as onnxruntime-gpu asks for them

What one does not use goes to those that follow. All but `kernel`, `blocks` and `profile` need the packs of `make
gpu-pack` in .gpu-pack/, or what an earlier call has unpacked to .gpu-run/. After each part FOLDER holds `evidence.md`,
which says what became of each, `evidence.json`, and `results.tar.gz` with all that was found. The exit code is 0 if all
that was asked for has run and is proven.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.evidence import Part, report_of, run_all
from benchmarks.gpu.stage import Deadline, end_on_sigterm, failure, no_gpu, parser, say
from benchmarks.gpu.unpack import BUNDLE, EXPECTED, environment, unpack_bundle
from benchmarks.report import ROOT, commit_of_tree
from mpmmu_rt.engines.shared.gpu import gpu
from mpmmu_rt.errors import MpmmuError, UsageError

SECONDS = 390.0
WEIGHTS = {
    **{"onnxruntime": 100.0, "torch": 140.0, "profile": 25.0, "kernel": 120.0, "blocks": 100.0, "compile": 120.0},
    "convolution": 45.0,
}
PACKS, PLACE = ROOT / ".gpu-pack", ROOT / ".gpu-run"
# The more telling batch sizes first; torch is compiled for two alone.
BATCHES, COMPILED = ("32", "1", "8", "128"), ("32", "1")
TARGETS = {
    "torch": ("torch:fp16", "torch:fp32"),
    "onnxruntime": (
        *("onnxruntime-cuda:fp32", "onnxruntime-cuda:fp16"),
        *("onnxruntime-cuda-graph:fp16", "onnxruntime-cuda-graph:fp32"),
    ),
    "compile": ("torch-compile:fp16", "torch-compile:fp32"),
}


class Prepared:
    """What the packs hold, unpacked when it is first asked for."""

    def __init__(self, packs: Path = PACKS, place: Path = PLACE) -> None:
        self._packs, self._place = packs, place

    def bundle(self) -> tuple[Path, Path]:
        """The bundle, and its expected answers."""
        into = self._place / "bundle"
        if not (into / BUNDLE).is_dir():
            partial = self._place / "bundle.partial"
            shutil.rmtree(partial, ignore_errors=True)
            unpack_bundle(self._pack("bundle"), partial)
            partial.rename(into)
        return into / BUNDLE, into / EXPECTED

    def python(self) -> Path:
        """The interpreter of the environment with onnxruntime-gpu."""
        into = self._place / "onnxruntime"
        if not (done := into / "done").exists():
            environment(self._pack("onnxruntime"), into)
            done.touch()
        return into / "bin/python"

    def _pack(self, name: str) -> Path:
        if not (self._packs / name).is_dir():
            raise UsageError(
                f"{self._packs.name}/{name} is not here, expected a pack", hint="make gpu-pack, and carry what it wrote"
            )
        return self._packs / name


def command_of(name: str, prepared: Prepared, common: list[str]) -> list[str]:
    """Raises what unpacking does."""
    if name == "kernel":
        return [sys.executable, "-m", "benchmarks.gpu.kernel", "--gpu", *common]
    if name == "blocks":
        return [sys.executable, "-m", "benchmarks.gpu.blocks", *common]
    if name == "profile":
        return [sys.executable, "-m", "benchmarks.gpu.kernel_profile", *common]
    bundle, expected = prepared.bundle()
    python = str(prepared.python()) if name in ("onnxruntime", "convolution") else sys.executable
    if name == "convolution":
        return [python, "-m", "benchmarks.gpu.convolution", str(bundle), "--expected", str(expected), *common]
    return [
        *(python, "-m", "benchmarks.gpu.device_path", str(bundle), "--expected", str(expected)),
        *("--name", f"device_path_{name}", "--targets", *TARGETS[name]),
        *("--batches", *(COMPILED if name == "compile" else BATCHES), *common),
    ]


def parts(names: list[str], prepared: Prepared, common: list[str]) -> list[Part]:
    found: list[Part] = []
    for name in names:
        command: list[str] | str
        try:
            command = command_of(name, prepared, common)
        except Exception as error:  # noqa: BLE001  # a pack that is damaged in any way costs its own parts alone
            command = failure(error)
        found.append(Part(name, command, WEIGHTS[name]))
    return found


def hand_over(results: Path, out: Path) -> None:
    """All results in few files, which is what comes back from a borrowed machine."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("evidence.md", "evidence.json"):
        shutil.copyfile(results / name, out / name)
    with tarfile.open(out / "results.tar.gz", "w:gz") as opened:
        opened.add(results, "results")


def prove(names: list[str], out: Path, commit: str, seconds: float, prepared: Prepared) -> bool:
    deadline = Deadline.after(seconds)
    here = gpu()
    if here is None:
        raise no_gpu("run `make gpu-run` on a machine with a GPU")
    results = PLACE / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    report: dict[str, Any] = report_of(here, commit, seconds)
    asked = parts(names, prepared, ["--out", str(results), "--commit", commit])
    passed = run_all(asked, results, report, deadline, keep=lambda: hand_over(results, out))
    print((results / "evidence.md").read_text(encoding="utf-8"))
    return passed


def main() -> int:
    options = parser(__doc__, SECONDS)
    options.add_argument("--parts", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    given = options.parse_args()
    end_on_sigterm()
    try:
        commit = given.commit or commit_of_tree()
        passed = prove(given.parts, given.out or PLACE / "out", commit, given.seconds, Prepared())
    except MpmmuError as error:
        return say(error)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
