"""Starts the Triton server of PyTriton's wheel on this machine, and stops it so that nothing it accepted is lost.

Of PyTriton only the server, its Python backend and that backend's process for this Python are used; nothing of it is
imported, and none of its dependencies are needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import py_compile
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from mpmmu_rt import __version__, machine
from mpmmu_rt.errors import EngineError, MissingPackage, OutputError, UsageError
from mpmmu_rt.places import is_fed

_BACKEND = "backends/python"
_STUB = "triton_python_backend_stub"
_POLL_S = 0.1
_GOODBYE_S = 2  # for connections that are open with nothing on the way
_WATCH_S = 0.5
_TOLD = 12  # lines of its output that an error shows
_PR_SET_PDEATHSIG = 1
LOG_BEGINS = b"mpmmu-rt serve "  # of the line before what each server says
# Or of Triton's own lines: `I1128 12:00:00.123456 7 server.cc:674] …`.
_LOG_LINE = re.compile(rb"^(" + LOG_BEGINS + rb"|[IWEF]\d{4} [\d:]{8}\.\d{6} \d+ [\w./-]+:\d+\])", re.MULTILINE)
_MOST_LOOKED = 2**16


@dataclass(frozen=True)
class Installed:
    """Where the server lies: its program, its shared libraries, its Python backend, and that one's process for this
    Python."""

    program: Path
    libraries: Path
    backend: Path
    stub: Path


@dataclass(frozen=True)
class Addresses:
    host: str = "127.0.0.1"
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    @property
    def ports(self) -> dict[str, int]:
        return {"http": self.http, "grpc": self.grpc, "metrics": self.metrics}

    def url(self, port: int) -> str:
        """Of one of its ports, as seen from here."""
        host = {"0.0.0.0": "127.0.0.1"}.get(self.host, self.host)
        return f"{host}:{port}"


def installed() -> Installed:
    """The server of PyTriton's wheel, seen to start here. Raises `MissingPackage` or `EngineError`."""
    spec = util.find_spec("pytriton") if sys.platform == "linux" else None
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage(
            "`serve` needs the package `nvidia-pytriton`, which holds the Triton server and is not installed",
            hint="pip install 'mpmmu-rt[serve]'; it is for Linux on x86-64 with glibc 2.35 or newer",
        )
    root = Path(next(iter(spec.submodule_search_locations))) / "tritonserver"
    version = "{}.{}".format(*sys.version_info)
    found = Installed(
        root / "bin/tritonserver",
        root.parents[1] / "nvidia_pytriton.libs",
        root / _BACKEND,
        root / "python_backend_stubs" / version / _STUB,
    )
    if not found.stub.is_file():
        known = sorted(
            (path.parent.name for path in root.glob(f"python_backend_stubs/*/{_STUB}")),
            key=lambda text: [int(part) for part in text.split(".")],
        )
        raise EngineError(
            f"this is Python {version}, and the Triton server that is installed runs models in Python "
            f"{', '.join(known) or 'of no version'}",
            hint="use one of these for the environment of the server",
        )
    for path in (found.program, found.stub):
        if lacks := _lacks(path, found):
            raise EngineError(
                f"{path.name} can't start here: {lacks}, expected what nvidia-pytriton is built for",
                hint="it is for glibc 2.35 or newer and a Python with its shared library; or start Triton's "
                "own container on what `mpmmu-rt repository` writes",
            )
    return found


