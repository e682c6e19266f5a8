from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    files(monkeypatch, contents)
    assert machine.usable_threads() == threads


V1 = "/sys/fs/cgroup/cpu{}/cpu.cfs_quota_us"
DOCKER = "5:cpuset:/\n4:cpu,cpuacct:/docker/1f\n1:name=systemd:/docker/1f\n0::/system.slice\n"


@pytest.mark.parametrize(
    ("own", "contents", "cpus"),
    [
        ("0::/system.slice/one.service\n", {"/sys/fs/cgroup/system.slice/one.service/cpu.max": "150000 100000\n"}, 1.5),
        (
            "0::/system.slice/one.service\n",
            {
                "/sys/fs/cgroup/system.slice/cpu.max": "300000 100000\n",
                "/sys/fs/cgroup/system.slice/one.service/cpu.max": "max 100000\n",
                "/sys/fs/cgroup/system.slice/two.service/cpu.max": "100000 100000\n",
            },
            3.0,
        ),
        (
            "0::/a/b\n",
            {"/sys/fs/cgroup/a/cpu.max": "200000 100000\n", "/sys/fs/cgroup/a/b/cpu.max": "800000 100000\n"},
            2.0,
        ),
        ("0::/a:b/c\n", {"/sys/fs/cgroup/a:b/c/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"/sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        ("0::/a\n", {"/sys/fs/cgroup/a/cpu.max": "max 100000\n"}, None),
        (DOCKER, {V1.format("/docker/1f"): "150000\n", V1.format(""): "-1\n"}, 1.5),
        (DOCKER, {V1.format("/docker"): "400000\n", V1.format("/docker/1f"): "-1\n"}, 4.0),
        (DOCKER, {V1.format(""): "300000\n"}, 3.0),  # in a container: its own cgroup, and the host's name of it
        (None, {V1.format(""): "300000\n"}, 3.0),
        (DOCKER, {}, None),
        ("no such line\n\n", {}, None),
    ],
)
def test_every_cgroup_that_the_process_lies_in_bounds_it(
    own: str | None, contents: dict[str, str], cpus: float | None, tmp_path: Path
) -> None:
    """As systemd's `CPUQuota` of a service or a slice does, and a container's `--cpus`."""
    periods = {name.replace("quota", "period"): "100000\n" for name in contents if "quota" in name}
    for name, text in {**contents, **periods, **({"/proc/self/cgroup": own} if own else {})}.items():
        place = Path(f"{tmp_path}{name}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    assert machine.cgroup_quota(str(tmp_path)) == cpus


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity on this system")
@pytest.mark.parametrize(
    ("granted", "threads"), [("3", 3), ("16", 8), ("0", 8), ("3,2", 3), (" 2 ", 2), ("many", 8), ("", 8), ("-1", 8)]
)
def test_threads_are_bounded_by_what_openmp_is_granted(
    granted: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", granted)
    files(monkeypatch, {})
    assert machine.usable_threads() == threads


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is what is asked")
@pytest.mark.parametrize(
    ("first", "given", "spins"),
    [
        ("mpmmu_rt.export", {}, False),
        ("mpmmu_rt.model.training", {}, False),
        ("mpmmu_rt.model.training", {"OMP_WAIT_POLICY": "active"}, True),
    ],
)
def test_training_and_export_own_their_threads(first: str, given: dict[str, str], spins: bool) -> None:
    """Asked of torch's and scikit-learn's own OpenMP, in a process of its own: it is read once, when it is loaded."""
    code = (
        f"import {first}, sklearn.ensemble, torch\n"
        "from threadpoolctl import threadpool_info\n"
        "pools = [pool['num_threads'] for pool in threadpool_info() if pool['user_api'] == 'openmp']\n"
        "print(torch.get_num_threads(), *pools)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_"))}
    environment |= given | {"OMP_DISPLAY_ENV": "verbose"}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        usable = machine.usable_threads()
    counts = ran.stdout.split()
    assert len(counts) >= 2
    assert set(counts) == {str(usable)}
    rounds = [int(line.split("'")[1]) for line in ran.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert len(rounds) >= len(counts) - 1, "each library has a copy of its own"
    assert {count > 1000 for count in rounds} == {spins}


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


def test_processors_of_arm_are_told_apart() -> None:
    """They have no name in /proc/cpuinfo: a verdict or a baseline of one must not count on another."""
    core = "processor\t: {}\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {}\n\n"
    small, large = core.format(0, "0xd03"), core.format(1, "0xd42")
    assert machine.model_of(small * 2) == "ARM 0x41:0xd03"
    assert machine.model_of(small + large) == "ARM 0x41:0xd03, 0x41:0xd42"
    assert machine.model_of("") == machine.model_of("processor: 0\nhart: 0\n") == ""


def test_versions_of_what_is_not_installed_are_left_out() -> None:
    assert set(machine.package_versions(("numpy", "no-such-distribution"))) == {"numpy"}
