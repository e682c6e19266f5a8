"""A fitted head as a skops file that depends on the head alone.

skops names what it stores by addresses in memory, and dates it: here names are counted in the order of its schema, and
there is one date, so that two trainings that made the same head wrote the same bytes.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import skops.io

_SCHEMA = "schema.json"
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a ZIP file can hold


def dump(estimator: Any, path: Path) -> None:
    """Write `estimator` to `path`, for `skops.io.load`."""
    with ZipFile(io.BytesIO(skops.io.dumps(estimator))) as given, ZipFile(path, "w", ZIP_STORED) as written:
        names = _Names(set(given.namelist()) - {_SCHEMA})
        schema = names.renamed(json.loads(given.read(_SCHEMA)))
        for old, new in names.files.items():
            written.writestr(ZipInfo(new, _DATE), given.read(old))
        written.writestr(ZipInfo(_SCHEMA, _DATE), json.dumps(schema, separators=(",", ":")))


class _Names:
    """files: of those stored so far, old name → new."""

    def __init__(self, stored: set[str]) -> None:
        self._stored = stored
        self._ids: dict[int, int] = {}
        self.files: dict[str, str] = {}

    def renamed(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.renamed(one) for one in node]
        if not isinstance(node, dict):
            return node
        found: dict[str, Any] = {}
        for key, value in node.items():
            if key == "__id__" and isinstance(value, int):
                found[key] = self._ids.setdefault(value, len(self._ids))
            elif key == "file" and value in self._stored:
                found[key] = self.files.setdefault(value, f"{len(self.files)}{Path(value).suffix}")
            else:
                found[key] = self.renamed(value)
        return found
