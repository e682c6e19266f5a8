"""`run --ray`: the same command on a cluster."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpmmu_rt.errors import UsageError

from ._report import bars, count, going_on

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+:/")  # a path has one slash left of two; a drive has one letter

if TYPE_CHECKING:
    from mpmmu_rt.archive.cluster import Cluster
    from mpmmu_rt.origin import Entry
    from mpmmu_rt.run import Allowed, Asked
    from mpmmu_rt.run_record import Made


def with_address(arguments: Sequence[str]) -> list[str]:
    """`--ray` without an address is `--ray local`."""
    given = list(arguments)
    if "--ray" in given and (given[-1] == "--ray" or given[given.index("--ray") + 1].startswith("-")):
        given.insert(given.index("--ray") + 1, "local")
    return given


def asked(address: str | None, workers: int | None, cpus: int, output: Path) -> Cluster | None:
    """The cluster that is asked for, if one is. Raises `UsageError` for what goes with none, or with one alone."""
    if address is None:
        if workers is not None or cpus != 1:
            raise UsageError(
                "--ray-workers or --ray-cpus is given without --ray, expected both", hint="add --ray, or leave it out"
            )
        return None
    if output == Path("-"):
        raise UsageError("-o - is given with --ray, expected one of them", hint="name a file with -o")
    from mpmmu_rt.archive.cluster import Cluster

    return Cluster(address, workers, cpus)


def place(manifest: str, output: Path, *, on_ray: bool) -> Path | str:
    """Where the manifest lies: a path or, with --ray, an address. Raises `UsageError` for what has none."""
    if _SCHEME.match(str(output)):
        raise UsageError(
            f"the output {output} is an address, expected a path: there nothing keeps a second job from writing "
            "it, and no file appears by renaming",
            hint="name a path on a disk or a shared file system with -o, and copy it from there once it is done",
        )
    from mpmmu_rt.archive.address import is_address, without_secrets

    if not is_address(manifest):
        return Path(manifest)
    if not on_ray:
        raise UsageError(
            f"the manifest {without_secrets(manifest)} is an address and --ray is not given, expected a path",
            hint="copy it to a disk and name it there, or add --ray, which does",
        )
    return manifest


def run_on(cluster: Cluster, what: Asked, manifest: Path | str, output: Path, allowed: Allowed, by: Entry) -> Made:
    """Raises what `mpmmu_rt.archive.run.run` raises; of work that ends half-way it says how to go on."""
    from mpmmu_rt.archive.run import run
    from mpmmu_rt.journal import place_of

    def kept() -> str:
        made = sum(1 for _ in place_of(output).glob("*/parts/part-*"))
        return f"{count(made, 'part')} kept in {place_of(output)}"

    with going_on(output, kept, "--resume"), bars() as progress:
        return run(what, manifest, output, cluster, allowed=allowed, by=by, progress=progress)
