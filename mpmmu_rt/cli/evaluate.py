from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpmmu_rt.errors import BundleError, UsageError, quoted
from mpmmu_rt.folders import Kind

from ._proven import looked_up, note_verdict, warn_never_run
from ._report import JsonTo, bars, check_json, fitted, note, put_json, say, wrapped
from .export import warn_untrained

if TYPE_CHECKING:
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.evaluation.study import Evaluation
    from mpmmu_rt.evaluation.systems import System

REPORT = "report.json"
_PLOTS = ("roc", "precision_recall", "calibration", "decision", "histogram", "confusion")
_FILES = ("report.md", "report.html", "cases.csv", *(f"{name}.svg" for name in _PLOTS))
KIND = Kind(REPORT, _FILES, "mpmmu-evaluate")
TARGET = "onnxruntime:fp32"  # of a bundle, where none is named


def evaluate(
    system: Annotated[Path, typer.Argument(metavar="CHECKPOINT|BUNDLE", help="What to judge.")],
    manifest: Annotated[Path, typer.Argument(help="CSV with case_id,mammography,ultrasound,label and maybe patient.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("evaluation"),
    target: Annotated[
        str | None, typer.Option("--target", help=f"Of a bundle: engine and precision [default: {TARGET}].")
    ] = None,
    part: Annotated[
        str,
        typer.Option(
            "--part",
            metavar="auto|test|validation|train|all",
            help="What to judge: auto is the test part, by the column `split` or the model's record; all if unknown.",
        ),
    ] = "auto",
    choose_on: Annotated[
        Path | None, typer.Option("--choose-on", help="Manifest of other patients to choose thresholds on.")
    ] = None,
    at_sensitivity: Annotated[
        float | None, typer.Option("--at-sensitivity", min=0, max=1, help="Judge the threshold of so much, too.")
    ] = None,
    prevalence: Annotated[
        float | None, typer.Option("--prevalence", min=0, max=1, help="State one, for predictive values there.")
    ] = None,
    by: Annotated[
        list[str] | None, typer.Option("--by", help="Column of the manifest to split figures by; repeatable.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="Another checkpoint or bundle, on the same cases.")
    ] = None,
    against_target: Annotated[
        str | None, typer.Option("--against-target", help="Its target; alone: another target of the same bundle.")
    ] = None,
    frame: Annotated[
        int | None, typer.Option("--frame", min=0, help="Frame to take of files that hold several, from 0.")
    ] = None,
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Write the figures into the bundle's model card, and seal it anew.")
    ] = False,
    trust_pickle: Annotated[
        Path | None, typer.Option("--trust-pickle", help="A checkpoint's pickled head that you vouch for, by its path.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier evaluation.")] = False,
    json_to: JsonTo = None,
) -> None:
    """Say how good a checkpoint or bundle is on labelled cases, with intervals: report.html, report.md, report.json,
    plots, and cases.csv with every answer. Thresholds are never chosen on the cases that are judged."""
    from mpmmu_rt.cases import read_manifest, require_people
    from mpmmu_rt.evaluation.choosing import Wanted
    from mpmmu_rt.evaluation.parts import CHOICES
    from mpmmu_rt.evaluation.study import evaluate as run
    from mpmmu_rt.folders import check_replaceable
    from mpmmu_rt.places import claimed

    if part not in CHOICES:
        raise UsageError(f"--part is `{part}`, expected one of {', '.join(CHOICES)}", hint="--part test")
    if prevalence in (0, 1):
        raise UsageError(f"--prevalence is {prevalence:g}, expected more than 0 and less than 1", hint="0.005, say")
    if update_card and not _is_bundle(system):
        raise UsageError(
            f"--update-card is given for {system}, expected a bundle: a checkpoint's card is its training's",
            hint=f"mpmmu-rt export {quoted(system)}, then evaluate the bundle",
        )
    other_system = against or (system if against_target is not None else None)
    _check_systems((system, target), (other_system, against_target), trust_pickle)
    check_json(json_to, system, manifest, choose_on, against, output)
    check_replaceable(output, KIND, overwrite=overwrite)
    cases, other = read_manifest(manifest), read_manifest(choose_on) if choose_on else None
    given = [one for one in (cases, other) if one is not None]
    for one in given:  # what is refused needs no remark
        require_people(one)
    for remark in (remark for one in given for remark in one.remarks):
        note(f"warning: {remark}")
    wanted = Wanted(part, other, at_sensitivity, prevalence, tuple(by or ()), frame)
    with claimed(output):
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(bars())
            judged = stack.enter_context(_opened(system, target, trust_pickle))
            opened = judged.bundle if other_system == system else None  # two targets of it: of one and the same
            second = None
            if other_system is not None:
                second = stack.enter_context(_opened(other_system, against_target, trust_pickle, opened))
            found = run(judged, cases, wanted, against=second, progress=progress)
        for asked in (judged, second):
            _note_proof(asked)
        write(output, found, overwrite=overwrite)
    if not put_json(json_to, found.entry):
        say(describe(found.entry))
    if update_card:
        from mpmmu_rt.card import update

        update(system, found.entry)
        again = f"`mpmmu-rt verify {quoted(system)}` again"
        note(f"wrote the figures into the model card of {system} and sealed it anew: {again}")
    note(f"wrote {output}: report.html, report.md, report.json, cases.csv and plots")
    warn_untrained(judged.trained)


def _note_proof(system: System | None) -> None:
    """As the other commands that ask a bundle: figures are those of this machine, where it may not be verified."""
    from mpmmu_rt.spec import Target

    if system is not None and system.bundle is not None:  # what was judged, whatever lies in its place by now
        path, target = Path(system.path), Target.parse(system.target)
        warn_never_run(system.bundle, target, path)
        note_verdict(looked_up(system.bundle, target, require=False), target, path)


def _is_bundle(path: Path) -> bool:
    from mpmmu_rt.bundle import MANIFEST

    return (path / MANIFEST).exists()


def _is_checkpoint(path: Path) -> bool:
    return (path / "config.json").is_file()


def _holds(folder: Path, pickle: Path) -> bool:
    """Whether `pickle` is a file of it, by whichever name."""
    return folder.is_dir() and pickle.resolve() in [one.resolve() for one in folder.iterdir()]


def _check_systems(
    judged: tuple[Path, str | None], other: tuple[Path | None, str | None], trust_pickle: Path | None
) -> None:
    """Raise `UsageError` for a target of a checkpoint, a system against itself, a pickle that nothing would load."""
    named = [(path, target) for path, target in (judged, other) if path is not None]
    for path, target in named:
        if target is not None and not _is_bundle(path) and _is_checkpoint(path):
            raise UsageError(
                f"the target {target} is asked of the checkpoint {path}, expected a bundle: a checkpoint runs in torch "
                "alone",
                hint=f"mpmmu-rt export {quoted(path)}, then evaluate the bundle",
            )
    if len({(path.resolve(), target or TARGET) for path, target in named}) < len(named):
        what = f"{judged[0]} on {judged[1] or TARGET}" if _is_bundle(judged[0]) else f"the checkpoint {judged[0]}"
        raise UsageError(
            f"--against names {what}, which is what is judged, expected another system or target",
            hint="--against BUNDLE, or --against-target with another target of the same bundle",
        )
    if trust_pickle is not None and all(_is_bundle(path) for path, _ in named):
        raise UsageError(
            f"--trust-pickle {trust_pickle} is given without a CHECKPOINT, expected both: a bundle holds no pickle",
            hint="leave it out",
        )
    if trust_pickle is not None and not any(_holds(path, trust_pickle) for path, _ in named):
        raise UsageError(
            f"--trust-pickle names {trust_pickle}, which lies in nothing that is judged, expected a checkpoint's head",
            hint=f"put it into the checkpoint: {judged[0] / 'head.joblib'}",
        )


@contextlib.contextmanager
def _opened(
    path: Path, target: str | None, trust_pickle: Path | None, opened: Bundle | None = None
) -> Iterator[System]:
    """opened: the bundle at `path`, where it was opened already."""
    if opened or _is_bundle(path):
        from mpmmu_rt.evaluation.systems import bundle_system

        with bundle_system(opened or path, target or TARGET) as found:
            yield found
        return
    if not _is_checkpoint(path):
        raise BundleError(
            f"{path} holds neither bundle.json nor config.json, expected a bundle or a checkpoint",
            hint="name a folder that `mpmmu-rt export` or `mpmmu-rt train` wrote",
        )
    from mpmmu_rt._optional import require

    require("torch", "evaluating a checkpoint")
    from mpmmu_rt.model.system import checkpoint_system

    yield checkpoint_system(path, trust_pickle=trust_pickle if trust_pickle and _holds(path, trust_pickle) else None)


def write(output: Path, found: Evaluation, *, overwrite: bool) -> None:
    """The folder, whole or not at all."""
    from mpmmu_rt.evaluation import plots, text
    from mpmmu_rt.files import write_json
    from mpmmu_rt.folders import atomic_folder
    from mpmmu_rt.report_html import page

    entry = found.entry
    with atomic_folder(output, KIND, overwrite=overwrite) as folder:
        write_json(folder / REPORT, entry)
        (folder / "report.md").write_text(text.markdown(entry), encoding="utf-8", errors="backslashreplace")
        (folder / "report.html").write_text(page(entry), encoding="utf-8", errors="backslashreplace")
        with (folder / "cases.csv").open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.DictWriter(file, list(found.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(found.rows)
        for name, drawn in plots.every(entry).items():
            (folder / f"{name}.svg").write_text(drawn, encoding="utf-8")


def describe(entry: Mapping[str, Any]) -> str:
    """For a terminal of 80 columns."""
    from mpmmu_rt.evaluation import text

    parts = [
        wrapped(text.title(entry)),
        wrapped(text.parts(entry)),
        "",
        fitted(*text.overall(entry)),
        "",
        fitted(*text.by_threshold(entry)),
    ]
    if entry["prevalence"] is not None:
        parts.append(f"prev.: the stated prevalence, {entry['prevalence']:g}")
    if names := text.chosen(entry):
        parts.append(wrapped(names))
    for column, found in entry["subgroups"].items():
        parts += ["", fitted(*text.subgroups(found, column))]
    if entry["against"]:
        parts += ["", wrapped(text.other(entry)), fitted(*text.against(entry))]
    lost = text.failures(entry, 3)
    return "\n".join([*parts, "", *(wrapped(one) for one in (*entry["remarks"], *lost))])
