"""The attention pool kernel: what the compiler says of it, and on a GPU whether it is right and how long it takes.

    python benchmarks/attention_pool.py --resources     needs nvcc, no GPU; writes results/attention_pool_resources.md
    python benchmarks/attention_pool.py --gpu           writes results/<gpu>/attention_pool.json and .md

`--gpu` first checks every kind of strategy in every element type and layout against the float64 reference, and runs
compute-sanitizer where it is installed; only then it times. A time is the difference of two CUDA events around
replays of a CUDA graph that holds many launches, divided by their number; the median of REPEATS. "cold": the launches
take turns over input sets of three times the L2 cache together. "warm": one input set, as after an encoder that has
just written it. The floor is `plan.floor` at the bandwidth of a device-to-device copy that is measured first, or an
empty launch in the same kind of graph, whichever is longer. torch is timed on the same cold input sets, with events
around as many calls.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mpmmu_rt import machine
from mpmmu_rt._optional import require
from mpmmu_rt.errors import MpmmuError, ParityError
from mpmmu_rt.kernels import check
from mpmmu_rt.kernels.attention_pool import AttentionPool, Pool, device_facts
from mpmmu_rt.kernels.plan import (
    ELEMENT_BYTES,
    SAMPLES,
    Device,
    ElementType,
    Floor,
    Strategy,
    candidates,
    choose,
    floor,
)
from mpmmu_rt.kernels.resources import ARCHITECTURES, instances, with_nvcc

RESULTS = Path(__file__).with_name("results")
BATCHES = (1, 8, 32, 128)
REPEATS = 9
TIMED_MAPS: tuple[tuple[int, ElementType], ...] = ((7, "float16"), (7, "float32"), (32, "float16"))
TIMED = 6  # strategies for each batch: the preferred ones, and the preferred one of each exchange and route
# By data sheet and programming guide, for the table of what would be chosen.
KNOWN = {
    "A100 (8.0)": Device((8, 0), 108, 163 << 10, 164 << 10, 40 << 20),
    "RTX 4090 (8.9)": Device((8, 9), 128, 99 << 10, 100 << 10, 72 << 20),
    "H200 (9.0)": Device((9, 0), 132, 227 << 10, 228 << 10, 50 << 20),
    "RTX 5090 (12.0)": Device((12, 0), 170, 99 << 10, 100 << 10, 96 << 20),
}


def product(size: int) -> tuple[Pool, Pool]:
    """The reference model's two pools: 2048 channels, CBAM with 128 hidden units, ECA across 7 channels."""
    cbam = check.random_pool("cbam", 2048, size, size, seed=0, hidden=128)
    return cbam, check.random_pool("eca", 2048, size, size, seed=1, size=7)


def table(header: str, rows: Iterable[Iterable[object]]) -> str:
    columns = header.count("|") + 1
    lines = [f"| {header} |", "|" + "---|" * columns, *(f"| {' | '.join(map(str, row))} |" for row in rows)]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- without a GPU


def resources() -> str:
    """Every instance for every architecture, as Markdown. Raises `EngineError` without nvcc."""
    rows = []
    for architecture in ARCHITECTURES:
        found = {one.name: one for one in with_nvcc(architecture, instances(architecture))}
        for exchange in ("alone", "cluster", "grid"):
            part = [one for one in found.values() if f"_{exchange}_" in one.name]
            for samples in SAMPLES if part else ():
                some = [one for one in part if one.name.endswith(f"_{samples}")]
                registers = sorted({one.registers for one in some})
                spills = sum(one.spill_bytes + one.stack_bytes for one in some)
                shared = max(one.shared_bytes for one in some)
                span = f"{registers[0]} to {registers[-1]}" if len(registers) > 1 else registers[0]
                rows.append((architecture, exchange, samples, len(some), span, shared, spills))
        print(f"sm_{architecture}: {len(found)} kernels", file=sys.stderr)
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release [\d.]+, V[\d.]+", version)
    return f"""# Attention pool kernel: resources, floor and choice

Made by `python benchmarks/attention_pool.py --resources`. No GPU was used: nothing on this page is a time.

## What ptxas says

nvcc {release[0] if release else version}, `-std=c++17`, 256 threads. Each row: float32, float16 and bfloat16, channels
first and last. Shared memory is dynamic: its size is in the third table.

{
        table(
            "sm | exchange | samples at once | kernels | registers | static shared, bytes | spills and stack, bytes",
            rows,
        )
    }
## Floor

2048 channels, CBAM (128 hidden units) and ECA. Bytes: feature maps and float32 weights read once, embedding written
once. One launch.

{table("feature map | element | batch | bytes | operations", floors())}
## What is chosen

By the cost model of `kernels/plan.py`, which no measurement has confirmed: *not measured*. "held": CBAM's feature map
stays in shared memory; "re-read": it does not; "one pass": ECA.

{table("device | feature map | element | batch | strategy | shared memory of a block, bytes", choices())}"""


