"""Several requests in one batch: each is answered, or refused with an error of its own, and touches no other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpmmu_rt.errors import AnswerError, MpmmuError, PixelsError
from mpmmu_rt.images import Preprocessing, decode_with_warnings, require_two, same_image
from mpmmu_rt.modality_check import ModalityCheck
from mpmmu_rt.pairs import said_against
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.spec import MODALITIES, Array, Modality
from mpmmu_rt.subject import require_one

Pixels = Mapping[Modality, Array]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """Of the n cases of one request. probability: float32 [n, 1]; base_probability: float32 [n, learners], None if the
    head has none; decision: uint8 [n, 1], 1 is malignant. C-contiguous."""

    probability: Array
    base_probability: Array | None
    decision: Array


def answers(predictor: Predictor, requests: Sequence[Pixels | MpmmuError]) -> list[Answer | MpmmuError]:
    """What is said to each of `requests`, in their order; one that is an error already stays it.

    A request whose pixels the model was not made for gets a `PixelsError`, and one of whose cases the engine has no
    number for an `AnswerError`; the others are predicted together, again where they shared a batch with that. What
    fails for all (an engine, weights that were written over) is said to each of them.
    """
    said: list[Answer | MpmmuError | None] = [_fault(predictor, one) for one in requests]
    while waiting := [index for index, one in enumerate(said) if one is None]:
        given: list[Pixels] = [one for index in waiting if not isinstance(one := requests[index], MpmmuError)]
        try:
            for index, answer in zip(waiting, _together(predictor, given), strict=True):
                said[index] = answer
        except AnswerError as error:
            refused = _owners(error.rows, [_count(one) for one in given])
            for position, cases in refused.items():
                said[waiting[position]] = _without(predictor, error, cases)
            if not refused:
                return [error if one is None else one for one in said]
        except Exception as error:  # noqa: BLE001 - nobody's own fault, and no reason to take theirs from the others
            return [as_ours(error) if one is None else one for one in said]
    return [one for one in said if one is not None]


def as_ours(error: BaseException) -> MpmmuError:
    """What a client is told of it: two lines, and not Python's traceback, which Triton would send; the log has that."""
    if isinstance(error, MpmmuError):
        return error
    _LOG.error("internal error", exc_info=error)
    return MpmmuError(
        f"internal error: {type(error).__name__}: {' '.join(str(error).split())}, expected an answer",
        hint="report it with the request",
    )


def _fault(predictor: Predictor, request: Pixels | MpmmuError) -> MpmmuError | None:
    if isinstance(request, MpmmuError):
        return request
    try:
        if not _count(predictor.check(request)):
            return PixelsError("the request holds no case, expected at least one", hint="leave it out")
    except PixelsError as error:
        return error
    return None


def _count(pixels: Pixels) -> int:
    return len(pixels["mammography"])


def _together(predictor: Predictor, requests: Sequence[Pixels]) -> list[Answer]:
    """Raises as `Predictor.predict` does."""
    found = predictor.predict({name: np.concatenate([one[name] for one in requests]) for name in MODALITIES})
    ends = np.cumsum([_count(one) for one in requests])
    each = []
    for end, request in zip(ends, requests, strict=True):
        rows = slice(end - _count(request), end)
        base = None if found.base_probability is None else np.ascontiguousarray(found.base_probability[rows])
        each.append(Answer(found.probability[rows, None], base, found.malignant[rows, None].astype(np.uint8)))
    return each


def _owners(rows: Sequence[int], counts: Sequence[int]) -> dict[int, list[int]]:
    """Which request each row of the batch belongs to, and which of its cases it is, counted from 0."""
    starts = np.cumsum([0, *counts])
    found: dict[int, list[int]] = {}
    for row in rows:
        position = int(np.searchsorted(starts, row, side="right")) - 1
        found.setdefault(position, []).append(int(row - starts[position]))
    return found


def _without(predictor: Predictor, error: AnswerError, cases: Sequence[int]) -> AnswerError:
    named = ", ".join(map(str, cases))
    return AnswerError(
        f"{predictor.target} gave no number for the cases {named} of the request (counted from 0), expected one each",
        hint=error.hint,
        rows=tuple(cases),
    )


def read_pair(
    files: Mapping[Modality, memoryview],
    preprocessing: Preprocessing,
    *,
    frame: int | None = None,
    check: ModalityCheck | None = None,
) -> tuple[dict[Modality, Array], tuple[str, ...]]:
    """The files of one case, as they were sent, to pixels uint8 [1, 1, S, S] each; and what is to be said against them,
    as `mpmmu-rt run` says it: what headers say, and what `said_against` does. Raises `ImageError`."""
    if files["mammography"] == files["ultrasound"]:  # before one of them is called what it is not
        raise same_image()
    read = {
        modality: decode_with_warnings(
            files[modality], preprocessing, name=f"`{modality}`", modality=modality, frame=frame
        )
        for modality in MODALITIES
    }
    pixels: dict[Modality, Array] = {modality: one.pixels[None] for modality, one in read.items()}
    require_two(pixels)
    warnings = [f"{modality}: {text}" for modality, one in read.items() for text in one.warnings]
    warnings += require_one({modality: one.subject for modality, one in read.items()})
    return pixels, (*warnings, *said_against(pixels, check)[0])
