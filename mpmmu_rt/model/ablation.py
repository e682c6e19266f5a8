"""The paper's comparison on other data: each part of the system left out, on the same splits, over several seeds.

A seed decides a split of the patients, 7 : 2 : 1, and everything random in what is trained on it: four encoders (either
modality without and with its attention) and six stacking heads (either modality, and both, without and with attention).
The base learners and their soft vote are those of the fused head with attention. All are judged on the same test rows.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from scipy import stats

from mpmmu_rt import __version__
from mpmmu_rt.errors import CheckpointError
from mpmmu_rt.files import atomic_file, parse_json_object, read_bounded, write_json
from mpmmu_rt.metrics import CONFIDENCE
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import MODALITIES, Array, Modality

from . import training_state
from .config import AttentionKind, ModelConfig
from .data import TrainingData
from .evaluation import evaluate
from .split import Split, split_patients
from .stage_one import TrainingConfig, embed, train_encoder
from .training import THRESHOLD, fit_on, fuse

SCHEMA = "mpmmu-ablation/1"
RUN_SCHEMA = "mpmmu-ablation-run/2"
MAX_RUN_BYTES = 2**28
FUSED = "fusion, with attention"
STACKING = "stacking"
# Areas of few cases lie on a grid, and two systems may differ by the same in every split: a spread at or below it is
# rounding, and a test of that finds any difference certain.
_ROUNDING = 1e-12

# Yan et al. 2026, doi 10.1002/acm2.70464, abstract: AUC in percent, of 66 patients whose data are private. It gives no
# figure without attention and none of a single learner.
PUBLISHED: Mapping[str, str] = {
    "mammography, with attention": "74.5",
    "ultrasound, with attention": "72.3",
    FUSED: "87.9 ± 0.21",
}
LEARNERS: Mapping[str, str] = {
    "logistic_regression": "logistic regression alone",
    "svm": "SVM alone",
    "random_forest": "random forest alone",
    "extra_trees": "Extra-Trees alone",
}
SOFT_VOTE = "soft vote of the four"
# What is compared, second minus first.
COMPARISONS: tuple[tuple[str, str], ...] = (
    ("mammography, with attention", FUSED),
    ("ultrasound, with attention", FUSED),
    ("mammography, without attention", "fusion, without attention"),
    ("ultrasound, without attention", "fusion, without attention"),
    ("mammography, without attention", "mammography, with attention"),
    ("ultrasound, without attention", "ultrasound, with attention"),
    ("fusion, without attention", FUSED),
    *((name, STACKING) for name in (*LEARNERS.values(), SOFT_VOTE)),
)


@dataclass(frozen=True)
class Study:
    """What is compared on what. Runs whose result lies in `folder` under the key of what they depend on are not made
    again."""

    data: TrainingData
    model: ModelConfig
    training: TrainingConfig
    seeds: tuple[int, ...]
    folder: Path
    device: str = "cpu"

    def attention(self, modality: Modality) -> AttentionKind:
        """That of the model; of a model without any, the paper's."""
        own = self.model.encoder(modality).attention
        return own if own != "none" else "cbam" if modality == "mammography" else "eca"

    def split(self, seed: int) -> Split:
        return split_patients(self.data.label, self.data.groups, seed=seed)

    def encoders(self) -> list[tuple[Modality, AttentionKind]]:
        """Those that each seed trains."""
        return [(modality, kind) for modality in MODALITIES for kind in ("none", self.attention(modality))]


