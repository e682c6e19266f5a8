"""Decoding in a process of its own, for files that may end it: a defect in a decoder costs a row, not the job."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from mpmmu_rt._optional import quote_no_files
from mpmmu_rt.cases import Case
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.modality_check import ModalityCheck
from mpmmu_rt.run import Decoded, decode

CRASHED = "its decoder crashed, in a process of its own; look at the images with care: they may be made to do so"


def decoded(
    cases: Sequence[Case],
    preprocessing: Preprocessing,
    *,
    frame: int | None,
    digests: bool,
    check: ModalityCheck | None,
    alone: bool = False,
) -> Iterator[Decoded]:
    """As `mpmmu_rt.run.Decoder` gives them; a case whose images end the process has `CRASHED` for its error."""
    work = partial(decode, preprocessing=preprocessing, frame=frame, digests=digests, check=check, alone=alone)
    pool = _pool()
    try:
        for case in cases:
            try:
                yield pool.submit(work, case).result()
            except BrokenProcessPool:
                pool.shutdown()
                pool = _pool()
                yield Decoded(case, {}, CRASHED, "", 0.0)
    finally:
        pool.shutdown(cancel_futures=True)


def _pool() -> ProcessPoolExecutor:
    # No fork: the engine's threads would not be there in it.
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=quote_no_files)
