"""Is the attention pool kernel right on this GPU: against the float64 reference, and under compute-sanitizer."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.stage import NEVER, OUT_OF_TIME, Deadline, failure, run_child, tail
from mpmmu_rt._optional import require
from mpmmu_rt.kernels import check
from mpmmu_rt.kernels.attention_pool import SOURCE, AttentionPool, Pool, compiled, device_facts
from mpmmu_rt.kernels.plan import ELEMENT_BYTES, Branch, ElementType, Strategy, candidates
from mpmmu_rt.kernels.source import source_of
from mpmmu_rt.machine import usable_threads

SANITIZER_SECONDS = 60.0  # for each tool
FOUND = 9  # compute-sanitizer's exit status for an error that it found
PLANTED = ("#define PLANTED_OVERREAD 0", "#define PLANTED_OVERREAD 64")
PASSED, NOT_INSTALLED = "passed", "not measured: compute-sanitizer is not installed"


Work = tuple[tuple[Pool, Pool], Strategy]


@dataclass(frozen=True)
class Part:
    """One set of inputs: every kind of strategy runs on it."""

    shape: check.Shape
    element: ElementType
    channels_last: bool

    def work(self) -> list[Work]:
        pools = self.shape.pools()
        return [(pools, one) for one in self.strategies()]

    def strategies(self) -> list[Strategy]:
        given = (branches_of(self.shape.pools()), self.shape.cases, self.element, self.channels_last, device_facts())
        any_size = candidates(*given, specialised=())
        return one_of_each_kind([*candidates(*given), *any_size])


def parts(shapes: Iterable[check.Shape], elements: Iterable[ElementType] = ELEMENT_BYTES) -> list[Part]:
    return [Part(*one) for one in product(shapes, elements, (False, True))]


def branches_of(pools: tuple[Pool, Pool]) -> tuple[Branch, Branch]:
    return pools[0].branch, pools[1].branch


def one_of_each_kind(found: Sequence[Strategy]) -> list[Strategy]:
    """The first of each compiled kernel and number of samples at once: they run different code."""
    kinds: dict[tuple[object, ...], Strategy] = {}
    for one in found:
        kinds.setdefault((one.stages, *((layout.fixed, min(layout.samples, 2)) for layout in one.layouts)), one)
    return list(kinds.values())


# ---------------------------------------------------------------- compile


class Ahead:
    """Compiles kernels on all processors before they are asked for: NVRTC takes a second or two for each of a hundred.

    CuPy lets go of the interpreter while it compiles, and keeps what it has compiled: an `AttentionPool` that is made
    later finds it. It meets what failed here again, and raises it.
    """

    def __init__(self) -> None:
        self._cupy = require("cupy", "this benchmark")
        self._device = self._cupy.cuda.Device().id
        self._pool = ThreadPoolExecutor(max(1, min(16, usable_threads())))
        self._asked: dict[tuple[str, ...], Future[None]] = {}

    def ask(self, work: Iterable[Work]) -> None:
        for pools, one in work:
            options = one.options(branches_of(pools))
            if options not in self._asked:
                self._asked[options] = self._pool.submit(self._compile, pools, one)

    def _compile(self, pools: tuple[Pool, Pool], strategy: Strategy) -> None:
        with self._cupy.cuda.Device(self._device):
            # The launcher's own call, so that what is compiled here is what it will ask for.
            compiled(self._cupy, pools, strategy)

    def wait(self, pools: tuple[Pool, Pool], strategy: Strategy) -> None:
        """Until it is compiled, where it was asked for; whatever came of it."""
        future = self._asked.get(strategy.options(branches_of(pools)))
        if future and not future.cancelled():
            future.exception()

    def finish(self, deadline: Deadline) -> None:
        """Until all are compiled, so that nothing else runs while times are taken; at the deadline drop the rest."""
        for future in self._asked.values():
            if not (deadline.passed and future.cancel()):
                future.exception()

    def failures(self) -> list[str]:
        done = [future for future in self._asked.values() if future.done() and not future.cancelled()]
        return [failure(error) for future in done if (error := future.exception())]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


# ---------------------------------------------------------------- right?


def validate(
    wanted: Iterable[Part],
    *,
    ahead: Ahead | None = None,
    deadline: Deadline = NEVER,
    keep: Callable[[list[dict[str, Any]]], object] = lambda rows: None,
    chosen: Callable[[Strategy], bool] = lambda strategy: True,
) -> list[dict[str, Any]]:
    """Every kind of strategy against the reference, a row each; `failed` for one that is wrong or raised.

    keep: is given the rows of each part as soon as they are there. What no longer fits gets a row `not_run`.
    """
    done: list[dict[str, Any]] = []
    for part in wanted:
        about = {"shape": str(part.shape), "element": part.element, "channels_last": part.channels_last}
        try:
            rows = [about | {"not_run": OUT_OF_TIME}] if deadline.passed else _rows(part, ahead, deadline, chosen)
            rows = [about | row for row in rows]
        except Exception as error:  # noqa: BLE001  # of CuPy and CUDA, all kinds: recorded, and the rest goes on
            rows = [about | {"failed": failure(error)}]
        keep(rows)
        done += rows
    return done


def _rows(
    part: Part, ahead: Ahead | None, deadline: Deadline, chosen: Callable[[Strategy], bool]
) -> list[dict[str, Any]]:
    cupy = require("cupy", "this benchmark")
    pools = part.shape.pools()
    maps = [check.to_element(x, part.element) for x in check.random_maps(pools, part.shape.cases, seed=2)]
    want = check.reference(pools, (maps[0][1], maps[1][1]))
    first, second = (
        cupy.asarray(np.ascontiguousarray(x.transpose(0, 2, 3, 1) if part.channels_last else x)) for x, _ in maps
    )
    rows: list[dict[str, Any]] = []
    for one in filter(chosen, part.strategies()):
        row: dict[str, Any] = {"strategy": str(one)}
        rows.append(row)
        if deadline.passed:
            row["not_run"] = OUT_OF_TIME
            continue
        try:
            if ahead:
                ahead.wait(pools, one)
            pool = AttentionPool(pools, part.shape.cases, part.element, channels_last=part.channels_last, strategy=one)
            out = cupy.full((part.shape.cases, pool.columns), np.nan, np.float32)  # poisoned: all must be written
            got = pool(first, second, out=out).get()
            again, counts = pool.traced(first, second)
            row |= {"difference": check.difference(got, want), **counts, "resources": pool.resources()}
            if wrong := _wrong(part, row, got.tobytes() == again.get().tobytes()):
                row["failed"] = "; ".join(wrong)
        except Exception as error:  # noqa: BLE001  # of CuPy and CUDA, all kinds: recorded, and the rest goes on
            row["failed"] = failure(error)
    return rows


def _wrong(part: Part, row: dict[str, Any], same: bool) -> list[str]:
    """Also whether it read what it has to: CBAM's feature map three times, the others once."""
    found = []
    limit = check.TOLERANCE[part.element]
    if not row["difference"] <= limit:
        found.append(f"relative difference {row['difference']:.2e}, expected ≤ {limit:.0e}")
    if not same:
        found.append("a second run gave something else")
    for modality, pool in zip(("mammography", "ultrasound"), part.shape.pools(), strict=True):
        times = 3 if pool.weights.kind == "cbam" else 1
        wanted = times * part.shape.cases * pool.branch.channels * pool.branch.positions
        if row[f"{modality}_elements"] != wanted:
            found.append(f"loaded {row[f'{modality}_elements']} elements of {modality}, expected {wanted}")
    return found


