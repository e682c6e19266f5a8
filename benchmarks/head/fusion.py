"""What fusing gains: the AUC of mammography alone, ultrasound alone and both, of preset tiny on phantoms (no patients).

    python -m benchmarks.head.fusion [SEED …] > benchmarks/results/phantom_auc_tiny.md

Each seed trains on 600 phantoms and is measured on 1000 others. The single modalities' heads are of the same kind
as the fused one, fitted on that modality's embedding alone.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import report
from mpmmu_rt.evaluation.auc import estimate_auc
from mpmmu_rt.model.config import tiny
from mpmmu_rt.model.phantom import ceilings, phantom_pixels
from mpmmu_rt.model.split import split_patients
from mpmmu_rt.model.stacking import fit_head
from mpmmu_rt.model.stage_one import embed
from mpmmu_rt.model.training import TRAINING_PRESETS, data_from_phantoms, fuse, train
from mpmmu_rt.spec import MODALITIES, Array, Modality

PHANTOMS, HELD_OUT, HELD_OUT_SEED = 600, 1000, 9999


def measure(seed: int, pixels: dict[Modality, Array], label: Array) -> tuple[list[str], float]:
    """The cells of one row, and the seconds that training took."""
    config = tiny()
    start = time.perf_counter()
    data = data_from_phantoms(PHANTOMS, seed, config.preprocessing)
    settings = replace(TRAINING_PRESETS["tiny"], seed=seed)
    with tempfile.TemporaryDirectory() as work:
        model = train(data, config, settings, work_dir=Path(work))
    seconds = time.perf_counter() - start
    learned = {modality: embed(model.encoders[modality], data.pixels[modality]) for modality in MODALITIES}
    held_out = {modality: embed(model.encoders[modality], pixels[modality]) for modality in MODALITIES}
    split = split_patients(data.label, data.groups, seed=seed)
    rows = np.concatenate([split.train, split.validation])
    groups = [data.groups[row] for row in rows]
    cells = []
    names = [str(index) for index in range(len(label))]
    for features, fresh in (*((learned[m], held_out[m]) for m in MODALITIES), (fuse(learned), fuse(held_out))):
        head = fit_head(features[rows], data.label[rows], groups, config.head, seed=seed)
        auc = estimate_auc(label, head.predict_proba(fresh)[:, 1], names)
        cells.append(f"{auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})")
    return cells, seconds


def main(seeds: list[int]) -> None:
    pixels, label = phantom_pixels(HELD_OUT, seed=HELD_OUT_SEED, preprocessing=tiny().preprocessing)
    title = f"Phantom AUC, preset tiny: {PHANTOMS} phantoms to learn from, {HELD_OUT} others to measure on"
    print(report.heading(title, ("torch", "scikit-learn")))
    print("95 % intervals (DeLong). Phantoms are drawings: these figures say nothing about patients.\n")
    print(report.columns("seed | mammography alone | ultrasound alone | fused | training"))
    for seed in seeds:
        cells, seconds = measure(seed, pixels, label)
        print(report.row([seed, *cells, f"{seconds:.0f} s"]), flush=True)
    best = ceilings()
    print(report.row(["best possible", *(f"{best[name]:.3f}" for name in (*MODALITIES, "fused")), ""]))


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("seeds", type=int, nargs="*", metavar="seed", help="instead of 0 1 2")
    main(parser.parse_args().seeds or [0, 1, 2])