def floors() -> Iterable[tuple[object, ...]]:
    for size in (7, 32):
        branches = (product(size)[0].branch, product(size)[1].branch)
        for element in ("float32", "float16"):
            for batch in BATCHES:
                least = floor(branches, batch, element)
                yield f"{size} x {size}", element, batch, f"{least.bytes:,}", f"{least.operations:,}"


def choices() -> Iterable[tuple[object, ...]]:
    for name, device in KNOWN.items():
        for size in (7, 32):
            branches = (product(size)[0].branch, product(size)[1].branch)
            for batch in BATCHES:
                one = choose(branches, batch, "float16", False, device)
                yield name, f"{size} x {size}", one.element, batch, one, f"{one.shared_bytes:,}"


# ---------------------------------------------------------------- right?


def one_of_each_kind(found: list[Strategy]) -> list[Strategy]:
    """The first of each exchange, number of samples and route: they run different code."""
    kinds: dict[tuple[object, ...], Strategy] = {}
    for one in found:
        kinds.setdefault((one.exchange, one.samples, *(layout.route for layout in one.layouts)), one)
    return list(kinds.values())


def validate(shapes: Iterable[check.Shape], elements: Iterable[ElementType]) -> list[dict[str, Any]]:
    """Every kind of strategy against the reference. Raises `ParityError` at the first that is wrong."""
    cupy, device, done = require("cupy", "this benchmark"), device_facts(), []
    for shape in shapes:
        pools = shape.pools()
        exact = check.random_maps(pools, shape.cases, seed=2)
        for element in elements:
            maps = [check.to_element(x, element) for x in exact]
            want = check.reference(pools, (maps[0][1], maps[1][1]))
            for last in (False, True):
                first, second = (
                    cupy.asarray(np.ascontiguousarray(x.transpose(0, 2, 3, 1) if last else x)) for x, _ in maps
                )
                branches = (pools[0].branch, pools[1].branch)
                for one in one_of_each_kind(candidates(branches, shape.cases, element, last, device)):
                    pool = AttentionPool(pools, shape.cases, element, channels_last=last, strategy=one)
                    out = cupy.full((shape.cases, pool.columns), np.nan, np.float32)  # poisoned: all must be written
                    off = check.difference(pool(first, second, out=out).get(), want)
                    again, counts = pool.traced(first, second)
                    same = again.get().tobytes() == out.get().tobytes()
                    if not (off <= check.TOLERANCE[element] and same):
                        raise ParityError(
                            f"{shape}, {element}, channels_last={last}, {one}: relative difference {off:.2e}, expected "
                            f"≤ {check.TOLERANCE[element]:.0e}; a second run gave {'the same' if same else 'another'}"
                        )
                    done.append({"shape": str(shape), "channels_last": last, "strategy": str(one), "difference": off})
                    done[-1] |= {"element": element, **counts, **pool.resources()}
    return done


