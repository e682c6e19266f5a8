"""What OpenVINO takes for each kind of layer of the encoders, against what a core can do at most.

    python -m benchmarks.cpu.layers reference.bundle [--targets openvino:bf16,openvino:int8-bf16] > benchmarks/results/…

One thread, one image at a time, by OpenVINO's own clock: medians of the calls, of layers by what they compute in. The
ceiling is that of `ceiling.c`, which is compiled for it: multiply-accumulates on registers or tiles, and the bytes of
an element-wise pass over maps of 1.6 MB. Layers that are not convolutions are shown by what OpenVINO calls them.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino

from benchmarks import report
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines.openvino import INFERENCE_PRECISION
from mpmmu_rt.spec import MODALITIES, Target

CALLS, WARM_UP = 60, 5
# What a convolution is held to, by how OpenVINO says that it is computed: `brgconv_avx512_amx_I8` and so on.
UNITS = {"amx_I8": "amx_int8", "amx_1x1_I8": "amx_int8", "amx_bf16": "amx_bf16", "amx_1x1_bf16": "amx_bf16"}
SMALL = 16  # places of a map: layers on fewer are gates


@dataclass
class Kind:
    """Layers that are alike: their number, ms of all of them together in each call, and multiply-accumulates."""

    ms: list[float] = field(default_factory=lambda: [0.0] * CALLS)
    macs: int = 0
    layers: int = 0


def ceiling() -> dict[str, float]:
    """10⁹ per second of one thread, by name; {} where there is no compiler, or no AVX-512."""
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "ceiling"
        source = Path(__file__).with_name("ceiling.c")
        try:
            subprocess.run(["gcc", "-O2", "-march=native", str(source), "-o", str(made)], check=True)
            said = subprocess.run([str(made)], check=True, capture_output=True, text=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return {}
    return {name: float(rate) for name, rate in (line.split() for line in said.splitlines())}


def multiplications(path: Path) -> dict[str, tuple[str, int]]:
    """Of each convolution, by the node's name: what kind it is, and its multiply-accumulates for one image."""
    model = onnx.load(str(path), load_external_data=False)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in inferred.value_info}
    weights = {one.name: list(one.dims) for one in model.graph.initializer}
    shapes |= {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in inferred.output}
    found = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            kernel = weights.get(node.input[1]) or shapes[node.input[1]]
            places = int(np.prod(shapes[node.output[0]][2:]))
            size = " x ".join(map(str, kernel[2:]))
            kind = "gates" if places < SMALL else f"{size} at {' x '.join(map(str, shapes[node.output[0]][2:]))}"
            found[node.name] = (kind, int(np.prod(kernel)) * places)
    return found


def profile(bundle: Bundle, path: Path, precision: str) -> tuple[float, dict[tuple[str, str], Kind]]:
    """ms of a call, and its layers by what they are and what OpenVINO says that they are computed by."""
    core, size = openvino.Core(), bundle.preprocessing.size
    model = core.read_model(str(path))
    model.reshape([1, 1, size, size])
    settings = {
        "INFERENCE_PRECISION_HINT": INFERENCE_PRECISION[precision],
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "PERF_COUNT": True,
    }
    compiled = core.compile_model(model, "CPU", settings)
    made_of = {
        node.get_friendly_name(): node.get_rt_info()["originalLayersNames"].astype(str).split(",")
        for node in compiled.get_runtime_model().get_ops()
        if "originalLayersNames" in node.get_rt_info()
    }
    known = multiplications(path)
    request = compiled.create_infer_request()
    pixels = np.random.default_rng(0).integers(0, 256, (1, 1, size, size), dtype=np.uint8)
    kinds: dict[tuple[str, str], Kind] = defaultdict(Kind)
    for call in range(-WARM_UP, CALLS):
        request.infer({0: pixels})
        if call < 0:
            continue
        for one in request.profiling_info:
            _add(kinds, one, known, made_of, call)
    total = float(np.median(np.sum([kind.ms for kind in kinds.values()], axis=0)))
    return total, dict(kinds)


def _add(
    kinds: dict[tuple[str, str], Kind],
    one: Any,
    known: Mapping[str, tuple[str, int]],
    made_of: Mapping[str, list[str]],
    call: int,
) -> None:
    # OpenVINO counts whole microseconds, and calls what took none not executed.
    if one.status != openvino.ProfilingInfo.Status.EXECUTED and one.node_type != "Convolution":
        return
    what, macs = one.node_type, 0
    if one.node_type == "Convolution":
        named = [known[name] for name in made_of.get(one.node_name, [one.node_name]) if name in known]
        what, macs = named[0] if named else ("convolutions without a name", 0)
    kind = kinds[what, one.exec_type]
    kind.ms[call] += one.real_time.total_seconds() * 1e3
    if call == 0:
        kind.layers, kind.macs = kind.layers + 1, kind.macs + macs


def table(kinds: Mapping[tuple[str, str], Kind], total: float, most: Mapping[str, float]) -> None:
    print(report.columns("layers | computed by | number | ms | share | 10⁹ multiply-accumulates/s | of the ceiling"))
    for (what, how), kind in sorted(kinds.items(), key=lambda item: -float(np.median(item[1].ms))):
        ms = float(np.median(kind.ms))
        if ms < total / 200:
            continue
        unit = next((unit for suffix, unit in UNITS.items() if how.endswith(suffix)), "")
        rate = kind.macs / ms / 1e6
        share = f"{rate / most[unit]:.0%}" if unit in most and kind.macs else ""
        print(
            report.row(
                [what, how, kind.layers, f"{ms:.2f}", f"{ms / total:.0%}", f"{rate:.0f}" if kind.macs else "", share]
            )
        )


def main(path: Path, targets: list[Target]) -> None:
    bundle, most = Bundle.open(path), ceiling()
    print(report.heading("Layers of the encoders", ()), end="")
    print(f"At most, one thread, 10⁹ per second: {', '.join(f'{name} {rate:.0f}' for name, rate in most.items())}.")
    for target in targets:
        for modality in MODALITIES:
            graph = bundle.graph_for("openvino", modality, target.precision)
            total, kinds = profile(bundle, graph, target.precision)
            print(f"\n### {target}, {modality}: {total:.2f} ms\n")
            table(kinds, total, most)
    print(f"\n{report.load('at the end')}")


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--targets", default="openvino:bf16,openvino:int8-bf16")
    given = parser.parse_args()
    main(given.bundle, [Target.parse(one) for one in given.targets.split(",")])
