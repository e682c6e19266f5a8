"""Triton on this machine, by its real client: what batching across clients gives, and what is lost.

    python -m benchmarks.serving BUNDLE TARGET PART [--instances I] [--seconds S] [--requests N] \\
        > benchmarks/results/triton_<part>.md

saturation  pairs per second with 64 requests of one case always on the way, beside the Predictor's own at batch 32,
            before and after
arrivals    latency against arrival rate, 25, 50, 75 and 90 % of saturation, Poisson, with and without dynamic batching
steady      75 % of saturation for S seconds: latency and the server's memory, by tenths
malformed   N requests of 1 to 4 cases, one in twenty malformed: each answered or refused for itself
stop        SIGTERM under load, five times: which requests were answered, refused, lost

The load comes from this process, by gRPC, and takes its share of the same cores. Latency counts from when a request was
due, not from when it could be sent. Every answer is held to the Predictor's, none is sampled: `moved` counts those that
are not the same to the bit as the case alone, `wrong` those with another decision or off by more than 1e-4.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.facts import PROBABILITY_TOLERANCE
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.predictor import Predictor, load
from mpmmu_rt.serving.repository import Served, write_beside
from mpmmu_rt.serving.server import Addresses, Server, free_port, started
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target
from mpmmu_rt.tiles import tile

CASES = 64
OUTSTANDING = 64
SHARES = (0.25, 0.5, 0.75, 0.9)
STOPS = 5
_REFUSED = "unknown model|stopping|not ready"  # the server's own words: it has not accepted the request
_PAGE = os.sysconf("SC_PAGE_SIZE")
Pixels = dict[Modality, Array]


@dataclass
class Known:
    """Cases, and what the Predictor says of each alone."""

    pixels: Pixels
    probability: Array
    malignant: Array

    @classmethod
    def of(cls, predictor: Predictor) -> Known:
        pixels, _ = phantom_pixels(CASES, seed=21, preprocessing=predictor.bundle.preprocessing)
        said = [predictor.predict({name: array[[row]] for name, array in pixels.items()}) for row in range(CASES)]
        return cls(
            pixels, np.concatenate([one.probability for one in said]), np.array([one.malignant[0] for one in said])
        )

    def rows(self, rows: Array) -> Pixels:
        return {name: array[rows] for name, array in self.pixels.items()}


@dataclass
class Heard:
    """What came back, added up by the client's threads."""

    known: Known
    latencies_ms: list[float] = field(default_factory=list)
    due_s: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def hear(self, rows: Array, due: float, result: Any, error: Any) -> None:
        now = time.perf_counter()
        if error is None:
            p, decision = result.as_numpy("probability")[:, 0], result.as_numpy("decision")[:, 0]
            want = self.known.probability[rows]
            wrong = np.abs(p - want) > PROBABILITY_TOLERANCE
            wrong |= decision.astype(bool) != self.known.malignant[rows]
        with self.lock:
            if error is not None:
                self.counts["refused"] += 1
                self.errors[re.sub(r"\d+", "#", str(error))[:90]] += 1
                return
            self.latencies_ms.append((now - due) * 1e3)
            self.due_s.append(due)
            self.counts["answered"] += 1
            self.counts["cases"] += len(rows)
            self.counts["moved"] += int((p != want).sum())
            self.counts["wrong"] += int(wrong.sum())

    def percentiles(self) -> list[str]:
        return [f"{value:.1f}" for value in np.percentile(self.latencies_ms, (50, 90, 99))]


class Client:
    """gRPC, requests without waiting for answers."""

    def __init__(self, address: str) -> None:
        import tritonclient.grpc as triton

        self._triton = triton
        self._client = triton.InferenceServerClient(address)

    def send(self, pixels: Pixels, then: Callable[[Any, Any], None]) -> None:
        inputs = []
        for name, array in pixels.items():
            kind = "UINT8" if array.dtype == np.uint8 else "FP32"
            inputs.append(self._triton.InferInput(f"{name}_pixels", list(array.shape), kind))
            inputs[-1].set_data_from_numpy(array)
        self._client.async_infer("mpmmu", inputs, then)

    def close(self) -> None:
        self._client.close()


@dataclass(frozen=True)
class Asked:
    """What is served. instances: processes of the model, which share the processor's threads."""

    bundle: Path
    target: str
    instances: int = 1


