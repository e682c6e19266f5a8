"""How the command line speaks: errors in two lines, progress on stderr, tables without colour."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from mpmmu_rt import files, places
from mpmmu_rt.errors import Interrupted, MpmmuError, OutputError, quoted
from mpmmu_rt.files import rounded
from mpmmu_rt.progress import Lines, Progress, counted, silent

_Arguments = ParamSpec("_Arguments")
_STEERS = {code: "?" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}  # C0, DEL and C1
_LEAST = 24  # columns in which words can still be read
_tracebacks = False
_quiet = False


def show_tracebacks(on: bool) -> None:
    global _tracebacks
    _tracebacks = on


def be_quiet(on: bool) -> None:
    global _quiet
    _quiet = on


def quiet() -> bool:
    return _quiet


class Terminated(KeyboardInterrupt):
    """SIGTERM: what is in the middle of work puts away what it has, as it does for Ctrl-C."""


def reported(command: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """Turn errors into two lines on stderr and an exit code; with --debug the traceback comes first."""

    @functools.wraps(command)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except BaseException as error:
            if type(error).__module__.startswith(("click", "typer")):
                raise
            raise typer.Exit(failed(error)) from error

    return wrapped


def failed(error: BaseException) -> int:
    """Say what ended a command, and return its exit code."""
    return _fail(error, *_told(error))


@contextmanager
def interruptible() -> Iterator[None]:
    """Around what Typer does before and behind a command: it would end without a word, and take SIGTERM for Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise typer.Exit(failed(error)) from error


def _told(error: BaseException) -> tuple[str, str, int]:
    """Message, hint and exit code of whatever ended a command."""
    if isinstance(error, MpmmuError):
        return str(error), error.hint, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return _interrupted(error, "what was written by then is whole", "the same command starts again")
    if places.is_full(error):
        where = getattr(error, "filename", None) or "what this was written to"
        return f"no space left on the disk of {where}, expected room for it", "free some space, then try again", 1
    if isinstance(error, OSError) and error.errno == errno.EBADF:
        return error.strerror or str(error), "leave it open, or name a file where the command takes one", 1
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", "check the path, its permissions and the disk", 1
    # The outermost border: what is not ours is a defect, and is reported as one.
    message = f"internal error: {type(error).__name__}: {error}"
    return message, "run it again with --debug and report the traceback", 1


def _interrupted(error: KeyboardInterrupt, kept: str, then: str) -> tuple[str, str, int]:
    terminated = isinstance(error, Terminated)
    return f"{'terminated' if terminated else 'interrupted'}; {kept}", then, 143 if terminated else 130


