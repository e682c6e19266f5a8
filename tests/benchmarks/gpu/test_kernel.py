"""The script of the kernel's evidence, with stand-ins for CuPy and the kernel: what it finds, and what it loses not."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, ClassVar, Self

import numpy as np
import pytest

from benchmarks.gpu import kernel as script
from benchmarks.gpu import kernel_check as checks
from benchmarks.gpu import kernel_report
from benchmarks.gpu import kernel_times as times
from benchmarks.gpu.stage import NEVER, OUT_OF_TIME, Deadline
from mpmmu_rt.kernels import check
from mpmmu_rt.kernels.attention_pool import SOURCE, Pool
from mpmmu_rt.kernels.plan import Device, ElementType, Strategy, candidates
from mpmmu_rt.kernels.source import source_of

HOPPER = Device((9, 0), 132, 227 << 10, 228 << 10, 50 << 20)


class OnDevice(np.ndarray[Any, Any]):
    def get(self) -> Any:
        return np.array(self)


class FakeDevice:
    id = 0

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class FakePool:
    """As a right kernel would, but for `fault`, in strategies that `at` names."""

    fault = ""
    at: Callable[[Strategy], bool] = staticmethod(lambda strategy: False)
    compiled: ClassVar[list[tuple[str, ...]]] = []

    def __init__(
        self, pools: tuple[Pool, Pool], cases: int, element: ElementType, *, channels_last: bool, strategy: Strategy
    ) -> None:
        self.pools, self.cases, self.element, self.last = pools, cases, element, channels_last
        self.strategy = strategy
        self.columns = sum(pool.branch.channels for pool in pools)
        self.runs = 0
        if self.broken("raises"):
            raise RuntimeError("cudaErrorIllegalAddress")

    def broken(self, fault: str) -> bool:
        return self.fault == fault and type(self).at(self.strategy)

    @classmethod
    def compile(cls, cupy: Any, pools: tuple[Pool, Pool], strategy: Strategy) -> None:
        cls.compiled.append(strategy.options((pools[0].branch, pools[1].branch)))
        if strategy.stages == 3:
            raise ValueError("no such kernel")

    def exact(self, raw: Any) -> Any:
        x = np.asarray(raw)
        x = (x.astype(np.uint32) << 16).view(np.float32) if self.element == "bfloat16" else x
        return (x.transpose(0, 3, 1, 2) if self.last else x).astype(np.float64)

    def __call__(self, first: Any, second: Any, *, out: Any = None) -> Any:
        self.runs += 1
        found = check.reference(self.pools, (self.exact(first), self.exact(second))).astype(np.float32)
        if self.broken("wrong"):
            found = found + np.float32(1e-3 * np.abs(found).max())
        if self.broken("not written"):
            found[-1, -1] = np.nan
        if self.broken("unsteady"):
            found[0, 0] += np.float32(1e-7 * self.runs)
        return found.view(OnDevice)

    def traced(self, first: Any, second: Any) -> tuple[Any, dict[str, int]]:
        counts = {}
        for name, pool in zip(("mammography", "ultrasound"), self.pools, strict=True):
            times = 3 if pool.weights.kind == "cbam" and not self.broken("reads less") else 1
            counts[f"{name}_elements"] = times * self.cases * pool.branch.channels * pool.branch.positions
        return self(first, second), counts

    def resources(self) -> dict[str, dict[str, int]]:
        return {"statistics": {"registers": 40, "local_bytes": 0, "shared_bytes": 0}}


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = SimpleNamespace(
        asarray=lambda x: x.view(OnDevice),
        full=lambda shape, value, dtype: np.full(shape, value, dtype).view(OnDevice),
        cuda=SimpleNamespace(Device=FakeDevice, set_allocator=lambda allocator: None),
    )
    monkeypatch.setattr(checks, "require", lambda *_: cupy)
    monkeypatch.setattr(checks, "device_facts", lambda: HOPPER)
    monkeypatch.setattr(times, "device_facts", lambda: HOPPER)
    monkeypatch.setattr(checks, "AttentionPool", FakePool)
    monkeypatch.setattr(checks, "compiled", FakePool.compile)
    monkeypatch.setattr(FakePool, "fault", "")
    monkeypatch.setattr(FakePool, "compiled", [])


def test_every_way_is_checked() -> None:
    parts = checks.parts([check.SMALL[0], check.SPECIALISED[0]])
    rows = checks.validate(parts)
    assert not any("failed" in row or "not_run" in row for row in rows)
    assert {(row["element"], row["channels_last"]) for row in rows} == {
        (element, last) for element in ("float32", "float16", "bfloat16") for last in (False, True)
    }
    every = [one for part in parts for one in part.strategies()]
    assert {one.stages for one in every} == {1, 2, 3}
    assert {tuple(layout.fixed for layout in one.layouts) for one in every} == {(0, 0), (49, 64)}
    assert {min(one.layouts[0].samples, 2) for one in every} == {1, 2}


def test_the_sanitizer_sees_every_way_too() -> None:
    right, left_out = checks.checked_by_sanitizer(60)
    assert (right > 40, left_out) == (True, 0)
    assert checks.checked_by_sanitizer(0)[0] == 0


@pytest.mark.parametrize("fault", ["wrong", "not written", "unsteady", "reads less", "raises"])
def test_a_fault_is_found_and_costs_no_other_row(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(FakePool, "fault", fault)
    monkeypatch.setattr(FakePool, "at", staticmethod(lambda one: one.stages == 2))
    kept: list[dict[str, Any]] = []
    rows = checks.validate(checks.parts(check.SMALL[:1], ["float16"]), keep=kept.extend)
    assert kept == rows
    bad = [row for row in rows if "failed" in row]
    assert 0 < len(bad) < len(rows) / 2
    assert all(row["strategy"].startswith("2 stages") for row in bad)
    with pytest.raises(RuntimeError, match="are wrong"):
        checks.checked_by_sanitizer(60)


def test_what_no_longer_fits_is_left_out() -> None:
    rows = checks.validate(checks.parts(check.SMALL[:2]), deadline=Deadline.after(0))
    assert len(rows) == 12
    assert all(row["not_run"] == OUT_OF_TIME for row in rows)


def test_kernels_are_compiled_ahead_once_each() -> None:
    ahead = checks.Ahead()
    pools = check.SMALL[0].pools()
    branches = checks.branches_of(pools)
    found = candidates(branches, 3, "float32", False, HOPPER)
    for _ in range(2):
        ahead.ask((pools, one) for one in found)
    for one in found:
        ahead.wait(pools, one)
    ahead.finish(NEVER)
    assert len(FakePool.compiled) == len({one.options(branches) for one in found})
    third = {one.options(branches) for one in found if one.stages == 3}
    assert ahead.failures() == ["ValueError: no such kernel"] * len(third)
    ahead.close()


# ---------------------------------------------------------------- compute-sanitizer

RIGHT = "38 results are right, 0 not run\n"


@pytest.mark.parametrize(
    ("status", "said", "planted", "result"),
    [
        (0, f"{RIGHT}========= ERROR SUMMARY: 0 errors\n", False, "passed"),
        (0, f"{RIGHT}========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", False, "passed"),
        (0, f"{RIGHT}========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)\n", False, "failed"),
        (0, RIGHT, False, "failed"),
        (0, "========= ERROR SUMMARY: 0 errors\n", False, "failed"),
        (9, f"{RIGHT}========= ERROR SUMMARY: 3 errors\n", False, "failed"),
        (None, RIGHT, False, "failed: not finished in time"),
        (9, "========= Invalid __global__ read of size 4 bytes\n", True, "passed"),
        (1, "========= Invalid __global__ read of size 4 bytes\n", True, "failed"),
        (9, "========= Program hit cudaErrorInvalidValue\n", True, "failed"),
        (0, "========= ERROR SUMMARY: 0 errors\n", True, "failed"),
    ],
)
def test_what_the_sanitizer_said(status: int | None, said: str, planted: bool, result: str) -> None:
    assert checks.verdict(status, said, "", planted=planted)["result"].startswith(result)


def test_without_the_sanitizer_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "sanitizer", lambda: None)
    assert checks.sanitize("memcheck") == {"result": checks.NOT_INSTALLED}


@pytest.mark.parametrize("planted", [False, True])
def test_the_child_finds_the_package_in_the_source_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: bool
) -> None:
    """Wherever it is started. Here it fails for want of CuPy or a GPU: that decides."""
    program = tmp_path / "compute-sanitizer"
    program.write_text('#!/bin/sh\nshift 4\nexec "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    found = checks.sanitize("memcheck", planted=planted)
    assert found["result"].startswith("failed")
    assert "error: " in found["said"]
    assert "ModuleNotFoundError" not in found["said"]


def test_a_mistake_can_be_planted() -> None:
    assert source_of(SOURCE).count(checks.PLANTED[0]) == 1


# ---------------------------------------------------------------- all steps


class FakeAhead:
    def __init__(self) -> None:
        self.closed = False

    def ask(self, strategies: Any) -> None:
        list(strategies)

    def wait(self, strategy: Strategy) -> None:
        pass

    def finish(self, deadline: Deadline) -> None:
        pass

    def failures(self) -> list[str]:
        return []

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Run all steps with what is dear left out; (report, what was done, the reports as they were kept)."""
    done: list[str] = []
    kept: list[dict[str, Any]] = []

    def validate(wanted: Any, *, keep: Any, **rest: Any) -> None:
        done.append(f"check {wanted[0].shape}")
        keep([{"shape": "s", "element": "float32", "channels_last": False, "strategy": "x", "difference": 1e-7} | SAFE])

    def sanitize(tool: str, seconds: float, **options: bool) -> dict[str, Any]:
        done.append(f"{tool} {options}")
        return {"result": checks.PASSED}

    def time_pool(clock: Any, row: times.Row, top: Any, deadline: Deadline) -> dict[str, Any]:
        done.append(f"time {row}")
        if (row.size, row.batch) == (32, 128):
            raise MemoryError("no more")
        return {
            "size": row.size,
            "element": row.element,
            "batch": row.batch,
            "floor_ms": 0.01,
            "strategies": [{"strategy": "x", "cold_ms": 0.02, "warm_ms": 0.015}],
        }

    def time_torch(row: times.Row, cupy: Any) -> dict[str, Any]:
        done.append(f"torch {row}")
        return {"eager_ms": 0.2, "compile_ms": 0.1}

    def time_triton(row: times.Row, cupy: Any) -> dict[str, Any]:
        done.append(f"triton {row}")
        return {"ms": 0.06, "channels": 16}

    for name, stand_in in {
        "validate": validate,
        "sanitize": sanitize,
        "time_pool": time_pool,
        "time_torch": time_torch,
        "time_triton": time_triton,
        "Clock": SimpleNamespace,
        "ceilings": lambda clock: {"bytes_per_s": 3e12, "empty_launch_ms": 0.002},
        "require": lambda *_: None,
    }.items():
        monkeypatch.setattr(script, name, stand_in)

    def run(deadline: Deadline = NEVER) -> Any:
        report: dict[str, Any] = {"gpu": "g", "date": "", "commit": "", "driver": 13000, "nvrtc": [13, 0]}
        report |= {"command": "", "cupy": "14", "versions": {"torch": "2"}}

        def keep() -> None:
            kernel_report.markdown(report)
            kept.append(json.loads(json.dumps(report)))

        ahead: Any = FakeAhead()
        script.run_steps(report, ahead, keep, deadline)
        assert ahead.closed
        return report, done, kept

    return run


