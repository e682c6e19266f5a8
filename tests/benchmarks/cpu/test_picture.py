"""The picture and the tables of the pages show what is stored, and the picture is drawn the same every time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'mpmmu-rt[plot]'")

from benchmarks.cpu.picture import BATCH, PICTURE, RESULT, conditions, draw, speeds
from benchmarks.report import ROOT

RESULTS = RESULT.parent
TABLES = {
    "docs/figures.md": [
        "cpu_targets_epyc-avx2-2cores.md",
        "cpu_targets_epyc-2cores.md",
        "cpu_fresh_xeon-amx-2cores.md",
    ],
}
ORIGINAL = {"torch eager FP32, scikit-learn head": "torch eager + scikit-learn"}


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def drawn(path: Path) -> tuple[str, list[float]]:
    """A picture's text without its numbers, and these: a processor may round their last digits otherwise."""
    text = path.read_text(encoding="utf-8")
    number = r"-?\d+\.\d+"
    return re.sub(number, "#", text), [float(found) for found in re.findall(number, text)]


def test_the_picture_is_the_stored_results(tmp_path: Path) -> None:
    draw(RESULT.read_text(encoding="utf-8"), tmp_path / "speed.svg")
    (text, numbers), (stored, want) = drawn(tmp_path / "speed.svg"), drawn(PICTURE)
    assert text == stored, "python -m benchmarks.cpu.picture, and look at it"
    assert numbers == pytest.approx(want, abs=1e-3)


def test_another_result_is_another_picture(tmp_path: Path) -> None:
    text = RESULT.read_text(encoding="utf-8")
    fastest = min(speeds(text, BATCH), key=lambda row: row.ms)
    draw(text.replace(f"{fastest.ms:.2f}", "76.05"), tmp_path / "speed.svg")
    assert (tmp_path / "speed.svg").read_bytes() != PICTURE.read_bytes()


def test_what_is_no_page_of_targets_is_refused() -> None:
    other = page("benchmarks/results/phantom_auc_tiny.md")
    with pytest.raises(ValueError, match="no rows of the whole model at batch 32"):
        speeds(other, BATCH)
    with pytest.raises(ValueError, match="no line of conditions"):
        conditions(other)


def test_what_a_reader_hears_of_the_picture_is_in_it() -> None:
    (said,) = re.findall(rf"!\[(.*?)\]\({PICTURE.relative_to(ROOT)}\)", page("README.md"))
    rows = speeds(RESULT.read_text(encoding="utf-8"), BATCH)
    assert said.endswith(": " + ", ".join(f"{row.name.split(' ')[0]} {row.ms:.3g}" for row in rows))
    assert f"batch {BATCH} " in said


def stored(text: str, batch: int) -> dict[str, list[float]]:
    """Milliseconds per pair, times torch and times onnxruntime:fp32, of each row by name."""
    section = text.partition(f"### Whole model, batch {batch}\n")[2].partition("###")[0]
    number = r"([\d.]+)(?: \([^|]*\))?"
    rows = re.findall(rf"^\| (\S[^|]*?) \| {number} \| {number} \| {number} \|$", section, re.MULTILINE)
    return {name: list(map(float, values)) for name, *values in rows}


def shown(text: str) -> list[dict[str, list[str]]]:
    """The tables of the targets on a page, by row: batch 1, batch 32, times torch, times onnxruntime:fp32."""
    header = (
        "| | ms per pair, batch 1 | batch 32 | times torch, batch 32 | times onnxruntime:fp32 |\n|---|---|---|---|---|"
    )
    found = []
    for part in text.split(header)[1:]:
        rows = [line.strip("|").split("|") for line in part.partition("\n\n")[0].splitlines()[1:]]
        found.append({cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows})
    return found


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_the_stored_results(name: str) -> None:
    tables = shown(page(name))
    assert len(tables) == len(TABLES[name])
    for table, result in zip(tables, TABLES[name], strict=True):
        one, many = (stored(page(f"benchmarks/results/{result}"), batch) for batch in (1, 32))
        assert [ORIGINAL.get(row, row.partition(" (")[0]) for row in table] == list(one) == list(many)
        for (row, cells), alone, together in zip(table.items(), one.values(), many.values(), strict=True):
            for cell, value in zip(cells, (alone[0], *together), strict=True):
                half = 0.5 * 10 ** -len(cell.partition(".")[2])
                assert abs(float(cell) - value) <= half + 1e-9, (result, row, cell, value)
