"""Which GPUs a library holds code for, from the fat binaries in it.

They lie in the ELF section `.nv_fatbin`: headers (magic 0xBA55ED50), each followed by entries of PTX or machine code
for one architecture.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SECTION = b".nv_fatbin"
_MAGIC = 0xBA55ED50
_HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of the entries behind it
_ENTRY = struct.Struct("<HHIQ")  # kind, version, bytes of this header, bytes of the payload
_ARCHITECTURE_AT = 28  # in an entry's header
_PTX = 1
_ELF64 = b"\x7fELF\x02\x01"


@dataclass(frozen=True)
class Entry:
    """Code for one compute capability, 89 for 8.9. code: where it lies in the library. ptx: the driver compiles it for
    later GPUs as well."""

    capability: int
    code: slice
    ptx: bool


def entries(library: bytes | mmap.mmap) -> Iterator[Entry]:
    """Every entry, in order. Raises `ValueError` for what is no 64-bit ELF file with device code in good order."""
    begin, size = _section(library)
    at = begin
    while at + _HEADER.size <= begin + size:
        magic, _, header, length = _HEADER.unpack_from(library, at)
        if magic != _MAGIC:
            at += 8  # padding between fat binaries
            continue
        entry, end = at + header, at + header + length
        while entry < end:
            kind, _, own, payload = _ENTRY.unpack_from(library, entry)
            (capability,) = struct.unpack_from("<I", library, entry + _ARCHITECTURE_AT)
            if own < _ARCHITECTURE_AT + 4 or entry + own + payload > end:
                raise ValueError(f"the fat binary at {at} has an entry that ends beyond it")
            yield Entry(capability, slice(entry + own, entry + own + payload), kind == _PTX)
            entry += own + payload
        at = begin + -(-(end - begin) // 8) * 8


def lacks(library: Path, capability: int) -> str | None:
    """Why code in `library` can't run on a GPU of that compute capability, or None where some can, or where nobody can
    tell. Code of one major version runs on GPUs of that version and of the same or a later minor one."""
    try:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            held = {
                (one.capability, one.ptx) for one in entries(data) if any(data[one.code.start : one.code.start + 64])
            }
    except (OSError, ValueError, struct.error):
        return None
    for code, ptx in held:
        if code <= capability and (ptx or code // 10 == capability // 10):
            return None
    known = ", ".join(str(code) for code in sorted({code for code, _ in held}))
    return f"{library.name} has code for compute capability {known or 'none'}, and this GPU has {capability}"


def _section(library: bytes | mmap.mmap) -> tuple[int, int]:
    """Offset and size of the device code."""
    if library[:6] != _ELF64 or len(library) < 64:
        raise ValueError("it is no 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", library, 40)
    width, count, names = struct.unpack_from("<HHH", library, 58)
    sections = [struct.unpack_from("<IIQQQQ", library, table + index * width) for index in range(count)]
    strings = sections[names][4]
    for name, _, _, _, offset, size in sections:
        start = strings + name
        if library[start : start + len(_SECTION) + 1] == _SECTION + b"\0":
            return offset, size
    raise ValueError("it holds no device code")
