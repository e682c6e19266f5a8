"""Cross-validation by patients: every patient is tested once, by a model that has not seen her.

A tenth of a small cohort is too few patients to tell an AUC. Here the patients of each class are dealt into K folds;
for each fold both stages are trained on the others, and the AUC is that of all out-of-fold probabilities together, with
the interval of `evaluation.estimate_auc`. They come from K models: where these differ in level, the pooled AUC is
lower than that of any one (Forman and Scholz 2010, "Apples-to-apples in cross-validation studies", SIGKDD Explorations
12:49), and each model learns from fewer patients than the final one. Both make it cautious. Its interval is of the
patients, not of what another training would give.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import sklearn
from sklearn.model_selection import StratifiedKFold

from mpmmu_rt.errors import CheckpointError, ManifestError
from mpmmu_rt.files import MAX_JSON_BYTES, parse_json_object, read_bounded, write_json
from mpmmu_rt.metrics import area_under_curve
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import MODALITIES, Array, StrPath

from .config import ModelConfig
from .data import TrainingData
from .evaluation import evaluate
from .split import CLASSES, TEST_SHARE, VALIDATION_SHARE, Split, patient_labels
from .stage_one import TrainingConfig
from .training import THRESHOLD, fit_on, stage_one
from .training_state import intact, key, made_with, sealed
from .weights import Weights

SCHEMA = "mpmmu-fold/2"
MOST_FOLDS = 20  # that the command line takes
_LEAST = 3  # patients of a class beside a fold: one to validate, two to learn from
_HINT = "continue with the arguments and the data of the first run, or remove the folder to start anew"


def fold_splits(label: Array, groups: tuple[str, ...], folds: int, *, seed: int) -> list[Split]:
    """Row indices of each fold: `test` is the fold, stratified by the patients' labels; of the others the share of
    patients validates that does in `split_patients`. No patient is in two parts, and each is in one `test`.

    label int [N], groups N patients. Raises `ManifestError` when a class has too few patients for so many folds.
    """
    labels = patient_labels(label, groups)
    patients, classes = np.array(list(labels)), np.array(list(labels.values()))
    counts = [int((classes == kind).sum()) for kind in (0, 1)]
    for count, name in zip(counts, CLASSES, strict=True):
        if not _enough(count, folds):
            possible = [other for other in range(2, MOST_FOLDS + 1) if all(_enough(one, other) for one in counts)]
            other = f"--folds {min(possible, key=lambda one: abs(one - folds))}, or " if possible else ""
            raise ManifestError(
                f"there are {count} {name} patients, too few for {folds} folds: expected at least one to test in each, "
                f"and {_LEAST} beside them",
                hint=f"{other}more {name} cases; without a `patient` column every row counts as a patient",
            )
    place = {name: at for at, name in enumerate(labels)}
    of_row = np.array([place[group] for group in groups])
    splits = []
    dealt = StratifiedKFold(folds, shuffle=True, random_state=seed).split(patients, classes)
    for number, (others, test) in enumerate(dealt):
        part = np.zeros(len(patients), np.int64)  # 0 train, 1 validation, 2 test
        part[test] = 2
        for kind in (0, 1):
            rest = others[classes[others] == kind]
            validation = max(1, round(VALIDATION_SHARE / (1 - TEST_SHARE) * len(rest)))
            part[np.random.default_rng([seed, kind, number]).permutation(rest)[:validation]] = 1
        splits.append(Split(*(np.flatnonzero(part[of_row] == wanted) for wanted in range(3))))
    return splits


def _enough(count: int, folds: int) -> bool:
    """Of a class. Fewer folds are larger and leave fewer patients beside them: of four 4 folds leave 3, 2 folds 2."""
    return count >= folds and count - -(-count // folds) >= _LEAST


def cross_validate(
    data: TrainingData,
    model_config: ModelConfig,
    training_config: TrainingConfig,
    folds: int,
    *,
    work_dir: StrPath,
    weights: StrPath | Weights | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train `folds` models, and measure their out-of-fold probabilities; JSON values.

    `folds`, `patients` and `malignant_patients` that were tested, `test` with the metrics of `evaluate` for
    `mammography`, `ultrasound` and `fused`, and `auc_by_fold`. An interrupted call is continued by the same call with
    the same `work_dir`: a fold that is done is kept as its probabilities, the others as `train` keeps its state. Raises
    `ManifestError` for too few patients, `CheckpointError` where `work_dir` belongs to another training.
    """
    splits = fold_splits(data.label, data.groups, folds, seed=training_config.seed)
    initial = Weights.of(weights)
    said = {name: np.full(len(data.label), np.nan) for name in (*MODALITIES, "fused")}
    by_fold: dict[str, list[float | None]] = {name: [] for name in said}
    for number, split in enumerate(splits, 1):
        title = f"fold {number} of {folds}: "

        def told(description: str, done: int, total: int, *more: str, title: str = title) -> None:
            progress(title + description, done, total, *more)

        kept = Path(work_dir) / f"fold-{number}-of-{folds}"
        digest = _digest(data, model_config, training_config, split, initial, device)
        result = kept.with_suffix(".json")
        if result.exists():
            found = _read(result, digest)
        else:
            kept.mkdir(parents=True, exist_ok=True)
            found = _fold(data, model_config, training_config, split, kept, initial, device, told)
            write_json(result, sealed({"schema": SCHEMA, "digest": digest, **found}))
        shutil.rmtree(kept, ignore_errors=True)
        for name, probability in found.items():
            said[name][split.test] = probability
            by_fold[name].append(area_under_curve(data.label[split.test], np.array(probability)))
    patients = patient_labels(data.label, data.groups)
    return {
        "folds": folds,
        "patients": len(patients),
        "malignant_patients": sum(patients.values()),
        "test": {name: evaluate(data.label, values, data.groups, THRESHOLD) for name, values in said.items()},
        "auc_by_fold": by_fold,
    }