# ---------------------------------------------------------------- compute-sanitizer


def checked_by_sanitizer(seconds: float) -> tuple[int, int]:
    """What runs under compute-sanitizer: results that are right, and those that no longer fitted in.

    Raises `RuntimeError` for one that is wrong. CuPy's memory pool is off: allocations are exact, and memcheck sees
    what reads past them. The product's pair of attentions in every element type and layout, specialised and not; then
    other pairs in one of them.
    """
    require("cupy", "this benchmark").cuda.set_allocator(None)
    wanted = [*parts(check.SMALL[:1]), *parts(check.SPECIALISED)]
    wanted += [Part(one, "float32", False) for one in check.SMALL[1:4]]
    wanted.sort(key=lambda part: part.channels_last)
    rows = validate(wanted, deadline=Deadline.after(seconds))
    wrong = [row for row in rows if "failed" in row]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(rows)} are wrong, first {wrong[0]}")
    return sum("difference" in row for row in rows), sum("not_run" in row for row in rows)


class Overreading(AttentionPool):
    """The kernel with a mistake: it reads 64 elements past the end of a feature map."""

    def _compile(self) -> tuple[Any, ...]:
        text = source_of(SOURCE)
        if text.count(PLANTED[0]) != 1:
            raise RuntimeError(f"{SOURCE} has no `{PLANTED[0]}` to plant the mistake in")
        return compiled(self._cupy, self.pools, self.strategy, text.replace(*PLANTED))


