"""pytest's plugin: a test that is red where a bundle got slower, and says where it can't tell.

    def test_latency(mpmmu_latency):
        mpmmu_latency("model.bundle", target="openvino:int8", batch=32, baseline="baseline.json", p99_ms=400)

It is loaded into every run of pytest where this package is installed, and does nothing there but to offer the fixture
and the option `--mpmmu-strict`: nothing else is imported before a test asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from .compare import Side
    from .errors import MpmmuError

_PROPERTY = _FIXTURE = "mpmmu_latency"
_PASSED = pytest.StashKey[bool]()
_FAILS = ("slower", "far slower", "counts grew")
_CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Verdict:
    """answer: `not slower`, `slower`, `cannot tell`; under other conditions, where they are allowed, `no alarm` and
    `far slower`; `counts grew`. reason: in a sentence. beside: what else ran, by name. calls_ms: all that was timed."""

    answer: str
    reason: str
    beside: list[str] = field(default_factory=list)
    calls_ms: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        suspects = f"; beside it: {', '.join(self.beside[:8])}" if self.beside else ""
        return f"{self.answer}: {self.reason}{suspects}"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mpmmu-rt")
    group.addoption(
        "--mpmmu-strict", action="store_true", help="a latency that this machine can't tell fails its test, too"
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """With pytest-benchmark, these tests are benchmarks: what was timed is in its JSON, by its own clock."""
    names = getattr(item, "fixturenames", [])
    if _FIXTURE in names and item.config.pluginmanager.hasplugin("benchmark"):
        if "benchmark" not in names:
            names.append("benchmark")
        own = item.get_closest_marker("benchmark")  # the closest alone is read: what the test says of itself stays
        item.add_marker(pytest.mark.benchmark(**{**(own.kwargs if own else {}), "timer": _CLOCK}), append=False)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    outcome = yield
    if call.when == "call" and _PASSED in item.stash:
        item.stash[_PASSED] = outcome.get_result().passed


@pytest.fixture
def mpmmu_latency(request: pytest.FixtureRequest) -> Iterator[Callable[..., Verdict]]:
    """`mpmmu_latency(bundle, target=, batch=, baseline=, max_slowdown=, p99_ms=, allow_counts=, allow_different=,
    budget=)`, once in a test.

    Takes turns of fresh processes, one measurement at a time on this machine, and judges them against the baseline file
    of `mpmmu-rt bench --save`, and against a limit on the 99th percentile in ms. Fails the test where the bundle is
    slower or beyond the limit, and with `--mpmmu-strict` where that can't be told; returns the `Verdict`. A test that
    passes and never called it is an error: nothing was judged.
    """

    asked = False
    request.node.stash[_PASSED] = False  # also of a test that has the fixture by `request.getfixturevalue`
    mark = request.node.get_closest_marker("benchmark")
    timed = mark is not None and mark.kwargs.get("timer") is _CLOCK  # else its own clock would time the replay
    benchmark = request.getfixturevalue("benchmark") if timed else None

    def judge(
        bundle: str | Path,
        *,
        target: str = "onnxruntime:fp32",
        batch: int = 32,
        baseline: str | Path | None = None,
        max_slowdown: str | float | None = None,
        p99_ms: float | None = None,
        allow_counts: str | Sequence[str] = (),
        allow_different: bool = False,
        budget: str | float = "120s",
    ) -> Verdict:
        from pathlib import Path

        from .beside import beside
        from .compare import Side
        from .errors import MpmmuError
        from .options import allowances, duration, share
        from .spec import Target
        from .turnstile import alone

        nonlocal asked
        again, asked = asked, True
        refused: MpmmuError | None = None
        try:
            if again and benchmark:
                raise _twice(request.node.name)
            if baseline is None:
                _check_alone(p99_ms, max_slowdown is not None or allow_counts or allow_different)
            _check_numbers(p99_ms, batch)
            side, seconds = Side(Path(bundle), Target.parse(target)), duration(budget)
            named = [allow_counts] if isinstance(allow_counts, str) else allow_counts
            options = {"allow_counts": allowances(named), "allow_different": allow_different}
            most = share("5%" if max_slowdown is None else max_slowdown)
            with alone(), beside() as others:
                found = _judged(side, batch, baseline, most, p99_ms, options, seconds)
        except MpmmuError as error:
            refused = error
        if refused:
            pytest.fail(f"{refused}\nhint: {refused.hint}", pytrace=False)
        said = Verdict(found.answer, found.reason, others, found.calls_ms)
        request.node.user_properties.append((_PROPERTY, str(said)))
        if benchmark and said.calls_ms:
            _CLOCK.replay(benchmark, said.calls_ms)
        if said.answer in _FAILS:
            pytest.fail(str(said), pytrace=False)
        if said.answer == _CANNOT_TELL and request.config.getoption("--mpmmu-strict"):
            pytest.fail(f"{said} (--mpmmu-strict)", pytrace=False)
        return said

    yield judge
    if benchmark:
        benchmark.skipped = True  # or it warns where a test failed before anything was timed
    if not asked and request.node.stash.get(_PASSED, False):  # as in a loop over bundles of which there is none
        pytest.fail("mpmmu_latency was never called, expected a bundle to judge: nothing was", pytrace=False)


def _check_alone(p99_ms: float | None, judging: object) -> None:
    """Without a baseline: there must be a limit, and nothing that would do nothing."""
    from .errors import UsageError

    if p99_ms is None:
        raise UsageError(
            "mpmmu_latency got neither a baseline nor p99_ms, expected one of them, or both",
            hint="mpmmu_latency(bundle, p99_ms=400); `mpmmu-rt bench --save FILE` makes a baseline",
        )
    if judging:
        raise UsageError(
            "mpmmu_latency got max_slowdown, allow_counts or allow_different without a baseline, expected both",
            hint="they are about a baseline: name one, or leave them out",
        )


def _twice(test: str) -> MpmmuError:
    from .errors import UsageError

    return UsageError(
        f"mpmmu_latency was called twice in {test}, expected once: pytest-benchmark keeps the samples of one call",
        hint="a test for each, by pytest.mark.parametrize; or run pytest with -p no:benchmark",
    )


def _check_numbers(p99_ms: object, batch: object) -> None:
    from .errors import UsageError

    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise UsageError(f"batch is {batch!r}, expected a number of pairs, at least 1", hint="batch=32")
    is_time = isinstance(p99_ms, int | float) and not isinstance(p99_ms, bool) and 0 < p99_ms < float("inf")
    if p99_ms is not None and not is_time:
        raise UsageError(f"p99_ms is {p99_ms!r}, expected a time of more than 0 ms", hint="p99_ms=400")


def _judged(
    side: Side,
    batch: int,
    baseline: str | Path | None,
    max_slowdown: float,
    p99_ms: float | None,
    options: dict[str, Any],
    seconds: float,
) -> Verdict:
    """By the baseline, and by the limit: what fails comes before what can't be told."""
    from pathlib import Path

    from .baseline import judge_against
    from .gate import Rule

    found, calls = list[Verdict](), list[float]()
    if baseline is not None:
        told = judge_against(Path(baseline), side, batch, rule=Rule(max_slowdown), budget_s=seconds, **options)
        calls = [ms for turn in told.turns for ms in turn]
        if told.more:
            found.append(Verdict("counts grew", "; ".join(map(str, told.more)), [], calls))
        found.append(Verdict(told.answer, told.verdict.reason, [], calls))
    if p99_ms is not None:
        found.append(_limited(side, batch, p99_ms, calls, seconds))
    order = [*_FAILS, _CANNOT_TELL, "no alarm", "not slower"]
    worst = min(found, key=lambda one: order.index(one.answer))
    return Verdict(worst.answer, worst.reason, [], max((one.calls_ms for one in found), key=len))


