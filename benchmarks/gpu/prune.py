"""Device code of one architecture, without what is not needed: the rest becomes zeros, which pack to nothing.

A fat binary lies in the ELF section `.nv_fatbin`: headers (magic 0xBA55ED50), each followed by entries of PTX or
machine code for one architecture. Only payloads are overwritten: sizes, offsets and headers stay, so that the driver,
which loads the entry of its own architecture, and that when a kernel of it is first called, finds everything where it
was.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

_SECTION = b".nv_fatbin"
_MAGIC = 0xBA55ED50
_HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of the entries behind it
_ENTRY = struct.Struct("<HHIQ")  # kind, version, bytes of this header, bytes of the payload
_ARCHITECTURE_AT = 28  # in an entry's header
_ELF64 = b"\x7fELF\x02\x01"
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
    begin, size = _section(library)
    found: dict[int, int] = {}
    at = begin
    while at + _HEADER.size <= begin + size:
        magic, _, header, entries = _HEADER.unpack_from(data, at)
        if magic != _MAGIC:
            at += 8  # padding between fat binaries
            continue
        entry, end = at + header, at + header + entries
        while entry < end:
            _, _, own, payload = _ENTRY.unpack_from(data, entry)
            (architecture,) = struct.unpack_from("<I", data, entry + _ARCHITECTURE_AT)
            if own < _ARCHITECTURE_AT + 4 or entry + own + payload > end:
                raise ValueError(f"the fat binary at {at} has an entry that ends beyond it")
            found[architecture] = found.get(architecture, 0) + payload
            code = slice(entry + own, entry + own + payload)
            if architecture != capability or all_needless(library[code], needless):
                data[code] = bytes(payload)
            entry += own + payload
        at = begin + -(-(end - begin) // 8) * 8
    if capability not in found:
        raise ValueError(f"it holds code for {sorted(found) or 'no GPU'}, expected some for {capability}")
    return bytes(data), found


def all_needless(code: bytes, needless: Callable[[str], object]) -> bool:
    if code.startswith(_ZSTANDARD):
        import zstandard  # of the extra `dev`; packs are not made where they are used

        code = zstandard.ZstdDecompressor().decompressobj().decompress(code)
    kernels = {name.decode() for name in _KERNEL.findall(code)}
    return bool(kernels) and all(map(needless, kernels))


def _section(library: bytes) -> tuple[int, int]:
    """Offset and size of the device code."""
    if library[:6] != _ELF64:
        raise ValueError("it is no 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", library, 40)
    width, count, names = struct.unpack_from("<HHH", library, 58)
    sections = [struct.unpack_from("<IIQQQQ", library, table + index * width) for index in range(count)]
    strings = sections[names][4]
    for name, _, _, _, offset, size in sections:
        start = strings + name
        if library[start : library.index(b"\0", start)] == _SECTION:
            return offset, size
    raise ValueError("it holds no device code")
