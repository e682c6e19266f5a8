"""The plugin in real runs of pytest: alone, with pytest-benchmark, with xdist; found as an installation finds it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpmmu_rt import conditions, pytest_plugin
from mpmmu_rt.baseline_file import Baseline, Session
from mpmmu_rt.beside import beside
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.compare import TURN_S
from mpmmu_rt.counts import count
from mpmmu_rt.gate import within
from mpmmu_rt.spec import Target
from mpmmu_rt.turnstile import alone

pytest_plugins = "pytester"
ROOT = Path(__file__).resolve().parents[1]
STORED = Path(__file__).parent / "data" / "bundle_613dfc9"
POINTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
# At most some 100 calls in a turn, which can't tell of one in 100; and about 1000, which can.
FEW, MANY = 'batch=64, budget="0.1s"', 'batch=1, budget="30s"'
TESTS = f"""
def test_fast(mpmmu_latency):
    assert mpmmu_latency({str(STORED)!r}, {MANY}, p99_ms=1e5).answer == "not slower"

def test_slow(mpmmu_latency):
    mpmmu_latency({str(STORED)!r}, {MANY}, p99_ms=1e-3)

def test_who_knows(mpmmu_latency):
    assert mpmmu_latency({str(STORED)!r}, {FEW}, p99_ms=1e5).answer == "cannot tell"
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """pytest in a process of its own, in which this package is installed, by its entry point."""
    info = pytester.path / "site" / "mpmmu_rt_here-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mpmmu-rt-here\nVersion: 0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in POINTS.items())
    (info / "entry_points.txt").write_text(f"[pytest11]\n{lines}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(info.parent)]))
    # CI and BUILD_NUMBER have pytest print its summaries in full: what is counted here would depend on where it runs.
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_ADDOPTS", "CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(pytester.path))  # the lock is ours: whoever else measures here is not waited for
    return lambda *arguments: pytester.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider", *arguments)


def test_the_entry_point_names_the_plugin() -> None:
    assert {"mpmmu_rt": pytest_plugin.__name__} == POINTS


