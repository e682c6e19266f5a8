"""How a training went, for people: `history.csv` always, `curves.png` and TensorBoard's files where these are there."""

from __future__ import annotations

import csv
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mpmmu_rt.files import atomic_file

FILES = ("history.csv", "curves.png", "tensorboard/*/events.*")  # all that `write` may
_CACHE = "MPLCONFIGDIR"
COLUMNS = ("modality", "epoch", "learning_rate", "training_loss", "validation_loss", "validation_auc")
History = Mapping[str, Sequence[Mapping[str, float]]]


def write(history: History, folder: Path) -> tuple[list[str], list[str]]:
    """Write into `folder` what can be, one entry per epoch; returns the names of what was, and why something was not,
    though its package is there: a picture is no reason to lose a training."""
    with atomic_file(folder / "history.csv") as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for modality, entries in history.items():
            writer.writerows({"modality": modality, **entry} for entry in entries)
    written, failed = ["history.csv"], []
    for name, package, make in (("curves.png", "matplotlib", _draw), ("tensorboard/", "tensorboard", _tensorboard)):
        if not importlib.util.find_spec(package):
            continue
        try:
            make(history, folder / name)
            written.append(name)
        except Exception as error:  # noqa: BLE001 (packages that don't fit each other raise anything)
            failed.append(f"{name} was not written: {package} fails ({type(error).__name__}: {error})")
    return written, failed


def _draw(history: History, path: Path) -> None:
    """Losses to the left, AUC to the right, a row for each modality; the epoch whose weights were kept is marked.
    Points are drawn, too: of one epoch there is no line."""
    with _no_cache():
        from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2 * len(history)), layout="constrained")
    axes = figure.subplots(len(history), 2, squeeze=False)
    for (loss, auc), (modality, entries) in zip(axes, history.items(), strict=True):
        epochs = [int(entry["epoch"]) for entry in entries]
        for name, style in (("training_loss", "-"), ("validation_loss", "--")):
            loss.plot(epochs, [entry[name] for entry in entries], style, marker=".", label=name.replace("_", " "))
        areas = [entry["validation_auc"] for entry in entries]
        auc.plot(epochs, areas, color="C2", marker=".", label="validation AUC")
        best = max(range(len(areas)), key=areas.__getitem__)
        auc.plot(epochs[best], areas[best], "o", color="C3", label=f"kept: epoch {epochs[best]}, {areas[best]:.3f}")
        for one in (loss, auc):
            one.set(title=modality, xlabel="epoch")
            one.grid(alpha=0.3)
            one.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            one.legend(fontsize="small")
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


@contextmanager
def _no_cache() -> Iterator[None]:
    """matplotlib keeps a list of fonts in the user's cache when it is imported, unless the user says where."""
    if _CACHE in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ[_CACHE] = folder
        try:
            yield
        finally:
            del os.environ[_CACHE]


def _tensorboard(history: History, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for modality, entries in history.items():
        with SummaryWriter(str(folder / modality)) as writer:
            for entry in entries:
                for name in COLUMNS[2:]:
                    writer.add_scalar(name, entry[name], int(entry["epoch"]))
