"""Whether a measurement was disturbed, and by what: what the system tells before and after, and what that means.

`take` makes a snapshot, `observe` says what happened between two of them, `judge` names the suspects. What the system
does not tell is None, and is listed as not known: it is never taken for nothing.

Sources: proc(5) (`/proc/stat`, in ticks since boot; time stolen by other guests is its eighth number), the kernel's
documentation of PSI (accounting/psi), of cgroups (`cpu.stat`: admin-guide/cgroup-v2, scheduler/sched-bwc for v1), of
cpufreq (admin-guide/pm/cpufreq) and of x86's thermal_throttle counters; getrusage(2).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# From which on something is a suspect. Shares of the time that the processors of this process had, but for the last.
STOLEN = 0.01
OTHERS = 0.05
WAITING = 0.10
THROTTLED = 0.005
SLOWER_CLOCK = 0.05
SWITCHES_PER_S = 100.0  # involuntary, of a thread that works: the scheduler's slice is some 3 ms


@dataclass(frozen=True)
class Snapshot:
    """What the system says, as it says it; None where it says nothing. ticks: of a second, the unit of `stat`."""

    seconds: float  # on the monotonic clock
    own_cpu_s: float
    involuntary_switches: int | None
    processors: frozenset[int]  # that this process may use
    ticks: int = 100
    stat: str | None = None
    pressure: str | None = None
    throttle: str | None = None
    thermal: int | None = None
    mhz: float | None = None


@dataclass(frozen=True)
class Observed:
    """What happened between two snapshots; None: not known.

    stolen, others: processors' worth of time, of `processors`, that the hypervisor and other processes took. waiting:
    share of the time in which some process had no processor. throttled: share of the time in which the cgroup's quota
    was used up. heat: times that a core was slowed down for its temperature. clock: of the fastest core, after / before
    - 1. switches_per_s: involuntary ones of this process.
    """

    seconds: float
    processors: int
    stolen: float | None
    others: float | None
    waiting: float | None
    throttled: float | None
    heat: int | None
    clock: float | None
    switches_per_s: float | None


CGROUPS = Path("/sys/fs/cgroup")
_CALLED = {
    "stolen": "steal time",
    "others": "other load",
    "waiting": "CPU pressure",
    "throttled": "quota throttling",
    "heat": "thermal throttling",
    "clock": "clock frequency",
    "switches_per_s": "context switches",
}


@dataclass(frozen=True)
class Conditions:
    """state: "stable" or "unstable". reasons: what makes it unstable. suspects: name → what was seen of it.

    not_known: what the system does not tell.
    """

    reasons: tuple[str, ...]
    suspects: Mapping[str, str]
    not_known: tuple[str, ...]
    observed: Observed
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        return "unstable" if self.reasons or self.suspects else "stable"

    @property
    def line(self) -> str:
        """All of it in one line."""
        return line_of(self.to_json())

    def to_json(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "reasons": list(self.reasons),
            "suspects": [{"name": name, "says": says} for name, says in self.suspects.items()],
            "not_known": list(self.not_known),
            "observed": asdict(self.observed),
            **self.facts,
        }


def line_of(conditions: Mapping[str, Any]) -> str:
    """`Conditions.line` of stored JSON values."""
    named = "; ".join(f"{one['name']}: {one['says']}" for one in conditions["suspects"])
    parts = [*conditions["reasons"], f"suspects: {named}" if named else "no suspect among what is known"]
    if conditions["not_known"]:
        parts.append(f"not known: {', '.join(conditions['not_known'])}")
    return f"{conditions['state']}: {'; '.join(parts)}"


def observe(before: Snapshot, after: Snapshot) -> Observed:
    seconds = max(after.seconds - before.seconds, 1e-9)
    busy, stolen = _ticks_between(before, after)
    own = after.own_cpu_s - before.own_cpu_s
    early, late = before.involuntary_switches, after.involuntary_switches
    switches = None if early is None or late is None else late - early
    return Observed(
        seconds=seconds,
        processors=len(after.processors),
        stolen=None if stolen is None else stolen / seconds,
        # Ticks are coarse: of a process alone they may fall short of its own clock.
        others=None if busy is None else max(0.0, busy - own) / seconds,
        waiting=_share(_waited_s(before.pressure), _waited_s(after.pressure), seconds),
        throttled=_share(_throttled_s(before.throttle), _throttled_s(after.throttle), seconds),
        heat=None if before.thermal is None or after.thermal is None else after.thermal - before.thermal,
        clock=after.mhz / before.mhz - 1 if before.mhz and after.mhz else None,
        switches_per_s=None if switches is None else switches / seconds,
    )


def judge(observed: Observed, threads: int, reasons: tuple[str, ...] = ()) -> Conditions:
    """reasons: what the samples themselves say against the measurement, which used `threads` threads."""
    count, suspects = observed.processors, {}
    if (stolen := observed.stolen) is not None and stolen > STOLEN * count:
        suspects["steal time"] = f"the hypervisor took {stolen:.2f} of {count} processors"
    if (others := observed.others) is not None and others > OTHERS * count and count - others < min(threads, count):
        suspects["other load"] = f"other processes took {others:.2f} of {count} processors"
    # Threads of ours wait and make way for each other too: both count where there is nothing better.
    if others is None and observed.waiting is not None and observed.waiting > WAITING:
        suspects["CPU pressure"] = f"some process had no processor in {observed.waiting:.0%} of the time"
    if others is None and (switches := observed.switches_per_s) is not None and switches > SWITCHES_PER_S * threads:
        suspects["context switches"] = f"{switches:.0f} a second were involuntary"
    if observed.throttled is not None and observed.throttled > THROTTLED:
        suspects["quota throttling"] = f"the cgroup's quota was used up in {observed.throttled:.1%} of the time"
    if observed.heat:
        suspects["thermal throttling"] = f"cores were slowed down {observed.heat} times for their temperature"
    if observed.clock is not None and abs(observed.clock) > SLOWER_CLOCK:
        suspects["clock frequency"] = f"{observed.clock:+.0%} from begin to end"
    unknown = tuple(name for key, name in _CALLED.items() if getattr(observed, key) is None)
    return Conditions(reasons, suspects, unknown, observed)


def take() -> Snapshot:
    """Now, of this process and this machine."""
    own_cpu_s, switches = _own()
    processors = frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    return Snapshot(
        seconds=time.monotonic(),
        own_cpu_s=own_cpu_s,
        involuntary_switches=switches,
        processors=processors,
        ticks=os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100,
        stat=_read(Path("/proc/stat")),
        pressure=_read(Path("/proc/pressure/cpu")),
        throttle=_throttle(),
        thermal=_thermal(processors),
        mhz=_mhz(processors),
    )


def _own() -> tuple[float, int | None]:
    """Seconds of a processor that this process has used, and its involuntary switches, which Windows does not tell."""
    try:
        import resource
    except ImportError:
        times = os.times()
        return times.user + times.system, None
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_nivcsw


def cpu_seconds(stat: str, processors: frozenset[int], ticks: int) -> tuple[float, float] | None:
    """Of those processors since boot, by `/proc/stat`: seconds that processes ran, and that were stolen."""
    busy, stolen, seen = 0, 0, 0
    for line in stat.splitlines():
        match = re.match(r"cpu(\d+) (.*)", line)
        if match and int(match[1]) in processors:
            # user, nice, system, idle, iowait, irq, softirq, steal; guests are in user already
            numbers = [int(number) for number in match[2].split()[:8]]
            if len(numbers) < 8:
                return None
            busy, stolen, seen = busy + sum(numbers[:3]) + sum(numbers[5:7]), stolen + numbers[7], seen + 1
    return (busy / ticks, stolen / ticks) if seen == len(processors) else None


def _ticks_between(before: Snapshot, after: Snapshot) -> tuple[float | None, float | None]:
    if before.stat is None or after.stat is None or before.processors != after.processors:
        return None, None
    early = cpu_seconds(before.stat, before.processors, before.ticks)
    late = cpu_seconds(after.stat, after.processors, after.ticks)
    if early is None or late is None:
        return None, None
    # A hypervisor that tells nothing leaves it at 0 for ever; one that has never stolen can't be told from it.
    return late[0] - early[0], late[1] - early[1] if late[1] else None


def _waited_s(pressure: str | None) -> float | None:
    match = re.search(r"^some .*total=(\d+)", pressure or "", re.MULTILINE)
    return int(match[1]) / 1e6 if match else None


def _throttled_s(throttle: str | None) -> float | None:
    """Of all cgroups that were read: v2 counts in µs, v1 in ns."""
    found = [
        int(time) / unit
        for name, unit in (("throttled_usec", 1e6), ("throttled_time", 1e9))
        for time in re.findall(rf"^{name} (\d+)", throttle or "", re.MULTILINE)
    ]
    return sum(found) if found else None


def _share(before: float | None, after: float | None, seconds: float) -> float | None:
    return None if before is None or after is None else (after - before) / seconds


def quota_files(cgroups: str) -> list[Path]:
    """`cpu.stat` of the cgroups in `/proc/self/cgroup`, v2 and v1, and of those around them, whose quotas count too."""
    found: dict[Path, None] = {}
    for line in cgroups.splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0":
            mounts = ["", "unified"]
        elif "cpu" in controllers.split(","):
            mounts = ["cpu", controllers]
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for length in range(len(parts), -1, -1):
            found |= {CGROUPS.joinpath(mount, *parts[:length], "cpu.stat"): None for mount in mounts}
    return list(found)


def _throttle() -> str | None:
    files = {path.resolve() for path in quota_files(_read(Path("/proc/self/cgroup")) or "")}
    told = [text for path in sorted(files) if (text := _read(path)) and _throttled_s(text) is not None]
    return "\n".join(told) or None


def _thermal(processors: frozenset[int]) -> int | None:
    counts = [_read(_cpu(number) / "thermal_throttle/core_throttle_count") for number in processors]
    known = [int(count) for count in counts if count]
    return sum(known) if known else None


def _mhz(processors: frozenset[int]) -> float | None:
    """Of the fastest of those cores. A guest's `/proc/cpuinfo` repeats one number, whatever the clock does."""
    scaled = [_read(_cpu(number) / "cpufreq/scaling_cur_freq") for number in processors]
    if known := [int(khz) / 1e3 for khz in scaled if khz and khz.strip().isdigit()]:
        return max(known)
    info = _read(Path("/proc/cpuinfo")) or ""
    if re.search(r"^flags\b.*\bhypervisor\b", info, re.MULTILINE):
        return None
    said = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*: ([\d.]+)$", info, re.MULTILINE)]
    return max(said) if said else None


def _cpu(number: int) -> Path:
    return Path(f"/sys/devices/system/cpu/cpu{number}")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
