"""Both stages of the paper: train the encoders, fit the stacking head on their embeddings, measure.

The patients are split 7 : 2 : 1. Training rows teach the encoders, and validation rows choose each encoder's
epoch. The head is fitted on both, in folds that keep patients together; test rows are looked at once, for the
metrics. Two choices that the paper's abstract leaves open were made by measurement: preset `tiny`, 600 phantoms,
1000 others to measure on (AUC ± 0.02, but the same encoders and phantoms within a seed), seeds 0, 1, 2, torch 2.13
on two CPU cores, 2026-11, before the meta-learner's units became tanh (they were ReLU):

- What the head is fitted on. Fused AUC with training rows alone: 0.908, 0.899, 0.893 (Brier 0.117, 0.120, 0.123);
  with validation rows alone, whose embeddings are not overfitted but few: 0.891, 0.865, 0.887 (0.128, 0.134,
  0.154); with both: 0.909, 0.904, 0.895 (0.113, 0.117, 0.119). Where encoders overfit (300 phantoms, no augmentation,
  25 epochs, one seed) there is no clear best: 0.780, 0.768, 0.757 (0.253, 0.192, 0.220), AUC ± 0.03.
- The threshold. 0.5, as the meta-learner's loss is a proper one, against Youden's index on the validation rows of a
  head fitted on the training rows: balanced accuracy 0.851 against 0.837 and 0.832 against 0.808 (seeds 1, 2).
  A hundred rows don't locate the best threshold, and 0.5 is not chosen on any data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpmmu_rt import split_record
from mpmmu_rt.errors import OutputError, UsageError
from mpmmu_rt.folders import Kind
from mpmmu_rt.image_figures import figures
from mpmmu_rt.known_images import listing
from mpmmu_rt.modality_check import ModalityCheck
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import MODALITIES, Array, Modality, StrPath

from . import head_state, modality_fit
from .config import HeadConfig, ModelConfig
from .data import TrainingData, data_from_manifest, data_from_phantoms
from .encoder import Encoder
from .evaluation import evaluate
from .split import Split, patient_folds, patient_labels, patients_by_class, split_patients
from .stacking import fit_head
from .stage_one import TRAINING_PRESETS, TrainingConfig, embed, train_encoder
from .weights import Weights

THRESHOLD = 0.5
UNSEEN_FOLDS = 3
_KEPT = tuple(
    f"{place}{name}.{end}"
    for place in ("", "fold-*-of-*/")
    for name in (*MODALITIES, "fused")
    for end in ("state.safetensors", "head.json", "head.skops")
)
STATE = Kind("", (*_KEPT, "fold-*-of-*.json"))  # what `work_dir` holds, with cross-validation's

__all__ = [
    "STATE",
    "THRESHOLD",
    "TRAINING_PRESETS",
    "TrainedModel",
    "TrainingConfig",
    "TrainingData",
    "data_from_manifest",
    "data_from_phantoms",
    "train",
]


@dataclass(frozen=True)
class TrainedModel:
    """What training made: encoders in eval mode on the CPU, the fitted head and its operating threshold.

    `metrics`, `history`, `how` (settings and epochs), `known_images` and `patients` of each part
    (`mpmmu_rt.split_record`) hold JSON values only. `single_heads`: for one modality alone, at the same threshold.
    `metrics`: the `source` of the data, `parts` (patients and rows by class), `test` with the metrics of `evaluate`
    for `mammography`, `ultrasound` and `fused`, and `validation`, what heads that have not seen them say of the
    validation rows, for choosing a threshold. `embedding_mean`: float32 [D], of the training rows; `modality_check`
    is fitted on their images, and `metrics` has in `unlike` how many `images` the test part has, and how many of them
    it calls `unlike` those.
    """

    encoders: dict[Modality, Encoder]
    head: Any
    single_heads: dict[Modality, Any]
    model_config: ModelConfig
    training_config: TrainingConfig
    threshold: float
    metrics: dict[str, Any]
    history: dict[str, list[dict[str, float]]]
    how: dict[str, Any]
    known_images: dict[str, str]
    patients: dict[str, list[str]]
    embedding_mean: Array
    modality_check: ModalityCheck


def train(
    data: TrainingData,
    model_config: ModelConfig,
    training_config: TrainingConfig,
    *,
    work_dir: StrPath,
    weights: StrPath | Weights | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> TrainedModel:
    """Run both stages. An interrupted call is continued by the same call with the same `work_dir`.

    weights: a ResNet's (ImageNet's, say) that both encoders start from, or a file with them; random ones if None.
    Raises `ManifestError` when a class has too few patients, `CheckpointError` when `work_dir` belongs to another
    training, `UsageError` for arguments that don't fit each other, `OutputError` if `work_dir` can't be made.
    """
    if data.preprocessing != model_config.preprocessing:
        raise UsageError(
            f"the data are preprocessed with {data.preprocessing}, the model wants {model_config.preprocessing}",
            hint="make the data with the model's preprocessing",
        )
    split = split_patients(data.label, data.groups, seed=training_config.seed)
    initial = Weights.of(weights)
    work_dir = Path(work_dir)
    make_folder(work_dir)
    trained = stage_one(
        data, split, model_config, training_config, work_dir, initial=initial, device=device, progress=progress
    )
    heads, told = _stage_two(data, split, trained, model_config, training_config.seed, work_dir, progress)
    metrics = {"source": data.source, "parts": _parts(data, split), **told}
    known = {part: listing(_images(data, rows)) for part, rows in split.parts().items()}
    mean = fuse(trained.embedding)[split.train].mean(0, dtype=np.float64).astype(np.float32)
    of_rows = [data.pixels[name][data.images(name, split.train)[0]] for name in MODALITIES]
    check = modality_fit.fit(*of_rows)
    return TrainedModel(
        encoders=trained.encoders,
        head=heads["fused"],
        single_heads={modality: heads[modality] for modality in MODALITIES},
        model_config=model_config,
        training_config=training_config,
        threshold=THRESHOLD,
        metrics={**metrics, "unlike": _unlike(data, split.test, check)},
        history=trained.history,
        how=_how(training_config, trained.history, initial),
        known_images=known,
        patients=split_record.record(data.groups, split.parts()),
        embedding_mean=mean,
        modality_check=check,
    )


def _unlike(data: TrainingData, rows: Array, check: ModalityCheck) -> dict[str, int] | None:
    """Of the images of `rows`, how many are called unlike those learnt from; None where that isn't known."""
    if check.learnt is None:
        return None
    found = {name: figures(data.pixels[name][data.images(name, rows)[0]]) for name in MODALITIES}
    strange = sum(int(check.learnt[name].strange(of).sum()) for name, of in found.items())
    return {"images": sum(map(len, found.values())), "unlike": strange}