def ablate(
    study: Study, *, progress: Progress = silent, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Make every run that is not there yet, and the entry of the whole: JSON values only.

    say: is told of each run that ends, with the time that the others may take. Raises what training raises.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    clock = _Clock(len(study.seeds) * len(study.encoders()), say)
    results: list[dict[str, Any]] = []
    for seed in study.seeds:
        split = study.split(seed)
        embedding: dict[tuple[Modality, AttentionKind], Array] = {}
        for modality, kind in study.encoders():
            progress("runs", clock.done, clock.total)
            embedding[modality, kind] = _encoder_run(study, seed, split, modality, kind, clock, progress)
        results.append(_head_run(study, seed, split, embedding, progress))
    progress("runs", clock.total, clock.total)
    return _entry(study, results)


class _Clock:
    """How long the runs that were made took, and what is left."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total, self.done, self.say = total, 0, say
        self.took_s: list[float] = []

    def there(self, what: str) -> None:
        self.done += 1
        self.say(f"{self.done} of {self.total}: {what}: there already")

    def made(self, what: str, seconds: float) -> None:
        self.done += 1
        self.took_s.append(seconds)
        left = float(np.mean(self.took_s)) * (self.total - self.done)
        self.say(f"{self.done} of {self.total}: {what}: {seconds:.0f} s; {_minutes(left)} left")


def _minutes(seconds: float) -> str:
    return f"some {seconds:.0f} s" if seconds < 100 else f"some {seconds / 60:.0f} min"


def _encoder_run(
    study: Study, seed: int, split: Split, modality: Modality, kind: AttentionKind, clock: _Clock, progress: Progress
) -> Array:
    """The embedding of every image, float32 [M, C], by the encoder that was trained for it."""
    config = replace(study.model.encoder(modality), attention=kind)
    training = replace(study.training, seed=seed)
    facts = {"encoder": asdict(config), "modality": modality, "training": asdict(training)}
    key = _key(study, seed, split, {**facts, "made_with": training_state.made_with(study.device)})
    name = f"seed {seed}, {modality}, attention {kind}"
    path = study.folder / f"{modality}-{kind}-{key[:16]}.npy"
    state = path.with_suffix(".state.safetensors")
    if path.exists():
        found = _read(path, key)
        state.unlink(missing_ok=True)  # of a run that was stopped between the two
        clock.there(name)
        return found
    start = time.perf_counter()
    encoder, _ = train_encoder(
        study.data,
        modality,
        split,
        config,
        training,
        state_file=state,
        device=study.device,
        progress=_named(progress, name),
    )
    found = embed(encoder, study.data.pixels[modality])
    # First: where the embeddings are, it says what they are.
    write_json(path.with_suffix(".json"), {"schema": RUN_SCHEMA, "key": key, "sha256": _content(found)})
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.save(file, found)
    state.unlink()
    clock.made(name, time.perf_counter() - start)
    return found


def _named(progress: Progress, name: str) -> Progress:
    return lambda description, done, total, unit="", detail="": progress(name, done, total, unit, detail)


def _read(path: Path, key: str) -> Array:
    hint = f"remove {path.name}: that encoder is trained anew"
    facts = _json(path.with_suffix(".json"), hint)
    try:
        found: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} can't be read ({error}), expected the embeddings of a run", hint=hint) from error
    if (facts.get("key"), facts.get("sha256")) != (key, _content(found)):
        raise CheckpointError(
            f"{path} was altered or damaged since it was written: its SHA-256 differs, expected a run's embeddings",
            hint=hint,
        )
    return found


def _json(path: Path, hint: str) -> dict[str, Any]:
    return parse_json_object(path, read_bounded(path, MAX_RUN_BYTES, CheckpointError, hint), CheckpointError, hint)


def _content(embedding: Array) -> str:
    """SHA-256 of float32 [M, C], with its shape."""
    return hashlib.sha256(f"{embedding.dtype} {embedding.shape}\n".encode() + embedding.tobytes()).hexdigest()


def _head_run(
    study: Study,
    seed: int,
    split: Split,
    embedding: Mapping[tuple[Modality, AttentionKind], Array],
    progress: Progress,
) -> dict[str, Any]:
    """The metrics of every head on the test rows, with their probabilities."""
    digests = {f"{m} {k}": _content(array) for (m, k), array in embedding.items()}
    key = _key(study, seed, split, {"embeddings": digests, "head": asdict(study.model.head)})
    path = study.folder / f"heads-{key[:16]}.json"
    if path.exists():
        entry = _json(path, f"remove {path.name}")
        if entry.get("schema") == RUN_SCHEMA and entry.get("key") == key and training_state.intact(entry):
            return entry
    data = study.data
    test_groups = [data.groups[row] for row in split.test]
    said: dict[str, Array] = {}
    for done, (name, features) in enumerate(inputs := list(_inputs(study, embedding))):
        progress(f"seed {seed}, stacking heads", done, len(inputs))
        head, said[name] = fit_on(data, split, features, study.model.head, seed)
        if name == FUSED:
            scaled, stack = head[:-1].transform(features[split.test]), head.named_steps["stack"]
            alone = {LEARNERS[key]: stack.named_estimators_[key].predict_proba(scaled)[:, 1] for key in LEARNERS}
            said |= {**alone, SOFT_VOTE: np.mean(list(alone.values()), axis=0), STACKING: said[FUSED]}
    progress(f"seed {seed}, stacking heads", len(inputs), len(inputs))
    label = data.label[split.test]
    entry = {
        "schema": RUN_SCHEMA,
        "key": key,
        "seed": seed,
        "rows": {part: len(rows) for part, rows in split.parts().items()},
        "patients": {part: len({data.groups[row] for row in rows}) for part, rows in split.parts().items()},
        "malignant_test_patients": len({g for g, y in zip(test_groups, label, strict=True) if y}),
        "metrics": {name: evaluate(label, probability, test_groups, THRESHOLD) for name, probability in said.items()},
    }
    write_json(path, entry := training_state.sealed(entry))
    return entry


def _inputs(study: Study, embedding: Mapping[tuple[Modality, AttentionKind], Array]) -> Iterator[tuple[str, Array]]:
    """What each head is fitted on: its row's name, and features float32 [N, D]."""
    of_row = {key: array[study.data.image_of_row[key[0]]] for key, array in embedding.items()}
    for modality in MODALITIES:
        yield f"{modality}, without attention", of_row[modality, "none"]
        yield f"{modality}, with attention", of_row[modality, study.attention(modality)]
    yield "fusion, without attention", fuse({m: of_row[m, "none"] for m in MODALITIES})
    yield FUSED, fuse({m: of_row[m, study.attention(m)] for m in MODALITIES})


def _key(study: Study, seed: int, split: Split, facts: Mapping[str, Any]) -> str:
    """Names everything that a run depends on, but for the machine."""
    return training_state.key(
        {
            "data": study.data.sha256,
            "seed": seed,
            "split": {name: rows.tolist() for name, rows in split.parts().items()},
            "versions": [__version__, torch.__version__, sklearn.__version__],
            **facts,
        }
    )


# ---------------------------------------------------------------- the whole


def _entry(study: Study, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names, patients = list(results[0]["metrics"]), results[0]["patients"]  # each seed has as many
    share = patients["test"] / (patients["train"] + patients["validation"])
    areas = {name: [one["metrics"][name]["auc"]["value"] for one in results] for name in names}
    return {
        "schema": SCHEMA,
        "source": study.data.source,
        "model": study.model.to_json(),
        "attention": {modality: study.attention(modality) for modality in MODALITIES},
        "training": asdict(study.training) | {"seed": None},
        "seeds": list(study.seeds),
        "parts": [
            {key: one[key] for key in ("seed", "rows", "patients", "malignant_test_patients")} for one in results
        ],
        "rows": [
            {
                "name": name,
                "auc": areas[name],
                "mean": _mean(areas[name]),
                "spread": _spread(areas[name]),
                **{
                    figure: _mean([one["metrics"][name][figure] for one in results])
                    for figure in ("sensitivity", "specificity", "brier")
                },
                "published_auc_percent": PUBLISHED.get(name),
            }
            for name in names
        ],
        "comparisons": [
            {"first": first, "second": second, **paired(areas[first], areas[second], share)}
            for first, second in COMPARISONS
        ],
        "threshold": THRESHOLD,
    }


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float | None]) -> float | None:
    return float(np.mean(known)) if (known := _known(values)) else None