def _fold(
    data: TrainingData,
    model_config: ModelConfig,
    training_config: TrainingConfig,
    split: Split,
    folder: Path,
    initial: Weights | None,
    device: str,
    progress: Progress,
) -> dict[str, list[float]]:
    """Probabilities of the fold's rows, float [test rows], by each modality alone and fused."""
    trained = stage_one(
        data, split, model_config, training_config, folder, initial=initial, device=device, progress=progress
    )
    inputs, found = trained.inputs(), {}
    for done, (name, features) in enumerate(inputs.items()):
        progress("fitting the stacking heads", done, len(inputs), "heads")
        _, said = fit_on(data, split, features, model_config.head, training_config.seed)
        found[name] = [float(value) for value in said]
    progress("fitting the stacking heads", len(inputs), len(inputs), "heads")
    return found


def _read(path: Path, digest: str) -> dict[str, list[float]]:
    entry = parse_json_object(path, read_bounded(path, MAX_JSON_BYTES, CheckpointError, _HINT), CheckpointError, _HINT)
    if (entry.get("schema"), entry.get("digest")) != (SCHEMA, digest):
        raise CheckpointError(
            f"{path} is a fold of a training with another configuration, other data, another kind of device or other "
            f"releases of mpmmu-rt, torch or scikit-learn, expected {digest[:12]}",
            hint=_HINT,
        )
    if not intact(entry):
        raise CheckpointError(
            f"{path} was altered or damaged since it was written: its SHA-256 differs, expected a fold's probabilities",
            hint=f"remove {path.name}: that fold is trained anew",
        )
    return {name: cast("list[float]", entry[name]) for name in (*MODALITIES, "fused")}


def _digest(
    data: TrainingData,
    model_config: ModelConfig,
    training_config: TrainingConfig,
    split: Split,
    initial: Weights | None,
    device: str,
) -> str:
    """Names everything that a fold's result depends on, but for the machine."""
    return key(
        {
            "data": data.sha256,
            "model": model_config.to_json(),
            "training": asdict(training_config),
            "split": {name: rows.tolist() for name, rows in split.parts().items()},
            **made_with(device),
            "scikit-learn": sklearn.__version__,
            **({"initial": initial.sha256} if initial else {}),
        }
    )
