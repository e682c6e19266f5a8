"""The kernels' sources: one text each, as NVRTC takes it, with no header in reach."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent


def source_of(name: str) -> str:
    """The file `name` of this folder, with the files that it includes written into it."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    return re.sub(r'^#include "([\w.]+)"$', lambda found: source_of(found[1]), text, flags=re.MULTILINE)
