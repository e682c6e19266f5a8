from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpmmu_rt.errors import UsageError

from ._report import check_html, write_html

MAX_BYTES = 256 * 2**20


def report(
    result: Annotated[Path, typer.Argument(help="What `bench --json`, `compare --json` or `evaluate` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML page to write.")] = Path("report.html"),
) -> None:
    """Draw a stored result: one HTML page, without measuring again."""
    from mpmmu_rt.files import parse_json_object, read_bounded

    hint = "name a file that `bench --json` or `compare --json` wrote, or the report.json of `evaluate`"
    check_html(output, result)
    entry = parse_json_object(result, read_bounded(result, MAX_BYTES, UsageError, hint), UsageError, hint)
    try:
        write_html(output, entry)
    except UsageError as error:
        raise UsageError(f"{result}: {error}", hint=error.hint or hint) from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UsageError(
            f"{result} is not as {entry['schema']} has it ({what}), expected it unchanged", hint=hint
        ) from error
