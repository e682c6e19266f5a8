"""Heads for one modality alone: what can be said of a patient of whom the other image is missing.

A bundle has them if they were asked for at training. They are stacking heads of the same kind, fitted on one encoder's
part of the embedding, and proven in FP32 alone. Nothing falls back to them: who calls asks for them by name.
"""

from __future__ import annotations

import threading

from .bundle import Bundle
from .engines import Session, engine
from .engines.shared.words import closed
from .errors import UsageError
from .single_record import BOTH as BOTH
from .single_record import COLUMN as COLUMN
from .single_record import graph_of
from .spec import MODALITIES, Array, Modality, Target

_IMAGES = {"mammography": "mammogram", "ultrasound": "ultrasound image"}


def require_single(bundle: Bundle, target: Target) -> None:
    """Raise `UsageError` where heads for one modality are not there, or not proven."""
    if not bundle.single_heads:
        raise UsageError(
            f"{bundle.path} holds no heads for one modality alone, expected a bundle that was trained with them",
            hint="train with --single-modality and export that checkpoint; or leave --allow-single out",
        )
    if target.precision != "fp32":
        exact = next((name for name in bundle.targets if name.endswith(":fp32")), "onnxruntime:fp32")
        raise UsageError(
            f"heads for one modality are asked for on {target}, expected FP32, in which they were proven",
            hint=f"--target {exact}, or leave --allow-single out",
        )


def warning(there: Modality) -> str:
    """What every row says that rests on one image."""
    missing = next(_IMAGES[modality] for modality in MODALITIES if modality != there)
    return f"no {missing} is given: predicted from the {_IMAGES[there]} alone"


class SingleHeads:
    """The heads for one modality of a bundle, each loaded when it is first asked. Threads may share it."""

    def __init__(self, bundle: Bundle, head_target: Target, threads: int) -> None:
        self._bundle, self._target, self._threads = bundle, head_target, threads
        self._sessions: dict[Modality, Session] = {}
        self._closed = False
        self._lock = threading.Lock()

    def run(self, modality: Modality, part: Array) -> dict[str, Array]:
        """`probability` float32 [N] and `base_probability` of that part of the embedding, float32 [N, C]. Raises
        `EngineError`, also once it is closed."""
        with self._lock:
            if self._closed:  # what were loaded now, nobody would close
                raise closed()
            if modality not in self._sessions:
                path = self._bundle.root / str(self._bundle.entry["graphs"][graph_of(modality)])
                session = engine(self._target).load(path, self._target.precision, self._threads)
                self._bundle.require_unchanged()
                self._sessions[modality] = session
            session = self._sessions[modality]
        return session.run({"embedding": part})

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for session in self._sessions.values():
                session.close()
            self._sessions.clear()
