from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpmmu_rt.errors import EngineError

from ._proven import looked_up, note_verdict, warn_never_run
from ._report import check_output, note
from ._target import AUTO, RoundingOption, TargetOption, taken
from .repository import BatchOption, DelayOption, InstancesOption, NameOption, served

if TYPE_CHECKING:
    from mpmmu_rt.serving.repository import Served
    from mpmmu_rt.serving.server import Server


def serve(
    bundle: Annotated[Path, typer.Argument(help="Bundle to serve.")],
    target: TargetOption = AUTO,
    allow_rounding: RoundingOption = False,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; whoever reaches it may ask.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option("--http-port", min=1, max=65535, help="KServe v2 by HTTP.")] = 8000,
    grpc_port: Annotated[int, typer.Option("--grpc-port", min=1, max=65535, help="KServe v2 by gRPC.")] = 8001,
    metrics_port: Annotated[
        int, typer.Option("--metrics-port", min=1, max=65535, help="Counts and times, for Prometheus.")
    ] = 8002,
    instances: InstancesOption = 1,
    max_delay: DelayOption = "2ms",
    max_batch: BatchOption = None,
    name: NameOption = "mpmmu",
    exit_timeout: Annotated[
        int, typer.Option("--exit-timeout", min=0, help="Seconds to answer what was accepted, when told to stop.")
    ] = 30,
    log: Annotated[
        Path | None, typer.Option("--log", help="File for what the server says, behind what an earlier one said.")
    ] = None,
    require_verified: Annotated[
        bool, typer.Option("--require-verified", help="Refuse a bundle that `verify` did not pass on this machine.")
    ] = False,
) -> None:
    """Start the Triton server of PyTriton's wheel on a bundle; Ctrl-C or SIGTERM has it answer what it accepted, and
    ends it."""
    from mpmmu_rt.bundle import Bundle
    from mpmmu_rt.engines import engine
    from mpmmu_rt.serving.repository import write_beside
    from mpmmu_rt.serving.server import Addresses, require_log, started

    opened = Bundle.open(bundle)
    wanted, _ = taken(opened, target, allow_rounding=allow_rounding)
    asked = served(str(wanted), name=name, version=1, instances=instances, max_delay=max_delay, max_batch=max_batch)
    engine(asked.target)
    opened.require_proven(asked.target)
    verdict = looked_up(opened, asked.target, require=require_verified)
    warn_never_run(opened, asked.target, bundle)
    if log:
        check_output(log, bundle, stdout=False)
        require_log(log)
    addresses = Addresses(host, http_port, grpc_port, metrics_port)
    with tempfile.TemporaryDirectory(prefix="mpmmu-rt-models-") as folder:
        write_beside(opened, Path(folder), asked)
        with started(Path(folder), addresses, exit_s=exit_timeout, log=log) as server:
            _wait_ready(server, asked)
            try:
                _say_ready(server, asked)  # in here: who reads it may ask, and end it, at once
                note_verdict(verdict, asked.target, bundle)
                if opened.warning:
                    note(f"warning: {opened.warning}")
                model = server.wait()
            except KeyboardInterrupt:
                _stop(server, exit_timeout)
                return
            raise _ended(server, model)


def _wait_ready(server: Server, asked: Served) -> None:
    from mpmmu_rt.serving.server import tail

    note(f"starting Triton's server on {asked.target}: digests and golden vectors come first")
    try:
        server.wait_ready((asked.name, asked.files_name))
    except EngineError:
        note(tail(server.log, server.since))
        raise


def _say_ready(server: Server, asked: Served) -> None:
    places = server.addresses
    note(
        f"ready: http://{places.url(places.http)}/v2/models/{asked.name} (pixels) and {asked.files_name} (files); gRPC "
        f"{places.url(places.grpc)}; metrics http://{places.url(places.metrics)}/metrics"
    )


def _ended(server: Server, model: str | None) -> EngineError:
    """What to say of a server that nobody told to stop; model: whose process ended, None for the server itself."""
    from mpmmu_rt.serving.server import tail

    if model is not None:
        server.stop()  # the other model answers what it has
    note(tail(server.log, server.since))
    if model is None:
        return EngineError(
            f"the Triton server ended with code {server.process.returncode}, expected it to run until it is told to "
            "stop",
            hint="what it says is above; start it again",
        )
    return EngineError(
        f"a process that runs the model {model} ended, expected it to run until it is told to stop",
        hint="too little memory ends one, or a file that its decoder does not survive; start it again",
    )


def _stop(server: Server, exit_timeout: int) -> None:
    """To stop is what a server is told by a signal: nothing failed where it answered all that it had accepted."""
    note(f"stopping: new requests are refused, those that were accepted are answered, for up to {exit_timeout} s")
    if not server.stop():
        raise EngineError(
            f"requests were still unanswered after {exit_timeout} s, expected them to be answered by then",
            hint="--exit-timeout gives them longer",
        )
    note("stopped: every accepted request was answered")
