"""What a figure was measured on: processor, memory, threads, versions."""

from __future__ import annotations

import math
import os
import platform
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

THREADS_VARIABLE = "OMP_NUM_THREADS"
# How long OpenMP's threads spin before they sleep: reads in libgomp (torch, scikit-learn), ms in Intel's and LLVM's.
# What changes what is computed: the instruction set that oneDNN (by both names) and OpenVINO were told to keep to
# (`mpmmu_rt.engines.openvino`), and whether NVIDIA's libraries may or must compute in TF32.
HELD_TO = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "OV_CPU_MAX_ISA", "NVIDIA_TF32_OVERRIDE")
_PATIENCE = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
_EXTENSIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8")
_PACKAGES = (
    "mpmmu-rt",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt-rtx",
    "tensorrt",
    "pillow",
)


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe() -> dict[str, Any]:
    """The machine as JSON values: the conditions that every stored figure carries."""
    return {
        "cpu": _cpu_model(),
        "cpu_features": _cpu_features(),
        "threads": usable_threads(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": package_versions(_PACKAGES),
    }


def package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """The installed versions of those distributions that are installed."""
    from importlib import metadata  # a third of what importing this package would cost

    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def usable_threads() -> int:
    """Threads that this process may really use, whatever library runs them.

    Affinity, bounded by the CPU quota of its cgroups (rounded up) and by what OMP_NUM_THREADS grants, as for any OpenMP
    program: who runs several processes beside each other gives each its share.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bounds = [affinity]
    if quota := cgroup_quota():
        bounds.append(math.ceil(quota))
    granted = os.environ.get(THREADS_VARIABLE, "").partition(",")[0].strip()  # a list is one number a level
    if granted.isascii() and granted.isdigit() and int(granted):
        bounds.append(int(granted))
    return max(1, min(bounds))


def own_threads() -> None:
    """Have every OpenMP library that is loaded from here on use `usable_threads`, and wait for them with patience.

    OpenMP's threads spin for each other's work, libgomp's for 300,000 reads: where other processes want the cores too,
    each spins for one that has none. Beside two busy processes on two cores training took about 3 times its time alone
    in two rounds of three, and 24 times in the other; with 1,000 reads 2.3 to 3 times, and nothing more alone, where to
    sleep at once would cost a quarter (benchmarks/NOTES.md, 2026-11-26).

    What the user's environment says stands. Has no effect on libraries that are loaded already; child processes get it
    too. Called where torch and scikit-learn are about to be imported.
    """
    os.environ.setdefault(THREADS_VARIABLE, str(usable_threads()))
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", *_PATIENCE)):
        os.environ.update(_PATIENCE)


def cgroup_quota(root: str = "") -> float | None:
    """CPUs per period: the least that the process's cgroup and those that it lies in grant, by v2 (`cpu.max`) or v1
    (`cpu.cfs_quota_us`); None where there is no limit. root: of the tree that holds /proc and /sys."""
    own = {"": "/", "/cpu": "/"}  # where v2 and v1 are mounted: this process's cgroup there
    for line in (_read(f"{root}/proc/self/cgroup") or "").splitlines():
        _, controllers, group = (*line.split(":", 2), "", "")[:3]
        if not controllers or "cpu" in controllers.split(","):
            own["/cpu" if controllers else ""] = group
    quotas = []
    for mount, group in own.items():
        # A container may be told the host's name of its cgroup, and see that one as "/": what isn't there grants all.
        for one in (PurePosixPath("/", group), *PurePosixPath("/", group).parents):
            folder = f"{root}/sys/fs/cgroup{mount}{one}".rstrip("/")
            v1 = [_read(f"{folder}/cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
            quotas += [parse_quota(text) for text in (_read(f"{folder}/cpu.max") or "", " ".join(v1))]
    return min(filter(None, quotas), default=None)


def parse_quota(text: str) -> float | None:
    """`"150000 100000"` is 1.5 CPUs; `"max 100000"` and `"-1 100000"` are no limit."""
    quota, period = (*text.split(), "", "")[:2]
    if not quota.isdigit() or not period.isdigit() or int(quota) == 0 or int(period) == 0:
        return None
    return int(quota) / int(period)


def _cpu_model() -> str:
    return model_of(_read("/proc/cpuinfo") or "") or platform.processor() or platform.machine()


def model_of(cpuinfo: str) -> str:
    """The processor's name, by the text of /proc/cpuinfo; of one of ARM, which has none there, the numbers that stand
    for it, of each kind of its cores; "" where it says nothing."""
    found, implementer = dict[str, None](), ""
    for line in cpuinfo.splitlines():
        name, value = (part.strip() for part in line.partition(":")[::2])
        if name == "model name":
            return value
        if name == "CPU implementer":
            implementer = value
        elif name == "CPU part":
            found[f"{implementer}:{value}"] = None
    return f"ARM {', '.join(found)}" if found else ""


def _cpu_features() -> list[str]:
    """The vector and matrix extensions that decide which precision pays."""
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("flags"):
            flags = set(line.split())
            return [name for name in _EXTENSIONS if name in flags]
    return []


def _memory_bytes() -> int | None:
    for line in (_read("/proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
