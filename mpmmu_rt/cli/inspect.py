from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpmmu_rt.checks import figure
from mpmmu_rt.errors import BundleError, quoted

from ._metrics import tested
from ._report import JsonTo, check_json, count, fitted, put_json, say, wrapped
from .export import describe_precision, warn_phantoms, warn_untrained

if TYPE_CHECKING:
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.images import Preprocessing


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle to look at.")],
    json_to: JsonTo = None,
) -> None:
    """Say what a bundle is, what it runs on and what was proven of it. Loads no engine; checks every digest."""
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.card import FOREIGN

    check_json(json_to, bundle)
    opened = Bundle.open(bundle)
    entry = opened.entry
    if put_json(json_to, entry, exact=True):
        return
    try:
        told = _describe(opened)
    except FOREIGN as error:  # sealed, but by nothing of ours: what is only for people, opening it does not ask for
        raise BundleError(
            f"{bundle} is not as an export has it ({type(error).__name__}: {error}), expected what it says of itself",
            hint=f"export it again; `mpmmu-rt inspect {quoted(bundle)} --json FILE` writes what it says",
        ) from error
    for text in told:
        say(text)
    warn_untrained(opened.trained)
    warn_phantoms(entry)


def _describe(opened: Bundle) -> list[str]:
    """For a terminal, in parts. Raises `BundleError` for a bundle without a parity report."""
    from mpmmu_rt.card import calibrated_on, other_threshold
    from mpmmu_rt.engines import engines
    from mpmmu_rt.single_record import graph_of
    from mpmmu_rt.spec import Target

    entry, runs = opened.entry, []
    for name in opened.targets:
        target = Target.parse(name)
        known = target.engine in engines()
        problem = engines()[target.engine].problem(target.precision) if known else None
        verdict = "runs here" if known and problem is None else str(problem or "unknown to this version")
        runs.append([name, verdict])
    parity = entry["parity"]
    if not parity:
        raise BundleError(f"{opened.path} holds no parity report, expected a verified bundle", hint="export it again")
    lines = [
        f"{opened.name}  (bundle {opened.digest[:12]}, {entry['schema']})",
        *_card(entry["card"]),
        *_evaluations(entry["card"]),
        f"operating threshold: {opened.threshold:.9g}",
        f"images: {_images(opened.preprocessing)}",
        f"of images it warns: {_warned_of(opened)}",
        _parity(parity),
        *describe_precision(entry),
        *([f"INT8 was calibrated on {calibrated_on(entry['calibration'])}"] if entry.get("calibration") else []),
    ]
    for name, head in entry["head"].items():
        forests = [f"{' + '.join(map(str, one['trees']))} trees by {one['strategy']}" for one in head["forests"]]
        where = "" if head["engine"] == "portable" else f" for {head['engine']}"
        where = next((f" for {one} alone" for one in opened.single_heads if name == graph_of(one)), where)
        lines.append(f"stacking head{where}: {', '.join(forests) or 'no trees'}")
    if opened.single_heads:
        lines.append("heads for one image alone: `run --allow-single` uses them where a case has no other")
    notes = dict.fromkeys(text for head in entry["head"].values() for text in head["notes"])
    told = [wrapped("\n".join([*lines, *(f"warning: {text}" for text in notes)]))]
    if entry["card"].get("metrics"):
        told.append("\n" + _tested(entry["card"]["metrics"]))
    if other := other_threshold(entry["card"], opened.threshold):
        told.append(wrapped(f"warning: {other}"))
    told.append("\n" + fitted(["target", ""], runs))
    shapes = [[tensor.name, tensor.dtype, " x ".join(map(str, tensor.shape))] for tensor in opened.tensors.values()]
    told.append("\n" + fitted(["tensor", "dtype", "shape"], shapes))
    files = [[name, f"{facts['bytes']:,}", facts["sha256"][:12]] for name, facts in entry["files"].items()]
    told.append("\n" + fitted(["file", "bytes", "sha256"], files))
    versions = ", ".join(f"{name} {version}" for name, version in entry["provenance"]["versions"].items())
    return [*told, "\n" + wrapped(f"made with {versions}")]


def _card(card: Mapping[str, Any]) -> list[str]:
    """What the card says in words and numbers; its metrics are a table of their own."""
    from mpmmu_rt.card import texts

    for_programs = ("library_name", "pipeline_tag")
    found = [
        f"{key.replace('_', ' ')}: {value}"
        for key, value in card.items()
        if isinstance(value, str | int | float) and key not in for_programs
    ]
    return [*found, *(f"limit: {text}" for text in texts(card.get("limitations", [])))]


def _tested(metrics: Mapping[str, Any]) -> str:
    """The card is free text to a bundle: metrics that `train` did not write are no table."""
    from mpmmu_rt.card import FOREIGN

    try:
        return tested(metrics)
    except FOREIGN:
        return "metrics: in another form than `train` writes; `mpmmu-rt inspect --json` prints them"


def _warned_of(opened: Bundle) -> str:
    check = opened.modality_check
    if check is None:
        return "not at all, as it does not know those of the training; headers are read"
    if check.learnt is None:
        return "where a pair looks swapped; not where one is unlike the training's, which it does not know"
    return "where a pair looks swapped, or one is unlike the training's"


def _images(preprocessing: Preprocessing) -> str:
    ways = {"pad": "aspect ratio kept and padded with black", "stretch": "stretched to the square"}
    kept = ", as the pixels are stored" if (preprocessing.fit, preprocessing.aspect) == ("pad", "stored") else ""
    return f"{preprocessing.size} x {preprocessing.size}, {ways[preprocessing.fit]}{kept}"


def _parity(parity: Mapping[str, Any]) -> str:
    worst = max(parity["checks"], key=lambda check: check["value"] / (check["limit"] or 1e-30))
    return (
        f"parity on {count(parity['cases'], 'case')} ({parity['source']}): {parity['decisions_flipped']} decisions "
        f"flipped; closest to its limit: {worst['name']} {figure(worst['value'])} of {figure(worst['limit'])}"
    )


def _evaluations(card: Mapping[str, Any]) -> Iterator[str]:
    """Lines for each evaluation of the card; that of the training's own test part is a table."""
    from mpmmu_rt.card import FOREIGN, evaluations

    for one in evaluations(card):
        try:
            yield from _evaluation(one)
        except FOREIGN:
            yield "evaluated: in another form than `evaluate` writes; `mpmmu-rt inspect --json` prints it"


def _evaluation(one: Mapping[str, Any]) -> list[str]:
    from mpmmu_rt.evaluation.text import with_interval

    patients = one["cases"]["patients"]
    return [
        f"evaluated on {one['dataset']} ({one['target']}, {one['measured_at'][:10]}): AUC "
        f"{with_interval(one['auc'], 3)}; {patients['malignant']} malignant, {patients['benign']} benign patients",
        *(text for text in one["remarks"] if text.startswith("WARNING")),
    ]
