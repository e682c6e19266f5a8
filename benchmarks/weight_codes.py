"""How large may an INT8 weight be: what 127 and 64 cost in decisions, and what this processor makes of them.

    python -m benchmarks.weight_codes CHECKPOINT REAL_PAIRS.csv > benchmarks/results/weight_codes_<machine>.md

Two comparisons of the whole model, calibrated on 256 phantoms. "written": the graphs computed as they are written (ONNX
Runtime, Q/DQ not fused) against float, which is what quantizing costs. "OpenVINO": the same graphs on OpenVINO against
"written", which is what this processor's 8-bit products cost: a processor with VNNI adds in 32 bits, one without in 16,
and saturates. Between engines, other orders of float sums move single codes; that is the smallest difference to expect.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
from sklearn.metrics import roc_auc_score

from benchmarks.decisions import Pixels, read
from mpmmu_rt import machine
from mpmmu_rt._optional import require
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.export.encoders import Encoders
from mpmmu_rt.export.parity import probability_of
from mpmmu_rt.export.quantization import calibrate, quantize, rewrite
from mpmmu_rt.export.quantization.ranges import session
from mpmmu_rt.model import checkpoint as checkpoints
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.spec import MODALITIES, Array, Modality

Graphs = Mapping[Modality, onnx.ModelProto]
Run = Callable[[onnx.ModelProto, Array], Array]


def written(graph: onnx.ModelProto, pixels: Array) -> Array:
    runner = session(graph)
    return np.concatenate([runner.run(None, {"pixels": pixels[at : at + 32]})[0] for at in range(0, len(pixels), 32)])


def on_openvino(graph: onnx.ModelProto, pixels: Array) -> Array:
    core = require("openvino", "this benchmark").Core()
    model = core.read_model(graph.SerializeToString())
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([np.array(compiled(pixels[at : at + 32])[0]) for at in range(0, len(pixels), 32)])


def main(folder: Path, real: Path) -> None:
    checkpoint = checkpoints.load(folder)
    preprocessing, threshold = checkpoint.config.preprocessing, checkpoint.threshold
    encoders = Encoders(dict(checkpoint.encoders), preprocessing.size)
    encoders.shapes()
    graphs: Graphs = {modality: encoders.features_graph(modality) for modality in MODALITIES}
    pool = session(encoders.pool_graph())
    calibration, _ = phantom_pixels(256, seed=77, preprocessing=preprocessing)
    ranges = {modality: calibrate(graphs[modality], calibration[modality]) for modality in MODALITIES}
    sets: dict[str, tuple[Pixels, Array]] = {
        "1000 phantoms": phantom_pixels(1000, seed=9999, preprocessing=preprocessing),
        "122 real pairs": read(read_manifest(real), preprocessing),
    }

    def answers(graphs: Graphs, pixels: Pixels, run: Run) -> tuple[Array, Array]:
        maps = {f"{modality}_feature_map": run(graphs[modality], pixels[modality]) for modality in MODALITIES}
        embedding = pool.run(["embedding"], maps)[0]
        return embedding, probability_of(checkpoint.head, embedding)

    print(f"# Weights of 127 codes and of 64\n\n{machine.describe()}\n\nCheckpoint {folder.name}.\n")
    print("| cases | activations | largest code | compared | embedding, rms | mean Δp | max Δp | flips | ΔAUC |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (pixels, labels) in sets.items():
        exact = answers(graphs, pixels, written)
        for unsigned in (False, True):
            for levels in (127, 64):
                with patch.object(rewrite, "WEIGHT_LEVELS", levels):
                    quantized = {m: quantize(graphs[m], ranges[m], unsigned=unsigned) for m in MODALITIES}
                meant, got = answers(quantized, pixels, written), answers(quantized, pixels, on_openvino)
                for what, (embedding, p), (want, base) in (
                    ("written to float", meant, exact),
                    ("OpenVINO to written", got, meant),
                ):
                    rms = np.linalg.norm(embedding - want) / np.linalg.norm(want)
                    flips = int(np.sum((p >= threshold) != (base >= threshold)))
                    change = roc_auc_score(labels, p) - roc_auc_score(labels, base)
                    print(
                        f"| {name} | {'UINT8 behind ReLU' if unsigned else 'INT8'} | {levels} | {what} | {rms:.4f} | "
                        f"{np.abs(p - base).mean():.4f} | {np.abs(p - base).max():.3f} | {flips} | {change:+.4f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
