"""Whether the original is a function of each case: held to itself before anything is converted.

What is asked: the same again, alone, among other cases in other numbers and order, in every mode of autograd, with
another number of threads, in another layout of memory. A graph has none of these, so a module whose answer depends on
one can't be exported, whatever parity says of the way in which it was asked.

Two answers may differ as float32 sums in another order do, which is what the exported model is held to as well
(`RELATIVE_TOLERANCE` of the largest value; and `PROBABILITY_TOLERANCE` behind the head, for a value that is small
beside others and decides). Asked the same way again, by a tenth of that: nothing but the order of threads changes then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpmmu_rt.checks import crossing_limit
from mpmmu_rt.errors import ExportError
from mpmmu_rt.facts import PROBABILITY_TOLERANCE, RELATIVE_TOLERANCE
from mpmmu_rt.spec import MODALITIES, Array, Modality

from .cases import Data
from .encoders import Encoders
from .parity import BATCH, Original, probability_of

AGAIN_TOLERANCE = RELATIVE_TOLERANCE / 10
_FEW = 8
_FEWER = 4  # for what is dearer
_SIZES = (2, 3, 7)
_ALONE = (
    "no case may depend on others: batch norm with running statistics in evaluation mode, and no mean, sort, norm or "
    "`if` over the batch (axis 0)"
)
_MODE = "give one answer in all of them: the exported graph knows none"


@dataclass(frozen=True)
class _Way:
    """A way to ask for the answers of the cases `rows`, `parts` at a time."""

    says: str
    hint: str
    rows: tuple[int, ...]
    part: int
    mode: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    turned: bool = False  # the rows of an image do not follow each other in memory
    may_fail: bool = False  # nobody calls the module in this way then; another answer is what must not be
    tolerance: float = RELATIVE_TOLERANCE


def require_finite(encoders: Encoders, embedding: Array, cases: Data) -> None:
    """Raise `ExportError` for an embedding float32 [N, D] of `cases` that holds NaN or infinity."""
    for modality, part in _parts(encoders, embedding).items():
        bad = np.flatnonzero(~np.isfinite(part).all(1))
        if len(bad):
            weights = encoders.features[modality].module.state_dict()
            broken = [path for path, tensor in weights.items() if _is_broken(tensor)]
            raise ExportError(
                f"{encoders.names[modality]} gives {'NaN' if np.isnan(part).any() else 'infinity'} for {len(bad)} of "
                f"{len(part)} cases, the first is {cases.name(int(bad[0]))}, expected finite numbers",
                hint=f"its weights `{broken[0]}` are not finite: export a checkpoint from before the training diverged"
                if broken
                else "clamp what it divides by, or takes the logarithm or root of, to a range that no image leaves",
            )


def require_steady(encoders: Encoders, head: Any, original: Original, cases: Data) -> None:
    """Raise `ExportError` for a module whose answer on `cases` depends on anything else than the case."""
    parts = _parts(encoders, original.stages["embedding"])
    for modality in MODALITIES:
        before = _state(encoders, modality)
        for way in _ways(len(original.probability)):
            random = torch.get_rng_state()
            try:
                rows, got = list(way.rows), _asked(encoders, modality, way, cases)
            except ExportError:
                if way.may_fail:
                    continue
                raise
            drew = not torch.equal(random, torch.get_rng_state())
            want = parts[modality][rows]
            by_case = np.abs(got.astype(np.float64) - want).max(1) / (np.abs(want).max() or 1.0)
            if not by_case.max() <= way.tolerance:  # NaN is another answer
                worst = int(np.argmax(np.where(np.isnan(by_case), np.inf, by_case)))
                difference = f"differs by {by_case[worst]:.2g} of the largest value, expected at most {way.tolerance:g}"
            else:
                changed = {name: parts[name][rows] for name in MODALITIES} | {modality: got}
                moved = probability_of(head, np.concatenate([changed[name] for name in MODALITIES], 1))
                by_case = np.abs(moved - original.probability[rows])
                if np.mean(by_case > PROBABILITY_TOLERANCE) <= crossing_limit(len(rows), enough=1):
                    continue
                worst = int(np.argmax(by_case))
                difference = (
                    f"moves its probability by {by_case[worst]:.2g}, expected at most {PROBABILITY_TOLERANCE:g}"
                )
            raise ExportError(
                f"{encoders.names[modality]} gives another answer {way.says}: {cases.name(rows[worst])} {difference}",
                hint=_why(encoders, modality, before, drew=drew) or way.hint,
            )


def _ways(count: int) -> Iterator[_Way]:
    few, fewer = tuple(range(min(_FEW, count))), tuple(range(min(_FEWER, count)))
    whole = tuple(range(min(BATCH, count)))
    keeps = "it keeps something between calls, or draws numbers: give it no memory of what it has seen, and no noise"
    yield _Way("when it is asked again", keeps, whole, BATCH, tolerance=AGAIN_TOLERANCE)
    yield _Way("for a case that comes alone", _ALONE, few, 1)
    for size in _SIZES:
        rows = tuple(reversed(range(min(size, count))))
        yield _Way(f"for a case among {len(rows)}, in another order", _ALONE, rows, size)
    other = "compute the same with any number of threads"
    yield _Way("with another number of threads", other, fewer, _FEWER, _other_threads)
    layout = "ask no layout of memory of the pixels: reshape for view, and no strides"
    yield _Way("for pixels that are not contiguous", layout, fewer, _FEWER, turned=True, may_fail=True)
    yield _Way("with autograd than without", _MODE, fewer, _FEWER, torch.enable_grad, may_fail=True)
    inference = "under torch.inference_mode() than under torch.no_grad()"
    yield _Way(inference, _MODE, fewer, _FEWER, torch.inference_mode, may_fail=True)


def _asked(encoders: Encoders, modality: Modality, way: _Way, cases: Data) -> Array:
    said = []
    for start in range(0, len(way.rows), way.part):
        few = cases.pixels[modality][list(way.rows[start : start + way.part])]
        pixels = torch.from_numpy(few)
        if way.turned:
            pixels = pixels.transpose(2, 3).contiguous().transpose(2, 3)
        said.append(encoders.ask(modality, pixels, way.mode).numpy())
    return np.concatenate(said)


@contextlib.contextmanager
def _other_threads() -> Iterator[None]:
    count = torch.get_num_threads()
    torch.set_num_threads(1 if count > 1 else 2)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def _why(encoders: Encoders, modality: Modality, before: Mapping[str, Tensor], *, drew: bool) -> str:
    """What was seen of a module that answers otherwise, which is more than can be guessed from the answers."""
    if drew:
        return (
            "it draws random numbers: a dropout or noise that is on in evaluation mode; F.dropout needs training=False"
        )
    after = dict(encoders.features[modality].module.named_buffers())
    changed = [path for path, tensor in before.items() if not torch.equal(tensor, after[path])]
    if changed:
        return f"it changes its own `{changed[0]}` while it answers: keep that to training (`if self.training:`)"
    return ""


def _state(encoders: Encoders, modality: Modality) -> dict[str, Tensor]:
    return {path: tensor.clone() for path, tensor in encoders.features[modality].module.named_buffers()}


def _is_broken(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())


def _parts(encoders: Encoders, embedding: Array) -> dict[Modality, Array]:
    first, second = MODALITIES
    width = encoders.width(first)
    return {first: embedding[:, :width], second: embedding[:, width:]}
