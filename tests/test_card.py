"""A card of the user's own may say anything: it is shown as far as it is understood, and breaks nothing."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mpmmu_rt import card as cards
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.cli import app

OTHER_FORM = "In another form than mpmmu-rt writes"
FOREIGN_CARDS = (
    {"metrics": {"test": {"auc": 0.87}}},
    {"metrics": "AUC 0.87"},
    {"metrics": {"auc": 0.87}},
    {"metrics": {"parts": [1]}},
    {"metrics": {"test": {"fused": {"auc": {"value": "high", "low": 0, "high": 1}}}}},
    {"eval_metrics": {"auc": 0.87}},
    {"eval_metrics": ["AUC 0.87", {"cases": None}]},
)


def with_card(bundle_folder: Path, card: dict[str, Any]) -> dict[str, Any]:
    """The description of the small bundle with another card, completed as at export; without what `seal` adds."""
    entry = copy.deepcopy(dict(Bundle.open(bundle_folder).entry))
    kept = {key: value for key, value in entry.items() if key not in ("sha256", "files", "schema")}
    return kept | {"card": cards.complete(card)}


@pytest.mark.parametrize("card", FOREIGN_CARDS, ids=str)
def test_a_card_in_another_form_is_written_and_shown(bundle_folder: Path, tmp_path: Path, card: dict[str, Any]) -> None:
    entry = with_card(bundle_folder, card)
    assert OTHER_FORM in cards.markdown(entry)
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    cards.write(folder, entry)
    seal(folder, entry)
    shown = CliRunner().invoke(app, ["inspect", str(folder)])
    assert shown.exit_code == 0, shown.stderr
    assert "nother form than" in shown.stdout or "metrics: AUC 0.87" in shown.stdout


def test_what_is_understood_is_still_shown(bundle_folder: Path) -> None:
    parts = {"test": {"patients": 7, "malignant_patients": 3, "rows": 9, "malignant_rows": 4}}
    text = cards.markdown(with_card(bundle_folder, {"metrics": {"parts": parts, "test": {"auc": 0.87}}}))
    assert "| test | 7 | 3 | 9 |" in text
    assert text.count(OTHER_FORM) == 1


def test_a_text_is_no_list_of_letters(bundle_folder: Path) -> None:
    own = {"limitations": "one site", "tags": "breast", "references": "ours,\n2026"}
    text = cards.markdown(with_card(bundle_folder, own))
    for line in ("- one site", "tags: [breast]", "- ours, 2026"):
        assert line in text.splitlines()


@pytest.mark.parametrize("key", ["license", "licence"])
def test_a_licence_is_the_same_everywhere(bundle_folder: Path, key: str) -> None:
    entry = with_card(bundle_folder, {key: "CC-BY-4.0"})
    assert entry["card"]["license"] == "CC-BY-4.0"
    assert "## Licence\n\nCC-BY-4.0\n" in cards.markdown(entry)


def test_cells_of_tables_are_escaped(bundle_folder: Path) -> None:
    parts = {"a | b": {"patients": 7, "malignant_patients": 3, "rows": 9}}
    text = cards.markdown(with_card(bundle_folder, {"metrics": {"parts": parts, "test": {}}}))
    assert "| a \\| b | 7 | 3 | 9 |" in text


def test_an_evaluation_stands_beside_what_a_user_wrote(bundle_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    seal(folder, with_card(bundle_folder, {"eval_metrics": {"auc": 0.87}}))
    one = {"value": 0.9, "low": 0.8, "high": 0.95}
    evaluation = {
        "system": {"digest": Bundle.open(folder).digest, "target": "onnxruntime:fp32"},
        "manifest": {"path": "cases.csv", "sha256": "0" * 64},
        "measured_at": "2026-11-01T00:00:00+00:00",
        "parts": {"judged": {"test": 20}},
        "cases": {"judged": 20, "patients": {"all": 20, "malignant": 9, "benign": 11}},
        "learnt_from": {},
        "auc": one,
        "figures": {"brier": one},
        "thresholds": [{"figures": {"sensitivity": one}}],
        "subgroups": {},
        "remarks": [],
    }
    found = cards.update(folder, evaluation).entry["card"]["eval_metrics"]
    assert found[0] == {"auc": 0.87}
    assert [one["dataset"] for one in found[1:]] == ["cases.csv"]
    text = (folder / cards.NAME).read_text()
    assert text.count(OTHER_FORM) == 1
    assert "| AUC | 0.900 (0.800 to 0.950) |" in text


@pytest.mark.parametrize(("trained_at", "told"), [(0.5, True), (0.4, False), ("half", False)])
def test_a_threshold_of_another_than_the_models_is_told(
    bundle_folder: Path, tmp_path: Path, trained_at: object, told: bool
) -> None:
    """The sensitivity that a training states is that of its own threshold: this bundle decides at 0.4."""
    found = {"auc": {"value": 0.8, "low": 0.7, "high": 0.9}, "sensitivity": 0.68, "specificity": 0.8, "brier": 0.1}
    card = {"metrics": {"test": {"fused": found | {"threshold": trained_at}}, "parts": {}}}
    entry = with_card(bundle_folder, card)
    says = "The training's sensitivity and specificity are at the threshold 0.5. This model decides at 0.4"
    assert (says in cards.markdown(entry)) == told
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    cards.write(folder, entry)
    seal(folder, entry)
    shown = CliRunner().invoke(app, ["inspect", str(folder)])
    assert shown.exit_code == 0, shown.stderr
    assert (says in " ".join(shown.stdout.split())) == told
