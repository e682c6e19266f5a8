from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from ._proven import looked_up, note_verdict, warn_never_run
from ._report import JsonTo, check_json, note, put_json, say, wrapped
from ._target import AUTO, RoundingOption, TargetOption, taken


def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle to run.")],
    mammography: Annotated[Path, typer.Option("--mammography", help="Mammogram of the patient.")],
    ultrasound: Annotated[Path, typer.Option("--ultrasound", help="Ultrasound image of the same patient.")],
    target: TargetOption = AUTO,
    allow_rounding: RoundingOption = False,
    frame: Annotated[
        int | None, typer.Option("--frame", min=0, help="Frame to take of files that hold several, from 0.")
    ] = None,
    require_verified: Annotated[
        bool, typer.Option("--require-verified", help="Refuse a bundle that `verify` did not pass on this machine.")
    ] = False,
    json_to: JsonTo = None,
) -> None:
    """Predict one pair of images. A manifest of many: `mpmmu-rt run`."""
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.checks import shortest, shown
    from mpmmu_rt.engines import engine
    from mpmmu_rt.predictor import HeaderWarning, Predictor

    check_json(json_to, bundle, mammography, ultrasound)
    opened = Bundle.open(bundle)
    wanted, choice = taken(opened, target, allow_rounding=allow_rounding)
    engine(wanted)
    opened.require_proven(wanted)
    verdict = looked_up(opened, wanted, require=require_verified)
    warn_never_run(opened, wanted, bundle)
    with Predictor(opened, wanted) as predictor, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", HeaderWarning)
        found = predictor.predict_files(mammography, ultrasound, frame=frame)
        remarks = predictor.remarks
    said = [str(one.message) for one in caught if issubclass(one.category, HeaderWarning)]
    entry: dict[str, Any] = {
        "schema": "mpmmu-prediction/1",
        "probability": float(shortest(found.probability[0])),  # as `run` says it
        "decision": found.decision[0],
        "threshold": opened.threshold,
        "base_probability": None
        if found.base_probability is None
        else [float(shortest(one)) for one in found.base_probability[0]],
        "warning": opened.warning,
        "bundle": {"name": opened.name, "digest": opened.digest, "trained": opened.trained},
        "target": str(wanted),
        "chosen": choice.to_json() if choice else None,
        "images": {"mammography": str(mammography), "ultrasound": str(ultrasound)},
        "warnings": said,
        "remarks": list(remarks),
        "verified": verdict.to_json(),
    }
    if not put_json(json_to, entry):
        text = (
            f"{found.decision[0]}: probability of malignancy {shown(found.probability[0], found.threshold)}, threshold "
            f"{shortest(found.threshold)}"
        )
        say(wrapped(text))
    for one in said:
        note(f"warning: {one}")
    for one in remarks:
        note(f"note: {one}")
    note_verdict(verdict, wanted, bundle)
