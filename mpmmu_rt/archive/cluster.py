"""Ray: started here or joined, and told to work quietly."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mpmmu_rt._optional import require
from mpmmu_rt.child import from_line
from mpmmu_rt.engines import known_engine
from mpmmu_rt.errors import EngineError
from mpmmu_rt.machine import usable_threads
from mpmmu_rt.spec import Target

from .plan import Shard
from .worker import Job, Worker

LOCAL = "local"
_LONGEST_STOP_S = 60.0
_MOST_BLOCKS = 4096  # what Ray keeps count of; a block of many shards is made again from its first missing part


@dataclass(frozen=True)
class Cluster:
    """address: `local` starts one on this machine, `auto` joins that which runs here, else as Ray has it. workers: how
    many Predictors; None for one per `cpus`, or per GPU. cpus: threads of each."""

    address: str = LOCAL
    workers: int | None = None
    cpus: int = 1

    @contextlib.contextmanager
    def joined(self) -> Iterator[Any]:
        """The module `ray`, connected. Raises `MissingPackage`, and `EngineError` where there is no such cluster."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves the machine
        # Else it prints an error for each actor that has arguments, though nothing went wrong.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # Else what Ray does after `shutdown` starts a second cluster, unasked, and the process never ends.
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
        ours = signal.getsignal(signal.SIGTERM)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray about itself
            ray = self._connected()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)  # Ray takes it, and prints a stack
        try:
            yield ray
        finally:
            ray.shutdown()

    def _connected(self) -> Any:
        ray = require("ray", "--ray")
        require("ray.data", "--ray")
        local = self.address == LOCAL
        options: dict[str, Any] = {}
        if local:
            options = {"num_cpus": usable_threads(), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        try:
            _ask(self.address)
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:
            raise EngineError(
                f"Ray can't be {'started here' if local else f'reached at {self.address}'}: {error}",
                hint="--ray local starts one on this machine; --ray auto joins the one that runs here",
            ) from error
        return ray

    def work(self, ray: Any, job: Job, shards: Sequence[Shard]) -> Generator[Mapping[str, Any], None, None]:
        """What `Worker` returns of each shard, as they come. Raises a worker's own error, or `EngineError`.

        To be closed while Ray is still there: it stops what Ray has begun.
        """
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        items = ray.data.from_items([asdict(shard) for shard in shards], override_num_blocks=_blocks(len(shards)))
        gpus = 1 if known_engine(Target.parse(job.target)).traits.gpu else 0
        made = items.map(
            Worker,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=self._size(ray, gpus, len(shards))),
            num_cpus=self.cpus,
            num_gpus=gpus,
        )
        with contextlib.closing(_rows(ray, made)) as found:
            while True:
                try:
                    one = next(found, None)
                except Exception as error:
                    raise _told(error) from error
                if one is None:
                    return
                if one["error"] and (refusal := from_line(one["error"])):
                    raise refusal
                yield one

    def _size(self, ray: Any, gpus: int, shards: int) -> int:
        if self.workers:
            return self.workers
        has = ray.cluster_resources()
        room = has.get("GPU", 0) if gpus else has.get("CPU", 1) // self.cpus
        return max(1, min(int(room), shards))


def _rows(ray: Any, made: Any) -> Generator[Mapping[str, Any], None, None]:
    """The rows of a dataset as they come. Closed before its end it stops what makes them, and waits for that.

    `iter_rows` leaves a thread behind that fetches ahead; one that asks Ray for something after its `shutdown` ends the
    process, without a word.
    """
    bundles = made.iter_internal_ref_bundles()
    try:
        for bundle in bundles:
            for block in ray.get(list(bundle.block_refs)):
                yield from ray.data.block.BlockAccessor.for_block(block).iter_rows(public_row_format=True)
    finally:
        del bundles  # it has no `close`
        for thread in threading.enumerate():
            if thread.name.startswith("StreamingExecutor"):
                thread.join(_LONGEST_STOP_S)


def _ask(address: str) -> None:
    """Raise `OSError` where nobody listens at `HOST:PORT`: Ray would ask for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _blocks(shards: int) -> int:
    return max(1, min(shards, _MOST_BLOCKS))


def _told(error: BaseException) -> EngineError:
    """What Ray says, in a line: errors of ours come with a shard."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else type(error).__name__)
    return EngineError(
        f"Ray gave up: {last.strip()[:300]}", hint="--resume goes on with what is missing; see Ray's own logs for more"
    )