@contextmanager
def serving(what: Asked, *, batched: bool = True) -> Iterator[tuple[Server, Client]]:
    addresses = Addresses("127.0.0.1", *(free_port() for _ in range(3)))
    asked = Served(Target.parse(what.target), instances=what.instances, most=None if batched else 1)
    with tempfile.TemporaryDirectory() as folder:
        write_beside(Bundle.open(what.bundle), Path(folder), asked)
        with started(Path(folder), addresses) as server:
            server.wait_ready((asked.name, asked.files_name))
            client = Client(addresses.url(addresses.grpc))
            yield server, client
            client.close()


def closed_loop(client: Client, known: Known, seconds: float) -> tuple[Heard, float]:
    """So many requests on the way at any time; what was heard, and answers per second without the first tenth."""
    heard, free = Heard(known), threading.Semaphore(OUTSTANDING)
    rng = np.random.default_rng(22)
    start = time.perf_counter()
    while time.perf_counter() < start + seconds:
        free.acquire()
        rows = rng.integers(0, CASES, 1)

        def then(result: Any, error: Any, rows: Array = rows, due: float = time.perf_counter()) -> None:
            heard.hear(rows, due, result, error)
            free.release()

        client.send(known.rows(rows), then)
    for _ in range(OUTSTANDING):
        free.acquire()
    done = np.array(heard.due_s) + np.array(heard.latencies_ms) / 1e3 - start
    counted = (done > seconds / 10) & (done <= seconds)
    return heard, float(counted.sum() / (0.9 * seconds))


def open_loop(client: Client, known: Known, rate: float, seconds: float) -> Heard:
    """Requests of one case that are due at random, whether or not the ones before were answered."""
    rng = np.random.default_rng(23)
    heard = Heard(known)
    dues = np.cumsum(rng.exponential(1 / rate, max(1, int(rate * seconds)))) + time.perf_counter()
    for due in dues:
        time.sleep(max(0.0, due - time.perf_counter()))
        rows = rng.integers(0, CASES, 1)

        def then(result: Any, error: Any, rows: Array = rows, due: float = due) -> None:
            heard.hear(rows, due, result, error)

        client.send(known.rows(rows), then)
    while sum(heard.counts[name] for name in ("answered", "refused")) < len(dues):
        time.sleep(0.01)
    return heard


def in_process(what: Asked, seconds: float) -> float:
    """The Predictor's pairs per second at batch 32."""
    with load(what.bundle, what.target) as predictor:
        pixels = tile(predictor.bundle.golden(), 32)
        predictor.predict(pixels)
        count, start = 0, time.perf_counter()
        while time.perf_counter() < start + seconds:
            predictor.predict(pixels)
            count += 32
        return count / (time.perf_counter() - start)