def sanitize(tool: str) -> str:
    """compute-sanitizer over the small shapes in a process of its own: "passed", or why not."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return "not run: compute-sanitizer is not on the PATH"
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, str(Path(__file__)), "--check"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    except subprocess.TimeoutExpired:
        return "not finished within 200 s"
    summary = [line for line in ran.stdout.splitlines() if "SUMMARY" in line]
    if ran.returncode == 0 and "checked" in ran.stdout and summary:
        return f"passed: {summary[-1].strip('= ')}"
    return f"failed with status {ran.returncode}: {(ran.stdout + ran.stderr)[-1500:]}"


# ---------------------------------------------------------------- how long?


class Clock:
    """Device time per launch, in ms, by events around replays of a graph on a stream of its own."""

    def __init__(self) -> None:
        self.cupy = require("cupy", "this benchmark")
        self.stream = self.cupy.cuda.Stream(non_blocking=True)
        self.cupy.cuda.Device().synchronize()

    def graph(self, launch: Callable[[int], object], launches: int) -> float:
        """`launch(i)` enqueues the i-th launch on the current stream."""
        with self.stream:
            launch(0)  # compiled and loaded before the capture
            self.stream.synchronize()
            self.stream.begin_capture()
            for i in range(launches):
                launch(i)
            graph = self.stream.end_capture()
            graph.upload()
            return self._median(lambda: graph.launch(stream=self.stream)) / launches

    def _median(self, work: Callable[[], object]) -> float:
        """After a warm-up of at least 100 ms."""
        begin, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        until = time.perf_counter() + 0.1
        while time.perf_counter() < until:
            work()
            self.stream.synchronize()
        samples = []
        for _ in range(REPEATS):
            begin.record(self.stream)
            work()
            end.record(self.stream)
            end.synchronize()
            samples.append(self.cupy.cuda.get_elapsed_time(begin, end))
        return float(np.median(samples))


def ceilings(clock: Clock) -> dict[str, float]:
    """What the device does at best: bytes per second of a copy (read and written), and ms of an empty launch."""
    cupy = clock.cupy
    source = cupy.zeros(1 << 28, np.float32)
    target = cupy.empty_like(source)
    cupy.cuda.Device().synchronize()
    copy = clock.graph(
        lambda _: target.data.copy_from_device_async(source.data, source.nbytes, clock.stream), launches=4
    )
    empty = cupy.RawKernel('extern "C" __global__ void empty() {}', "empty")
    return {
        "bytes_per_s": 2e3 * source.nbytes / copy,
        "empty_launch_ms": clock.graph(lambda _: empty((1,), (32,), ()), 200),
    }


def input_sets(cupy: Any, pools: tuple[Pool, Pool], batch: int, element: ElementType, l2_bytes: int) -> list[Any]:
    """Random feature maps [N, C, h, w], three times the L2 cache in all, at least two sets."""
    one_set = sum(pool.branch.channels * pool.branch.positions for pool in pools) * batch * ELEMENT_BYTES[element]
    # Drawn on the host and repeated: a period of 4 million values, and no need of cuRAND.
    drawn = cupy.asarray(np.random.default_rng(0).normal(size=1 << 22).astype(element))
    shapes = [(batch, pool.branch.channels, pool.height, pool.width) for pool in pools]
    count = max(2, -(-3 * l2_bytes // one_set))
    return [tuple(cupy.resize(drawn, shape) for shape in shapes) for _ in range(count)]


def time_pool(clock: Clock, size: int, element: ElementType, batch: int, top: dict[str, float]) -> dict[str, Any]:
    cupy, device, pools = clock.cupy, device_facts(), product(size)
    branches = (pools[0].branch, pools[1].branch)
    found = candidates(branches, batch, element, False, device)
    firsts = {(one.exchange, one.layouts[0].route): one for one in reversed(found)}.values()
    sets = input_sets(cupy, pools, batch, element, device.l2_bytes)
    launches = max(50, len(sets))
    out = cupy.empty((batch, sum(branch.channels for branch in branches)), np.float32)
    least: Floor = floor(branches, batch, element)
    floor_ms = max(1e3 * least.bytes / top["bytes_per_s"], top["empty_launch_ms"])
    row: dict[str, Any] = {
        "size": size,
        "batch": batch,
        "element": element,
        "floor": asdict(least),
        "floor_ms": floor_ms,
    }
    row |= {"input_sets": len(sets), "strategies": []}
    for one in dict.fromkeys([*found[:TIMED], *firsts]):
        pool = AttentionPool(pools, batch, element, strategy=one)

        def cold(i: int, pool: AttentionPool = pool) -> None:
            pool(*sets[i % len(sets)], out=out)

        def warm(_: int, pool: AttentionPool = pool) -> None:
            pool(*sets[0], out=out)

        times = {"cold_ms": clock.graph(cold, launches), "warm_ms": clock.graph(warm, 50)}
        row["strategies"].append({"strategy": str(one), **times, **pool.resources()})
    row["torch"] = time_torch(pools, sets, launches)
    return row


def time_torch(pools: tuple[Pool, Pool], sets: list[Any], calls: int) -> dict[str, Any]:
    """Eager and torch.compile on the same inputs, in ms per call; or why not."""
    try:
        import torch

        from mpmmu_rt.model.attention import AttentionPool as Original
    except ImportError as error:
        return {"not_run": str(error)}
    if not torch.cuda.is_available():
        return {"not_run": "torch sees no CUDA device"}
    inputs = [tuple(torch.utils.dlpack.from_dlpack(x) for x in one) for one in sets]
    modules = [
        Original(pool.weights.kind, pool.weights.channels).cuda().to(inputs[0][0].dtype).eval() for pool in pools
    ]

    def forward(first: Any, second: Any) -> Any:
        return torch.cat([modules[0](first), modules[1](second)], 1).float()

    def ms(call: Callable[..., Any]) -> float:
        for i in range(10):
            call(*inputs[i % len(inputs)])
        samples = []
        for _ in range(REPEATS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for i in range(calls):
                call(*inputs[i % len(inputs)])
            end.record()
            end.synchronize()
            samples.append(begin.elapsed_time(end) / calls)
        return float(np.median(samples))

    result: dict[str, Any] = {"version": torch.__version__}
    with torch.inference_mode():
        result["eager_ms"] = ms(forward)
        try:
            result["compile_ms"] = ms(torch.compile(forward, dynamic=False))
        except Exception as error:  # noqa: BLE001  # whatever its compiler lacks here: recorded, and the rest goes on
            result["compile_not_run"] = f"{type(error).__name__}: {error}"[:500]
    return result


def on_gpu(folder: Path | None, commit: str) -> str:
    """Check, then time; writes both files and returns the Markdown. Raises `MpmmuError`."""
    cupy, facts = require("cupy", "this benchmark"), device_facts()
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    name = properties["name"].decode()
    report: dict[str, Any] = {
        "gpu": name,
        "device": asdict(facts),
        "commit": commit,
        "date": datetime.now(UTC).isoformat(),
    }
    report |= {"driver": cupy.cuda.runtime.driverGetVersion(), "nvrtc": list(cupy.cuda.nvrtc.getVersion())}
    report |= {"cupy": cupy.__version__, "machine": machine.describe(), "repeats": REPEATS}
    report["checked"] = validate([*check.SMALL, *check.LARGE], ELEMENT_BYTES)
    print(f"{len(report['checked'])} results match. Timing.", file=sys.stderr)
    report["sanitizer"] = {tool: sanitize(tool) for tool in ("memcheck", "racecheck")}
    clock = Clock()
    report["ceilings"] = top = ceilings(clock)
    report["times"] = [time_pool(clock, *what, batch, top) for what in TIMED_MAPS for batch in BATCHES]
    folder = folder or folder_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(report)
    (folder / "attention_pool.json").write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    (folder / "attention_pool.md").write_text(text, encoding="utf-8")
    return text


def markdown(report: dict[str, Any]) -> str:
    rows = []
    for row in report["times"]:
        chosen, best = row["strategies"][0], min(row["strategies"], key=lambda one: one["cold_ms"])
        cold, torch = chosen["cold_ms"], row["torch"]
        ratios = [f"{torch[key] / cold:.1f} x" if key in torch else "not run" for key in ("eager_ms", "compile_ms")]
        shown = (row["floor_ms"], cold, chosen["warm_ms"])
        times = [f"{1e3 * ms:.2f}" for ms in shown]
        times.insert(2, f"{cold / row['floor_ms']:.2f}")
        fastest = f"{best['strategy']} ({1e3 * best['cold_ms']:.2f})"
        place = (f"{row['size']} x {row['size']}", row["element"], row["batch"])
        rows.append((*place, *times, *ratios, chosen["strategy"], fastest))
    top, checked = report["ceilings"], report["checked"]
    worst, empty_us = max(one["difference"] for one in checked), 1e3 * top["empty_launch_ms"]
    header = (
        "feature map | element | batch | floor, us | cold, us | cold / floor | warm, us | torch eager | torch.compile"
    )
    return f"""# Attention pool kernel on {report["gpu"]}

