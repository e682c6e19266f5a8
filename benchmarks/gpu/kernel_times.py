"""How long the attention pool kernel takes on this GPU, its floor, and torch and Triton on the same inputs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.gpu.kernel_check import branches_of
from benchmarks.gpu.stage import NEVER, OUT_OF_TIME, Deadline, failure
from mpmmu_rt._optional import require
from mpmmu_rt.kernels import check
from mpmmu_rt.kernels.attention_pool import AttentionPool, Pool, device_facts
from mpmmu_rt.kernels.plan import ELEMENT_BYTES, ElementType, Floor, Strategy, candidates, floor

REPEATS = 9
TIMED = 6  # strategies for each batch: the preferred ones


@dataclass(frozen=True)
class Row:
    """What is timed: both feature maps [batch, 2048, size, size] in `element`."""

    size: int
    element: ElementType
    batch: int

    def work(self) -> list[tuple[tuple[Pool, Pool], Strategy]]:
        return [(product(self.size), one) for one in self.strategies()]

    def strategies(self) -> list[Strategy]:
        return candidates(branches_of(product(self.size)), self.batch, self.element, False, device_facts())[:TIMED]


def product(size: int) -> tuple[Pool, Pool]:
    """The reference model's two pools: 2048 channels, CBAM with 128 hidden units, ECA across 7 channels."""
    cbam = check.random_pool("cbam", 2048, size, size, seed=0, hidden=128)
    return cbam, check.random_pool("eca", 2048, size, size, seed=1, size=7)


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


READ = r"""
extern "C" __global__ void empty() {}
extern "C" __global__ void read(const float4* from, float* to, long long count) {
    const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
    float sum = 0;
    long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    for (; i + 3 * step < count; i += 4 * step)
        sum += from[i].x + from[i + step].y + from[i + 2 * step].z + from[i + 3 * step].w;
    if (sum == 1234.5f) *to = sum;  // what is read must be used
}
"""


