"""Which NVIDIA GPU is here, by the driver's own word."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

UNKNOWN = "unknown"
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """A GPU by its name and its compute capability: 89 for 8.9; driver: as `driver_version` says."""

    name: str
    capability: int
    driver: str = UNKNOWN


def gpu() -> Gpu | None:
    """The first GPU, by the driver; None without a GPU or a driver.

    Asks the driver's own library, so that it tells without CuPy why nothing can run.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    # 75 and 76 are CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h.
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    )
    if failed:
        return None
    return Gpu(name.value.decode(errors="replace"), 10 * major.value + minor.value, driver_version())


def driver_version() -> str:
    """What the kernel's module says of itself on Linux, its release in it; "unknown" where it says nothing."""
    try:
        return _DRIVER.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip() or UNKNOWN
    except OSError:
        return UNKNOWN
