"""The ways to run a GPU target that are held against each other, and what of each really ran."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu.device_answers import Judge, Pixels
from benchmarks.gpu.device_report import AHEAD
from benchmarks.gpu.stage import OUT_OF_TIME, Deadline, failure
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines import engine, known_engine
from mpmmu_rt.engines.onnxruntime_cuda import OnnxRuntimeCuda
from mpmmu_rt.errors import MpmmuError
from mpmmu_rt.machine import usable_threads
from mpmmu_rt.spec import Array, Target

# What a variant asks of a TensorRT pipeline.
VARIANTS: Mapping[str, Mapping[str, bool]] = {
    "device path, CUDA graph": {"graphs": True},
    f"device path, CUDA graph{AHEAD}": {"graphs": True, "ahead": True},
    "device path, no graph": {"graphs": False},
    "whole graph, CUDA graph": {"graphs": True, "whole_graph": True},
}
# What is asked of `onnxruntime-cuda`: of the engine, and of its pipeline.
ONNXRUNTIME: Mapping[str, Mapping[str, tuple[Mapping[str, str], Mapping[str, bool]]]] = {
    "onnxruntime-cuda": {
        "device path": ({}, {}),
        "device path, channels last": ({"prefer_nhwc": "1"}, {}),
        "pool by ONNX Runtime, head on the host": ({}, {"host_head": True}),
    },
    # A target of its own, and so a process: a graph of ONNX Runtime's that fails may end it.
    "onnxruntime-cuda-graph": {
        "device path, ONNX Runtime's CUDA graphs": ({"enable_cuda_graph": "1"}, {}),
        "device path, ONNX Runtime's CUDA graphs, channels last": ({"enable_cuda_graph": "1", "prefer_nhwc": "1"}, {}),
    },
}
TORCH = ("torch", "torch-compile")  # targets of `benchmarks.gpu.torch_engine`, which the product does not have
Make = Callable[[], Any]  # a pipeline
Call = Callable[[Pixels, Array], tuple[dict[str, Array], Mapping[str, float]]]  # into an embedding [N, width]


@dataclass
class Variant:
    """One way to run a target. width: of an embedding. asked: of its pipeline; `graphs` is what is held to."""

    name: str
    call: Call
    pipeline: Any
    width: int
    asked: Mapping[str, bool] = field(default_factory=dict)
    alone: Array | None = None  # embeddings of every case on its own, in a precision that is too coarse without
    wrong: str | None = None  # with those

    def ask_alone(self, judge: Judge, deadline: Deadline) -> None:
        """Fill `alone` and `wrong`."""
        rows = []
        for row in range(judge.cases.count):
            if deadline.passed:
                self.wrong = f"{OUT_OF_TIME} before every case was asked on its own"
                return
            rows.append(self.call(judge.cases.rows(slice(row, row + 1)), self.room(1))[0]["embedding"])
        self.alone = np.concatenate(rows)
        self.wrong = judge.anchor(self.alone)

    def room(self, batch: int) -> Array:
        """For embeddings: all NaN, in memory that has been touched, as a caller has it that keeps its arrays."""
        return np.full((batch, self.width), np.nan, np.float32)

    @property
    def largest(self) -> int | None:
        """The largest batch that the engines take at once; None where any will do."""
        batches = getattr(self.pipeline, "batches", None)
        return None if batches is None else int(batches.profile.max)

    def runs(self, batch: int) -> int:
        return 1 if self.largest is None else -(-batch // self.largest)

    def facts(self) -> dict[str, Any]:
        """What really ran: kind, largest batch, kernel strategy, sizes captured and why not, remarks."""
        batches = getattr(self.pipeline, "batches", None)
        facts = {
            "ran": getattr(self.pipeline, "name", self.name),
            "largest_batch": self.largest,
            "head": str(self.pipeline.head_target),
            "pool": getattr(self.pipeline, "pool", None),
            "remarks": list(self.pipeline.remarks),
        }
        if batches is not None:
            captured = list(batches.captured)
            facts |= {"captured": captured, "captured_count": len(captured), "not_captured": batches.not_captured}
        return facts

    def problem(self) -> str | None:
        """What it did not do that it was asked for; asked after it has run."""
        facts, found = self.facts(), [self.wrong] if self.wrong else []
        if self.name.startswith("device path") and facts["ran"] != "device path":
            reason = getattr(self.pipeline, "reason", None) or "; ".join(self.pipeline.remarks)
            found.append(f"`{facts['ran']}` ran instead of the device path: {reason}")
        if self.asked.get("graphs") and not facts["captured"]:
            found.append(f"no batch was captured into a CUDA graph: {facts['not_captured'] or 'nothing ran'}")
        return "; ".join(found) or None


def problem(target: Target) -> MpmmuError | None:
    """Why nothing of `target` can run here, or None. Raises `EngineError` for a target that there is not."""
    if target.engine in TORCH:
        from benchmarks.gpu import torch_engine

        return torch_engine.problem(target)
    known = Target("onnxruntime-cuda", target.precision) if target.engine in ONNXRUNTIME else target
    return known_engine(known).problem(target.precision)


def variants(bundle: Bundle, target: Target, closing: ExitStack) -> tuple[list[Variant], dict[str, str]]:
    """What to run of a target, and of variants that can't be loaded the reason. Raises `MpmmuError` where none can."""
    loaded, failed = list[Variant](), dict[str, str]()
    width = int(bundle.tensors["embedding"].shape[1])
    for name, (asked, make) in makers(bundle, target).items():
        try:
            pipeline = make()
        except Exception as error:  # noqa: BLE001  # TensorRT, torch and CUDA raise all kinds: recorded, others go on
            failed[name] = failure(error)
            continue
        closing.callback(pipeline.close)

        def run(
            pixels: Pixels, embedding: Array, pipeline: Any = pipeline
        ) -> tuple[dict[str, Array], Mapping[str, float]]:
            said, stages = pipeline.run(pixels, embedding)
            return {"probability": said["probability"], "embedding": embedding}, stages

        loaded.append(Variant(name, run, pipeline, width, asked))
    return loaded, failed


def makers(bundle: Bundle, target: Target) -> Mapping[str, tuple[Mapping[str, bool], Make]]:
    """By name what is asked of a variant, and what makes it."""
    if target.engine in TORCH:
        from benchmarks.gpu import torch_engine

        return torch_engine.variants(bundle, target)
    if target.engine in ONNXRUNTIME:
        threads = usable_threads()
        return {
            name: (asked, partial(OnnxRuntimeCuda(**options).pipeline, bundle, target.precision, threads, **asked))
            for name, (options, asked) in ONNXRUNTIME[target.engine].items()
        }
    found: Any = engine(target)  # a TensorRT, whose pipelines take the options of `VARIANTS`
    return {
        name: (asked, partial(found.pipeline, bundle, target.precision, 1, **asked)) for name, asked in VARIANTS.items()
    }
