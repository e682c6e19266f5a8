"""Everything that only a GPU can prove, in one command: `make gpu-evidence BUNDLE=model.bundle`.

    python -m benchmarks.gpu.evidence [BUNDLE] [--out FOLDER] [--seconds 570] [--expected FILE] [--targets TARGET …]

Two stages, each in a process of its own, both run whatever becomes of the other:

    whole path   `benchmarks.gpu.device_path`, with a BUNDLE: all but `KERNEL_SECONDS` of the time
    kernel       `benchmarks.gpu.kernel --gpu`, which needs CuPy: what is left

Each writes its results to results/<gpu>/, or to FOLDER, after every step, and leaves out what no longer fits; one that
does not end by itself is ended. `evidence.json` and `evidence.md` there say what became of both, and `<stage>.log`,
which is kept for a stage that failed, what it printed. The exit code is 0 if both have run and proven everything. No
network is needed; a machine without onnxruntime needs FILE, which `benchmarks.gpu.device_path --write-expected` makes
on another. **No GPU has run this yet.**
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.stage import (
    OUT_OF_TIME,
    Deadline,
    end_on_sigterm,
    parser,
    run_child,
    say,
    tail,
    versions,
    with_bundle,
)
from benchmarks.report import command, commit_of_tree, folder_of, save, table
from mpmmu_rt.engines.shared.gpu import gpu
from mpmmu_rt.errors import EngineError, MpmmuError

SECONDS = 570.0
KERNEL_SECONDS = 200.0  # kept for the kernel: its own plan without what is of least value
LEAST_SECONDS = 15.0  # with less, a stage is not begun
GRACE_SECONDS = 10.0  # after its own deadline, by which a stage ends by itself
NO_BUNDLE = "not run: no BUNDLE was given: make gpu-evidence BUNDLE=model.bundle"
Run = Callable[[list[str], float, Path], tuple[int | None, float]]


def stages(given: argparse.Namespace, folder: Path, commit: str) -> dict[str, list[str] | None]:
    """The command of each stage without its `--seconds`, the more valuable one first; None for one not asked for."""
    common = ["--out", str(folder), "--commit", commit]
    whole: list[str] | None = None
    if given.bundle is not None:
        whole = ["benchmarks.gpu.device_path", str(given.bundle.resolve()), *common]
        whole += ["--expected", str(given.expected.resolve())] if given.expected else []
        whole += ["--targets", *given.targets] if given.targets else []
    return {"device_path": whole, "attention_pool": ["benchmarks.gpu.kernel", "--gpu", *common]}


def run_all(
    asked: Mapping[str, list[str] | None],
    folder: Path,
    report: dict[str, Any],
    deadline: Deadline,
    run: Run = run_child,
) -> bool:
    """Run the stages in turn, and write the summary after each. True if none failed."""
    found: dict[str, Any] = {name: {"result": "not yet"} for name in asked}
    report["stages"] = found
    for name, stage in asked.items():
        save(folder, "evidence", report, markdown(report))
        # The last has all that is left, less what it takes to end it.
        left = deadline.left() - GRACE_SECONDS - (KERNEL_SECONDS if name == "device_path" else 0)
        if stage is None:
            found[name] = {"result": NO_BUNDLE}
        elif left < LEAST_SECONDS:
            found[name] = {"result": f"not run: {OUT_OF_TIME}", "failed": True}
        else:
            found[name] = one_stage(name, [*stage, "--seconds", f"{left:.0f}"], left, folder, run)
        print(f"{name}: {found[name]['result']}", file=sys.stderr)
        save(folder, "evidence", report, markdown(report))
    return not any(one.get("failed") for one in found.values())


def one_stage(name: str, command: list[str], seconds: float, folder: Path, run: Run) -> dict[str, Any]:
    print(f"{name}: at most {seconds:.0f} s, its output in {folder / name}.log", file=sys.stderr)
    log = folder / f"{name}.log"
    status, spent = run([sys.executable, "-m", *command], seconds + GRACE_SECONDS / 2, log)
    said = log.read_text(encoding="utf-8", errors="replace")
    print(said, file=sys.stderr)
    if status == 0:
        log.unlink()
        return {"result": "all has run and is proven", "status": 0, "seconds": spent}
    ended = f"ended after {spent:.0f} s: {OUT_OF_TIME}" if status is None else f"status {status}"
    return {"result": f"failed: {ended}", "failed": True, "status": status, "seconds": spent, "said": tail(log)}


def markdown(report: Mapping[str, Any]) -> str:
    rows = [
        (name, one["result"], f"{one['seconds']:.0f}" if "seconds" in one else "", last_line(one.get("said", "")))
        for name, one in report["stages"].items()
    ]
    return "\n".join(
        [
            f"# Evidence from {report['gpu']}",
            "",
            f"Made by `{report['command']}`.",
            "",
            f"{report['date']}, commit {report['commit']}. What each stage found is in `device_path.md` and "
            "`attention_pool.md`; what did not run is *not measured*.",
            "",
            table("stage | result | seconds | last word", rows),
            *(f"- {name}: {version}" for name, version in report["versions"].items()),
            "",
        ]
    )


def last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")[:300]


def main() -> int:
    options = parser(__doc__, SECONDS)
    with_bundle(options, required=False)
    given = options.parse_args()
    deadline = Deadline.after(given.seconds)
    end_on_sigterm()
    try:
        return 0 if evidence(given, deadline) else 1
    except MpmmuError as error:
        return say(error)


def evidence(given: argparse.Namespace, deadline: Deadline) -> bool:
    here = gpu()
    if here is None:
        raise EngineError(
            "there is no NVIDIA GPU and driver here, expected one: nothing is measured and nothing is written",
            hint="run `make gpu-evidence BUNDLE=model.bundle` on a machine with a GPU",
        )
    folder = (given.out or folder_of(here.name)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    commit = given.commit or commit_of_tree()
    report: dict[str, Any] = {
        "gpu": here.name,
        "capability": here.capability,
        "command": command(),
        "commit": commit,
        "date": datetime.now(UTC).isoformat(),
        "seconds": given.seconds,
        "versions": versions(),
    }
    return run_all(stages(given, folder, commit), folder, report, deadline)


if __name__ == "__main__":
    sys.exit(main())