@dataclass(frozen=True)
class StageOne:
    """Encoders in eval mode on the CPU, what is told of each epoch, and the embedding float32 [N, C] of every row."""

    encoders: dict[Modality, Encoder]
    history: dict[str, list[dict[str, float]]]
    embedding: dict[Modality, Array]

    def inputs(self) -> dict[str, Array]:
        """What heads are fitted on: each modality's embedding, and both."""
        return {**{str(name): self.embedding[name] for name in MODALITIES}, "fused": fuse(self.embedding)}


def stage_one(
    data: TrainingData,
    split: Split,
    model_config: ModelConfig,
    config: TrainingConfig,
    folder: Path,
    *,
    initial: Weights | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> StageOne:
    """Train both encoders on the training rows of `split`, with their states in `folder`. Raises what `train_encoder`
    raises."""
    encoders: dict[Modality, Encoder] = {}
    history: dict[str, list[dict[str, float]]] = {}
    embedding: dict[Modality, Array] = {}
    for modality in MODALITIES:
        encoders[modality], history[modality] = train_encoder(
            data,
            modality,
            split,
            model_config.encoder(modality),
            config,
            state_file=folder / f"{modality}.state.safetensors",
            initial=initial,
            device=device,
            progress=progress,
        )
        of_image = embed(encoders[modality], data.pixels[modality])
        embedding[modality] = of_image[data.image_of_row[modality]]
    return StageOne(encoders, history, embedding)


def fit_on(data: TrainingData, split: Split, features: Array, config: HeadConfig, seed: int) -> tuple[Any, Array]:
    """Stage 2: a head on features float32 [N, D], fitted on the training and validation rows; and what it says of the
    test rows, float64."""
    learn = np.concatenate([split.train, split.validation])
    head = fit_head(features[learn], data.label[learn], _groups(data, learn), config, seed=seed)
    return head, head.predict_proba(features[split.test])[:, 1]


def _images(data: TrainingData, rows: Array) -> Iterator[Array]:
    for modality in MODALITIES:
        yield from data.pixels[modality][data.images(modality, rows)[0]]


def _how(config: TrainingConfig, history: dict[str, list[dict[str, float]]], initial: Weights | None) -> dict[str, Any]:
    """For the card: the settings, and of each encoder how many epochs were run and which one was chosen."""
    epochs = {}
    for modality, entries in history.items():
        best = max(entries, key=lambda entry: entry["validation_auc"])  # of equals the first, as in training
        epochs[modality] = {
            "run": len(entries),
            "chosen": int(best["epoch"]),
            "validation_auc": best["validation_auc"],
        }
    started_from = {"file": initial.path.name, "sha256": initial.sha256} if initial else "random weights"
    return {**asdict(config), "epochs": epochs, "most_epochs": config.epochs, "started_from": started_from}


def disk_bytes(config: ModelConfig) -> int:
    """About what a training of `config` writes: of each encoder its weights, the best of them and AdamW's two moments,
    the checkpoint, and a new state beside the one that it replaces."""
    with torch.device("meta"):
        weights = [Encoder(config.encoder(modality)) for modality in MODALITIES]
    size = [4 * sum(one.numel() for one in encoder.state_dict().values()) for encoder in weights]
    total: int = 5 * sum(size) + 4 * max(size)
    return total


def _stage_two(
    data: TrainingData,
    split: Split,
    trained: StageOne,
    model_config: ModelConfig,
    seed: int,
    work_dir: Path,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit the fused head, and one of the same kind on each modality's embedding alone; what lies in `work_dir` already
    is not fitted again.

    Returns all three, and `test`, their metrics, and `validation`, see `_out_of_fold`.
    """
    inputs, rows = trained.inputs(), tuple(split.parts().values())
    heads: dict[str, Any] = {}
    test: dict[str, Any] = {}
    unseen: dict[str, Any] = {}
    for done, (name, features) in enumerate(inputs.items()):
        progress("fitting the stacking heads", done, len(inputs), "heads")

        def fit(name: str = name, features: Array = features) -> tuple[Any, dict[str, Any]]:
            made, said = fit_on(data, split, features, model_config.head, seed)
            found = evaluate(data.label[split.test], said, _groups(data, split.test), THRESHOLD)
            others = _out_of_fold(data, split, features, model_config, seed, progress) if name == "fused" else {}
            return made, {"test": found, "validation": others}

        key = head_state.digest(features, data.label, data.groups, rows, model_config.head, seed)
        heads[name], told = head_state.fitted(work_dir / name, key, fit)
        test[name], unseen = told["test"], told["validation"]
    progress("fitting the stacking heads", len(inputs), len(inputs), "heads")
    return heads, {"test": test, "validation": unseen}  # the last one is fused


def _out_of_fold(
    data: TrainingData, split: Split, fused: Array, model_config: ModelConfig, seed: int, progress: Progress
) -> dict[str, list[float]]:
    """Label and probability of the validation rows, of heads fitted on other patients.

    The fused head is fitted on these rows, and says of them what it says of no new ones: a threshold chosen on that
    keeps less than it promised. {} for too few patients.
    """
    learn = np.concatenate([split.train, split.validation])
    label, groups = data.label[learn], _groups(data, learn)
    # Each fold must leave three patients of a class: a head needs two to learn from whichever of them it leaves out.
    fewest = min(patients_by_class(label, groups))
    folds = min(UNSEEN_FOLDS, fewest)
    if fewest - -(-fewest // folds) < 3:
        return {}
    said = np.full(len(learn), np.nan)
    for done, (rest, fold) in enumerate(patient_folds(label, groups, folds, leave=3, seed=seed)):
        progress("heads for thresholds", done, folds)
        head = fit_head(fused[learn[rest]], label[rest], [groups[row] for row in rest], model_config.head, seed=seed)
        said[fold] = head.predict_proba(fused[learn[fold]])[:, 1]
    progress("heads for thresholds", folds, folds)
    found = said[len(split.train) :]
    return {"label": label[len(split.train) :].tolist(), "probability": [round(value, 6) for value in found.tolist()]}


def fuse(embedding: dict[Modality, Array]) -> Array:
    """Embeddings float32 [N, C₁] and [N, C₂] side by side, mammography first: float32 [N, C₁ + C₂]."""
    return np.concatenate([embedding[name] for name in MODALITIES], axis=1)


def _groups(data: TrainingData, rows: Array) -> list[str]:
    return [data.groups[row] for row in rows]


def _parts(data: TrainingData, split: Split) -> dict[str, dict[str, int]]:
    """Of each part the number of patients and rows, in all and malignant."""
    parts = {}
    for name, rows in split.parts().items():
        patients = patient_labels(data.label[rows], _groups(data, rows))
        parts[name] = {
            "patients": len(patients),
            "malignant_patients": sum(patients.values()),
            "rows": len(rows),
            "malignant_rows": int(data.label[rows].sum()),
        }
    return parts


def make_folder(path: Path) -> None:
    """For what a training keeps. Raises `OutputError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the folder {path} can't be made ({error.strerror}), expected a place for the training state",
            hint="name another",
        ) from error
