from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpmmu_rt.errors import AnswerError, ImageError, UsageError, quoted
from mpmmu_rt.folders import Kind

from ._proven import looked_up, note_verdict, warn_never_run
from ._report import JsonTo, bars, check_json, count, fitted, going_on, note, put_json, say, wrapped

if TYPE_CHECKING:
    from mpmmu_rt.cases import Case
    from mpmmu_rt.explain import Explanation, Sampling
    from mpmmu_rt.predictor import Predictor
    from mpmmu_rt.progress import Progress
    from mpmmu_rt.spec import Modality

    Files = dict[Modality, dict[str, Path]]

REPORT = "explanations.json"
# Of at most 200 cases, so that the four digits begin with 0: a person's `left_mammography_view.png` is none of them.
_FILES = ("explanation.html", "0*_mammography_*.png", "0*_ultrasound_*.png")
KIND = Kind(REPORT, _FILES, "mpmmu-explanation")
MOST_CASES = 200
SAYS = (
    "A map tells what this model's answer depends on. It tells neither that the answer is right nor where a lesion is."
)


class Method(StrEnum):
    occlusion = "occlusion"
    shapley = "shapley"


def explain(
    bundle: Annotated[Path, typer.Argument(help="Bundle to look into.")],
    manifest: Annotated[Path | None, typer.Argument(help="CSV with case_id,mammography,ultrasound.")] = None,
    case: Annotated[list[str] | None, typer.Option("--case", help="Of MANIFEST, by its case_id; repeatable.")] = None,
    mammography: Annotated[Path | None, typer.Option("--mammography", help="Instead: one mammogram …")] = None,
    ultrasound: Annotated[Path | None, typer.Option("--ultrasound", help="… and her ultrasound image.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("explanation"),
    target: Annotated[str, typer.Option("--target", help="Engine and precision.")] = "onnxruntime:fp32",
    method: Annotated[
        Method,
        typer.Option(
            "--method", help="occlusion: what covering a part changes; shapley: what each adds, and all add up."
        ),
    ] = Method.occlusion,
    orders: Annotated[
        int | None, typer.Option("--orders", help="Of --method shapley, even: more are slower and steadier. [8]")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of --method shapley. [0]")] = None,
    frame: Annotated[
        int | None, typer.Option("--frame", min=0, help="Frame to take of files that hold several, from 0.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier explanation.")] = False,
    json_to: JsonTo = None,
) -> None:
    """Show what the deployed model looks at: overlays of occlusion or Shapley values, and of attention, over both
    images; what each modality and each learner says. explanation.html, explanations.json and the pictures as PNG."""
    from mpmmu_rt.explain.page import document
    from mpmmu_rt.files import rounded, write_json
    from mpmmu_rt.folders import atomic_folder, check_replaceable
    from mpmmu_rt.places import claimed
    from mpmmu_rt.predictor import load

    check_json(json_to, bundle, manifest, mammography, ultrasound, output)
    check_replaceable(output, KIND, overwrite=overwrite)
    sampling = _sampling(method, orders, seed)
    cases = _cases(manifest, case or [], mammography, ultrasound)
    kept = going_on(output, lambda: "nothing was kept")
    with claimed(output), kept, bars() as progress, load(bundle, target) as predictor:
        with atomic_folder(output, KIND, overwrite=overwrite) as folder:
            found, drawn, failed = _explained(predictor, cases, (frame, sampling), folder, progress)
            entry = rounded(_entry(predictor, found, failed) | {"method": str(method)})
            (folder / "explanation.html").write_text(
                document(entry, map(_read, drawn)), encoding="utf-8", errors="backslashreplace"
            )
            write_json(folder / REPORT, entry)
        remarks, wanted = predictor.remarks, predictor.target
        verdict = looked_up(predictor.bundle, wanted, require=False)
        warn_never_run(predictor.bundle, wanted, bundle)
    if not put_json(json_to, entry):
        say(_describe(entry))
    note(f"wrote {output}: explanation.html, {REPORT}, {count(len(found), 'case')}")
    if warned := [one for one in found if one["warnings"]]:
        first = " ".join("; ".join(warned[0]["warnings"]).split())
        note(
            f"warning: {len(warned)} of {count(len(found), 'case')} of {output} have warnings; the first is "
            f"`{warned[0]['case_id']}`: {first}"
        )
    for remark in remarks:
        note(f"note: {remark}")
    note_verdict(verdict, wanted, bundle)
    if failed:
        first = f"`{failed[0]['case_id']}`: {failed[0]['error']}"
        raise ImageError(
            f"{len(failed)} of {len(cases)} cases could not be explained, expected none; the first is {first}",
            hint=f"{output}/{REPORT} says why for each",
        )


def _sampling(method: Method, orders: int | None, seed: int | None) -> Sampling | None:
    from mpmmu_rt.explain import Sampling
    from mpmmu_rt.explain.shapley import FEWEST_ORDERS

    if method is Method.occlusion:
        if orders is not None or seed is not None:
            raise UsageError(
                f"--{'seed' if orders is None else 'orders'} is given with --method occlusion, which draws nothing, "
                "expected it with --method shapley",
                hint="--method shapley",
            )
        return None
    asked = Sampling()
    asked = replace(asked, orders=asked.orders if orders is None else orders, seed=asked.seed if seed is None else seed)
    if asked.orders < FEWEST_ORDERS or asked.orders % 2:
        raise UsageError(
            f"--orders is {asked.orders}, expected an even number from {FEWEST_ORDERS} on, as each has its reverse",
            hint="--orders 8",
        )
    return asked


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
            hint=f"--case {quoted(cases[0].case_id)}",
        )
    cases = [known[name] for name in dict.fromkeys(chosen)] or cases
    if len(cases) > MOST_CASES:
        raise UsageError(
            f"{manifest} has {len(cases)} cases, expected at most {MOST_CASES} to a page",
            hint=f"--case {quoted(cases[0].case_id)}, repeated",
        )
    return cases


def _explained(
    predictor: Predictor,
    cases: list[Case],
    how: tuple[int | None, Sampling | None],
    folder: Path,
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[Files], list[dict[str, str]]]:
    """Of each case its JSON and its pictures, in `folder`; and of each that can't be read or answered why. how: frame
    and sampling of `explain`. The images themselves, up to 200 million pixels each, are let go case by case."""
    from mpmmu_rt.explain import explain as run
    from mpmmu_rt.verify import portable_head

    found: list[dict[str, Any]] = []
    drawn: list[Files] = []
    failed: list[dict[str, str]] = []
    frame, sampling = how
    mean, size = predictor.bundle.embedding_mean(), predictor.bundle.preprocessing.size
    with portable_head(predictor) as head:
        for done, one in enumerate(cases):
            progress("explaining", done, len(cases), "cases")
            try:
                explained = run(predictor, one, head, mean=mean, frame=frame, sampling=sampling, progress=progress)
            except (ImageError, AnswerError) as error:  # as `run` does: one case costs its own
                failed.append({"case_id": one.case_id, "error": f"{error}; {error.hint}"})
            else:
                found.append(explained.to_json())
                drawn.append(_draw(explained, size, folder, len(found)))
    progress("explaining", len(cases), len(cases), "cases")
    return found, drawn, failed


def _draw(explained: Explanation, size: int, folder: Path, number: int) -> Files:
    """Named by number: a case_id may hold anything."""
    from mpmmu_rt.explain.page import pictures
    from mpmmu_rt.spec import MODALITIES

    files: Files = {modality: {} for modality in MODALITIES}
    for modality in MODALITIES:
        for name, png in pictures(explained, modality, size).items():
            files[modality][name] = folder / f"{number:04d}_{modality}_{name}.png"
            files[modality][name].write_bytes(png)
    return files


def _read(files: Files) -> dict[Modality, dict[str, bytes]]:
    return {modality: {name: path.read_bytes() for name, path in of.items()} for modality, of in files.items()}


def _entry(predictor: Predictor, found: list[dict[str, Any]], failed: list[dict[str, str]]) -> dict[str, Any]:
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
        "cases": found,
        "failed": failed,
        "remarks": list(predictor.remarks),
        "machine": describe(),
    }


def _describe(entry: dict[str, Any]) -> str:
    from mpmmu_rt.checks import shown

    rows = []
    for one in entry["cases"]:
        alone = [one["modalities"][name]["probability_alone"] for name in ("mammography", "ultrasound")]
        cells = ["-" if value is None else f"{value:.3f}" for value in alone]
        probability = shown(one["probability"], entry["threshold"], digits=3)
        rows.append([one["case_id"], probability, one["decision"], *cells])
    header = ["case", "probability", "decision", "mammography alone", "ultrasound alone"]
    return fitted(header, rows) + "\n" + wrapped(entry["says"])
