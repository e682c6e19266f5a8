"""Why a library failed, in one line: what it says first is often only where."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import torch

_LENGTH = 300
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_LIBRARIES = tuple(str(Path(place).resolve()) for place in torch.__path__)


def one_line(error: BaseException) -> str:
    """The first line that says something, without colours; the class where it says nothing."""
    lines = (line.strip() for line in _ESCAPES.sub("", str(error)).splitlines())
    return next((line for line in lines if line), type(error).__name__)[:_LENGTH]


def first_cause(error: BaseException) -> BaseException:
    """What all others were raised from: the exporter of torch wraps it up to four times."""
    seen = [error]
    while (cause := seen[-1].__cause__) is not None and cause not in seen:
        seen.append(cause)
    return seen[-1]


def place(error: BaseException, own: str) -> str:
    """` at file:line` of the user's code, the last such line on the way to `error`; empty if there is none.

    own: the folder of this package's code, which is not the user's.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = str(Path(frame.filename).resolve())
        if Path(path).is_file() and not path.startswith((*_LIBRARIES, own)):
            return f" at {Path(path).name}:{frame.lineno}"
    return ""