def _spread(values: Sequence[float | None]) -> float | None:
    """The standard deviation over seeds; None of fewer than two."""
    return float(np.std(known, ddof=1)) if len(known := _known(values)) > 1 else None


def paired(
    first: Sequence[float | None], second: Sequence[float | None], share: float
) -> dict[str, float | int | None]:
    """Second minus first over the same splits: mean, spread, and a t-test with its 95 % interval.

    The splits are of the same patients, so that what is trained on them is not independent and the plain paired t-test
    finds differences where there are none. The variance of the mean is therefore s² (1 / J + share), J the number of
    splits and share = test patients / training patients: the corrected resampled t-test (Nadeau and Bengio 2003,
    "Inference for the generalization error", Machine Learning 52:239, equation 5). None where too few splits tell.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    found = np.array([b - a for a, b in pairs])
    entry: dict[str, float | int | None] = {
        "splits": len(found), "mean": _mean(found.tolist()), "spread": _spread(found.tolist()),
        "low": None, "high": None, "t": None, "p": None,
    }  # fmt: skip
    if len(found) < 2 or float(found.std(ddof=1)) <= _ROUNDING:
        return entry
    mean, error = float(found.mean()), float(found.std(ddof=1)) * math.sqrt(1 / len(found) + share)
    law = stats.t(len(found) - 1)
    reach = float(law.ppf((1 + CONFIDENCE) / 2)) * error
    return entry | {
        "low": mean - reach,
        "high": mean + reach,
        "t": mean / error,
        "p": float(2 * law.sf(abs(mean / error))),
    }
