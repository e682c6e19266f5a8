"""TensorRT-RTX engines of the reference model, built without a GPU: seconds, bytes, precision, and what types cost.

    python -m benchmarks.export.engine_builds > benchmarks/results/engine_builds.md

Exports the reference model for TensorRT-RTX in every precision (INT8 calibrated on phantoms), and builds every graph of
these targets once more for each compute capability alone. A build that is refused stays in the table with the reason.
Nothing here says how fast an engine runs, or that it runs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines.tensorrt import RTX
from mpmmu_rt.engines.tensorrt.build import RTX_CAPABILITIES
from mpmmu_rt.engines.tensorrt.sidecar import Profile
from mpmmu_rt.errors import EngineError
from mpmmu_rt.export import Data, Limits, Wanted, export_reference, tensorrt
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.spec import MODALITIES, Target

GRAPHS = (*MODALITIES, "head", "model")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
TURING = 75  # has no BF16
PROFILE = Profile(1, 8, 32)
CALIBRATION_CASES = 32
GATE_CASES = 64
# The reference model is untrained: what rounding does to its decisions is shown, and decides on nothing.
LIMITS = Limits(auc_loss=1, sensitivity_loss=1, flips=1, mean_difference=1)


@dataclass(frozen=True)
class Row:
    """One engine: seconds to build it, its bytes; or the reason why there is none."""

    graph: str
    precision: str
    capability: int
    seconds: float
    size: int
    reason: str


def exported(folder: Path) -> Bundle:
    """The reference bundle for every precision."""
    preprocessing = Preprocessing()
    calibration, _ = phantom_pixels(CALIBRATION_CASES, seed=11, preprocessing=preprocessing)
    gate, labels = phantom_pixels(GATE_CASES, seed=12, preprocessing=preprocessing)
    targets = tuple(
        Target(RTX.name, precision, tuple(one for one in RTX_CAPABILITIES if precision != "bf16" or one != TURING))
        for precision in PRECISIONS
    )
    wanted = Wanted(
        targets,
        Data(calibration, None, f"{CALIBRATION_CASES} phantoms"),
        Data(gate, labels, f"{GATE_CASES} phantoms"),
        LIMITS,
    )
    return export_reference(folder / "reference.bundle", wanted=wanted, progress=_say)


def _say(description: str, done: int, total: int, *more: str) -> None:
    if done == total:
        print(description, file=sys.stderr)


def measure(bundle: Bundle) -> Iterator[Row]:
    for graph in GRAPHS:
        for precision in PRECISIONS:
            path = bundle.path / RTX.folder(precision) / f"{graph}.onnx"
            for capability in RTX_CAPABILITIES:
                start, size, reason = time.perf_counter(), 0, ""
                try:
                    built = tensorrt.build(
                        path,
                        flavour="tensorrt_rtx",
                        precision=precision,
                        capabilities=(capability,),
                        profile=PROFILE,
                    )
                    size = len(built.engine)
                except EngineError as error:
                    reason = brief(str(error))
                yield Row(graph, precision, capability, time.perf_counter() - start, size, reason)


def brief(said: str) -> str:
    """The part of TensorRT's sentence that names the reason, for those that are known; else its end."""
    known = {"FP32 GEMM": "FP32 matrix products", "HW-specific datatypes: b16": "BF16"}
    return next((text for mark, text in known.items() if mark in said), said[-80:])


def page(heading: str, bundle: Bundle, rows: list[Row]) -> str:
    shown = []
    for graph in GRAPHS:
        for precision in PRECISIONS:
            cells = [row for row in rows if (row.graph, row.precision) == (graph, precision)]
            texts = [
                f"no {row.reason}" if row.reason else f"{row.seconds:.1f} s, {row.size / 1e6:.1f} MB" for row in cells
            ]
            achieved = _report(bundle, precision)["engines"][graph]["achieved"]
            shown.append(
                [graph, precision, ", ".join(f"{share:.2%} {name}" for name, share in achieved.items()), *texts]
            )
    capabilities = " | ".join(f"sm {one}" for one in RTX_CAPABILITIES)
    return f"""{heading}
`{bundle.name}`, images of {bundle.preprocessing.size} pixels a side; profile {PROFILE}; on a shared machine; one build
each, from the file to the bytes. **No engine ran: there was no GPU.**

Precision is the share of multiply-accumulates, by the types of the graph; the engines are strongly typed.
The head is FP32 in every target. Seconds and MB are per compute capability; “no …” names what TensorRT-RTX
lacks there and refuses to build.

{report.table(f"graph | precision | achieved | {capabilities}", shown)}
{proofs(bundle)}"""


def proofs(bundle: Bundle) -> str:
    """What the types of each target cost, and what the target adds to the bundle."""
    rows = []
    for precision in PRECISIONS:
        proof = _report(bundle, precision)["graph"]
        embedding = next(check["value"] for check in proof["checks"] if check["name"].startswith("embedding"))
        folder = RTX.folder(precision)
        sizes = {name: facts["bytes"] for name, facts in bundle.entry["files"].items() if name.startswith(folder)}
        engines = sum(size for name, size in sizes.items() if name.endswith(".engine"))
        moved = (f"{value:.2g}" for value in (embedding, proof["mean_difference"], proof["max_difference"]))
        flipped = f"{proof['decisions_flipped']} of {proof['cases']}"
        weights = f"{(sum(sizes.values()) - engines) / 1e6:.1f} MB"
        rows.append([f"{RTX.name}:{precision}", *moved, flipped, weights, f"{engines / 1e6:.1f} MB"])
    whole = sum(facts["bytes"] for facts in bundle.entry["files"].values())
    rest = whole - sum(
        facts["bytes"] for name, facts in bundle.entry["files"].items() if name.startswith(f"engines/{RTX.name}-")
    )
    header = "target | embedding, largest relative Δ | mean Δp | largest Δp | flipped | graphs and weights | engines"
    return f"""## What the types cost, and what a target weighs

The whole graph of each target against FP32 (ONNX Runtime) on {GATE_CASES} phantoms, run on the CPU with
each value rounded to its type (ONNX Runtime). It proves the graph,
not the engine. The model is untrained: its decisions say nothing. INT8 was calibrated on
{CALIBRATION_CASES} other phantoms, with all layers quantized whatever the limits.

{report.table(header, rows)}
The bundle without these targets: {rest / 1e6:.1f} MB. Each engine is for all GPUs at once."""


def _report(bundle: Bundle, precision: str) -> dict[str, Any]:
    found: dict[str, Any] = bundle.entry["precision"][f"{RTX.name}:{precision}"]
    return found


def main() -> None:
    report.parser(__doc__).parse_args()
    heading = report.heading("TensorRT-RTX engine builds", ("torch", "onnx"))
    with tempfile.TemporaryDirectory() as folder:
        bundle = exported(Path(folder))
        print(page(heading, bundle, list(measure(bundle))))


if __name__ == "__main__":
    main()
