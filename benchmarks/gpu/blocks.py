"""In-block attention by our kernels on a GPU: is it right, how long does it take, and torch on the same.

    python -m benchmarks.gpu.blocks [--seconds 120] [--out FOLDER]      writes results/<gpu>/blocks.json and .md

Right: every kind and element type against the float64 reference, on small odd shapes and on the last block of each
stage of the reference model; y is poisoned before, and a second run has to say the same to the bit. Times: as in
`benchmarks.gpu.kernel`, captured, over input sets of three times L2. The floor is what any implementation has to move
at the bandwidth of a kernel that only reads; "moved" is what these launches move where L2 keeps nothing. torch has the
same inputs, channels last, and the same algebra (the means of `inner`), captured as well.

Steps, by value: 15 s the product's blocks right; 20 s times in float16 at 32; 45 s torch on them; 20 s the other times;
20 s small shapes. What does not fit is "not run: out of time". The exit code is 1 unless all has run, and was right.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu.kernel_check import NOT_INSTALLED, PASSED, SANITIZER_SECONDS, sanitize
from benchmarks.gpu.kernel_times import Clock, captured_ms, ceilings, compile_anew
from benchmarks.gpu.stage import Deadline, Steps, conditions, end_on_sigterm, ending, parser, say
from benchmarks.report import commit_of_tree, folder_of, save, table
from mpmmu_rt._optional import require
from mpmmu_rt.errors import MpmmuError
from mpmmu_rt.kernels.attention_pool import device_facts
from mpmmu_rt.kernels.block_attention import BlockAttention, BlockShape, floor
from mpmmu_rt.kernels.block_check import RESNET, SMALL, TOLERANCE, Case, reference
from mpmmu_rt.kernels.check import difference, to_element
from mpmmu_rt.kernels.plan import ELEMENT_BYTES, ElementType

SECONDS = 120.0
REPEATED = {56: 3, 28: 4, 14: 6, 7: 3}  # blocks of each stage of a ResNet-50, by the side of their maps
BATCHES = (32, 1, 128, 8)


@dataclass(frozen=True)
class Row:
    case: Case
    element: ElementType

    def __str__(self) -> str:
        return f"{self.case}, {self.element}"


def rows() -> list[Row]:
    """The more telling first."""
    half = [Row(replace(case, cases=batch), "float16") for batch in BATCHES for case in RESNET]
    return [*half, *(Row(replace(case, cases=32), "float32") for case in RESNET)]


# ---------------------------------------------------------------- right?


def checked(case: Case, element: ElementType) -> dict[str, Any]:
    """`difference` from the reference, and `failed` where it is wrong."""
    cupy, shape = require("cupy", "this benchmark"), case.shape(element)
    held = [to_element(one, element) for one in case.maps(seed=2)]
    inner, x, residual = (cupy.asarray(np.ascontiguousarray(one)) for one, _ in held)
    attended = BlockAttention(shape, case.cases)
    said = []
    for _ in range(2):
        y = cupy.full(x.shape, np.nan if element != "bfloat16" else 0x7FFF, x.dtype)
        cupy.cuda.Device().synchronize()
        addresses = (x if shape.weights.kind == "eca" else inner).data.ptr, x.data.ptr, residual.data.ptr
        attended.launch(addresses, y.data.ptr, case.cases)
        said.append(y.get())
    got, want = said[0], reference(shape, (held[0][1], held[1][1], held[2][1]))
    if element == "bfloat16":
        got = (got.astype(np.uint32) << 16).view(np.float32)
    row: dict[str, Any] = {"case": str(case), "element": element, "difference": difference(got, want)}
    row["resources"] = attended.resources()
    if not row["difference"] <= TOLERANCE[element]:
        row["failed"] = f"relative difference {row['difference']:.2e}, expected ≤ {TOLERANCE[element]:.0e}"
    elif said[0].tobytes() != said[1].tobytes():
        row["failed"] = "a second run gave something else"
    return row


def check_small(cupy: Any) -> int:
    """What runs under compute-sanitizer; CuPy's memory pool is off, so that memcheck sees what reads past the end."""
    cupy.cuda.set_allocator(None)
    found = [checked(case, element) for case in SMALL for element in ("float16", "float32")]
    if wrong := [one for one in found if "failed" in one]:
        raise RuntimeError(f"{len(wrong)} of {len(found)} are wrong, first {wrong[0]}")
    print(f"{len(found)} results are right, 0 not run")
    return 0


