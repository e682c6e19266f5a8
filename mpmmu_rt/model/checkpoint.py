"""The checkpoint: a folder that holds a trained model and no pickle.

config.json              schema, model configuration, operating threshold, card, digests of the other files
mammography.safetensors  the encoders' weights
ultrasound.safetensors
head_<modality>.skops    of a model with heads for one modality alone: both of them
head.skops               the fitted stacking head (or, if the user vouches for it by name, head.pkl / head.joblib)
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import skops.io
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mpmmu_rt.errors import CheckpointError, MpmmuError, quoted
from mpmmu_rt.files import MAX_JSON_BYTES, parse_json_object, read_bounded, sha256_file
from mpmmu_rt.folders import Kind, atomic_folder
from mpmmu_rt.modality_check import ModalityCheck
from mpmmu_rt.spec import MODALITIES, Array, Modality, StrPath

from . import learning_curves, skops_file
from .config import ModelConfig
from .encoder import Encoder

SCHEMA = "mpmmu-checkpoint/1"
CONFIG = "config.json"
_FILES = (*(f"{modality}.safetensors" for modality in MODALITIES), "head.skops", "head_*.skops", *learning_curves.FILES)
KIND = Kind(CONFIG, _FILES, SCHEMA)
MAX_WEIGHTS_BYTES = 2 * 2**30
MAX_HEAD_BYTES = 4 * 2**30
PICKLED_HEADS = ("head.joblib", "head.pkl")
_HINT = "use a folder that `mpmmu-rt train` wrote"

# What skops asks to be trusted for the heads that we can export; plain data holders of scikit-learn, and functions of
# its own that compute a score.
TRUSTED_TYPES = frozenset(
    {
        "numpy.dtype",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.calibration._TemperatureScaling",
        "sklearn.feature_selection._univariate_selection.f_classif",
        "sklearn.metrics._classification.balanced_accuracy_score",
        "sklearn.metrics._scorer._CurveScorer",
        "sklearn.metrics._scorer._PassthroughScorer",
        "sklearn.metrics._scorer._Scorer",
        "sklearn.model_selection._split.StratifiedKFold",
        "sklearn.tree._tree.Tree",
        "sklearn.utils._bunch.Bunch",
        "sklearn.utils._metadata_requests.MetadataRequest",
        "sklearn.utils._metadata_requests.MethodMetadataRequest",
    }
)


@dataclass(frozen=True)
class Checkpoint:
    """A trained model in memory. `card` says what it was trained on, how, and how well it did; JSON values only.
    known_images: by part of the split, what it learnt from (`mpmmu_rt.known_images`). embedding_mean: float32 [D], of
    the training rows, if known. single_heads: for one modality alone, of both, or none. digest: SHA-256 of
    `config.json`, which names those of the rest, and of a pickled head that it does not name; empty of what was not
    read."""

    config: ModelConfig
    encoders: Mapping[Modality, Encoder]
    head: Any
    threshold: float
    card: Mapping[str, Any]
    known_images: Mapping[str, str] = field(default_factory=dict)
    embedding_mean: Array | None = None
    modality_check: ModalityCheck | None = None
    single_heads: Mapping[Modality, Any] = field(default_factory=dict)
    digest: str = ""


def save(checkpoint: Checkpoint, folder: StrPath, *, overwrite: bool = False) -> None:
    """Write `checkpoint` to `folder`, whole or not at all. Raises `OutputError`."""
    with atomic_folder(Path(folder), KIND, overwrite=overwrite) as partial:
        for modality in MODALITIES:
            state = {key: value.contiguous() for key, value in checkpoint.encoders[modality].state_dict().items()}
            save_file(state, partial / f"{modality}.safetensors")
        skops_file.dump(checkpoint.head, partial / "head.skops")
        for modality, head in checkpoint.single_heads.items():
            skops_file.dump(head, partial / _single(modality))
        entry = {
            "schema": SCHEMA,
            "model": checkpoint.config.to_json(),
            "threshold": checkpoint.threshold,
            "card": dict(checkpoint.card),
            "known_images": dict(checkpoint.known_images),
            "embedding_mean": _text(checkpoint.embedding_mean),
            "modality_check": checkpoint.modality_check and checkpoint.modality_check.to_json(),
            "files": {path.name: sha256_file(path) for path in sorted(partial.iterdir())},
        }
        (partial / CONFIG).write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")


def load(folder: StrPath, *, trust_pickle: StrPath | None = None) -> Checkpoint:
    """Read a checkpoint. `trust_pickle` names the one pickled head that may be executed, if there is one.

    Raises `CheckpointError` for anything that is absent, altered, too large or of an unknown type, and for a pickle
    that would be passed over.
    """
    folder, trust_pickle = Path(folder), None if trust_pickle is None else Path(trust_pickle)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder, expected a checkpoint", hint=_HINT)
    path = folder / CONFIG
    data = read_bounded(path, MAX_JSON_BYTES, CheckpointError, _HINT)
    entry = parse_json_object(path, data, CheckpointError, _HINT)
    if entry.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} has the schema {entry.get('schema')!r}, expected `{SCHEMA}`", hint=_HINT)
    digests, threshold, card = entry.get("files"), entry.get("threshold"), entry.get("card")
    if not isinstance(digests, dict) or not isinstance(card, dict):
        raise CheckpointError(f"{path} lacks `files` or `card`, expected both", hint=_HINT)
    if not isinstance(threshold, int | float) or isinstance(threshold, bool) or not 0 < threshold < 1:
        raise CheckpointError(f"{path} has the threshold {threshold!r}, expected a number in 0..1", hint=_HINT)
    try:
        config = ModelConfig.from_json(entry.get("model"))
    except MpmmuError as error:
        raise CheckpointError(f"{path}: {error}", hint=_HINT) from error
    encoders = {modality: _encoder(folder, modality, config, digests) for modality in MODALITIES}
    known = entry.get("known_images", {})  # an older checkpoint has none
    if not isinstance(known, dict) or not all(isinstance(text, str) for text in known.values()):
        raise CheckpointError(f"{path} has other `known_images` than texts, expected texts", hint=_HINT)
    mean = _array(path, entry.get("embedding_mean"), sum(encoder.channels for encoder in encoders.values()))
    try:
        check = ModalityCheck.from_json(entry.get("modality_check"))
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path}: {error}", hint=_HINT) from error
    (head, unnamed), single = _head(folder, digests, trust_pickle), _single_heads(folder, digests)
    digest = hashlib.sha256(data + unnamed.encode()).hexdigest()
    return Checkpoint(config, encoders, head, float(threshold), card, known, mean, check, single, digest)


def _single(modality: Modality) -> str:
    return f"head_{modality}.skops"


def _single_heads(folder: Path, digests: Mapping[str, Any]) -> dict[Modality, Any]:
    """For one modality alone: of both, or none. Raises `CheckpointError`."""
    if not any(_single(modality) in digests for modality in MODALITIES):
        return {}
    for modality in MODALITIES:
        _check_file(folder / _single(modality), digests, MAX_HEAD_BYTES)
    return {modality: load_skops(folder / _single(modality)) for modality in MODALITIES}


def _text(array: Array | None) -> str | None:
    """float32 as base64: 4,096 numbers would be as many lines."""
    return None if array is None else base64.b64encode(np.asarray(array, "<f4").tobytes()).decode()


def _array(path: Path, text: object, width: int) -> Array | None:
    """The inverse, float32 [width]. Raises `CheckpointError`."""
    if text is None:
        return None
    try:
        found = np.frombuffer(base64.b64decode(str(text), validate=True), "<f4").astype(np.float32)
    except ValueError:
        found = np.empty(0, np.float32)
    if found.shape != (width,) or not np.isfinite(found).all():
        raise CheckpointError(f"{path} has an `embedding_mean` that is not {width} finite numbers", hint=_HINT)
    return found


def _encoder(folder: Path, modality: Modality, config: ModelConfig, digests: Mapping[str, Any]) -> Encoder:
    path = folder / f"{modality}.safetensors"
    _check_file(path, digests, MAX_WEIGHTS_BYTES)
    encoder = Encoder(config.encoder(modality))
    try:
        encoder.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} does not hold the weights of the configured {config.encoder(modality).arch}: {reason}",
            hint="the weights and config.json must come from the same training run",
        ) from error
    return encoder.eval()


def _head(folder: Path, digests: Mapping[str, Any], trust_pickle: Path | None) -> tuple[Any, str]:
    """The head, and its SHA-256 where `digests` has none of it."""
    path = folder / "head.skops"
    if path.exists():
        if trust_pickle is not None:
            raise CheckpointError(
                f"{folder} holds head.skops, and --trust-pickle names {trust_pickle}, expected one head",
                hint="leave --trust-pickle out; if it is the pickle that shall count, move head.skops away",
            )
        _check_file(path, digests, MAX_HEAD_BYTES)
        return load_skops(path), ""
    for pickled in (folder / name for name in PICKLED_HEADS):
        if not pickled.exists():
            continue
        if trust_pickle is None or trust_pickle.resolve() != pickled.resolve():
            raise CheckpointError(
                f"{pickled} is a pickle, which runs any code it holds when it is loaded; expected head.skops",
                hint=f"if you made this file yourself, pass --trust-pickle {quoted(pickled)}",
            )
        if pickled.name in digests:
            _check_file(pickled, digests, MAX_HEAD_BYTES)
        return _unpickled(pickled), "" if pickled.name in digests else sha256_file(pickled)
    raise CheckpointError(f"{folder} holds no head.skops, expected a fitted stacking head", hint=_HINT)


def _unpickled(path: Path) -> Any:
    """What a pickle holds that is trusted. Raises `CheckpointError`."""
    try:
        return joblib.load(path)
    except Exception as error:  # of damage anything, and ImportError for a package that is not here
        raise CheckpointError(
            f"{path} can't be unpickled ({type(error).__name__}: {error}), expected a fitted head",
            hint="write it anew with joblib.dump, with the packages and the releases that are installed here",
        ) from error


def load_skops(path: Path) -> Any:
    """Load a skops file that holds only types known to be plain data, or raise `CheckpointError`."""
    try:
        unknown = set(skops.io.get_untrusted_types(file=path)) - TRUSTED_TYPES
        found = None if unknown else skops.io.load(path, trusted=sorted(TRUSTED_TYPES))
    except Exception as error:  # of a damaged ZIP file BadZipFile, NotImplementedError, EOFError, RuntimeError, …
        raise CheckpointError(
            f"{path} is not a readable skops file: {type(error).__name__}: {error}", hint="write it with skops.io.dump"
        ) from error
    if unknown:
        raise CheckpointError(
            f"{path} holds the types {', '.join(sorted(unknown)[:5])}, which are not known to be safe",
            hint="the head may hold only scikit-learn estimators of the supported list",
        )
    return found


def _check_file(path: Path, digests: Mapping[str, Any], limit: int) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, expected a file of the checkpoint", hint=_HINT)
    if path.stat().st_size > limit:
        raise CheckpointError(f"{path} is larger than {limit} bytes, expected less", hint=_HINT)
    if digests.get(path.name) != sha256_file(path):
        raise CheckpointError(
            f"{path} is not the file that config.json was written with (SHA-256 differs)",
            hint="files of two checkpoints were mixed or one was damaged: copy the whole folder again",
        )
