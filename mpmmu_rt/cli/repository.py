from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpmmu_rt.errors import quoted

from ._report import note

if TYPE_CHECKING:
    from mpmmu_rt.serving.repository import Served

InstancesOption = Annotated[
    int, typer.Option("--instances", min=1, help="Processes that predict; they share the cores.")
]
DelayOption = Annotated[
    str, typer.Option("--max-delay", help="How long a case may wait for others to share its batch.")
]
BatchOption = Annotated[
    int | None, typer.Option("--max-batch", min=1, help="Largest batch; else what the target was made for, or 32.")
]
NameOption = Annotated[str, typer.Option("--name", help="What the model is called; NAME_files takes encoded files.")]


def repository(
    bundle: Annotated[Path, typer.Argument(help="Bundle to serve.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("models"),
    target: Annotated[str, typer.Option("--target", help="Engine and precision.")] = "onnxruntime:fp32",
    instances: InstancesOption = 1,
    max_delay: DelayOption = "2ms",
    max_batch: BatchOption = None,
    name: NameOption = "mpmmu",
    version: Annotated[int, typer.Option("--version", min=1, help="Number of the version's folder.")] = 1,
    native: Annotated[
        bool, typer.Option("--native", help="The graphs alone, for Triton's onnxruntime backend: no package of ours.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output.")] = False,
) -> None:
    """Write a Triton model repository that holds the bundle."""
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.serving.native import write_native
    from mpmmu_rt.serving.repository import write_repository

    opened = Bundle.open(bundle)
    asked = served(target, name=name, version=version, instances=instances, max_delay=max_delay, max_batch=max_batch)
    if native:
        write_native(opened, output, asked, overwrite=overwrite)
    else:
        write_repository(opened, output, asked, overwrite=overwrite)
    note(f"wrote {output}: the models {asked.name} and {_others(asked, native)}, version {version}, on {target}")
    if opened.warning:
        note(f"warning: {opened.warning}")
    note(
        "note: nothing replays the golden vectors there: compare answers with those of `mpmmu-rt run` before you use it"
        if native
        else "note: the server's Python needs mpmmu-rt of this version and the target's engine"
    )
    note(f"next: tritonserver --model-repository={quoted(str(output))}")


def served(target: str, *, name: str, version: int, instances: int, max_delay: str, max_batch: int | None) -> Served:
    from mpmmu_rt.options import delay_ms
    from mpmmu_rt.serving.repository import Served
    from mpmmu_rt.spec import Target

    return Served(Target.parse(target), name, version, instances, delay_ms(max_delay), max_batch)


def _others(asked: Served, native: bool) -> str:
    from mpmmu_rt.serving.native import STEPS

    return "its steps " + ", ".join(f"{asked.name}_{step}" for step in STEPS) if native else asked.files_name
