"""A head's file depends on the head alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mpmmu_rt.model import checkpoint as checkpoints
from mpmmu_rt.model import skops_file
from mpmmu_rt.model.checkpoint import Checkpoint, load_skops
from mpmmu_rt.spec import MODALITIES

FIT = """
import sys
from pathlib import Path
import numpy as np
from mpmmu_rt.model import skops_file
from mpmmu_rt.model.config import HeadConfig
from mpmmu_rt.model.stacking import fit_head
kept = [bytearray(int(size)) for size in sys.argv[2:]]  # moves what follows to other addresses
rng = np.random.default_rng(0)
x = rng.normal(size=(60, 5)).astype(np.float32)
head = fit_head(x, (x[:, 0] > 0).astype(int), [str(row) for row in range(60)], HeadConfig(trees=3, hidden=4), seed=0)
skops_file.dump(head, Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_two_processes_that_fit_the_same_head_write_the_same_bytes(tmp_path: Path) -> None:
    for name, sizes in (("a", []), ("b", ["100000", "31", "7000000"])):
        subprocess.run([sys.executable, "-c", FIT, str(tmp_path / name), *sizes], check=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_it_reads_back_as_the_same_head(small_model: Checkpoint, tmp_path: Path) -> None:
    skops_file.dump(small_model.head, tmp_path / "head.skops")
    width = small_model.head.n_features_in_
    x = np.random.default_rng(1).normal(size=(50, width)).astype(np.float32)
    again = load_skops(tmp_path / "head.skops")
    assert np.array_equal(again.predict_proba(x), small_model.head.predict_proba(x))


def test_what_is_shared_stays_shared(tmp_path: Path) -> None:
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    shared = StandardScaler().fit(np.arange(6.0).reshape(3, 2))
    skops_file.dump(Pipeline([("a", shared), ("b", shared), ("c", StandardScaler())]), tmp_path / "p.skops")
    steps = load_skops(tmp_path / "p.skops").steps
    assert steps[0][1] is steps[1][1]
    assert steps[0][1] is not steps[2][1]


def test_a_checkpoint_written_twice_is_the_same(small_model: Checkpoint, tmp_path: Path) -> None:
    for name in ("a", "b"):
        checkpoints.save(small_model, tmp_path / name)
    for name in ("config.json", "head.skops", *(f"{modality}.safetensors" for modality in MODALITIES)):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