SAFE = {"resources": {"statistics": {"local_bytes": 0, "registers": 40}}}


def test_what_is_worth_most_comes_first_and_all_is_kept(steps: Callable[..., Any]) -> None:
    report, done, kept = steps()
    assert done[0].startswith("check 3 x cbam-2048-7-7")
    assert done[1:5] == [f"time {times.Row(7, 'float16', batch)}" for batch in (32, 128, 1, 8)]
    assert done[5:9] == [
        f"{rival} {times.Row(7, 'float16', batch)}" for batch in (32, 128) for rival in ("torch", "triton")
    ]
    assert sorted(done[9:12]) == [
        "memcheck {'planted': False}",
        "memcheck {'planted': True}",
        "racecheck {'planted': False}",
    ]
    assert done[12].startswith("check 3 x cbam-24")
    assert len(done) == 2 + 3 + 12 + 2 * 11
    assert [len(one["times"]) for one in kept] == sorted(len(one["times"]) for one in kept)
    assert {len(one["times"]) for one in kept} == set(range(12))
    assert len(report["times"]) == 11
    bad = kernel_report.problems(report)
    assert [one.split(":")[0] for one in bad] == [
        "time Row(size=32, element='float16', batch=128)",
        "rivals Row(size=32, element='float16', batch=128)",
    ]
    text = kernel_report.markdown(report)
    assert "MemoryError: no more" in text
    assert "| 10.0 x | 5.0 x | 3.0 x |" in text


