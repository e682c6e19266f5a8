"""The picture of the README: milliseconds per pair on every target, from a stored result.

    python -m benchmarks.cpu.picture

reads `RESULT`, a page of `benchmarks.cpu.targets`, and writes `PICTURE`. The same page gives the same bytes: no date,
no random identifiers, text as outlines. The picture brings its background, for light pages and dark ones.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.report import RESULTS, ROOT
from mpmmu_rt.files import atomic_file

RESULT = RESULTS / "cpu_targets_epyc-avx2-2cores.md"
PICTURE = ROOT / "docs/speed.svg"
BATCH = 32
INK, PALE, OTHERS, OURS = "#1f2328", "#59636e", "#9aa4af", "#0b66c3"


@dataclass(frozen=True)
class Speed:
    """A row of the result: its name, milliseconds per pair (p50) and how many times as fast as torch eager."""

    name: str
    ms: float
    times_torch: float


def speeds(page: str, batch: int) -> list[Speed]:
    """The rows of the table "Whole model, batch `batch`"; raises ValueError if the page has none."""
    _, found, section = page.partition(f"### Whole model, batch {batch}\n")
    rows = re.findall(r"^\| (\S[^|]*?) \| ([\d.]+) \| ([\d.]+) \(", section.partition("###")[0], re.MULTILINE)
    if not (found and rows):
        raise ValueError(f"no rows of the whole model at batch {batch}, expected a page of benchmarks.cpu_targets")
    return [Speed(name, float(ms), float(times)) for name, ms, times in rows]


def conditions(page: str) -> str:
    """Processor, threads, versions and load, as the page has them: its two lines before the first table."""
    found = re.search(r"^(.+; \d+ threads; Python [\d.]+)\.\n(mpmmu-rt .+)\.$", page, re.MULTILINE)
    if not found:
        raise ValueError("no line of conditions, expected a page of benchmarks.cpu_targets")
    return f"{found[1]}; {found[2]}"


def draw(page: str, path: Path) -> None:
    """Horizontal bars in the page's order, the fastest marked, and the conditions below; .svg or .png."""
    rows = speeds(page, BATCH)
    small = textwrap.wrap(
        "Reference model (ResNet-50 twice, attention in every block, 224 \u00d7 224), from pixels to probability, p50, "
        f"all taking turns in one process. {conditions(page)}.",
        width=128,
        break_on_hyphens=False,
    )
    style = {"svg.hashsalt": "mpmmu-rt", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(style):
        inches = 0.86 + 0.4 * len(rows) + 0.17 * len(small)
        figure = Figure(figsize=(8.6, inches), facecolor="white")
        axes = figure.add_axes((0.235, (0.3 + 0.17 * len(small)) / inches, 0.61, 0.4 * len(rows) / inches))
        fastest = min(rows, key=lambda row: row.ms)
        colours = [OURS if row is fastest else OTHERS for row in rows]
        axes.barh([row.name for row in rows], [row.ms for row in rows], height=0.64, color=colours)
        for place, row in enumerate(rows):
            times = "" if place == 0 else f"   {row.times_torch:.1f} \u00d7 torch"
            axes.text(
                row.ms + 0.012 * rows[0].ms,
                place,
                f"{row.ms:.3g} ms{times}",
                va="center",
                fontsize=10,
                color=INK,
                weight="bold" if row is fastest else "normal",
            )
        axes.invert_yaxis()
        axes.set_xlim(0, max(row.ms for row in rows))
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0, labelsize=10, labelcolor=INK)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.spines["left"].set_color(OTHERS)
        figure.text(
            0.018,
            1 - 0.3 / inches,
            f"Milliseconds per pair of images, batch {BATCH}: less is better",
            fontsize=11.5,
            weight="bold",
            color=INK,
        )
        figure.text(0.018, 0.12 / inches, "\n".join(small), fontsize=7.8, color=PALE, linespacing=1.35)
        with atomic_file(path) as partial:
            metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {}
            figure.savefig(partial, format=path.suffix[1:], metadata=metadata, dpi=150)


if __name__ == "__main__":
    draw(RESULT.read_text(encoding="utf-8"), PICTURE)
