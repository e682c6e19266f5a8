from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpmmu_rt.errors import OutputError

from ._report import going_on, next_command, note

MIN_TO_TRAIN = 60


def phantom(
    count: Annotated[int, typer.Argument(min=1, max=100_000, help="How many cases to draw.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("phantoms"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which phantoms.")] = 0,
) -> None:
    """Write generated sample cases (images and manifest.csv). Phantoms are drawings, not patients."""
    from mpmmu_rt._optional import require

    if output.exists():  # nothing is replaced: a folder with a manifest may be one of patients
        raise OutputError(f"{output} exists already, expected a free path", hint="choose another -o")
    require("sklearn", "drawing phantoms")
    from mpmmu_rt.model.phantom import write_phantoms

    with going_on(output, lambda: "nothing was kept"):
        manifest = write_phantoms(count, output, seed=seed)
    note(f"wrote {count} phantoms (drawings, not patients): {manifest}")
    if count >= MIN_TO_TRAIN:
        next_command("train", manifest, "--preset", "tiny")
    else:
        next_command("run", "BUNDLE", manifest)
