"""Counts of a bundle on a target that noise can't touch: a count that moved explains a time that moved.

Run as a module (`python -m mpmmu_rt.counts BUNDLE TARGET BATCH`) it is the fresh process in which they are taken.

    operators.<graph>            of the graphs that the target runs; operators.<graph>.<type> says which
    parameters.<graph>           numbers in them, see `onnx_counts`
    pixels.<modality>            of an image: a smaller one takes less time, and is another input
    bytes.graphs, .weights       of the bundle's files; bytes.engines: of what lies there for this target alone
    kept.python_kib, .native_kib memory that a call after warm-up keeps, in whole KiB: see below
    threads                      of the process after a call of BATCH pairs
    layers, precision.*          what the engine made of the graphs, where it tells: see its `counts`, and `achieved`
    device.*                     bytes over the bus and launches of a call, where a device path runs

Each is the same to the unit in every process (tests/test_counts.py). Memory is counted in what is *kept*: Python's by
`tracemalloc`, which sees NumPy's arrays, the rest by glibc's `mallinfo2`; the least growth per call of several windows,
so that a free list that fills up is none. Python's is rounded down: for as long as objects of before the tracing give
way to traced ones, up to 0.7 KiB a call more are seen, never less. The rest is rounded to the nearest: of 200 processes
under load it came out up to 0.18 KiB a call too high or too low. What is allocated and given back within a call is
left out: neither Python nor glibc counts it, and peaks were not the same in the next process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .bundle import ENGINES, Bundle, target_folder
from .child import answer, limit_s, python, run, telling
from .engines import engines, known_engine
from .errors import UsageError, quoted
from .onnx_counts import GraphCounts, count_graph
from .predictor import Predictor
from .spec import MODALITIES, Target
from .tiles import tile

Counts = dict[str, int | str | None]
_WARM_UP, _WINDOWS, _CALLS = 6, 2, 5
_PAIRS = 2  # of a call whose memory is counted: more would show no more, and take longer
_KIB = 1024


def count(path: Path, target: Target, batch: int) -> Counts:
    """The counts of a bundle on a target, taken in a fresh process; None for what can't be had here.

    Raises what `Bundle.open` raises, and of a bundle that can't run what its process raised.
    """
    Bundle.open(path)
    command = python("-m", "mpmmu_rt.counts", str(path.resolve()), str(target), str(batch))
    hint = f"`mpmmu-rt verify {quoted(path)} --target {target}` says what is wrong"
    found: Counts = run(f"the counts of {path} on {target}", command, hint, limit_s(batch))
    return found


@dataclass(frozen=True)
class Moved:
    """A count that differs. worse: more than is allowed, or another where no number tells which is better."""

    name: str
    a: int | str | None
    b: int | str | None
    worse: bool

    @property
    def change(self) -> str:
        """`+10.0%`; empty where there is no share to tell."""
        numbers = isinstance(self.a, int) and isinstance(self.b, int) and self.a
        return f"{int(self.b or 0) / int(self.a or 1) - 1:+.1%}" if numbers else ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        shown = ["-" if one is None else f"{one:,}" if isinstance(one, int) else one for one in (self.a, self.b)]
        return f"{self.name} {shown[0]} → {shown[1]}{f' ({self.change})' if self.change else ''}"


def moved(a: Counts, b: Counts, allowed: Mapping[str, float] | None, *, judged: bool = True) -> list[Moved]:
    """The counts that differ, those first that are worse.

    allowed: by how much of A each may grow, 0.05 for 5 %, by its name or the beginning of its name up to a dot
    (`parameters` is `parameters.head` too): 0 for all others; infinite for any growth, and for another text. Operators
    by type explain and are not judged, nor is a count that only one of the two has, nor anything where not `judged`.

    Raises `UsageError` for a name that is none.
    """
    allowed = allowed or {}
    for name in allowed:
        if not any(_named(one, name) for one in (*a, *b)):
            groups = sorted({one.partition(".")[0] for one in (*a, *b)})
            raise UsageError(
                f"`{name}` is no count, expected {', '.join(groups)}, or one of them such as {next(iter(a))}",
                hint=f"--allow-counts {groups[0]}=5%",
            )
    found = []
    for name in dict.fromkeys((*a, *b)):
        old, new = a.get(name), b.get(name)
        if old != new:
            most = max((share for one, share in allowed.items() if _named(name, one)), default=0.0)
            found.append(Moved(name, old, new, judged and may_not_grow(name) and _worse(old, new, most)))
    return sorted(found, key=lambda one: not one.worse)


def _named(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted}.")


def may_not_grow(name: str) -> bool:
    """Whether the count of that name is judged: one of operators by type only explains."""
    return not (name.startswith("operators.") and name.count(".") > 1)


def _worse(a: int | str | None, b: int | str | None, most: float) -> bool:
    if a is None or b is None:
        return False
    if isinstance(a, int) and isinstance(b, int):
        return b - a > a * most * (1 + 1e-9)  # 115 is 15 % more than 100 in decimals, and not in binary
    return most != math.inf  # such as another precision, of which no share tells how much it is


# ---------------------------------------------------------------- in the fresh process


def _count(path: Path, target: Target, batch: int) -> Counts:
    bundle = Bundle.open(path)
    with Predictor(bundle, target, unproven=True) as predictor:
        found: Counts = {
            **_pixels(bundle),
            **graphs(bundle, target, predictor.head_target),
            **_bytes(bundle, target),
            **achieved(bundle, target),
        }
        golden = bundle.golden()
        small = tile(golden, min(batch, _PAIRS))
        found |= _kept(lambda: predictor.predict(small))
        predictor.predict(tile(golden, batch))
        found["threads"] = _threads()
        found |= predictor.counts(batch)
    return found


def _pixels(bundle: Bundle) -> Counts:
    shapes = {name: bundle.tensors[f"{name}_pixels"].shape for name in MODALITIES}
    return {f"pixels.{name}": math.prod(one for one in shape if isinstance(one, int)) for name, shape in shapes.items()}


def graphs(bundle: Bundle, target: Target, head: Target) -> Counts:
    """Operators and parameters of the graphs that `target` runs, its head on `head`; nothing is loaded."""
    runs, plain = known_engine(target), MODALITIES[0]
    paths = {str(modality): runs.graph(bundle, modality, target.precision) for modality in MODALITIES}
    # Whoever runs the encoders in ONNX Runtime's form runs the attention pool in it.
    exact = paths[plain] == bundle.graph("mammography_onnxruntime")
    pool = bundle.graph_for(target.engine, "attention_pool")
    paths["attention_pool"] = bundle.graph("attention_pool_onnxruntime") if exact else pool
    paths["head"] = bundle.graph(engines()[head.engine].head)
    if head.engine == target.engine:  # its own form of the head, where it has one
        own = f"{target_folder(target.engine, target.precision)}/head.onnx"
        paths["head"] = bundle.root / own if own in bundle.entry["files"] else paths["head"]
    found: Counts = {}
    counts: dict[str, GraphCounts] = {name: count_graph(path) for name, path in paths.items()}
    for name, one in counts.items():
        found |= {f"operators.{name}": one.operators.total(), f"parameters.{name}": one.parameters}
        found |= {f"operators.{name}.{kind}": count for kind, count in sorted(one.operators.items())}
    return found


def achieved(bundle: Bundle, target: Target) -> Counts:
    """`precision.<graph>`: the share of multiply-accumulates in each precision, as the export found and wrote it down
    for this target: in its report, or in the sidecars of its engines. Nothing for others."""
    stored = bundle.proof(target).get("achieved") or {}
    folder = f"{target_folder(target.engine, target.precision)}/"
    for name in bundle.entry["files"]:
        if name.startswith(folder) and name.endswith(".engine.json"):
            graph = name.removeprefix(folder).removesuffix(".engine.json")
            stored = {**stored, graph: json.loads((bundle.root / name).read_text(encoding="utf-8"))["achieved"]}
    return {
        f"precision.{graph}": ", ".join(f"{name} {share:.2%}" for name, share in sorted(shares.items()))
        for graph, shares in stored.items()
        if shares
    }


def _bytes(bundle: Bundle, target: Target) -> Counts:
    sizes = {name: int(facts["bytes"]) for name, facts in bundle.entry["files"].items()}
    own = f"{target_folder(target.engine, target.precision)}/"
    common = {name: size for name, size in sizes.items() if name.startswith("onnx/")}
    return {
        "bytes.graphs": sum(size for name, size in common.items() if name.endswith(".onnx")),
        "bytes.weights": sum(size for name, size in common.items() if not name.endswith(".onnx")),
        f"bytes.{ENGINES}": sum(size for name, size in sizes.items() if name.startswith(own)),
    }


def _kept(call: Callable[[], object]) -> Counts:
    """KiB that a call keeps, of Python's memory and of all the rest."""
    for _ in range(_WARM_UP):
        call()
    native, python = [], []
    for _ in range(_WINDOWS):
        gc.collect()
        before = _native_bytes()
        for _ in range(_CALLS):
            call()
        gc.collect()
        native.append(_native_bytes() - before)
    tracemalloc.start()
    try:
        for _ in range(_WINDOWS):
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(_CALLS):
                call()
            gc.collect()
            python.append(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    window = _CALLS * _KIB
    found: Counts = {
        "kept.python_kib": max(0, min(python) // window),
        "kept.native_kib": max(0, round(min(native) / window)),
    }
    return found if _glibc() else {**found, "kept.native_kib": None}


_MALLINFO2 = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _MallInfo2(ctypes.Structure):
    """`struct mallinfo2` of malloc.h, glibc 2.33 and later."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO2)


def _glibc() -> Any:
    """`mallinfo2`, or None where the C library has none."""
    return getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None


def _native_bytes() -> int:
    """In use, of all arenas and of what was mapped on its own; 0 where nobody tells."""
    if (ask := _glibc()) is None:
        return 0
    ask.restype = _MallInfo2
    said = ask()
    return int(said.uordblks + said.hblkhd)


def _threads() -> int | None:
    """Of this process, whatever library started them; None where there is no /proc."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else None


def _main(path: str, target: str, batch: str) -> None:
    answer(_count(Path(path), Target.parse(target), int(batch)))


if __name__ == "__main__":
    telling(lambda: _main(*sys.argv[1:]))
