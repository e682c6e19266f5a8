"""Progress without a terminal: a line every so often, also while a step takes long, and none with --quiet."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpmmu_rt import progress
from mpmmu_rt.cli import app
from mpmmu_rt.progress import Lines, counted


@pytest.mark.parametrize(
    ("done", "total", "unit", "said"),
    [(45, 180, "batches", "45 of 180 batches"), (45, 100, "%", "45 %"), (0, 1, "", ""), (2, 5, "", "2 of 5")],
)
def test_how_far(done: int, total: int, unit: str, said: str) -> None:
    assert counted(done, total, unit) == said


def test_a_line_every_so_often_also_while_nothing_is_told() -> None:
    said: queue.Queue[str] = queue.Queue()
    with Lines(said.put, every_s=0.02) as lines:
        lines("drawing phantoms", 0, 1)
        assert said.get(timeout=10).startswith("drawing phantoms; 0 s")
        lines("training", 5, 20, "batches", "epoch 1 of 4, loss 0.693")
        while not (line := said.get(timeout=10)).startswith("training"):
            pass
        assert line == "training: 5 of 20 batches, epoch 1 of 4, loss 0.693; 0 s"  # where it began, none is done yet
        lines("training", 10, 20, "batches", "epoch 2 of 4, loss 0.612")
        while not (line := said.get(timeout=10)).startswith("training: 10"):
            pass
        assert line == "training: 10 of 20 batches, epoch 2 of 4, loss 0.612; 0 s, about 0 s left"
        lines("training", 20, 20, "batches")
        while not (line := said.get(timeout=10)).startswith("training: 20"):
            pass
        assert line == "training: 20 of 20 batches; done, and what follows is under way; 0 s"
    while not said.empty():
        said.get_nowait()
    lines("training", 1, 20, "batches")
    with pytest.raises(queue.Empty):
        said.get(timeout=0.1)


def test_what_is_left_counts_from_where_it_went_on() -> None:
    """A run that was resumed at 60 of 100 and did 10 more in 5 s has 15 s left, not 2."""
    state = progress._State("predicting", 70, 100, "cases", "", first=60, since=100.0)
    assert state.line(105.0) == "predicting: 70 of 100 cases; 5 s, about 15 s left"


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_is_quiet(
    quiet: bool, bundle_folder: Path, phantom_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.001)
    arguments = ["run", bundle_folder, phantom_manifest, "-o", tmp_path / "out.csv", "--batch", 1]
    result = CliRunner().invoke(app, [*map(str, arguments), *(["--quiet"] if quiet else [])])
    assert result.exit_code == 0, result.stderr
    assert (" of 12 cases; " in result.stderr) is not quiet
    assert "12 predictions, 0 errors" in result.stderr  # what was done is said all the same


@pytest.mark.slow
@pytest.mark.usefixtures("few_trees")
def test_a_training_in_a_log_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.02)
    arguments = ["train", "--phantom", "60", "--preset", "tiny", "--epochs", "3", "-o", str(tmp_path / "checkpoint")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    for part in (
        "training the ultrasound encoder: ",
        " of 6 batches, epoch ",
        ", loss 0.",
        "validation AUC 0.",
        "best ",
    ):
        assert part in result.stderr
