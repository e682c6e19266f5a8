"""TensorRT-RTX engines of a bundle, built without a GPU: what each takes to build, its size, and its precision.

    python -m benchmarks.engine_builds BUNDLE > benchmarks/results/engine_builds.md

Every graph in FP32, FP16 and BF16 for every compute capability, one engine each. FP16 islands are found on the golden
images. A build that is refused stays in the table with the reason. Nothing here says how fast an engine runs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import onnx

from mpmmu_rt import machine
from mpmmu_rt.bundle import Bundle, Graph
from mpmmu_rt.engines.tensorrt_build import RTX_CAPABILITIES, library
from mpmmu_rt.engines.tensorrt_sidecar import Profile
from mpmmu_rt.errors import EngineError
from mpmmu_rt.export import tensorrt
from mpmmu_rt.export.graphs import save_sharing_weights
from mpmmu_rt.export.precision import Half, islands, shares, to_half
from mpmmu_rt.spec import MODALITIES, Array

GRAPHS: tuple[Graph, ...] = ("mammography", "ultrasound", "attention_pool", "head", "model")
PRECISIONS = ("fp32", "fp16", "bf16")
PROFILE = Profile(1, 8, 32)


@dataclass(frozen=True)
class Row:
    """One engine: seconds to build it, its bytes; or the reason why there is none."""

    graph: Graph
    precision: str
    capability: int
    achieved: str
    seconds: float
    size: int
    reason: str


def typed(bundle: Bundle, graph: Graph, precision: str) -> tuple[onnx.ModelProto, int]:
    """The graph in a precision, and how many values of it stay FP32 for their range."""
    model = onnx.load(bundle.graph(graph))
    if precision not in get_args(Half) or graph == "head":
        return model, 0
    kept = islands(model, golden(bundle, graph)) if precision == "fp16" else frozenset[str]()
    inside = {name for name in kept if not name.startswith("head/")}  # the head is FP32 without being asked
    return to_half(model, cast("Half", precision), kept), len(inside)


def golden(bundle: Bundle, graph: Graph) -> dict[str, Array]:
    vectors = bundle.golden()
    if graph == "model":
        return {f"{modality}_pixels": vectors[f"{modality}.pixels"] for modality in MODALITIES}
    if graph == "attention_pool":
        return {f"{modality}_feature_map": vectors[f"{modality}.feature_map"] for modality in MODALITIES}
    return {"pixels": vectors[f"{graph}.pixels"]}


def measure(bundle: Bundle, folder: Path) -> Iterator[Row]:
    for graph in GRAPHS:
        for precision in PRECISIONS:
            model, kept = typed(bundle, graph, precision)
            achieved = ", ".join(f"{share:.2%} {name}" for name, share in shares(model).items())
            achieved += f"; {kept} islands" if kept else ""
            place = folder / f"{graph}-{precision}"
            place.mkdir()
            save_sharing_weights({graph: model}, place)
            for capability in RTX_CAPABILITIES:
                start, size, reason = time.perf_counter(), 0, ""
                try:
                    built = tensorrt.build(
                        place / f"{graph}.onnx",
                        flavour="tensorrt_rtx",
                        precision=precision,
                        capabilities=(capability,),
                        profile=PROFILE,
                        fp32=graph == "head",
                    )
                    size = len(built.engine)
                except EngineError as error:
                    reason = brief(str(error))
                yield Row(graph, precision, capability, achieved, time.perf_counter() - start, size, reason)


def brief(said: str) -> str:
    """The part of TensorRT's sentence that names the reason, for those that are known; else its end."""
    known = {"FP32 GEMM": "FP32 matrix products", "HW-specific datatypes: b16": "BF16"}
    return next((text for mark, text in known.items() if mark in said), said[-80:].replace("|", "/"))


def report(bundle: Bundle, rows: list[Row]) -> str:
    about = machine.describe()
    lines = [
        "# TensorRT-RTX engine builds",
        "",
        f"`{bundle.name}`, images of {bundle.preprocessing.size} pixels a side; tensorrt-rtx "
        f"{library('tensorrt_rtx').__version__}; profile {PROFILE}; {about['cpu']}, {about['threads']} threads, at the "
        "lowest priority on a shared machine; one build each, from the file to the bytes. **No engine ran: there was "
        "no GPU.**",
        "",
        "Precision is the share of multiply-accumulates, by the types of the graph; the engines are strongly typed.",
        "Seconds and MB are per compute capability; “no …” names what TensorRT-RTX lacks there and refuses to build.",
        "",
        "| graph | precision | achieved | " + " | ".join(f"sm {one}" for one in RTX_CAPABILITIES) + " |",
        "|---|---|---" + "|---" * len(RTX_CAPABILITIES) + "|",
    ]
    for graph in GRAPHS:
        for precision in PRECISIONS:
            cells = [row for row in rows if (row.graph, row.precision) == (graph, precision)]
            texts = [
                f"no {row.reason}" if row.reason else f"{row.seconds:.1f} s, {row.size / 1e6:.1f} MB" for row in cells
            ]
            lines.append(f"| {graph} | {precision} | {cells[0].achieved} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    bundle = Bundle.open(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        print(report(bundle, list(measure(bundle, Path(folder)))))


if __name__ == "__main__":
    main()
