"""The command line: one file per command; each parses, calls the library, prints.

Data goes to stdout, everything else to stderr. Exit codes: 0 success, 1 error, 2 usage, 3 parity or verification
failed, 4 slower and 5 cannot tell (`compare`, `bench --baseline`), 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mpmmu_rt._optional import quote_no_files

from . import (
    _ray,
    _report,
    ablate,
    bench,
    compare,
    doctor,
    evaluate,
    explain,
    export,
    inspect,
    native,
    phantom,
    predict,
    report,
    repository,
    run,
    serve,
    train,
    verify,
)


class _Commands(TyperGroup):
    """Typer's group, except that what it says of a wrong argument takes the two lines of every other error."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Any:
        try:
            given = _ray.with_address(general_first(sys.argv[1:] if args is None else args))
            code = super().main(given, *rest, **{**kwargs, "standalone_mode": False})
        except typer.Abort:
            code = 1
        except OSError as error:  # of what stands outside of commands, as `--version` to a full disk
            code = _report.failed(error)
        except Exception as error:
            code = _report.usage_error(error)
            if code is None:
                raise
        sys.exit(code)

    def make_context(self, *arguments: Any, **kwargs: Any) -> Any:
        with _report.interruptible():
            return super().make_context(*arguments, **kwargs)

    def invoke(self, *arguments: Any) -> Any:
        with _report.interruptible():
            return super().invoke(*arguments)


def general_first(arguments: Sequence[str]) -> list[str]:
    """`--debug` and `--quiet` belong before the command, and are taken behind it as well, up to `--`."""
    given = list(arguments)
    end = given.index("--") if "--" in given else len(given)
    general = [one for one in ("--debug", "--quiet") if one in given[:end]]
    return [*general, *(one for one in given[:end] if one not in general), *given[end:]]


app = typer.Typer(
    name="mpmmu-rt",
    cls=_Commands,
    help="Compiled inference for MPM-MU: mammogram and ultrasound image to the probability of malignancy. "
    "For research; not a medical device.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    _report.show_tracebacks(debug)
    _report.be_quiet(quiet)
    if version:
        from mpmmu_rt import __version__

        _report.say(__version__)
        raise typer.Exit


for _command in (
    train.train,
    ablate.ablate,
    evaluate.evaluate,
    explain.explain,
    export.export,
    verify.verify,
    run.run,
    predict.predict,
    bench.bench,
    compare.compare,
    report.report,
    inspect.inspect,
    doctor.doctor,
    phantom.phantom,
    repository.repository,
    serve.serve,
    native.native,
):
    app.command()(_report.reported(_command))


def main() -> None:
    _fill_streams()
    quote_no_files()
    signal.signal(signal.SIGTERM, _terminate)  # so that half-written outputs are put away
    for stream in (sys.stdout, sys.stderr):  # what an encoding has no letter for must not end a command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt as error:  # while Typer looks at what there is
        sys.exit(_report.failed(error))


def _fill_streams() -> None:
    """Where a parent closed stdin, stdout or stderr, the next file that is opened would get its number: rows, and among
    them what libraries print. What is said on stderr then goes nowhere; to write to stdout is an error."""
    for number, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # it takes the lowest number that is free: this
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _terminate(number: int, frame: object) -> None:
    raise _report.Terminated
