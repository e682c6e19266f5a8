"""Arrays in a .npz file that depends on them alone: NumPy's own writes the time into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np

from mpmmu_rt.spec import Array

_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a ZIP file can hold


def write(path: Path, arrays: Mapping[str, Array], *, compressed: bool) -> None:
    """What `np.savez_compressed`, or `np.savez`, would write."""
    with ZipFile(path, "w") as file:
        for name, array in arrays.items():
            entry = ZipInfo(f"{name}.npy", _DATE)
            entry.compress_type = ZIP_DEFLATED if compressed else ZIP_STORED
            with file.open(entry, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
