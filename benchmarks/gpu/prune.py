"""Device code of one architecture, without what is not needed: the rest becomes zeros, which pack to nothing.

Only the code in fat binaries is overwritten: sizes, offsets and headers stay, so that the driver, which loads the entry
of its own architecture, and that when a kernel of it is first called, finds everything where it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mpmmu_rt.engines.shared.device_code import entries

_ZSTANDARD = b"\x28\xb5\x2f\xfd"
_KERNEL = re.compile(rb"\.text\.([A-Za-z0-9_$]+)")  # the section of each kernel has its name


def prune(
    library: bytes, capability: int, needless: Callable[[str], object] = lambda kernel: False
) -> tuple[bytes, dict[int, int]]:
    """The library without code for other GPUs, and bytes of code by compute capability, as it was.

    needless: whether a kernel, by its mangled name, will never be called. Code whose kernels are all so goes as well.
    Raises `ValueError` for what is no 64-bit ELF file with device code for `capability`.
    """
    data = bytearray(library)
    found: dict[int, int] = {}
    for one in entries(library):
        size = one.code.stop - one.code.start
        found[one.capability] = found.get(one.capability, 0) + size
        if one.capability != capability or all_needless(library[one.code], needless):
            data[one.code] = bytes(size)
    if capability not in found:
        raise ValueError(f"it holds code for {sorted(found) or 'no GPU'}, expected some for {capability}")
    return bytes(data), found


def all_needless(code: bytes, needless: Callable[[str], object]) -> bool:
    if code.startswith(_ZSTANDARD):
        import zstandard  # of the extra `dev`; packs are not made where they are used

        code = zstandard.ZstdDecompressor().decompressobj().decompress(code)
    kernels = {name.decode() for name in _KERNEL.findall(code)}
    return bool(kernels) and all(map(needless, kernels))
