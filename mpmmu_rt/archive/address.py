"""A manifest at an address that fsspec knows, as `s3://bucket/cases.csv`: copied beside the output, and read there.

All nodes have that place. Images and outputs have no addresses: see docs/archives.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpmmu_rt._optional import require
from mpmmu_rt.errors import ManifestError
from mpmmu_rt.files import atomic_file
from mpmmu_rt.progress import Progress, silent

_CHUNK_BYTES = 2**22


def is_address(place: object) -> bool:
    return "://" in str(place)


def without_secrets(address: str) -> str:
    """As it may be printed and kept: without a name and password, and without what follows `?`."""
    return re.sub(r"//[^/@]*@", "//", address).partition("?")[0]


def local_path(address: str) -> Path | None:
    """What an address of this machine's disks is a path of."""
    scheme, _, path = address.partition("://")
    return Path(path) if scheme in ("file", "local") else None


def copied(address: str, to: Path, progress: Progress = silent) -> None:
    """Copy what lies at `address`, whole or not at all and never held. Raises `ManifestError`, `MissingPackage`."""
    fsspec = require("fsspec", "a manifest at an address")
    name = without_secrets(address)
    with _told(address):
        source = fsspec.open(address, "rb").open()
    try:
        with atomic_file(to) as partial, partial.open("wb") as out:
            done, size = 0, int(getattr(source, "size", None) or 0)
            while True:
                with _told(address):
                    data = source.read(_CHUNK_BYTES)
                if not data:
                    break
                done += out.write(data)
                progress("copying the manifest", done, max(done, size), "bytes")
            if size and done != size:
                raise ManifestError(
                    f"manifest {name} ended after {done} of {size} bytes, expected all of them", hint="try again"
                )
    finally:
        source.close()


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Each storage has errors of its own."""
    try:
        yield
    except Exception as error:
        name = without_secrets(address)
        said = " ".join(str(error).replace(address, name).split())[:300] or type(error).__name__
        raise ManifestError(
            f"manifest {name} can't be read: {said}, expected a CSV or Parquet file",
            hint="check the address, the credentials, and that fsspec's package for it is installed (s3://: s3fs); "
            "or copy it to a disk, and name it there",
        ) from error