def resident_mb(server: Server) -> float:
    """Of the server and the processes that run its models, which are its group."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            group = int(stat.read_text().rpartition(")")[2].split()[2])
            total += int(stat.with_name("statm").read_text().split()[1]) if group == server.process.pid else 0
        except (OSError, IndexError):
            continue
    return total * _PAGE / 1e6


def tally(heard: Heard) -> list[object]:
    return [heard.counts[name] for name in ("answered", "refused", "moved", "wrong")]


def saturation(what: Asked, known: Known, seconds: float, requests: int) -> None:
    print(report.columns("round | in process, pairs/s | Triton, pairs/s | ratio | answered | refused | moved | wrong"))
    before = in_process(what, seconds)
    for number in (1, 2, 3):
        with serving(what) as (_, client):
            closed_loop(client, known, min(5.0, seconds))
            heard, rate = closed_loop(client, known, seconds)
        after = in_process(what, seconds)
        beside = (before + after) / 2
        print(report.row([number, f"{beside:.1f}", f"{rate:.1f}", f"{rate / beside:.3f}", *tally(heard)]), flush=True)
        before = after


def arrivals(what: Asked, known: Known, seconds: float, requests: int) -> None:
    with serving(what) as (_, client):
        closed_loop(client, known, min(5.0, seconds))
        full = closed_loop(client, known, seconds)[1]
    print(f"Saturation {full:.1f} pairs/s.\n")
    titles = "batching | of saturation | due, pairs/s | p50 ms | p90 ms | p99 ms | answered | refused | moved | wrong"
    print(report.columns(titles))
    for batched in (True, False):
        with serving(what, batched=batched) as (_, client):
            closed_loop(client, known, min(5.0, seconds))
            for share in SHARES:
                heard = open_loop(client, known, share * full, seconds)
                cells = ["yes" if batched else "no", f"{share:.0%}", f"{share * full:.1f}", *heard.percentiles()]
                print(report.row([*cells, *tally(heard)]), flush=True)


def steady(what: Asked, known: Known, seconds: float, requests: int) -> None:
    with serving(what) as (server, client):
        full = closed_loop(client, known, min(30.0, seconds))[1]
        print(f"Saturation {full:.1f} pairs/s; {0.75 * full:.1f} pairs/s for {seconds:.0f} s.\n")
        print(report.columns("part | p50 ms | p90 ms | p99 ms | resident MB | answered | refused | moved | wrong"))
        for part in range(1, 11):
            heard = open_loop(client, known, 0.75 * full, seconds / 10)
            print(report.row([part, *heard.percentiles(), f"{resident_mb(server):.1f}", *tally(heard)]), flush=True)


def malformed(what: Asked, known: Known, seconds: float, requests: int) -> None:
    rng = np.random.default_rng(24)
    bad = set(rng.choice(requests, requests // 20, replace=False).tolist())
    good_heard, bad_heard, free = Heard(known), Heard(known), threading.Semaphore(OUTSTANDING)
    with serving(what) as (_, client):
        for index in range(requests):
            free.acquire()
            rows = rng.integers(0, CASES, int(rng.integers(1, 5)))
            pixels, heard = known.rows(rows), good_heard
            if index in bad:
                pixels, heard = _spoilt(pixels, index % 4), bad_heard

            def then(
                result: Any, error: Any, rows: Array = rows, heard: Heard = heard, due: float = time.perf_counter()
            ) -> None:
                heard.hear(rows, due, result, error)
                free.release()

            client.send(pixels, then)
        for _ in range(OUTSTANDING):
            free.acquire()
    print(report.table("requests | sent | answered | refused | moved | wrong", [
        ["well formed", requests - len(bad), *tally(good_heard)],
        ["malformed", len(bad), *tally(bad_heard)],
    ]))  # fmt: skip
    print(report.table("refused with", ([f"{text} ({count})"] for text, count in bad_heard.errors.items())))


def _spoilt(pixels: Pixels, kind: int) -> Pixels:
    if kind == 0:
        return {name: array[..., :-1] for name, array in pixels.items()}
    if kind == 1:
        return {name: array.astype(np.float32) for name, array in pixels.items()}
    if kind == 2:
        return {name: np.repeat(array, 33, axis=0) for name, array in pixels.items()}
    return {MODALITIES[0]: pixels[MODALITIES[0]]}


def stop(what: Asked, known: Known, seconds: float, requests: int) -> None:
    print(report.columns("round | sent | answered | after the signal | refused | lost | moved | wrong | in time"))
    for number in range(1, STOPS + 1):
        with serving(what) as (server, client):
            closed_loop(client, known, min(5.0, seconds))
            print(report.row([number, *stopped(server, client, known, min(3.0, seconds))]), flush=True)


def stopped(server: Server, client: Client, known: Known, after_s: float) -> list[object]:
    """Requests without a pause until the first is refused, and SIGTERM in their midst."""
    heard, free, ended = Heard(known), threading.Semaphore(OUTSTANDING), threading.Event()
    in_time: list[bool] = []
    told = time.perf_counter() + after_s
    waiter = threading.Timer(after_s, lambda: in_time.append(server.stop()))
    waiter.start()
    rng, sent = np.random.default_rng(25), 0
    while not ended.is_set():
        free.acquire()
        rows = rng.integers(0, CASES, 1)

        def then(result: Any, error: Any, rows: Array = rows, due: float = time.perf_counter()) -> None:
            heard.hear(rows, due, result, error)
            if error is not None:
                ended.set()
            free.release()

        client.send(known.rows(rows), then)
        sent += 1
    waiter.join()
    for _ in range(OUTSTANDING):
        free.acquire(timeout=10)
    late = sum(due + ms / 1e3 > told for due, ms in zip(heard.due_s, heard.latencies_ms, strict=True))
    refused = sum(count for text, count in heard.errors.items() if re.search(_REFUSED, text))
    lost = sent - heard.counts["answered"] - refused
    rest = [heard.counts["moved"], heard.counts["wrong"], "yes" if in_time == [True] else "NO"]
    return [sent, heard.counts["answered"], late, refused, lost, *rest]


PARTS = {one.__name__: one for one in (saturation, arrivals, steady, malformed, stop)}


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("target")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--requests", type=int, default=10_000)
    given = parser.parse_args()
    packages = ("nvidia-pytriton", "tritonclient", "grpcio")
    print(report.heading(f"Triton, {given.part}: {given.target}", packages), flush=True)
    with load(given.bundle, given.target) as predictor:
        known = Known.of(predictor)
    what = Asked(given.bundle, given.target, given.instances)
    PARTS[given.part](what, known, given.seconds, given.requests)
    print(f"\n{report.load('at the end')}")


if __name__ == "__main__":
    main()
