from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpmmu_rt.errors import ImageError, UsageError

from ._report import JsonTo, bars, check_json, count, fitted, going_on, note, put_json, wrapped

if TYPE_CHECKING:
    from mpmmu_rt.cases import Case
    from mpmmu_rt.explain import Explanation
    from mpmmu_rt.predictor import Predictor
    from mpmmu_rt.progress import Progress

REPORT = "explanations.json"
MOST_CASES = 200
SAYS = (
    "A map tells what this model's answer depends on. It tells neither that the answer is right nor where a lesion is."
)


def explain(
    bundle: Annotated[Path, typer.Argument(help="Bundle to look into.")],
    manifest: Annotated[Path | None, typer.Argument(help="CSV with case_id,mammography,ultrasound.")] = None,
    case: Annotated[list[str] | None, typer.Option("--case", help="Of MANIFEST, by its case_id; repeatable.")] = None,
    mammography: Annotated[Path | None, typer.Option("--mammography", help="Instead: one mammogram …")] = None,
    ultrasound: Annotated[Path | None, typer.Option("--ultrasound", help="… and her ultrasound image.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("explanation"),
    target: Annotated[str, typer.Option("--target", help="Engine and precision.")] = "onnxruntime:fp32",
    frame: Annotated[
        int | None, typer.Option("--frame", min=0, help="Frame to take of files that hold several, from 0.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier explanation.")] = False,
    json_to: JsonTo = None,
) -> None:
    """Show what the deployed model looks at: overlays of occlusion and attention over both images, what each modality
    and each learner says. explanation.html, explanations.json and the pictures as PNG."""
    from mpmmu_rt.files import check_replaceable, rounded
    from mpmmu_rt.places import claimed
    from mpmmu_rt.predictor import load

    check_json(json_to)
    check_replaceable(output, marker=REPORT, overwrite=overwrite)
    cases = _cases(manifest, case or [], mammography, ultrasound)
    kept = going_on(output, lambda: "nothing was kept")
    with claimed(output), kept, bars() as progress, load(bundle, target) as predictor:
        predictor.bundle.require_proven(predictor.target)
        found, failed = _explained(predictor, cases, frame, progress)
        entry = rounded(_entry(predictor, found, failed))
        size, remarks = predictor.bundle.preprocessing.size, predictor.remarks
        _write(output, entry, found, size, overwrite=overwrite)
    if not put_json(json_to, entry):
        typer.echo(_describe(entry))
    note(f"wrote {output}: explanation.html, {REPORT}, {count(len(found), 'case')}")
    for remark in remarks:
        note(f"note: {remark}")
    if failed:
        first = f"`{failed[0]['case_id']}`: {failed[0]['error']}"
        raise ImageError(
            f"{len(failed)} of {len(cases)} cases could not be read, expected none; the first is {first}",
            hint=f"{output}/{REPORT} says why for each",
        )


def _cases(manifest: Path | None, chosen: list[str], mammography: Path | None, ultrasound: Path | None) -> list[Case]:
    from mpmmu_rt.cases import Case, read_manifest

    pair = mammography is not None or ultrasound is not None
    if (manifest is None) != pair or (pair and (mammography is None or ultrasound is None or chosen)):
        raise UsageError(
            "what to explain is not one thing, expected a MANIFEST, or --mammography with --ultrasound",
            hint="mpmmu-rt explain BUNDLE MANIFEST --case ID",
        )
    if manifest is None:
        return [Case("pair", mammography, ultrasound)]
    cases = list(read_manifest(manifest).cases)
    known = {one.case_id: one for one in cases}
    if missing := [name for name in chosen if name not in known]:
        raise UsageError(
            f"{manifest} has no case `{missing[0]}`, expected one of its {len(cases)}",
            hint=f"--case {cases[0].case_id}",
        )
    cases = [known[name] for name in dict.fromkeys(chosen)] or cases
    if len(cases) > MOST_CASES:
        raise UsageError(
            f"{manifest} has {len(cases)} cases, expected at most {MOST_CASES} to a page",
            hint=f"--case {cases[0].case_id}, repeated",
        )
    return cases


def _explained(
    predictor: Predictor, cases: list[Case], frame: int | None, progress: Progress
) -> tuple[list[Explanation], list[dict[str, str]]]:
    from mpmmu_rt.explain import explain as run
    from mpmmu_rt.verify import portable_head

    found: list[Explanation] = []
    failed: list[dict[str, str]] = []
    mean = predictor.bundle.embedding_mean()
    with portable_head(predictor) as head:
        for done, one in enumerate(cases):
            progress("explaining", done, len(cases), "cases")
            try:
                found.append(run(predictor, one, head, mean=mean, frame=frame, progress=progress))
            except ImageError as error:
                failed.append({"case_id": one.case_id, "error": str(error)})
    progress("explaining", len(cases), len(cases), "cases")
    return found, failed


def _entry(predictor: Predictor, found: list[Explanation], failed: list[dict[str, str]]) -> dict[str, Any]:
    from mpmmu_rt.explain.study import SCHEMA
    from mpmmu_rt.machine import describe, now

    bundle = predictor.bundle
    return {
        "schema": SCHEMA,
        "measured_at": now(),
        "says": SAYS,
        "warning": bundle.warning,
        "bundle": {"name": bundle.name, "digest": bundle.digest, "trained": bundle.trained},
        "target": str(predictor.target),
        "threshold": bundle.threshold,
        "cases": [one.to_json() for one in found],
        "failed": failed,
        "remarks": list(predictor.remarks),
        "machine": describe(),
    }


def _write(output: Path, entry: dict[str, Any], found: list[Explanation], size: int, *, overwrite: bool) -> None:
    from mpmmu_rt.explain.page import document, pictures
    from mpmmu_rt.files import atomic_folder, write_json
    from mpmmu_rt.spec import MODALITIES

    with atomic_folder(output, marker=REPORT, overwrite=overwrite) as folder:
        drawn = [{modality: pictures(one, modality, size) for modality in MODALITIES} for one in found]
        for number, of_case in enumerate(drawn, 1):  # by number: a case_id may hold anything
            for modality, files in of_case.items():
                for name, png in files.items():
                    (folder / f"{number:04d}_{modality}_{name}.png").write_bytes(png)
        (folder / "explanation.html").write_text(document(entry, drawn), encoding="utf-8")
        write_json(folder / REPORT, entry)


def _describe(entry: dict[str, Any]) -> str:
    rows = []
    for one in entry["cases"]:
        alone = [one["modalities"][name]["probability_alone"] for name in ("mammography", "ultrasound")]
        cells = ["-" if value is None else f"{value:.3f}" for value in alone]
        rows.append([one["case_id"], f"{one['probability']:.3f}", one["decision"], *cells])
    header = ["case", "probability", "decision", "mammography alone", "ultrasound alone"]
    return fitted(header, rows) + "\n" + wrapped(entry["says"])