def overread() -> None:
    """Run it once: what memcheck has to catch."""
    cupy = require("cupy", "this benchmark")
    cupy.cuda.set_allocator(None)
    shape = check.SMALL[1]  # of an odd number of elements: it is not copied in chunks of 16 bytes, but one by one
    pools = shape.pools()
    first, second = (cupy.asarray(x.astype(np.float32)) for x in check.random_maps(pools, shape.cases, seed=2))
    out = cupy.zeros((shape.cases, sum(pool.branch.channels for pool in pools)), np.float32)
    Overreading(pools, shape.cases, "float32")(first, second, out=out)
    cupy.cuda.Device().synchronize()


def sanitizer() -> str | None:
    """The program; None where it is not installed."""
    if found := shutil.which("compute-sanitizer"):
        return found
    homes = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")), *sorted(Path("/usr/local").glob("cuda-*"))]
    places = [home / "bin/compute-sanitizer" for home in homes]
    return next((str(place) for place in places if place.is_file()), None)


def sanitize(
    tool: str, seconds: float = SANITIZER_SECONDS, *, planted: bool = False, module: str = "benchmarks.gpu.kernel"
) -> dict[str, Any]:
    """compute-sanitizer over the small shapes in a process of its own: `result`, and what it said unless it passed.

    planted: over the kernel with a mistake, which it has to catch to pass. module: whose `--check` runs.
    """
    program = sanitizer()
    if program is None:
        return {"result": NOT_INSTALLED}
    what = ["--overread"] if planted else ["--check", "--seconds", f"{max(10.0, seconds - 15):.0f}"]
    command = [
        program,
        "--tool",
        tool,
        "--error-exitcode",
        str(FOUND),
        sys.executable,
        "-m",
        module,
    ]
    with tempfile.TemporaryDirectory(prefix="evidence-") as folder:
        log = Path(folder) / "log"
        status, spent = run_child([*command, *what], seconds, log)
        said = log.read_text(encoding="utf-8", errors="replace")
        return {"seconds": spent} | verdict(status, said, tail(log), planted=planted)


def verdict(status: int | None, said: str, end: str, *, planted: bool) -> dict[str, Any]:
    """Of a run of compute-sanitizer: its exit status, None where it did not end, and its output."""
    if status is None:
        return {"result": "failed: not finished in time", "said": end}
    if planted:
        if status == FOUND and "Invalid __global__ read" in said:
            return {"result": PASSED, "summary": "the planted read past the end was caught"}
        return {"result": f"failed: the planted read past the end was not caught (status {status})", "said": end}
    right = re.search(r"^\d+ results are right.*$", said, re.MULTILINE)
    clean = re.search(r"SUMMARY: 0 (errors|hazards).*$", said, re.MULTILINE)
    if status == 0 and right and clean:
        return {"result": PASSED, "summary": f"{right[0]}; {clean[0]}"}
    return {"result": f"failed with status {status}", "said": end}
