from __future__ import annotations

import json
import os

import pytest

from mpmmu_rt import machine
from mpmmu_rt.machine import parse_quota


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("150000 100000", 1.5),
        ("200000 100000\n", 2.0),
        ("10000 100000", 0.1),
        ("150000\n 100000\n", 1.5),  # cgroup v1: two files, each with its line end
        ("max 100000\n", None),
        ("-1\n 100000\n", None),
        ("0 100000", None),
        ("100000 0", None),
        ("100000", None),
        ("", None),
        ("\n", None),
        ("many of them", None),
        ("1e5 100000", None),
    ],
)
def test_parse_quota(text: str, cpus: float | None) -> None:
    assert parse_quota(text) == cpus


def files(monkeypatch: pytest.MonkeyPatch, contents: dict[str, str]) -> None:
    monkeypatch.setattr(machine, "_read", contents.get)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity on this system")
@pytest.mark.parametrize(
    ("contents", "threads"),
    [
        ({}, 8),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"/sys/fs/cgroup/cpu.max": "1000 100000\n"}, 1),
        ({"/sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        ({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_threads_are_bounded_by_affinity_and_quota(
    contents: dict[str, str], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    files(monkeypatch, contents)
    assert machine.usable_threads() == threads


def test_describe_is_json_and_names_what_figures_depend_on() -> None:
    facts = machine.describe()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert set(facts) == {"cpu", "cpu_features", "threads", "memory_bytes", "system", "python", "packages"}
    assert facts["cpu"]
    assert facts["threads"] >= 1
    assert {"mpmmu-rt", "numpy", "onnxruntime"} <= set(facts["packages"])


def test_describe_survives_a_system_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, {})
    facts = machine.describe()
    assert facts["memory_bytes"] is None
    assert facts["cpu_features"] == []
    assert facts["cpu"]


def test_features_are_whole_words(monkeypatch: pytest.MonkeyPatch) -> None:
    files(monkeypatch, {"/proc/cpuinfo": "model name\t: Xeon: the 2nd\nflags\t\t: fpu avx2x avx512_vnni amx_tile\n"})
    facts = machine.describe()
    assert facts["cpu"] == "Xeon: the 2nd"
    assert facts["cpu_features"] == ["avx512_vnni", "amx_tile"]


def test_versions_of_what_is_not_installed_are_left_out() -> None:
    assert set(machine.package_versions(("numpy", "no-such-distribution"))) == {"numpy"}
