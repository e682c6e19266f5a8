"""The result of `ablate` as text for a terminal of 80 columns, and as Markdown: from its JSON alone."""

from __future__ import annotations

from typing import Any

from mpmmu_rt.evaluation.text import grid, p_value

from ._report import count, table, wrapped

PUBLISHED = "published, other data"
_PAPER = (
    "Yan et al. 2026, doi 10.1002/acm2.70464: AUC in percent, of its own 66 test patients, whose data are private. Its "
    "abstract gives no other figure of this table. These columns can't be compared."
)


def text(entry: dict[str, Any]) -> str:
    heads = ["", "AUC, %", "sens.", "spec.", PUBLISHED]
    parts = [
        table(heads, _rows(entry)),
        "",
        table(["second - first, AUC in %", "mean", "95 % interval", "p"], _pairs(entry)),
    ]
    return "\n".join([*parts, "", *map(wrapped, _words(entry))])


def markdown(entry: dict[str, Any]) -> str:
    machine = entry["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    lines = [
        f"# Ablation: {entry['source']}",
        "",
        *grid((["", "AUC in %, mean ± spread", "sensitivity", "specificity", f"AUC in %, {PUBLISHED}"], _rows(entry))),
        "",
        "Second minus first, on the same splits:",
        "",
        *grid((["", "AUC in %, mean ± spread", "95 % interval", "p"], _pairs(entry))),
        "",
        *(line for one in _words(entry) for line in (one, "")),
        f"{machine['cpu']}, {machine['threads']} threads, {versions}.",
    ]
    return "\n".join(lines) + "\n"


def _rows(entry: dict[str, Any]) -> list[list[str]]:
    """Name, AUC, sensitivity, specificity, and what the paper has published."""
    return [
        [
            _named(one["name"], entry),
            _spread(one["mean"], one["spread"]),
            _share(one["sensitivity"]),
            _share(one["specificity"]),
            one["published_auc_percent"] or "",
        ]
        for one in entry["rows"]
    ]


def _named(name: str, entry: dict[str, Any]) -> str:
    for modality, kind in entry["attention"].items():
        if name == f"{modality}, with attention":
            return f"{modality}, with {kind.upper()}"
    return name.replace("without", "no")


def _pairs(entry: dict[str, Any]) -> list[list[str]]:
    def cells(one: dict[str, Any]) -> list[str]:
        low, high = (None if one[end] is None else 100 * min(1.0, max(-1.0, one[end])) for end in ("low", "high"))
        ends = "-" if low is None or high is None else f"{low:+.1f} to {high:+.1f}"
        return [_pair(one), _spread(one["mean"], one["spread"], "+"), ends, p_value(one["p"])]

    return [cells(one) for one in entry["comparisons"]]


def _pair(one: dict[str, Any]) -> str:
    second, first = (
        name.replace(" attention", "").replace("without", "no").replace(" alone", "")
        for name in (one["second"], one["first"])
    )
    return f"{second} - {first}"


def _spread(mean: float | None, spread: float | None, sign: str = "") -> str:
    if mean is None:
        return "-"
    return f"{100 * mean:{sign}.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _words(entry: dict[str, Any]) -> list[str]:
    parts, seeds = entry["parts"], entry["seeds"]
    patients = parts[0]["patients"]
    said = [
        f"{entry['source']}. {len(seeds)} splits by patient (seeds {seeds[0]} to {seeds[-1]}): {patients['train']} to "
        f"train, {patients['validation']} to validate, {patients['test']} to test. ± is the standard deviation over "
        f"the splits; sensitivity and specificity are means, at {entry['threshold']:g}.",
        "p and interval: the corrected resampled t-test (Nadeau and Bengio 2003), since the splits are of the same "
        f"patients. {len(entry['comparisons'])} comparisons are made and not corrected for their number: one of 20 has "
        "p < 0.05 by chance.",
    ]
    fewest = min(one["malignant_test_patients"] for one in parts)
    if fewest < 20:
        said.append(
            f"A test part holds as few as {count(fewest, 'malignant patient')}: a single one of them moves its "
            f"sensitivity by {100 / max(1, fewest):.0f} points. So few can't rank these systems."
        )
    if len(seeds) < 5:
        said.append(f"{len(seeds)} splits are few for a spread: --seeds 5 or more.")
    return [*said, f'"{PUBLISHED}": {_PAPER}']
