from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from mpmmu_rt.folders import Kind, atomic_folder

from ._report import going_on, note

SOURCES = Path(__file__).resolve().parents[1] / "native"
KIND = Kind("include/mpmmu.h", ("CMakeLists.txt", "README.md", "cmake/*", "examples/*", "include/*", "src/*"))


def native(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("mpmmu-native"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output.")] = False,
) -> None:
    """Write the sources of the C++ runtime with its C header, for a device without Python."""
    with (
        going_on(output, lambda: "nothing was kept"),
        atomic_folder(output, KIND, overwrite=overwrite) as partial,
    ):
        shutil.copytree(SOURCES, partial, dirs_exist_ok=True)
    note(f"wrote the C++ runtime: {output}; {output}/README.md says how to build it")
