"""Decisions of every CPU target through finished bundles, against torch and scikit-learn.

    python -m benchmarks.cpu.decisions CHECKPOINT REAL_PAIRS.csv > benchmarks/results/decisions_<machine>.md

Two bundles are exported with the default limits, INT8 calibrated on phantoms and on real pairs: every other patient is
calibrated on, the rest is the gate's. A target that the gate refuses is not in the bundle: its row says why. Judged is
on phantoms that nobody has seen and on the real pairs without those that were calibrated on; where INT8 was calibrated
on real pairs, these are the ones that its gate has chosen the float layers by.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks import report
from mpmmu_rt.cases import Manifest, read_manifest
from mpmmu_rt.export import Wanted, export_checkpoint
from mpmmu_rt.export.encoders import Encoders
from mpmmu_rt.export.parity import run_original
from mpmmu_rt.images import Preprocessing, read_pixels
from mpmmu_rt.model import checkpoint as checkpoints
from mpmmu_rt.model.phantom import phantom_pixels, write_phantoms
from mpmmu_rt.predictor import load
from mpmmu_rt.spec import MODALITIES, Array, Modality

Pixels = dict[Modality, Array]
TARGETS = ("onnxruntime:fp32", "openvino:fp32", "openvino:bf16", "openvino:int8", "openvino:int8-bf16")


def read(manifest: Manifest, preprocessing: Preprocessing) -> tuple[Pixels, Array]:
    pixels: Pixels = {}
    for modality in MODALITIES:
        paths = [case.image(modality) for case in manifest.cases]
        pixels[modality] = np.stack([read_pixels(path, preprocessing, modality=modality) for path in paths if path])
    return pixels, np.array([case.label for case in manifest.cases])


def judge(name: str, got: Array, want: Array, labels: Array, threshold: float) -> str:
    flips = int(np.sum((got >= threshold) != (want >= threshold)))
    auc = roc_auc_score(labels, want), roc_auc_score(labels, got)
    off = np.abs(got - want)
    return report.row(
        [name, len(got), f"{off.max():.2g}", f"{off.mean():.2g}", flips, f"{auc[0]:.4f}", f"{auc[1] - auc[0]:+.4f}"]
    )


def main(folder: Path, real: Path) -> None:
    checkpoint = checkpoints.load(folder)
    preprocessing = checkpoint.config.preprocessing
    original = Encoders(dict(checkpoint.encoders), preprocessing.size)
    phantoms, drawn = phantom_pixels(200, seed=424_242, preprocessing=preprocessing)
    pairs = read_manifest(real)
    real_pixels, real_labels = read(pairs, preprocessing)
    groups = [case.group for case in pairs.cases]
    unseen = np.array([group not in list(dict.fromkeys(groups))[::2] for group in groups])
    print(report.heading("Decisions", ("torch", "scikit-learn")))
    print(f"Checkpoint {folder.name}: {checkpoint.card.get('trained_on', '')}\n")
    with tempfile.TemporaryDirectory() as temporary:
        calibrations = {
            "phantoms": (write_phantoms(400, Path(temporary) / "cases", seed=3), np.full(len(groups), True)),
            "real pairs": (real, unseen),
        }
        for source, (manifest, judged) in calibrations.items():
            output = Path(temporary) / f"{source}.bundle"
            bundle = export_checkpoint(folder, output, calibration_manifest=manifest, wanted=Wanted())
            reports = bundle.entry["precision"]
            gate = reports["openvino:int8"].get("source", "the same manifest's other patients")
            print(f"\n## Calibrated on {source}, gate: {gate}\n")
            print(report.columns("target, cases | n | max Δp | mean Δp | flips | AUC of the original | ΔAUC"))
            sets = {
                "phantoms": (phantoms, drawn),
                "real pairs": ({m: real_pixels[m][judged] for m in MODALITIES}, real_labels[judged]),
            }
            for target in TARGETS:
                if target not in bundle.targets:
                    reason = reports.get(target, {}).get("reason", "it does not run on this processor")
                    print(report.row([target, f"left out: {reason}", *[""] * 5]))
                    continue
                with load(output, target) as predictor:
                    for name, (pixels, labels) in sets.items():
                        want = run_original(original, checkpoint.head, pixels).probability
                        batches = range(0, len(labels), 32)
                        parts = [predictor.predict({m: pixels[m][at : at + 32] for m in MODALITIES}) for at in batches]
                        got = np.concatenate([part.probability for part in parts])
                        print(judge(f"{target}, {name}", got, want, labels, bundle.threshold), flush=True)


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("real_pairs", type=Path, help="a manifest with labels")
    given = parser.parse_args()
    main(given.checkpoint, given.real_pairs)
