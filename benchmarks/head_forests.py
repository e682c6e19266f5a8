"""Traversal against matrix products: where the line of `emit_forest.choose` belongs.

    python -m benchmarks.head_forests > benchmarks/results/head_forests_<machine>.md

Forests of many shapes, each lowered in both portable forms, timed in turns on OpenVINO and on ONNX Runtime. The rule
is: products where T · I ≤ K · (depth - 2), T trees, I inner nodes of the largest. Its loss, for one K, is the chosen
form's time in units of the faster one's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

from benchmarks.head import Call, embeddings, on_onnxruntime, on_openvino
from mpmmu_rt import machine
from mpmmu_rt.export.head import emit_forest, lower
from mpmmu_rt.spec import Array

FEATURES = 1024
ROUNDS, SECONDS = 7, 0.02  # of each form in a round
BATCHES = (1, 8, 32)
SLOPES = (0, 50, 100, 200, 300, 400, 500, 600, 800, 1200, 2400)  # candidates for K
ENGINES: dict[str, Callable[[Any], Call]] = {"OpenVINO": on_openvino, "ONNX Runtime": on_onnxruntime}


@dataclass(frozen=True)
class Cell:
    """One forest on one engine at one batch: what decides, and ms of both forms."""

    engine: str
    kind: str
    trees: int
    depth: int
    inner: int
    batch: int
    traversal: float
    product: float

    def loss(self, slope: float) -> float:
        chosen = self.product if self.trees * self.inner <= slope * (self.depth - 2) else self.traversal
        return chosen / min(self.product, self.traversal)


def forests() -> Iterator[tuple[str, Any]]:
    x, y = embeddings(663, 0)
    for trees in (1, 10, 50, 100, 300):
        for depth in (1, 2, 3, 4, 5, 6, 7):
            forest = RandomForestClassifier(trees, max_depth=depth, random_state=0)
            yield f"random forest, depth ≤ {depth}", forest.fit(x, y)
        for rows in (20, 50, 120, 663):
            yield f"Extra-Trees of {rows} cases", ExtraTreesClassifier(trees, random_state=0).fit(x[:rows], y[:rows])


def lowered(forest: Any, strategy: str) -> Any:
    with mock.patch.object(emit_forest, "choose", return_value=strategy):
        return lower(forest, FEATURES)


def shape(forest: Any) -> tuple[int, int]:
    """Depth of the deepest tree, inner nodes of the largest."""
    trees = [tree.tree_ for tree in forest.estimators_]
    return max(tree.max_depth for tree in trees), max(int((tree.feature >= 0).sum()) for tree in trees)


def in_turns(calls: dict[str, Call], x: Array) -> dict[str, float]:
    """The median over the rounds of each form's median, ms."""
    medians: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(x)
    for _ in range(ROUNDS):
        for name, call in calls.items():
            samples: list[float] = []
            while sum(samples) < SECONDS:
                start = time.perf_counter()
                call(x)
                samples.append(time.perf_counter() - start)
            medians[name].append(float(np.median(samples)) * 1e3)
    return {name: float(np.median(values)) for name, values in medians.items()}


def measure() -> list[Cell]:
    x, _ = embeddings(max(BATCHES), 1)
    cells = []
    for kind, forest in forests():
        depth, inner = shape(forest)
        models = {strategy: lowered(forest, strategy) for strategy in ("traversal", "product")}
        for engine, compiled in ENGINES.items():
            calls = {strategy: compiled(model) for strategy, model in models.items()}
            for batch in BATCHES:
                found = in_turns(calls, x[:batch])
                trees = len(forest.estimators_)
                cells.append(Cell(engine, kind, trees, depth, inner, batch, found["traversal"], found["product"]))
    return cells


def main() -> None:
    before = os.getloadavg()[0]
    cells = measure()
    described = machine.describe()
    versions = machine.package_versions(("scikit-learn", "onnxruntime", "openvino", "numpy"))
    print(f"# Forests: traversal against products, {FEATURES} features\n")
    print(f"{described['cpu']} {described['cpu_features']}, {described['threads']} threads, {versions}.")
    print(f"Load (1 min) {before:.2f} before, {os.getloadavg()[0]:.2f} after. {ROUNDS} rounds, taking turns; medians.")
    print("\n## Loss of `products where T · I ≤ K · (depth - 2)`: mean (largest)\n")
    groups = [(engine, batch) for engine in ENGINES for batch in BATCHES]
    print("| K |", " | ".join(f"{engine}, batch {batch}" for engine, batch in groups), "| all |")
    print("|---|" + "---|" * (len(groups) + 1))
    for slope in SLOPES:
        columns = [[c.loss(slope) for c in cells if (c.engine, c.batch) == group] for group in groups]
        columns.append([loss for column in columns for loss in column])
        print(f"| {slope} |", " | ".join(f"{np.mean(column):.2f} ({max(column):.1f})" for column in columns), "|")
    print("\n## ms, traversal : products\n")
    print("| forest | trees | depth | I | T · I / (depth - 2) |", " | ".join(f"{e}, batch {b}" for e, b in groups), "|")
    print("|---|---|---|---|---|" + "---|" * len(groups))
    for start in range(0, len(cells), len(groups)):
        row = cells[start : start + len(groups)]
        one = row[0]
        times = " | ".join(f"{cell.traversal:.3f} : {cell.product:.3f}" for cell in row)
        ratio = f"{one.trees * one.inner / (one.depth - 2):.0f}" if one.depth > 2 else "-"
        print(f"| {one.kind} | {one.trees} | {one.depth} | {one.inner} | {ratio} | {times} |")


if __name__ == "__main__":
    main()
