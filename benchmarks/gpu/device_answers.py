"""What a GPU is held to: cases, what the processor says of them, and when an answer is right.

The answers take some 10 s of a server's processor and onnxruntime. They can be written to a file on another machine.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.stage import failure
from mpmmu_rt import machine
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.checks import probability_difference, relative_difference
from mpmmu_rt.engines.onnxruntime import ENGINE as ONNXRUNTIME
from mpmmu_rt.errors import UsageError
from mpmmu_rt.facts import PROBABILITY_TOLERANCE, TOLERANCES, Tolerance
from mpmmu_rt.files import atomic_file
from mpmmu_rt.predictor import DEFAULT_TARGET, Predictor
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target

COUNT = 256  # cases
# Precisions whose rounding is larger than what lies between cases that are alike; see `Judge.anchor`.
COARSE = ("bf16", "int8")
ANCHOR_SHARE = 0.9
# As `mpmmu_rt.export.parity`, which needs scikit-learn: how far a probability may move because the embedding, which is
# within its tolerance, lies on the other side of some splits of a forest.
CROSSING_TOLERANCE = 2e-2
Pixels = dict[Modality, Array]


@dataclass(frozen=True)
class Cases:
    """Pixels of COUNT cases, and what the processor says of them: `probability`, `embedding`.

    source: where `want` is from, or why there is none.
    """

    pixels: Pixels
    want: Mapping[str, Array] | None
    source: str

    @classmethod
    def drawn(cls, bundle: Bundle, expected: Path | None = None) -> Cases:
        """expected: a file of `write_expected`. Raises `UsageError` where it is of another bundle or other cases."""
        pixels = draw(bundle)
        if expected is not None:
            return cls(pixels, read_expected(expected, bundle, pixels), f"{expected.name}, {DEFAULT_TARGET}")
        try:
            return cls(pixels, ask_processor(bundle, pixels), f"{DEFAULT_TARGET} on this machine")
        except Exception as error:  # noqa: BLE001  # times can be taken all the same, and the reason is in the report
            return cls(pixels, None, failure(error))

    @property
    def count(self) -> int:
        return len(self.pixels["mammography"])

    def rows(self, rows: slice) -> Pixels:
        return {modality: array[rows] for modality, array in self.pixels.items()}


def draw(bundle: Bundle) -> Pixels:
    """Noise, each case of another grey level in each modality: their embeddings lie far apart.

    Of raw bits in whole numbers: every NumPy draws the same, and answers hold that were written elsewhere.
    """
    rng = np.random.PCG64(5)
    pixels: Pixels = {}
    for modality in MODALITIES:
        shape = (COUNT, *(int(length) for length in bundle.tensors[f"{modality}_pixels"].shape[1:]))
        grey = 40 + (rng.random_raw(COUNT) % 160).astype(np.int16).reshape(COUNT, 1, 1, 1)
        count = int(np.prod(shape))
        noise = rng.random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count].reshape(shape)
        around = (noise.astype(np.int16) - 128) * 87 // 128  # as wide as a deviation of 50
        pixels[modality] = np.clip(grey + around, 0, 255).astype(np.uint8)
    return pixels


def ask_processor(bundle: Bundle, pixels: Pixels) -> dict[str, Array]:
    with Predictor(bundle, Target.parse(DEFAULT_TARGET)) as predictor:
        starts = range(0, len(pixels["mammography"]), 32)
        parts = [predictor.predict({m: pixels[m][at : at + 32] for m in MODALITIES}) for at in starts]
    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("probability", "embedding")}


def write_expected(path: Path, bundle: Bundle, pixels: Pixels, want: Mapping[str, Array]) -> None:
    """What the processor says of the cases, with the digests of bundle and pixels."""
    arrays: dict[str, Any] = dict(want)
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, bundle=np.array(bundle.digest), pixels=np.array(digest_of(pixels)), **arrays)


def read_expected(path: Path, bundle: Bundle, pixels: Pixels) -> dict[str, Array]:
    hint = "make it with --write-expected of this very bundle"
    try:
        # Opened here: NumPy leaves open what is no archive.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in ("bundle", "pixels", "probability", "embedding")}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} can't be read: {error}, expected a file of --write-expected", hint=hint) from error
    for name, want in (("bundle", bundle.digest), ("pixels", digest_of(pixels))):
        if (got := str(found[name])) != want:
            raise UsageError(f"{path} is for the {name} {got[:12]}, expected {want[:12]}", hint=hint)
    return {name: found[name] for name in ("probability", "embedding")}


def digest_of(pixels: Pixels) -> str:
    """NumPy may draw others in another version."""
    digest = hashlib.sha256()
    for modality in MODALITIES:
        digest.update(pixels[modality].tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- right?


class Judge:
    """Holds what a target says to what the processor says.

    head: the bundle's head on the processor, embedding → probability; why_no_head: why there is none.
    """

    def __init__(self, bundle: Bundle, target: Target, cases: Cases, closing: ExitStack) -> None:
        self.cases, self.precision, self.threshold = cases, target.precision, bundle.threshold
        self.tolerance: Tolerance = TOLERANCES[target.precision]
        self.head: Callable[[Array], Array] | None = None
        self.why_no_head = ""
        if problem := ONNXRUNTIME.problem():
            self.why_no_head = str(problem)
        else:
            graph = bundle.graph(ONNXRUNTIME.head)
            session = ONNXRUNTIME.load(graph, "fp32", machine.usable_threads())
            closing.callback(session.close)
            self.head = lambda embedding: session.run({"embedding": embedding})["probability"]

    @property
    def coarse(self) -> bool:
        return self.precision in COARSE

    def anchor(self, alone: Array) -> str | None:
        """What is wrong with the embeddings that a variant of coarse precision gave of every case on its own, or None.

        INT8 moves embeddings by as much as lies between cases that are alike (a small untrained model: 126 of 256 were
        nearer to another's), so that a row can't be told by the processor's embeddings. It can by those of the same
        variant, for what it says of a case does not depend on the others. That these are of the right cases is seen in
        units of each column's own spread: 253 of those 256 were nearest to their own then; of a shifted or constant
        table next to none are.
        """
        if self.cases.want is None:
            return None
        want = self.cases.want["embedding"]
        if alone.shape != want.shape or not np.isfinite(alone).all():
            return f"alone, the cases give {alone.shape} with values that are not finite, expected {want.shape}"
        least = 1e-3 * float(np.abs(want).max())
        got, known = ((x - x.mean(0)) / (x.std(0) + least) for x in (alone.astype(np.float64), want.astype(np.float64)))
        share = float(np.mean(nearest(got, known) == np.arange(len(known))))
        if share < ANCHOR_SHARE:
            return f"alone, {share:.0%} of the cases are told from the others, expected at least {ANCHOR_SHARE:.0%}"
        return None

    def call(
        self, got: Mapping[str, Array], rows: slice, alone: Array | None = None
    ) -> tuple[dict[str, float], list[str]]:
        """Figures of one call on those cases, and what is wrong with it.

        alone: the table of `anchor`, for a coarse precision. Every precision: the embedding within the tolerance of
        `mpmmu_rt.verify`, and nearer to that of its own case (of the processor, or in `alone`) than to any other's,
        which rows that were swapped or left from another call are not. Its probability within the
        tolerance, and no decision flipped beyond the margin; but for FP32, where those are 1e-4 and 0, a forest may
        move further, as it is a step function: of embeddings that are 1e-5 off, as sums in another order are, most
        cross some split (measured on the reference model: 78 % of 64 cases moved by more than 1e-4, the largest by
        0.004; with 12 trees one moved by 0.16). So FP32 is held to what `mpmmu_rt.export.parity` knows a crossing by:
        the processor's head says the same of the embedding that was really got. Crossings and flips are then counted
        and not judged. Without that head, none may exceed `CROSSING_TOLERANCE`.
        """
        embedding, probability = got["embedding"], got["probability"]
        figures: dict[str, float] = {}
        wrong: list[str] = []

        def hold(name: str, value: float, limit: float, words: str) -> None:
            figures[name] = value
            if not value <= limit:
                wrong.append(f"{words} {value:.3g}, expected at most {limit:.3g}")

        if self.cases.want is not None:
            want = {name: array[rows] for name, array in self.cases.want.items()}
            relative = relative_difference(embedding, want["embedding"])
            hold("max_embedding", relative, self.tolerance.relative, "embeddings differ, of the largest, by")
            strangers = self._strangers(embedding, rows, self.cases.want["embedding"] if alone is None else alone)
            hold("strangers", strangers, 0, "embeddings nearer to another case's:")
            off = probability_difference(probability, want["probability"])
            reach, margin = self._limits()
            hold("max_difference", off, reach, "probabilities differ by")
            if probability.shape == want["probability"].shape:
                moved = np.abs(probability.astype(np.float64) - want["probability"])
                figures["crossings"] = float(np.sum(moved > PROBABILITY_TOLERANCE))
                flipped = (probability >= self.threshold) != (want["probability"] >= self.threshold)
                figures["flips"] = float(np.sum(flipped))
                clear = np.abs(want["probability"] - self.threshold) >= margin
                hold("clear_flips", float(np.sum(flipped & clear)), 0, "decisions flipped:")
        if self.head is not None and np.isfinite(embedding).all():
            on_it = probability_difference(probability, self.head(np.ascontiguousarray(embedding)))
            limit = PROBABILITY_TOLERANCE if self.precision == "fp32" else float("inf")
            hold("max_head", on_it, limit, "on the same embedding the processor's head differs by")
        return figures, wrong

    def _limits(self) -> tuple[float, float]:
        """How far a probability may be off, and how near the threshold one must be to flip."""
        if self.precision != "fp32":
            return self.tolerance.probability, self.tolerance.margin
        if self.head is None:
            return CROSSING_TOLERANCE, CROSSING_TOLERANCE
        return 1.0, float("inf")  # NaN is still found

    def _strangers(self, embedding: Array, rows: slice, table: Array) -> float:
        if embedding.shape != table[rows].shape or not np.isfinite(embedding).all():
            return float("inf")
        return float(np.sum(nearest(embedding, table) != np.arange(rows.start, rows.stop)))


def nearest(rows: Array, table: Array) -> Array:
    """For each row the index of the nearest in `table`."""
    centre = table.mean(0, dtype=np.float64)  # so that nothing cancels
    known = table - centre
    # |row - known|² without |row|², which is the same for all.
    distance = (known**2).sum(1) - 2 * (rows - centre) @ known.T
    found: Array = distance.argmin(1)
    return found