def _limited(side: Side, batch: int, p99_ms: float, calls: list[float], seconds: float) -> Verdict:
    """By these calls and, where they can't tell, by more turns, at least one of them."""
    from .bundle import Bundle
    from .compare import TURN_S, require_same, take_turn
    from .gate import within

    bundle = Bundle.open(side.path)
    calls, begin = list(calls), time.monotonic()
    while (said := within(calls, p99_ms)) is None:
        if calls and time.monotonic() - begin >= seconds:
            break
        calls += take_turn(side, batch, TURN_S)
    require_same(bundle)
    over = sum(ms > p99_ms for ms in calls)
    reason = f"{over} of {len(calls)} calls took more than {p99_ms:g} ms, of which p99 allows 1 in 100"
    return Verdict({True: "not slower", False: "slower", None: _CANNOT_TELL}[said], reason, [], calls)


class _Clock:
    """pytest-benchmark's timer in these tests: what it times takes as long as the samples say, to its last digit."""

    def __init__(self) -> None:
        self._now: float | None = None

    def __call__(self) -> float:
        return time.perf_counter() if self._now is None else self._now

    def replay(self, benchmark: Any, calls_ms: list[float]) -> None:
        left = iter(calls_ms)

        def call() -> None:
            self._now = (self._now or 0.0) + next(left, 0.0) / 1e3

        self._now = 0.0
        try:
            benchmark.pedantic(call, rounds=len(calls_ms))
        finally:
            self._now = None


_CLOCK = _Clock()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    said = list(dict.fromkeys(_verdicts(terminalreporter)))  # subtests tell those of their test again
    if said:
        terminalreporter.section("mpmmu-rt latency")
        for node, text in said:
            terminalreporter.line(f"{node}: {text}", yellow=text.startswith(_CANNOT_TELL))


def _verdicts(terminalreporter: Any) -> Iterator[tuple[str, str]]:
    """Of all reports, whatever became of the test, those of other processes with them."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                yield from ((report.nodeid, text) for name, text in report.user_properties if name == _PROPERTY)
