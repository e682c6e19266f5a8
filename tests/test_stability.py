"""What a system says before and after a measurement, written down, and what is made of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpmmu_rt.stability import Observed, Snapshot, cpu_seconds, judge, observe, quota_files, take

STAT = """cpu  4000 100 300 9000 50 10 40 700 0 0
cpu0 {0} 50 150 4500 25 5 20 {1} 0 0
cpu1 2000 50 150 4500 25 5 20 350 0 0
cpu2 9999 50 150 4500 25 5 20 350 0 0
intr 5
"""
PRESSURE = "some avg10=5.28 avg60=14.33 avg300=9.26 total={}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
V2 = "usage_usec 100\nnr_periods 7\nnr_throttled 2\nthrottled_usec {}\n"
V1 = "nr_periods 7\nnr_throttled 2\nthrottled_time {}\n"
BEFORE = Snapshot(
    seconds=100.0,
    own_cpu_s=5.0,
    involuntary_switches=10,
    processors=frozenset({0, 1}),
    stat=STAT.format(2000, 350),
    pressure=PRESSURE.format(1_000_000),
    throttle=V2.format(0),
    thermal=3,
    mhz=3000.0,
)
# 10 s later: both processors busy, all of it ours.
QUIET = replace(BEFORE, seconds=110.0, own_cpu_s=25.0, stat=STAT.format(4000, 350))


def suspects(after: Snapshot, before: Snapshot = BEFORE, threads: int = 2) -> dict[str, str]:
    return dict(judge(observe(before, after), threads).suspects)


def test_quiet() -> None:
    found = judge(observe(BEFORE, QUIET), 2)
    assert found.observed == Observed(10.0, 2, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0.0)
    assert (found.state, found.suspects, found.not_known) == ("stable", {}, ())
    assert found.line == "stable: no suspect among what is known"


@pytest.mark.parametrize(
    ("name", "says", "after"),
    [
        ("steal time", "the hypervisor took 0.10 of 2 processors", replace(QUIET, stat=STAT.format(4000, 450))),
        ("other load", "other processes took 0.50 of 2 processors", replace(QUIET, own_cpu_s=20.0)),
        ("quota throttling", "was used up in 20.0% of the time", replace(QUIET, throttle=V2.format(2_000_000))),
        ("thermal throttling", "cores were slowed down 4 times", replace(QUIET, thermal=7)),
        ("clock frequency", "-20% from begin to end", replace(QUIET, mhz=2400.0)),
    ],
)
def test_each_suspect_is_named_alone(name: str, says: str, after: Snapshot) -> None:
    assert list(found := suspects(after)) == [name]
    assert says in found[name]


def test_a_cgroup_of_version_1_counts_in_nanoseconds() -> None:
    before, after = replace(BEFORE, throttle=V1.format(0)), replace(QUIET, throttle=V1.format(2_000_000_000))
    assert observe(before, after).throttled == pytest.approx(0.2)


def test_the_quota_of_a_cgroup_that_holds_ours_counts_too() -> None:
    root = "/sys/fs/cgroup"
    assert [str(path) for path in quota_files("0::/pod/box\n") if "unified" not in str(path)] == [
        *(f"{root}/pod/box/cpu.stat", f"{root}/pod/cpu.stat", f"{root}/cpu.stat")
    ]
    assert [str(path) for path in quota_files("9:memory:/a\n4:cpu,cpuacct:/b\n")] == [
        *(f"{root}/cpu/b/cpu.stat", f"{root}/cpu,cpuacct/b/cpu.stat"),
        *(f"{root}/cpu/cpu.stat", f"{root}/cpu,cpuacct/cpu.stat"),
    ]
    assert quota_files("0::/../../x")[0] == Path(f"{root}/x/cpu.stat")
    assert quota_files("") == []
    assert quota_files("nonsense\n1:cpuset:/") == []
    both = V2.format(0) + V2.format(1_000_000)
    assert observe(replace(BEFORE, throttle=V2.format(0) * 2), replace(QUIET, throttle=both)).throttled == 0.1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("other load", {"stat": None}),
        ("steal time", {"stat": None}),
        ("steal time", {"stat": STAT.replace("350", "0").format(4000, 0)}),  # never since boot: nobody may count it
        ("other load", {"stat": "cpu0 1 2 3\ncpu1 1 2 3\n"}),  # of a kernel that counts less
        ("other load", {"stat": STAT.format(4000, 350).replace("cpu1 ", "cpu7 ")}),
        ("CPU pressure", {"pressure": None}),
        ("quota throttling", {"throttle": None}),
        ("quota throttling", {"throttle": "usage_usec 100\n"}),
        ("thermal throttling", {"thermal": None}),
        ("clock frequency", {"mhz": None}),
    ],
)
def test_what_is_not_told_is_not_known(name: str, change: dict[str, Any]) -> None:
    found = judge(observe(replace(BEFORE, **change), replace(QUIET, **change)), 2)
    assert name in found.not_known
    assert name not in found.suspects
    assert f"not known: {', '.join(found.not_known)}" in found.line


def test_pressure_counts_where_there_is_nothing_better() -> None:
    waited = replace(QUIET, pressure=PRESSURE.format(6_000_000))
    assert observe(BEFORE, waited).waiting == pytest.approx(0.5)
    assert suspects(waited) == {}  # both processors were ours
    assert suspects(replace(waited, involuntary_switches=9999)) == {}
    assert suspects(replace(waited, stat=None)) == {"CPU pressure": "some process had no processor in 50% of the time"}
    switched = replace(QUIET, stat=None, involuntary_switches=2510)
    assert suspects(switched) == {"context switches": "250 a second were involuntary"}


def test_others_beside_free_processors_are_no_suspects() -> None:
    many = frozenset(range(8))
    line = "cpu{} {} 0 0 0 0 0 0 1 0 0"
    before = replace(BEFORE, processors=many, stat="\n".join(line.format(k, 0) for k in many))
    after = replace(before, seconds=110.0, own_cpu_s=25.0, stat="\n".join(line.format(k, 500) for k in many))
    assert observe(before, after).others == pytest.approx(2.0)
    assert suspects(after, before, threads=2) == {}
    assert list(suspects(after, before, threads=7)) == ["other load"]


def test_guests_are_counted_once_and_other_processors_not_at_all() -> None:
    busy, stolen = cpu_seconds(STAT.format(2000, 350), frozenset({0, 1}), 100) or (0.0, 0.0)
    assert (busy, stolen) == (2 * (2000 + 50 + 150 + 5 + 20) / 100, 7.0)


def test_the_samples_word_counts_too() -> None:
    found = judge(observe(BEFORE, QUIET), 2, ("the medians of the two halves differ by 9%",))
    assert found.state == "unstable"
    assert found.line == "unstable: the medians of the two halves differ by 9%; no suspect among what is known"
    assert found.to_json()["reasons"] == ["the medians of the two halves differ by 9%"]
    assert found.to_json()["observed"]["others"] == 0.0


def burn(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system has no /proc/stat")
def test_a_process_that_burns_beside_is_named() -> None:
    """On the one processor that both may use."""
    code = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nprint(flush=True)\nwhile True: pass"
    everywhere = take().processors
    one = min(everywhere)
    with subprocess.Popen([sys.executable, "-c", code, str(one)], stdout=subprocess.PIPE) as beside:
        try:
            assert beside.stdout is not None
            beside.stdout.readline()
            os.sched_setaffinity(0, {one})
            before = take()
            burn(1.0)
            found = judge(observe(before, take()), 1)
        finally:
            os.sched_setaffinity(0, everywhere)
            beside.kill()
    assert found.state == "unstable"
    assert "other load" in found.suspects, found.line
    assert (found.observed.others or 0) > 0.3


def test_this_machine_says_something() -> None:
    before = take()
    burn(0.05)
    observed = observe(before, take())
    assert observed.seconds >= 0.05
    assert observed.processors >= 1
    for value in (observed.stolen, observed.others, observed.waiting, observed.throttled):
        assert value is None or value >= 0