def _lacks(program: Path, found: Installed) -> str:
    """What the loader does not find for `program`; "" where it finds all."""
    done = subprocess.run(["ldd", str(program)], env=_environment(found), capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return next((" ".join(line.split()) for line in lines if "not found" in line), "")


def _environment(found: Installed) -> dict[str, str]:
    """The Python backend starts the `python3` that is first on the path, with what it can import."""
    own = sysconfig.get_config_var("LIBDIR") or ""
    libraries = [str(found.libraries), str(own), os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
    }


def check_ports(addresses: Addresses) -> None:
    """Raise `UsageError` for ports that are the same, and for one that is taken: which, and by which option it is
    another."""
    if ":" in addresses.host:
        raise UsageError(
            f"the host is {addresses.host}, expected an address of IPv4, which all of Triton's listeners take",
            hint="--host 127.0.0.1, or 0.0.0.0 for all",
        )
    seen: dict[int, str] = {}
    for name, port in addresses.ports.items():
        if not 1 <= port <= 65535 or port in seen:
            other = f", as --{seen[port]}-port does" if port in seen else ""
            raise UsageError(
                f"--{name}-port names {port}{other}, expected three different ports from 1 to 65535",
                hint=f"--{name}-port {8000 + len(seen)}",
            )
        seen[port] = name
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((addresses.host, port))
            except OSError as error:
                raise UsageError(
                    f"port {port} of {addresses.host} can't be used for {name} ({error.strerror}), expected a free one",
                    hint=f"end what listens there, or name another: --{name}-port {free_port(addresses.host)}",
                ) from error


def free_port(host: str = "127.0.0.1") -> int:
    """One that nobody listens on at this moment; that of another machine's address, any."""
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return 18000
        return int(probe.getsockname()[1])


def _ends_with_us() -> Callable[[], None]:
    """For the server's process: it stops where this one is killed. What it needs is loaded before the fork."""
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask


class Server:
    """A server that was started. `wait_ready`, `wait`, and `stop`, which has it answer what it accepted."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        repository: Path,
        addresses: Addresses,
        log: Path,
        exit_s: int,
        since: int = 0,
    ) -> None:
        """since: where in `log`, in bytes, what this one says begins."""
        self.process, self.addresses, self.log, self.since = process, addresses, log, since
        self._repository, self._exit_s = repository, exit_s
        self._running: dict[str, set[int]] = {}  # ids of the processes of each model, once they are ready

    def wait_ready(self, models: Sequence[str]) -> None:
        """Until every model says so. Raises `EngineError` with the server's own words where it ends instead."""
        waiting = list(models)
        while waiting:
            if (code := self.process.poll()) is not None:
                raise EngineError(
                    f"the Triton server ended with code {code} before its models were ready, expected them to load: "
                    f"{reason(self.log, self.since)}",
                    hint="what it says is above; `mpmmu-rt verify BUNDLE --target TARGET` tries the same without it",
                )
            waiting = [name for name in waiting if not self._ready(name)]
            time.sleep(_POLL_S if waiting else 0)
        self._running = {name: self._processes(name) for name in models}

    def _ready(self, model: str) -> bool:
        url = f"http://{self.addresses.url(self.addresses.http)}/v2/models/{model}/ready"
        try:
            # Without a proxy, whatever the environment names: nothing leaves the machine.
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
                return int(answer.status) == 200
        except (urllib.error.URLError, OSError):
            return False

    def wait(self) -> str | None:
        """Until it ends, or one of the processes that run its models does: the name of that one's model, else None.

        Triton 2.51 starts no other in its place: it calls the model ready and refuses every request from then on.
        """
        while True:
            try:
                self.process.wait(_WATCH_S)
                return None
            except subprocess.TimeoutExpired:
                for name, before in self._running.items():  # of none where /proc shows none: nothing is watched then
                    if all(self._runs(Path(f"/proc/{one}"), name) for one in before):
                        continue
                    now = self._processes(name)
                    if len(now) < len(before):
                        return name
                    self._running[name] = now  # a model that was loaded anew

    def _processes(self, model: str) -> set[int]:
        """Those of the server that run `model`, by their ids."""
        return {int(place.name) for place in Path("/proc").glob("[0-9]*") if self._runs(place, model)}

    def _runs(self, place: Path, model: str) -> bool:
        """Whether the process at `place` in /proc is one of the server's, runs `model` and has not ended."""
        try:
            state, parent = (place / "stat").read_bytes().rpartition(b") ")[2].split()[:2]
            if int(parent) != self.process.pid or state == b"Z":
                return False
            return f"{self._repository / model}/".encode() in (place / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended meanwhile, or is another user's
            return False

    def stop(self) -> bool:
        """Have it refuse new requests, answer those that it accepted, and end; whether it had time for all.

        Told to stop, Triton goes on to serve every HTTP connection that is open until the time is over, and then drops
        what is on the way. A model that is gone from the repository it unloads instead: it refuses new requests,
        answers those that it has, and lets go of the model then. So the models are removed first.
        """
        told = self.log.stat().st_size
        # Triton never unloads a model whose process is gone: nobody is left to answer what that one had.
        gone = {name for name, before in self._running.items() if before and not self._processes(name)}
        folders = [path for path in self._repository.iterdir() if path.is_dir()]
        for folder in folders:
            shutil.rmtree(folder)
        end = time.monotonic() + self._exit_s
        while (
            (waiting := {one.name for one in folders} - gone - self._unloaded(told))
            and time.monotonic() < end
            and self.process.poll() is None
        ):
            time.sleep(_POLL_S)
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GOODBYE_S + 5)
        return not waiting

    def _unloaded(self, since: int) -> set[str]:
        """The models that have answered all they had. Nothing but the log tells of those that are gone; since: a place
        in it, in bytes."""
        return set(re.findall(r"successfully unloaded '([^']+)'", _said(self.log, since)))

    def kill(self) -> None:
        """It, and what runs its models."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _said(log: Path, since: int) -> str:
    """From that byte on: what earlier servers said may be long. All, where somebody has cut the file off meanwhile."""
    with log.open("rb") as file:
        file.seek(since if since <= os.fstat(file.fileno()).st_size else 0)
        return file.read().decode(errors="replace")


def reason(log: Path, since: int = 0) -> str:
    """Of a server's output the first error of ours in it, else the last of its own, else its last line. since: where in
    `log`, in bytes, it begins."""
    lines = _said(log, since).splitlines()
    ours = [text.partition(r"\n")[0] for line in lines if (text := line.partition("Exception: error: ")[2])]
    found = (re.match(r'E\d.*?("(?:[^"\\]|\\.)*")', line) for line in lines)
    theirs = [json.loads(match[1]) for match in found if match]
    return next(iter([*ours, *reversed(theirs), *filter(None, map(str.strip, reversed(lines)))]), "it said nothing")


def tail(log: Path, since: int = 0) -> str:
    return "\n".join(_said(log, since).splitlines()[-_TOLD:])


def require_log(path: Path) -> None:
    """Raise `OutputError` unless `path` is free, or a log of ours, of which the first lines may have been cut off.

    It is read again while the server runs: no device, and no pipe.
    """
    if is_fed(path):
        raise OutputError(f"{path} is a device or a pipe, expected a file", hint="name a file, or leave --log out")
    if not path.exists():
        return
    with path.open("rb") as file:
        begins = file.read(_MOST_LOOKED)
    if begins and not _LOG_LINE.search(begins):
        raise OutputError(
            f"{path} exists and is no log of `serve`, expected a free place or an earlier log, which is gone on with",
            hint="name another file, or move it away",
        )


@contextmanager
def started(repository: Path, addresses: Addresses, *, exit_s: int = 30, log: Path | None = None) -> Iterator[Server]:
    """A server on `repository`, a folder for it alone, which is emptied to stop it. It is killed at the end of the
    block if it is still there, and ends with this process.

    exit_s: how long it may take to answer what it accepted. log: where its output goes, behind what is there, else a
    file that goes away. Raises as `installed` and `check_ports` do.
    """
    found = installed()
    check_ports(addresses)
    with tempfile.TemporaryDirectory(prefix="mpmmu-rt-serve-") as temporary:
        backends = Path(temporary) / "backends"
        shutil.copytree(found.backend, backends / "python")
        shutil.copy2(found.stub, backends / "python")
        for model in repository.glob("*/*/model.py"):
            py_compile.compile(str(model))  # else Python does, and Triton loads what has changed once more
        place, shared = log or Path(temporary) / "log", Path(temporary).name
        command = [
            str(found.program),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            *(f"--{name}-address={addresses.host}" for name in addresses.ports),
            *(f"--{name}-port={port}" for name, port in addresses.ports.items()),
            f"--exit-timeout-secs={_GOODBYE_S}",
            "--model-control-mode=poll",
            "--repository-poll-secs=1",
            f"--backend-config=python,shm-region-prefix-name={shared}",
            "--disable-auto-complete-config",
            "--allow-gpu-metrics=false",
        ]
        with place.open("ab") as output, place.open("rb") as held:
            output.write(f"{LOG_BEGINS.decode()}{__version__}, {machine.now()}\n".encode())
            output.flush()
            since = output.tell()
            process = subprocess.Popen(
                command,
                env=_environment(found),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours to pass on
                preexec_fn=_ends_with_us(),
            )
            # By a handle: a rotation may rename the file meanwhile, and the server goes on writing to it.
            said = Path(f"/proc/self/fd/{held.fileno()}")
            server = Server(process, repository, addresses, said, exit_s, since)
            try:
                yield server
            finally:
                server.kill()
                for left in Path("/dev/shm").glob(f"{shared}*"):  # memory that a killed process did not give back
                    left.unlink(missing_ok=True)