def test_it_does_nothing_unless_it_is_used(run: Callable[..., pytest.RunResult], pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys
        def test_nothing():
            assert "mpmmu_rt.pytest_plugin" in sys.modules
            assert not {"numpy", "typer", "mpmmu_rt.predictor"} & set(sys.modules)
        """
    )
    result = run("-p", "no:benchmark", "-p", "no:xdist")
    result.assert_outcomes(passed=1)
    assert "mpmmu-rt latency" not in result.stdout.str()


def test_a_test_that_judges_nothing_is_not_green(
    run: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    """One that fails or is skipped before it asks says so itself."""
    pytester.makepyfile(
        """
        import pytest

        def test_none(mpmmu_latency):
            for bundle in []:
                mpmmu_latency(bundle, p99_ms=400)

        def test_fails(mpmmu_latency):
            assert False

        def test_is_skipped(mpmmu_latency):
            pytest.skip("no bundle here")

        def test_has_it_otherwise(request):
            request.getfixturevalue("mpmmu_latency")
        """
    )
    result = run("-p", "no:xdist")
    result.assert_outcomes(passed=2, failed=1, skipped=1, errors=2)
    result.stdout.fnmatch_lines(["mpmmu_latency was never called, expected a bundle to judge: nothing was"])
    assert result.stdout.str().count("was never called, expected") == 2


@pytest.mark.slow
def test_three_states(run: Callable[..., pytest.RunResult], pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    result = run("--mpmmu-strict")  # without, in the test of xdist
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "cannot tell: 0 of * (--mpmmu-strict)",
            "*== mpmmu-rt latency ==*",
            "*::test_fast: not slower: 0 of * calls took more than 100000 ms, of which p99 allows 1 in 100*",
            "*::test_slow: slower: * of * calls took more than 0.001 ms*",
            "*::test_who_knows: cannot tell: 0 of * calls took more than *",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


@pytest.mark.slow
def test_with_pytest_benchmark_its_json_is_written(
    run: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(
        f"""
        def test_latency(mpmmu_latency, benchmark):
            said = mpmmu_latency({str(STORED)!r}, {FEW}, p99_ms=1e5)
            print("calls", *said.calls_ms)
        """
    )
    result = run("-p", "no:xdist", "-s", "--benchmark-only", "--benchmark-json", "found.json")
    result.assert_outcomes(passed=1)
    calls = next(line for line in result.outlines if "calls " in line and "took" not in line).partition("calls ")[2]
    (entry,) = json.loads((pytester.path / "found.json").read_text())["benchmarks"]
    want = [float(ms) / 1e3 for ms in calls.split()]
    assert entry["stats"]["data"] == pytest.approx(want, rel=1e-9)
    assert entry["stats"]["rounds"] == len(want) > 3
    assert entry["stats"]["max"] == pytest.approx(max(want))
    compared = pytester.run(sys.executable, "-m", "pytest_benchmark", "compare", "found.json", "--csv=out.csv")
    assert compared.ret == 0
    compared.stdout.fnmatch_lines(["*test_latency*"])
    assert f",{len(want)}," in (pytester.path / "out.csv").read_text()


@pytest.mark.slow
def test_with_pytest_benchmark_a_test_keeps_its_marks_and_is_one_measurement(
    run: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    """What a test says to pytest-benchmark of itself must not put another clock in the place of the samples."""
    pytester.makepyfile(
        f"""
        import pytest

        pytestmark = pytest.mark.benchmark(disable_gc=True)

        @pytest.mark.benchmark(group="latency")
        @pytest.mark.xfail(strict=False)
        def test_marked(mpmmu_latency):
            said = mpmmu_latency({str(STORED)!r}, {FEW}, p99_ms=1e5)
            print("calls", *said.calls_ms)

        def test_asked(benchmark, request):
            benchmark(lambda: None)
            request.getfixturevalue("mpmmu_latency")({str(STORED)!r}, {FEW}, p99_ms=1e5)

        def test_both(mpmmu_latency):
            for bundle in [{str(STORED)!r}] * 2:
                mpmmu_latency(bundle, {FEW}, p99_ms=1e5)
        """
    )
    result = run("-p", "no:xdist", "-s", "--benchmark-json", "found.json")
    result.assert_outcomes(xpassed=1, passed=1, failed=1)
    calls = next(line for line in result.outlines if "calls " in line and "took" not in line).partition("calls ")[2]
    found = {one["name"]: one for one in json.loads((pytester.path / "found.json").read_text())["benchmarks"]}
    assert found["test_marked"]["stats"]["data"] == pytest.approx([float(ms) / 1e3 for ms in calls.split()], rel=1e-9)
    assert found["test_marked"]["group"] == "latency"
    result.stdout.fnmatch_lines(
        [
            "mpmmu_latency was called twice in test_both, expected once: pytest-benchmark keeps *",
            "hint: a test for each, by pytest.mark.parametrize; or run pytest with -p no:benchmark",
        ]
    )
    result.stdout.fnmatch_lines(["*::test_marked: cannot tell: *"])  # whatever became of the test


LOGGED = """
import time
import mpmmu_rt.compare
real = mpmmu_rt.compare.take_turn
def logged(*given):
    begin = time.monotonic()
    calls = real(*given)
    with open("turns", "a") as file:
        file.write(f"{begin} {time.monotonic()}\\n")
    return calls
mpmmu_rt.compare.take_turn = logged
"""


@pytest.mark.slow
def test_with_xdist_one_measures_at_a_time_and_what_runs_beside_is_named(
    run: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    pytester.makeconftest(LOGGED)
    body = f"def test_{{}}(mpmmu_latency):\n    mpmmu_latency({str(STORED)!r}, {FEW}, p99_ms=1e5)\n"
    pytester.makepyfile(test_a=body.format("a"), test_b=body.format("b"))
    with burning() as pid:
        result = run("-n", "2", "-p", "no:benchmark")
    result.assert_outcomes(passed=2)
    turns = sorted(tuple(map(float, line.split())) for line in (pytester.path / "turns").read_text().splitlines())
    assert len(turns) == 2
    for (_, end), (begin, _) in itertools.pairwise(turns):
        assert end <= begin
    for name in "ab":
        result.stdout.fnmatch_lines(
            [f"test_{name}.py::test_{name}: cannot tell: *; beside it: *({pid}) took * of a core*"]
        )


WRONG = {
    "p99_ms=-1": "p99_ms is -1, expected a time of more than 0 ms",
    "p99_ms='400'": "p99_ms is '400', expected a time of more than 0 ms",
    "p99_ms=True": "p99_ms is True, expected a time of more than 0 ms",
    "p99_ms=400, max_slowdown=0.05": "got max_slowdown, allow_counts or allow_different without a baseline",
    "p99_ms=400, max_slowdown=0": "got max_slowdown, allow_counts or allow_different without a baseline",
    "p99_ms=400, batch=0": "batch is 0, expected a number of pairs, at least 1",
    "p99_ms=400, batch='8'": "batch is '8', expected a number of pairs, at least 1",
    "p99_ms=400, batch=True": "batch is True, expected a number of pairs, at least 1",
    "p99_ms=400, allow_counts='bytes'": "got max_slowdown, allow_counts or allow_different without a baseline",
    "baseline='same.json', max_slowdown=5": "`5` has no unit and would be 500%",
    "baseline='same.json', batch=2, allow_counts='byte', budget=1": "`byte` is no count, expected ",
}


@pytest.mark.slow
def test_against_a_baseline(run: Callable[..., pytest.RunResult], pytester: pytest.Pytester) -> None:
    target, counted = Target.parse("onnxruntime:fp32"), count(STORED, Target.parse("onnxruntime:fp32"), 2)
    here = conditions.conditions(Bundle.open(STORED), target, 2, TURN_S)
    held = Session("2026-11-26T12:00:00+00:00", [[1e5] * 3] * 40, [conditions.control_ms()] * 40)
    for name, more in (("same", 0), ("grown", 1)):
        counts = {**counted, "parameters.head": int(counted["parameters.head"] or 0) - more}
        Baseline(here, "b", "0" * 64, counts, [held]).write(pytester.path / f"{name}.json")
    pytester.makepyfile(
        "".join(
            f"def test_{name}(mpmmu_latency):\n"
            f'    mpmmu_latency({str(STORED)!r}, batch={batch}, baseline="{name}.json", budget=1, max_slowdown=0.05)\n'
            for name, batch in (("same", 2), ("grown", 2))
        )
        + f"def test_other(mpmmu_latency):\n    mpmmu_latency({str(STORED)!r}, batch=3, baseline='same.json')\n"
        + f"def test_neither(mpmmu_latency):\n    mpmmu_latency({str(STORED)!r})\n"
        + "".join(
            f"def test_wrong_{at}(mpmmu_latency):\n    mpmmu_latency({str(STORED)!r}, {given})\n"
            for at, given in enumerate(WRONG)
        )
    )
    result = run()
    result.assert_outcomes(passed=1, failed=3 + len(WRONG))
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*TypeError*")
    result.stdout.fnmatch_lines(
        [
            "*same.json was taken under other conditions (batch 2 *3), expected the same*",
            "hint: measure what it was taken of, or take one of this with --save FILE*",
            "mpmmu_latency got neither a baseline nor p99_ms, expected one of them, or both",
            "hint: mpmmu_latency(bundle, p99_ms=400)*",
            *(line for said in WRONG.values() for line in (f"*{said}*", "hint: ?*")),
            "*::test_same: cannot tell: *",
            "*::test_grown: counts grew: parameters.head *",
        ]
    )


# ---------------------------------------------------------------- its parts


class burning:
    """A process that keeps a core busy."""

    def __enter__(self) -> int:
        self._process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        return self._process.pid

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()


def test_own_children_are_no_suspects() -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("no /proc: /proc/self/stat is missing")
    with burning() as pid, beside() as found:
        time.sleep(0.4)
    assert not [one for one in found if f"({pid})" in one]
    code = "import time\nfrom mpmmu_rt.beside import beside\nwith beside() as found:\n    time.sleep(0.6)\nprint(found)"
    with burning() as pid:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert f"({pid}) took " in done.stdout


def test_the_name_of_a_suspect_does_not_steer_the_terminal(tmp_path: Path) -> None:
    shell = shutil.which("sh")
    if shell is None or not Path("/proc/self/stat").exists():
        pytest.skip("no sh, or no /proc/self/stat")
    (tmp_path / "a\x1b[2Jb").symlink_to(shell)
    code = "import time\nfrom mpmmu_rt.beside import beside\nwith beside() as found:\n    time.sleep(0.6)\nprint(found)"
    with subprocess.Popen([tmp_path / "a\x1b[2Jb", "-c", "while :; do :; done"]) as busy:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        busy.kill()
    assert f"a?[2Jb ({busy.pid}) took " in done.stdout


def entered(path: Path, times: int) -> subprocess.Popen[str]:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom mpmmu_rt.turnstile import alone\n"
        f"for _ in range({times}):\n    with alone(Path(sys.argv[1])):\n"
        "        begin = time.monotonic(); time.sleep(0.02); print(begin, time.monotonic())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, env=environment)


def test_one_process_at_a_time_and_the_dead_do_not_block(tmp_path: Path) -> None:
    with entered(tmp_path / "lock", 10_000) as dies:
        assert dies.stdout is not None
        dies.stdout.readline()
        dies.kill()
    both = [entered(tmp_path / "lock", 8) for _ in range(2)]
    said = sorted(
        tuple(map(float, line.split())) for one in both for line in one.communicate(timeout=60)[0].splitlines()
    )
    assert len(said) == 16
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(said))


def test_no_link_to_another_file_is_locked(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="lock"), alone(tmp_path / "lock"):
        pytest.fail("it was followed")
    assert not (tmp_path / "other").exists()


def exceeding(over: int, count: int) -> Iterator[float]:
    for index in range(count):
        yield 2.0 if index < over else 1.0


def test_a_percentile_is_told_when_it_can_be() -> None:
    assert within([], 1.5) is None
    assert within([1.0] * 300, 1.5) is None
    assert within([1.0] * 340, 1.5) is True
    assert within([2.0] * 2, 1.5) is False
    assert within(list(exceeding(1, 20)), 1.5) is None
    assert within(list(exceeding(10, 1000)), 1.5) is None
    assert within(list(exceeding(60, 1000)), 1.5) is False
    assert within(list(exceeding(1, 1000)), 1.5) is True
    assert within([2.0] * 3 + [1.0] * 3, 1.5, share=0.5) is None


@pytest.mark.slow
def test_a_percentile_is_seldom_told_wrongly() -> None:
    """At the limit itself, looking again and again: at most 5 % each way."""
    import numpy as np

    rng = np.random.default_rng(5)
    for share in (0.0101, 0.0099):
        wrong = 0
        for _ in range(60):
            calls = (rng.random(4000) < share).astype(float)
            said = (within(list(calls[:stop]), 0.5) for stop in range(50, 4001, 400))
            first = next((one for one in said if one is not None), None)
            wrong += first is (share > 0.01)
        assert wrong <= 8
