"""A bundle that knows how its modalities look, and manifests whose columns are exchanged."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

from mpmmu_rt.bundle import seal
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.model import modality_fit
from mpmmu_rt.model.phantom import phantom_pixels


def checking(bundle: Path, folder: Path) -> Path:
    """A copy of `bundle`, of 48 × 48, with a modality check that was fitted on phantoms."""
    pixels, _ = phantom_pixels(120, seed=0, preprocessing=Preprocessing(size=48))
    check = modality_fit.fit(pixels["mammography"], pixels["ultrasound"])
    folder = Path(shutil.copytree(bundle, folder))
    seal(folder, json.loads((folder / "bundle.json").read_text()) | {"modality_check": check.to_json()})
    return folder


def exchanged(manifest: Path, path: Path, every: int = 1) -> Path:
    """`manifest` at `path`, with the images of every so many-th case, from the first on, in each other's column."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "mammography", "ultrasound", "label"])
        for row, case in enumerate(read_manifest(manifest).cases):
            images = [case.mammography, case.ultrasound]
            writer.writerow([case.case_id, *(images[::-1] if row % every == 0 else images), case.label])
    return path