# ---------------------------------------------------------------- how long?


def input_sets(cupy: Any, shape: BlockShape, cases: int) -> list[tuple[Any, Any, Any, Any]]:
    """inner, x, residual and y [N, h, w, C], three times L2 in all, at least two."""
    weights = shape.weights
    sizes = [
        (cases, shape.height, shape.width, channels) for channels in (weights.inner_channels, *[weights.channels] * 3)
    ]
    item = ELEMENT_BYTES[shape.element]
    count = max(2, -(-3 * device_facts().l2_bytes // sum(int(np.prod(one)) * item for one in sizes)))
    drawn = cupy.asarray(np.random.default_rng(0).normal(size=1 << 22).astype(shape.element))
    found = []
    for _ in range(count):
        inner, x, residual, y = (cupy.resize(drawn, one) for one in sizes)
        found.append((x if weights.kind == "eca" else inner, x, residual, y))
    return found


def timed(clock: Clock, row: Row, top: dict[str, float]) -> dict[str, Any]:
    """`cold_ms`, and the floor."""
    cupy, shape, cases = clock.cupy, row.case.shape(row.element), row.case.cases
    sets, attended = input_sets(cupy, shape, cases), BlockAttention(shape, cases)
    cupy.cuda.Device().synchronize()

    def launch(i: int) -> None:
        inner, x, residual, y = sets[i % len(sets)]
        attended.launch((inner.data.ptr, x.data.ptr, residual.data.ptr), y.data.ptr, cases)

    least = floor(shape, cases)
    return {
        **asdict(row.case),
        "element": row.element,
        "cold_ms": clock.graph(launch, max(20, len(sets))),
        "floor_ms": max(1e3 * least.least / top["bytes_per_s"], top["empty_launch_ms"]),
        "moved_ms": 1e3 * least.moved / top["bytes_per_s"],
        "resources": attended.resources(),
    }


def torch_function(torch: Any, shape: BlockShape, device: str = "cuda") -> Callable[..., Any]:
    """(inner, x, residual), [N, C, h, w] with channels last, to y."""
    weights, kind = shape.weights, torch.float16 if shape.element == "float16" else torch.float32

    def there(array: Any) -> Any:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, kind)

    linear, relu = torch.nn.functional.linear, torch.relu
    kernel, reach = there(weights.kernel), weights.size // 2  # torch.compile can't look into `weights`
    inner_weight, inner_bias = there(weights.inner_weight.T), there(weights.inner_bias)
    peak_weight, peak_bias = there(weights.peak_weight.T), there(weights.peak_bias)
    gate_weight, gate_bias = there(weights.gate_weight.T), there(weights.gate_bias)

    def eca(inner: Any, x: Any, residual: Any) -> Any:
        gate = torch.sigmoid(torch.nn.functional.conv1d(x.mean((2, 3))[:, None], kernel[None, None], padding=reach))
        return relu(x * gate.transpose(1, 2)[..., None] + residual)

    def composed(inner: Any, x: Any, residual: Any) -> Any:
        gate = torch.sigmoid(linear(inner.mean((2, 3)), inner_weight, inner_bias))
        return relu(x * gate[:, :, None, None] + residual)

    def cbam(inner: Any, x: Any, residual: Any) -> Any:
        hidden = relu(linear(inner.mean((2, 3)), inner_weight, inner_bias))
        hidden = hidden + relu(linear(x.amax((2, 3)), peak_weight, peak_bias))
        gated = x * torch.sigmoid(linear(hidden, gate_weight, gate_bias))[:, :, None, None]
        maps = torch.cat([gated.mean(1, keepdim=True), gated.amax(1, keepdim=True)], 1)
        place = torch.sigmoid(torch.nn.functional.conv2d(maps, kernel[None], padding=reach))
        return relu(gated * place + residual)

    return {"eca": eca, "composed": composed, "cbam": cbam}[weights.kind]


def with_torch(row: Row, cupy: Any) -> dict[str, Any]:
    """`eager_ms` and `compile_ms`; how far torch's answer is from the kernels' reference is not asked."""
    import torch

    if not torch.cuda.is_available():
        return {"not_run": "torch sees no CUDA device"}
    shape, cases = row.case.shape(row.element), row.case.cases
    sets = input_sets(cupy, shape, cases)
    cupy.cuda.Device().synchronize()
    inputs = [tuple(torch.utils.dlpack.from_dlpack(one).permute(0, 3, 1, 2) for one in some[:3]) for some in sets]
    forward, calls = torch_function(torch, shape), max(20, len(sets))
    with torch.inference_mode():
        found: dict[str, Any] = {"version": torch.__version__, "eager_ms": captured_ms(torch, forward, inputs, calls)}
        compiled, graphs = compile_anew(torch, forward)
        found["compile_ms"] = captured_ms(torch, compiled, inputs, calls)
        if graphs() < 1:
            found["failed"] = "torch.compile has compiled nothing: its time is that of eager"
    return found


# ---------------------------------------------------------------- all of it


def run(report: dict[str, Any], keep: Callable[[], object], deadline: Deadline) -> None:
    report |= {"checked": [], "sanitizer": {}, "ceilings": None, "times": [], "errors": []}
    clocks: list[Clock] = []

    step = Steps(report, keep, deadline)

    def measure_ceilings() -> None:
        clocks.append(Clock())
        report["ceilings"] = ceilings(clocks[0])

    def check_all(cases: Iterable[Case], elements: Iterable[ElementType]) -> None:
        for element in elements:
            for case in cases:
                step(f"check {case}, {element}", lambda c=case, e=element: report["checked"].append(checked(c, e)))  # type: ignore[misc]

    def time_one(row: Row) -> None:
        report["times"].append({"row": str(row)} | timed(clocks[0], row, report["ceilings"]))

    def torch_one(row: Row) -> None:
        found = next(one for one in report["times"] if one["row"] == str(row))
        found["torch"] = with_torch(row, require("cupy", "this benchmark"))

    def sanitized() -> None:
        seconds = min(SANITIZER_SECONDS, deadline.left())
        with ThreadPoolExecutor(2) as threads:
            ask = partial(sanitize, seconds=seconds, module="benchmarks.gpu.blocks")
            found = {tool: threads.submit(ask, tool) for tool in ("memcheck", "racecheck")}
            for tool, future in found.items():
                report["sanitizer"][tool] = future.result()

    every = rows()
    first = every[: len(RESNET)]
    check_all(RESNET, ("float16", "float32"))
    step("bandwidth and empty launch", measure_ceilings)
    for row in first:
        step(f"time {row}", partial(time_one, row))
    for row in first:
        step(f"torch {row}", partial(torch_one, row))
    for row in every[len(RESNET) :]:
        step(f"time {row}", partial(time_one, row))
    step("sanitizers", sanitized)
    check_all(SMALL, ELEMENT_BYTES)
    check_all(RESNET, ("bfloat16",))


def problems(report: dict[str, Any]) -> list[str]:
    found = list(report["errors"])
    found += [f"{one['case']}, {one['element']}: {one['failed']}" for one in report["checked"] if "failed" in one]
    found += [f"{one['row']}: {one['torch']['failed']}" for one in report["times"] if "failed" in one.get("torch", {})]
    clean = (PASSED, NOT_INSTALLED)
    return found + [
        f"{name}: {one['result']}" for name, one in report["sanitizer"].items() if one["result"] not in clean
    ]


def markdown(report: dict[str, Any]) -> str:
    right = [one for one in report["checked"] if "failed" not in one]
    worst = {e: max((one["difference"] for one in right if one["element"] == e), default=None) for e in ELEMENT_BYTES}
    lines = [
        f"# In-block attention on {report['gpu']}",
        "",
        f"Made by `{report['command']}`.",
        "",
        f"{report['date']}, commit {report['commit']}. How it is measured: `benchmarks/gpu/blocks.py`. Clocks are as",
        "found.",
        "",
        f"- {len(right)} of {len(report['checked'])} cases agree with the float64 reference; the largest relative "
        "differences: " + ", ".join(f"{e} {v:.1e}" for e, v in worst.items() if v is not None) + ".",
    ]
    for name, one in report["sanitizer"].items():
        lines.append(f"- {name}: {one['result']}{'; ' + one['summary'] if 'summary' in one else ''}")
    if top := report["ceilings"]:
        lines.append(
            f"- a kernel that only reads: {top['bytes_per_s'] / 1e12:.2f} TB/s; an empty launch in a graph: "
            f"{1e3 * top['empty_launch_ms']:.1f} us"
        )
    heads = "attention | map | element | batch | floor, us | moved | ours | over floor | torch eager | torch.compile"
    cells = [cells_of(one) for one in report["times"]]
    lines += ["", table(heads, cells), "", "All blocks of both encoders, us:", "", table(*whole(report)), ""]
    return "\n".join([*lines, *ending(problems(report), report["versions"])])


def cells_of(one: dict[str, Any]) -> tuple[str, ...]:
    """Of a timed row, in microseconds."""
    torch = one.get("torch", {})
    rivals = [f"{1e3 * torch[name]:.1f}" if name in torch else "" for name in ("eager_ms", "compile_ms")]
    own = [f"{1e3 * one[name]:.1f}" for name in ("floor_ms", "moved_ms", "cold_ms")]
    size = f"{one['channels']} x {one['height']} x {one['width']}"
    over = f"{one['cold_ms'] / one['floor_ms']:.1f}"
    return (one["kind"], size, one["element"], str(one["cases"]), *own, over, *rivals)


def whole(report: dict[str, Any]) -> tuple[str, list[tuple[str, ...]]]:
    """Each block as often as the reference model has it; what has a gap is left out."""
    found = []
    for element, batch in dict.fromkeys((one["element"], one["cases"]) for one in report["times"]):
        here = [one for one in report["times"] if (one["element"], one["cases"]) == (element, batch)]
        if len(here) < len(RESNET):
            continue

        def total(name: str, here: list[dict[str, Any]] = here) -> str:
            values = [one.get("torch", {}).get(name, one.get(name)) for one in here]
            if None in values:
                return ""
            return f"{sum(1e3 * value * REPEATED[one['height']] for value, one in zip(values, here, strict=True)):.0f}"

        names = ("floor_ms", "moved_ms", "cold_ms", "eager_ms", "compile_ms")
        found.append((element, str(batch), *(total(name) for name in names)))
    return "element | batch | floor | moved | ours | torch eager | torch.compile", found


def main() -> int:
    options = parser(__doc__, SECONDS)
    options.add_argument("--check", action="store_true", help="check the small shapes only; what the sanitizer runs")
    given = options.parse_args()
    deadline = Deadline.after(given.seconds)
    end_on_sigterm()
    try:
        cupy = require("cupy", "this benchmark")
        if given.check:
            return check_small(cupy)
        name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
        folder = given.out or folder_of(name)
        report: dict[str, Any] = conditions(name, given.commit or commit_of_tree()) | {"device": asdict(device_facts())}
        run(report, lambda: save(folder, "blocks", report, markdown(report)), deadline)
        print(markdown(report))
        return 1 if problems(report) else 0
    except MpmmuError as error:
        return say(error)


if __name__ == "__main__":
    sys.exit(main())
