"""Every error that mpmmu-rt raises on purpose.

    MpmmuError                    exit code 1
    ├── UsageError                an argument that makes no sense                         exit code 2
    ├── ManifestError             a manifest that can't be used as a whole
    ├── ImageError                one image file that can't be read or must not be trusted
    ├── CheckpointError           a checkpoint folder that can't be used
    ├── BundleError               a bundle that can't be opened
    │   └── DigestMismatch        a file of the bundle is not the one that was exported   exit code 3
    ├── PixelsError               an array at the border of the Predictor
    ├── OutputError               an output that must not or can't be written
    ├── MissingPackage            an optional dependency that is not installed
    ├── EngineError               an engine that can't run here, or failed while running
    │   ├── AnswerError           an engine that ran, and gave no number for some of the cases
    │   └── UnknownTarget         a target that there is not: a UsageError too                exit code 2
    ├── UnsupportedEstimator      a scikit-learn estimator that the head exporter does not know
    ├── ExportError               a graph that could not be made
    │   └── UnfitTarget           a model that a target can't have
    ├── Interrupted               by Ctrl-C or a signal, in the middle of work                exit code 130, 143
    └── ParityError               the exported model differs from the original, or was
                                  not shown here to be the same                           exit code 3

An error says in its message what was got and what was expected, in one sentence; `hint` says what to do.
"""

from __future__ import annotations

import shlex
from pathlib import Path


class MpmmuError(Exception):
    """Base of all errors of this package. `str(error)` is the message; `hint` may be empty."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), str(self), self.hint))


def _rebuild(kind: type[MpmmuError], message: str, hint: str) -> MpmmuError:
    return kind(message, hint=hint)


def quoted(argument: object) -> str:
    """For a command in a hint, that is to be copied; a path that begins as an option does is told from one."""
    text = str(argument)
    return shlex.quote(f"./{text}" if isinstance(argument, Path) and text.startswith("-") else text)


class UsageError(MpmmuError):
    exit_code = 2


class ManifestError(MpmmuError):
    pass


class ImageError(MpmmuError):
    pass


class CheckpointError(MpmmuError):
    pass


class BundleError(MpmmuError):
    pass


class DigestMismatch(BundleError):
    exit_code = 3


class PixelsError(MpmmuError):
    pass


class OutputError(MpmmuError):
    pass


class MissingPackage(MpmmuError):
    pass


class EngineError(MpmmuError):
    pass


class AnswerError(EngineError):
    """rows: which cases of the batch, counted from 0, have no answer; the others' may be right."""

    def __init__(self, message: str, *, hint: str = "", rows: tuple[int, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.rows = rows


class UnknownTarget(UsageError, EngineError):
    pass


class Interrupted(MpmmuError):
    exit_code = 130


class UnsupportedEstimator(MpmmuError):
    pass


class ExportError(MpmmuError):
    pass


class UnfitTarget(ExportError):
    pass


class ParityError(MpmmuError):
    exit_code = 3
