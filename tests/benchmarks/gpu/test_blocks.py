"""The GPU benchmark of in-block attention: its steps and its page without a GPU, and torch's side of it on the CPU."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu import blocks
from benchmarks.gpu.kernel_check import NOT_INSTALLED, PASSED
from benchmarks.gpu.stage import NEVER, OUT_OF_TIME, Deadline
from mpmmu_rt.kernels.block_check import RESNET, SMALL, Case, reference
from mpmmu_rt.kernels.check import difference


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_torch_computes_the_same(case: Case) -> None:
    shape, maps = case.shape("float32"), [one.astype(np.float32) for one in case.maps(seed=4)]
    inputs = [torch.from_numpy(one).permute(0, 3, 1, 2) for one in maps]
    got = blocks.torch_function(torch, shape, "cpu")(*inputs).permute(0, 2, 3, 1).numpy()
    assert difference(got, reference(shape, (maps[0], maps[1], maps[2]))) < 1e-5


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run all steps with what needs a GPU left out: the report, and the reports as they were kept."""

    def timed(clock: Any, row: blocks.Row, top: Any) -> dict[str, Any]:
        if row.case.cases == 128 and row.case.channels == 256:
            raise MemoryError("no more")
        times = {"cold_ms": 0.03, "floor_ms": 0.01, "moved_ms": 0.02}
        return (
            {name: getattr(row.case, name) for name in ("kind", "channels", "height", "width", "cases")}
            | times
            | {"element": row.element}
        )

    stand_ins = {
        "checked": lambda case, element: {"case": str(case), "element": element, "difference": 1e-7},
        "timed": timed,
        "with_torch": lambda row, cupy: {"eager_ms": 0.1, "compile_ms": 0.05},
        "sanitize": lambda tool, **rest: {"result": PASSED, "summary": f"{tool} is clean"},
        "Clock": SimpleNamespace,
        "ceilings": lambda clock: {"bytes_per_s": 3e12, "empty_launch_ms": 0.001},
        "require": lambda *_: None,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(blocks, name, stand_in)

    def run(deadline: Deadline = NEVER) -> tuple[dict[str, Any], list[str]]:
        report: dict[str, Any] = {"gpu": "g", "date": "", "commit": "", "command": "", "versions": {"torch": "2"}}
        kept: list[str] = []
        blocks.run(report, lambda: kept.append(json.dumps(report)), deadline)
        return report, kept

    return run


def test_all_is_kept_and_what_fails_costs_no_other(steps: Any) -> None:
    report, kept = steps()
    assert len(report["checked"]) == 3 * len(RESNET) + 3 * len(SMALL)
    assert len(report["times"]) == 5 * len(RESNET) - 2
    assert sum("torch" in one for one in report["times"]) == len(RESNET)
    assert len(kept) == len(report["checked"]) + 5 * len(RESNET) + len(RESNET) + 2
    assert [one.split(": ")[1] for one in blocks.problems(report)] == ["MemoryError", "MemoryError"]
    page = blocks.markdown(report)
    assert "\n| float16 | 32 | 320 | 640 | 960 | 3200 | 1600 |" in page, "32 blocks of 10, 20, 30, 100 and 50 us"
    assert "\n| float16 | 128 |" not in page, "two of them are not known"
    assert "racecheck: passed; racecheck is clean" in page


def test_what_is_wrong_is_named(steps: Any) -> None:
    report, _ = steps()
    report["errors"] = []
    assert blocks.problems(report) == []
    report["sanitizer"] = {"memcheck": {"result": NOT_INSTALLED}, "racecheck": {"result": "failed with status 9"}}
    report["checked"][0]["failed"] = "relative difference 1"
    report["times"][0]["torch"] = {"failed": "torch.compile has compiled nothing"}
    assert len(blocks.problems(report)) == 3


def test_without_time_everything_is_named(steps: Any) -> None:
    report, _ = steps(Deadline.after(0))
    assert not report["checked"]
    assert all(one.endswith(OUT_OF_TIME) for one in report["errors"])
    assert "not run" in blocks.markdown(report)
