"""Everything that only a GPU can prove, in one command: `make gpu-evidence BUNDLE=model.bundle`.

    python -m benchmarks.gpu.evidence [BUNDLE] [--out FOLDER] [--seconds 570] [--expected FILE] [--targets TARGET …]

Two parts, each in a process of its own, both run whatever becomes of the other:

    device_path      `benchmarks.gpu.device_path`, with a BUNDLE: two thirds of the time
    attention_pool   `benchmarks.gpu.kernel --gpu`, which needs CuPy: what is left

Each writes its results to results/<gpu>/, or to FOLDER, after every step, and leaves out what no longer fits; one that
does not end by itself is ended. `evidence.json` and `evidence.md` there say what became of each, and `<part>.log`,
which is kept for a part that failed, what it printed. The exit code is 0 if both have run and proven everything. No
network is needed; a machine without onnxruntime needs FILE, which `benchmarks.gpu.device_path --write-expected` makes
on another. **No GPU has run this yet.**
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.stage import (
    OUT_OF_TIME,
    Deadline,
    conditions,
    end_on_sigterm,
    no_gpu,
    parser,
    run_child,
    say,
    tail,
    with_bundle,
)
from benchmarks.report import commit_of_tree, folder_of, save, table
from mpmmu_rt.engines.shared.gpu import Gpu, gpu
from mpmmu_rt.errors import MpmmuError

SECONDS = 570.0
LEAST_SECONDS = 15.0  # with less, a part is not begun
GRACE_SECONDS = 10.0  # after its own deadline, by which a part ends by itself
NO_BUNDLE = "no BUNDLE was given: make gpu-evidence BUNDLE=model.bundle"
Run = Callable[[list[str], float, Path], tuple[int | None, float]]


@dataclass(frozen=True)
class Part:
    """name: of its log. command: of a module, without its `--seconds`, or why there is none, which is a failure if it
    is `required`. weight: its share of the time; what it does not use goes to those that follow."""

    name: str
    command: list[str] | str
    weight: float
    required: bool = True


def parts(given: argparse.Namespace, folder: Path, commit: str) -> list[Part]:
    """The more valuable one first."""
    common = ["--out", str(folder), "--commit", commit]
    whole: list[str] | str = NO_BUNDLE
    if given.bundle is not None:
        whole = [sys.executable, "-m", "benchmarks.gpu.device_path", str(given.bundle.resolve()), *common]
        whole += ["--expected", str(given.expected.resolve())] if given.expected else []
        whole += ["--targets", *given.targets] if given.targets else []
    kernel = [sys.executable, "-m", "benchmarks.gpu.kernel", "--gpu", *common]
    return [Part("device_path", whole, 370, required=given.bundle is not None), Part("attention_pool", kernel, 200)]


def run_all(
    asked: Sequence[Part],
    folder: Path,
    report: dict[str, Any],
    deadline: Deadline,
    run: Run = run_child,
    keep: Callable[[], object] = lambda: None,
) -> bool:
    """Run the parts in turn, and write the summary after each; keep: called then. True if none failed."""
    found: dict[str, Any] = {part.name: {"result": "not yet"} for part in asked}
    report["stages"] = found
    for index, part in enumerate(asked):
        save(folder, "evidence", report, markdown(report))
        later = [one.weight for one in asked[index + 1 :] if not isinstance(one.command, str)]
        share = deadline.left() * part.weight / (part.weight + sum(later)) - GRACE_SECONDS
        if isinstance(part.command, str):
            found[part.name] = {"result": f"not run: {part.command}", "failed": part.required}
        elif share < LEAST_SECONDS:
            found[part.name] = {"result": f"not run: {OUT_OF_TIME}", "failed": True}
        else:
            found[part.name] = one_part(part.name, [*part.command, "--seconds", f"{share:.0f}"], share, folder, run)
        print(f"{part.name}: {found[part.name]['result']}", file=sys.stderr)
        save(folder, "evidence", report, markdown(report))
        keep()
    return not any(one.get("failed") for one in found.values())


def one_part(name: str, command: list[str], seconds: float, folder: Path, run: Run) -> dict[str, Any]:
    print(f"{name}: at most {seconds:.0f} s, its output in {folder / name}.log", file=sys.stderr)
    log = folder / f"{name}.log"
    status, spent = run(command, seconds + GRACE_SECONDS / 2, log)
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
            f"{report['date']}, commit {report['commit']}. What each part found is in a page of its own; what did not "
            "run is *not measured*.",
            "",
            table("part | result | seconds | last word", rows),
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
        raise no_gpu("run `make gpu-evidence BUNDLE=model.bundle` on a machine with a GPU")
    folder = (given.out or folder_of(here.name)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    commit = given.commit or commit_of_tree()
    report = report_of(here, commit, given.seconds)
    return run_all(parts(given, folder, commit), folder, report, deadline)


def report_of(here: Gpu, commit: str, seconds: float) -> dict[str, Any]:
    """Before any part has run."""
    return {**conditions(here.name, commit), "capability": here.capability, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())