def ceilings(clock: Clock) -> dict[str, float]:
    """What the device does at best: bytes per second of a kernel that reads 1 GiB, and ms of an empty launch.

    A copy by the driver reaches less than such a kernel: 2.8 of 4.5 TB/s, read and written, on an H200.
    """
    cupy = clock.cupy
    source, target = cupy.zeros(1 << 28, np.float32), cupy.zeros(1, np.float32)
    module = cupy.RawModule(code=READ)
    read, empty = module.get_function("read"), module.get_function("empty")
    blocks = 8 * device_facts().multiprocessors
    cupy.cuda.Device().synchronize()
    spent = clock.graph(lambda _: read((blocks,), (512,), (source, target, np.int64(source.size // 4))), launches=4)
    return {
        "bytes_per_s": 1e3 * source.nbytes / spent,
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


def launches_of(sets: list[Any]) -> int:
    return max(50, len(sets))


def time_pool(clock: Clock, row: Row, top: dict[str, float], deadline: Deadline = NEVER) -> dict[str, Any]:
    """The chosen strategy first. Each has its times, or `failed`, or `not_run`."""
    cupy, pools = clock.cupy, product(row.size)
    branches = branches_of(pools)
    sets = input_sets(cupy, pools, row.batch, row.element, device_facts().l2_bytes)
    launches = launches_of(sets)
    out = cupy.empty((row.batch, sum(branch.channels for branch in branches)), np.float32)
    cupy.cuda.Device().synchronize()  # they were filled on another stream than they are read on
    least: Floor = floor(branches, row.batch, row.element)
    found: dict[str, Any] = asdict(row) | {"floor": asdict(least), "input_sets": len(sets), "strategies": []}
    found["floor_ms"] = max(1e3 * least.bytes / top["bytes_per_s"], top["empty_launch_ms"])
    for one in row.strategies():
        timed: dict[str, Any] = {"strategy": str(one)}
        found["strategies"].append(timed)
        if deadline.passed:
            timed["not_run"] = OUT_OF_TIME
            continue
        try:
            pool = AttentionPool(pools, row.batch, row.element, strategy=one)

            def cold(i: int, pool: AttentionPool = pool) -> None:
                pool(*sets[i % len(sets)], out=out)

            def warm(_: int, pool: AttentionPool = pool) -> None:
                pool(*sets[0], out=out)

            timed |= {
                "cold_ms": clock.graph(cold, launches),
                "warm_ms": clock.graph(warm, 50),
                "resources": pool.resources(),
            }
        except Exception as error:  # noqa: BLE001  # of CuPy and CUDA, all kinds: recorded, and the rest goes on
            timed["failed"] = failure(error)
    return found


def torch_inputs(torch: Any, cupy: Any, row: Row) -> list[Any]:
    """`input_sets` of a row as torch's tensors, in the same memory."""
    sets = input_sets(cupy, product(row.size), row.batch, row.element, device_facts().l2_bytes)
    cupy.cuda.Device().synchronize()
    return [tuple(torch.utils.dlpack.from_dlpack(x) for x in one) for one in sets]


def time_torch(row: Row, cupy: Any) -> dict[str, Any]:
    """Eager and torch.compile on the same inputs, captured as the kernel is, in ms; `not_run`, or `failed`."""
    try:
        import torch

        from mpmmu_rt.model.attention import AttentionPool as Original
    except ImportError as error:
        return {"not_run": failure(error)}
    if not torch.cuda.is_available():
        return {"not_run": "torch sees no CUDA device"}
    result: dict[str, Any] = {"version": torch.__version__}
    try:
        pools = product(row.size)
        inputs = torch_inputs(torch, cupy, row)
        modules = [
            Original(pool.weights.kind, pool.weights.channels).cuda().to(inputs[0][0].dtype).eval() for pool in pools
        ]

        def forward(first: Any, second: Any) -> Any:
            return torch.cat([modules[0](first), modules[1](second)], 1).float()

        with torch.inference_mode():
            result["eager_ms"] = captured_ms(torch, forward, inputs, launches_of(inputs))
            compiled, graphs = compile_anew(torch, forward)
            result["compile_ms"] = captured_ms(torch, compiled, inputs, launches_of(inputs))
            result["compiled_graphs"] = graphs()
            if result["compiled_graphs"] < 1:
                result["failed"] = "torch.compile has compiled nothing: its time is that of eager"
    except Exception as error:  # noqa: BLE001  # no memory, or whatever its compiler lacks here: recorded
        result["failed"] = failure(error)
    return result


def time_triton(row: Row, cupy: Any) -> dict[str, Any]:
    """`triton_pool` on the same inputs, captured likewise, in the best of its block sizes; `not_run`, or `failed`."""
    try:
        import torch

        from benchmarks.gpu.triton_pool import CHANNELS, TritonPool
    except ImportError as error:
        return {"not_run": failure(error)}
    if not torch.cuda.is_available():
        return {"not_run": "torch sees no CUDA device"}
    result: dict[str, Any] = {}
    try:
        pools = product(row.size)
        inputs = torch_inputs(torch, cupy, row)
        ours = AttentionPool(pools, row.batch, row.element)(*map(cupy.from_dlpack, inputs[0])).get()
        timed = {}
        for channels in CHANNELS:
            rival = TritonPool(pools, row.batch, channels)
            result["difference"] = check.difference(rival(*inputs[0]).cpu().numpy(), ours)
            if not result["difference"] <= check.TOLERANCE[row.element]:
                return result | {"failed": f"relative difference {result['difference']:.2e} from the kernel"}
            timed[channels] = captured_ms(torch, rival, inputs, launches_of(inputs))
        result["channels"] = min(timed, key=lambda one: timed[one])
        result["ms"] = timed[result["channels"]]
    except Exception as error:  # noqa: BLE001  # of Triton's compiler, all kinds: recorded
        result["failed"] = failure(error)
    return result


def compile_anew(
    torch: Any, forward: Callable[..., Any], **options: Any
) -> tuple[Callable[..., Any], Callable[[], int]]:
    """torch.compile of `forward`, and how many graphs it has compiled.

    Without the reset its limit of recompilations, which counts those of earlier rows, would be met, and a function that
    has met it runs eagerly without a word.
    """
    import torch._dynamo.utils as dynamo

    torch._dynamo.reset()
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    before = dynamo.counters["stats"]["unique_graphs"]
    compiled: Callable[..., Any] = torch.compile(forward, dynamic=False, **options)
    return compiled, lambda: int(dynamo.counters["stats"]["unique_graphs"] - before)


def captured_ms(torch: Any, call: Callable[..., Any], inputs: list[Any], calls: int) -> float:
    """Of one of `calls` calls in a CUDA graph, which take turns over the inputs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(10):  # compiled, and its libraries loaded, before the capture
            call(*inputs[i % len(inputs)])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            call(*inputs[i % len(inputs)])
    samples = []
    for turn in range(REPEATS + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if turn >= 3:
            samples.append(begin.elapsed_time(end) / calls)
    return float(np.median(samples))