def test_without_time_everything_is_named(steps: Callable[..., Any]) -> None:
    report, done, _ = steps(Deadline.after(0))
    assert not done
    assert len(report["errors"]) == 4 + 12 + 1 + 12 + 1
    assert all(one.endswith(f"not run: {OUT_OF_TIME}") for one in report["errors"])
    assert "*not measured*" in kernel_report.markdown(report)


def test_a_sanitizer_that_failed_or_a_wrong_row_is_a_failure(steps: Callable[..., Any]) -> None:
    report, _, _ = steps()
    report["errors"] = []
    assert kernel_report.problems(report) == []
    report["sanitizer"]["memcheck"] = {"result": checks.NOT_INSTALLED}
    assert kernel_report.problems(report) == []
    report["sanitizer"]["memcheck"] = {"result": "failed: not finished in time"}
    report["times"][0]["torch"] = {"failed": "OutOfMemoryError: 3 GiB"}
    report["times"][0]["triton"] = {"failed": "CompilationError: no"}
    report["times"][1]["torch"] = report["times"][1]["triton"] = {"not_run": "no torch"}
    report["times"][2]["strategies"][0] = {"strategy": "x", "failed": "EngineError: no"}
    report["checked"][0]["failed"] = "relative difference"
    assert len(kernel_report.problems(report)) == 5
    text = kernel_report.markdown(report)
    assert "OutOfMemoryError" in text
    assert "*not measured*" in text


def test_without_cupy_or_gpu_two_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(script, "end_on_sigterm", lambda: None)
    monkeypatch.setattr(sys, "argv", ["kernel", "--gpu"])
    assert script.main() == 1
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.slow
def test_every_row_is_compiled_by_torch_anew() -> None:
    """More rows than dynamo recompiles a function for: 8, after which it runs eagerly without a word."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    factor = torch.ones(())

    def forward(first: Any, second: Any) -> Any:
        return torch.cat([first, second], 1) * factor

    for n in range(1, 13):
        compiled, graphs = times.compile_anew(torch, partial(forward), backend="eager")
        x = torch.ones(n, 3)
        assert torch.equal(compiled(x, x), forward(x, x))
        assert graphs() == 1
    assert torch._dynamo.config.fail_on_recompile_limit_hit