{report["date"]}, commit {report["commit"]}, driver {report["driver"]}, NVRTC {report["nvrtc"]}, CuPy {report["cupy"]}.
How it is measured: see `benchmarks/attention_pool.py`. Clocks are as found.

- {len(checked)} combinations of shape, element type, layout and strategy agree with the float64 reference; the largest
  relative difference is {worst:.1e}. Largest local memory (spills): {max(one["local_bytes"] for one in checked)} bytes.
- compute-sanitizer memcheck: {report["sanitizer"]["memcheck"]}
- compute-sanitizer racecheck: {report["sanitizer"]["racecheck"]}
- copy: {top["bytes_per_s"] / 1e12:.2f} TB/s, read and written; empty launch in a graph: {empty_us:.2f} us

{table(header + " | chosen | fastest of those timed (us)", rows)}"""


def folder_of(gpu: str) -> Path:
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def commit_of_tree() -> str:
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--resources", action="store_true", help="compile for every architecture; needs nvcc")
    what.add_argument("--gpu", action="store_true", help="check and time; needs a GPU and CuPy")
    what.add_argument("--check", action="store_true", help="check the small shapes only; what the sanitizer runs")
    parser.add_argument("--out", type=Path, help="folder for the results of --gpu, else results/<gpu>")
    given = parser.parse_args()
    try:
        if given.resources:
            (RESULTS / "attention_pool_resources.md").write_text(resources(), encoding="utf-8")
        elif given.check:
            print(f"{len(validate(check.SMALL[:4], ['float32', 'float16']))} results checked")
        else:
            print(on_gpu(given.out, commit_of_tree()))
    except MpmmuError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