@contextmanager
def going_on(
    output: Path, kept: Callable[[], str], *added: str, begun: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Of long work that ends half-way, by Ctrl-C, a signal or a full disk, say what it kept and the command that goes
    on: this one, with the options `added` if it has `begun` what these go on with."""
    try:
        yield
    except KeyboardInterrupt as error:
        then = command(*(added if begun() else ()))
        message, hint, code = _interrupted(error, kept(), f"to go on: {then}")
        found = Interrupted(message, hint=hint)
        found.exit_code = code
        raise found from error
    except Exception as error:
        if places.is_full(error):
            raise places.full(output, kept(), command(*(added if begun() else ()))) from error
        raise


def command(*added: str) -> str:
    """This command, with options that were not there yet and without those that they replace."""
    given = [one for one in sys.argv[1:] if not added or one != "--overwrite"]
    end = given.index("--") if "--" in given else len(given)  # behind it nothing is an option
    more = [one for one in added if one not in given[:end]]
    return shlex.join(["mpmmu-rt", *given[:end], *more, *given[end:]])


def _fail(error: BaseException, message: str, hint: str, code: int) -> int:
    if _tracebacks:
        import traceback

        traceback.print_exception(error)
    try:
        note(f"error: {' '.join(message.split())}")
        if hint:
            note(f"hint: {' '.join(hint.split())}")
    except OSError:  # stderr is closed or full, too: the exit code is all there is to say
        pass
    return code


def usage_error(error: Exception) -> int | None:
    """Report what Typer found wrong with the arguments and return the exit code; None if it is another error."""
    exit_code, context = getattr(error, "exit_code", None), getattr(error, "ctx", None)
    if not isinstance(exit_code, int) or not hasattr(error, "format_message"):
        return None
    if type(error).__name__ == "NoArgsIsHelpError":
        note(error.format_message())
        return exit_code
    if "'--json' requires an argument" in error.format_message():
        return _fail(error, error.format_message().rstrip("."), "--json - for stdout, or --json FILE", exit_code)
    command = context.command_path if context else "mpmmu-rt"
    return _fail(error, error.format_message().rstrip("."), f"{command} --help", exit_code)


def say(text: str, *, end: str = "\n", err: bool = False) -> None:
    """Print, without what would steer the terminal: a bundle or a manifest of others may hold it. A reader that has
    what it wanted and goes away (`| head`) ends neither the work nor changes its exit code: what comes after goes
    nowhere. Raises `OSError` where the text does not fit."""
    _echo(text.translate(_STEERS) + end, err=err)


def put_file(path: Path) -> None:
    """A file to stdout as `say` prints: to the byte, whatever encoding the terminal has."""
    _echo(path.read_bytes())


def _echo(data: str | bytes, *, err: bool = False) -> None:
    stream = sys.stderr if err else sys.stdout
    if stream is None:
        raise OSError(errno.EBADF, "stdout is closed, expected a place for the result")
    try:
        typer.echo(data, nl=False, err=err)
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def note(text: str) -> None:
    """A line for the person at the terminal: stderr. Broken between words there, and one line in a file."""
    say(wrapped(text) if sys.stderr.isatty() else text, err=True)


def next_command(*arguments: object) -> None:
    """What to try next, to be copied; not with --quiet. On a terminal too narrow for it, lines end as a shell wants."""
    if _quiet:
        return
    lines = ["next: mpmmu-rt"]
    for argument in map(quoted, arguments):
        if sys.stderr.isatty() and len(f"{lines[-1]} {argument} \\") > width():
            lines.append(f"  {argument}")
        else:
            lines[-1] += f" {argument}"
    say(" \\\n".join(lines), err=True)


JsonTo = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Write the result as JSON to FILE, or to stdout: - .")
]


Taken = Path | str | None  # what a command reads, or writes besides


def check_json(to: str | None, *taken: Taken) -> None:
    """Before the work: raise `OutputError` where `put_json` could not write, or would write over what is `taken`."""
    if to and to != "-":
        check_output(Path(to), *taken)
        require_earlier(Path(to), b"{", "JSON document")
        _require_no_record(Path(to))


def check_html(to: Path | None, *taken: Taken) -> None:
    """As `check_json`, of a page."""
    if to:
        check_output(to, *taken, stdout=False)
        require_earlier(to, b"<!DOCTYPE html>", "HTML page")


def _require_no_record(path: Path) -> None:
    """Raise `OutputError` for what other commands go by: a verdict, or a baseline."""
    found = _begins(path, 100)
    if path.name.endswith(".verified.json") or re.match(rb'\{\s*"schema": "mpmmu-(verified|baseline)/', found):
        raise OutputError(
            f"{path} is a record that other commands go by, expected a place for a result", hint="name another file"
        )


def require_earlier(path: Path, begins: bytes, kind: str) -> None:
    """Raise `OutputError` where something else than an earlier result takes its place, as an image of a patient."""
    if _begins(path, len(begins)) not in (b"", begins):
        raise OutputError(
            f"{path} exists and is no {kind}, expected a free place or an earlier result",
            hint="name another file, or move it away",
        )


def _begins(path: Path, most: int) -> bytes:
    """The first bytes of a file that would be replaced; nothing where there is none, and of a pipe or a device."""
    if not path.is_file() or places.is_fed(path):
        return b""
    with path.open("rb") as file:
        return file.read(most)


def put_json(to: str | None, entry: Any, *, exact: bool = False) -> bool:
    """Write `entry` where `--json` says, if it does; whether that is stdout, where nothing else may go then.

    exact: its numbers are not `rounded`, as of a document that is held to its digest.
    """
    found = entry if exact else rounded(entry)
    if to == "-":
        say(json.dumps(found, indent=2, allow_nan=False))
    elif to:
        write_json(Path(to), found)
    return to == "-"


def write_json(path: Path, entry: Any) -> None:
    with files.result_file(path) as file:
        file.write(files.as_json(entry))
    note(f"wrote {path}")


def write_html(path: Path, entry: Any) -> None:
    """The report of a result that `bench` or `compare` writes as JSON."""
    from mpmmu_rt.report_html import page

    with files.result_file(path) as file:
        file.write(page(entry))
    note(f"wrote {path}: open it in a browser")


def check_output(path: Path, *taken: Taken, stdout: bool = True) -> None:
    """Before minutes of work whose result could not be stored, or would be stored over what is `taken`, or in it: a
    bundle holds no other file. stdout: may be named instead. Raises `OutputError`."""
    hint = "name a file, or - for stdout" if stdout else "name a file"
    if path.is_dir():
        raise OutputError(f"{path} is a folder, expected a file to write", hint=hint)
    place = path.resolve()
    for one in (Path(one).resolve() for one in taken if one not in (None, "", "-", Path("-"))):
        if place == one or one in place.parents:
            what = (
                "belongs to this command already" if place == one else f"lies in {one}, which this command has already"
            )
            raise OutputError(f"{path} {what}, expected a file of its own", hint="name another one")
    if not places.is_fed(path):
        places.require_no_bundle(place, "name another file")
        places.check_writable(place)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, as wide as they are; a cell that looks like a number is set to the right, and one of several
    lines goes on below itself."""
    cells = [[cell.split("\n") for cell in row] for row in (header, *rows)]
    widths = [max(len(line) for row in cells for line in row[column]) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if _is_number(cell) else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        return "  ".join(parts).rstrip()

    titles, *below = ([line(parts) for parts in zip_longest(*row, fillvalue="")] for row in cells)
    return "\n".join([*titles, line(["-" * width for width in widths]), *(one for row in below for one in row)])


def _is_number(cell: str) -> bool:
    """A number with or without a unit, from one to another, or the dash that stands for one."""
    return re.fullmatch(r"-|[-+]?\d\S*( to [-+]?\d\S*)?", cell) is not None


def fitted(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """`table`; where the terminal is too narrow for it, with its widest text wrapped between words; and where that
    leaves too little room for words, each row as `key: value`."""
    whole = table(header, rows)
    if _fits(whole):
        return whole
    narrow = table(header, _narrowed(header, rows))
    if _fits(narrow):
        return narrow
    if len(rows) == 1:
        return _unaligned(list(zip(header, rows[0], strict=True)))
    title = [] if all(_is_number(row[0]) for row in rows) else [header[0]]
    return "\n".join([*title, *(_record(header, row) for row in rows)])


def pairs(facts: Sequence[tuple[str, str]]) -> str:
    """Names and what they have, aligned; where the terminal is too narrow, `name: value` wrapped between words."""
    room = max(len(name) for name, _ in facts)
    whole = "\n".join(f"{name.ljust(room)}  {value}" for name, value in facts)
    return whole if _fits(whole) else _unaligned(facts)


def _unaligned(facts: Sequence[tuple[str, str]]) -> str:
    return wrapped("\n".join(f"{name}: {value}" if name else value for name, value in facts))


def _fits(text: str) -> bool:
    return max(map(len, text.splitlines())) <= width()


def _narrowed(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The rows, the column of the longest text wrapped to what the others leave; no narrower than `_LEAST`."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    widest = max(range(len(header)), key=widths.__getitem__)
    room = max(_LEAST, width() - sum(widths) + widths[widest] - 2 * (len(header) - 1))
    return [[_fill(cell, room, "") if at == widest else cell for at, cell in enumerate(row)] for row in rows]


def _record(header: Sequence[str], row: Sequence[str]) -> str:
    """What names the row, what has no name behind it, and below as many `key: value` as fit in each line."""
    title = f"{header[0]} {row[0]}" if _is_number(row[0]) else row[0]
    rest = [(name, cell) for name, cell in zip(header[1:], row[1:], strict=True) if cell]
    nameless = ", ".join(cell for name, cell in rest if not name)
    lines = [f"{title}: {nameless}" if nameless else title]
    for pair in (f"{name}: {cell}" for name, cell in rest if name):
        if len(lines) > 1 and len(f"{lines[-1]}, {pair}") <= width():
            lines[-1] += f", {pair}"
        else:
            lines.append(f"  {pair}")
    return wrapped("\n".join(lines))


def wrapped(text: str, indent: str = "  ") -> str:
    """Each line broken between words at the terminal's width, what follows indented; a longer word stays whole."""
    return "\n".join(_fill(line, width(), indent) for line in text.splitlines())


def _fill(line: str, columns: int, indent: str) -> str:
    """What follows a line that is indented is indented further."""
    import textwrap

    own = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line.strip(),
        columns,
        initial_indent=own,
        subsequent_indent=own + indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def width() -> int:
    """Columns of the terminal, 80 where there is none, at most 120."""
    return min(120, shutil.get_terminal_size((80, 24)).columns)


def count(number: int, noun: str) -> str:
    """`1 prediction`, `2 predictions`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def milliseconds(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f} ms"


@contextmanager
def bars() -> Iterator[Progress]:
    """Progress on stderr: bars on a terminal, elsewhere a line every `progress.EVERY_S`; nothing with --quiet."""
    if _quiet:
        yield silent
        return
    if not sys.stderr.isatty():
        with Lines(note) as lines:
            yield lines
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    wide = width() >= 60
    columns = (
        TextColumn("{task.description}"),
        *((BarColumn(bar_width=_bar_width()), TextColumn("{task.fields[counted]}")) if wide else ()),
        *((TimeElapsedColumn(), TextColumn("left")) if wide else ()),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True, width=width())) as shown:
        tasks: dict[str, Any] = {}

        def progress(description: str, done: int, total: int, unit: str = "", detail: str = "") -> None:
            if description not in tasks:
                tasks[description] = shown.add_task(description, total=total, counted="")
            how_far = counted(done, total, unit)
            text = _beside(description, detail if wide else ", ".join(filter(None, (how_far, detail))), wide=wide)
            shown.update(tasks[description], description=text, completed=done, total=total, counted=how_far)

        yield progress


def _bar_width() -> int:
    return min(20, max(6, width() - 74))


def _beside(description: str, detail: str, *, wide: bool) -> str:
    """What stands beside a bar, or beside the time that is left: the rest of the line is theirs."""
    room = max(1, width() - (_bar_width() + 42 if wide else 8))  # a pane may be narrower at any moment
    return "\n".join([_fill(description, room, "  "), *([_fill(f"  {detail}", room, "")] if detail else [])])
