"""The stored bundle with graphs that do what none of ours does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mpmmu_rt.bundle import seal

STORED = Path(__file__).parent / "data" / "bundle_613dfc9"


def changed(folder: Path, graph: str, output: str, add: Callable[[onnx.GraphProto], None]) -> Path:
    """The stored bundle with a graph whose `output` is called `own`, and made by what `add` appends."""
    folder = Path(shutil.copytree(STORED, folder))
    path = folder / f"onnx/{graph}.onnx"
    model = onnx.load(str(path), load_external_data=False)
    for node in model.graph.node:
        node.output[:] = ["own" if name == output else name for name in node.output]
        node.input[:] = ["own" if name == output else name for name in node.input]
    add(model.graph)
    onnx.save(model, str(path))
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    return folder


def dependent(folder: Path) -> Path:
    """With a mammography encoder that adds the mean of the cases of its batch."""

    def add(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array([0]), "cases"))
        graph.node.append(helper.make_node("ReduceMean", ["own", "cases"], ["of_all"], keepdims=1))
        graph.node.append(helper.make_node("Add", ["own", "of_all"], ["feature_map"]))

    return changed(folder, "mammography", "feature_map", add)


def drawn(folder: Path) -> Path:
    """With a mammography encoder that adds noise: no two models say the same."""

    def add(graph: onnx.GraphProto) -> None:
        graph.node.append(helper.make_node("RandomUniformLike", ["own"], ["noise"], dtype=onnx.TensorProto.FLOAT))
        graph.node.append(helper.make_node("Add", ["own", "noise"], ["feature_map"]))

    return changed(folder, "mammography", "feature_map", add)


def crossed(folder: Path) -> Path:
    """With an attention pool that scales one modality by the largest value of the other's map."""

    def add(graph: onnx.GraphProto) -> None:
        (last,) = (node for node in graph.node if "own" in node.output)
        last.output[0] = "embedding"
        graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3]), "all_axes"))
        reduce = helper.make_node("ReduceMax", ["ultrasound_feature_map", "all_axes"], ["largest"], keepdims=0)
        squeeze = helper.make_node("Reshape", ["largest", "column"], ["scale"])
        graph.initializer.append(numpy_helper.from_array(np.array([-1, 1]), "column"))
        scale = helper.make_node("Mul", [last.input[0], "scale"], ["scaled"])
        last.input[0] = "scaled"
        graph.node.remove(last)
        graph.node.extend([reduce, squeeze, scale, last])

    return changed(folder, "attention_pool", "embedding", add)


def seldom(folder: Path) -> Path:
    """With a mammography encoder that says, on ONNX Runtime, something else in one call of 50."""

    def add(graph: onnx.GraphProto) -> None:
        for name, value in (("rare", 0.02), ("far", 1e3)):
            graph.initializer.append(numpy_helper.from_array(np.array([value], np.float32), name))
        graph.node.append(helper.make_node("RandomUniform", [], ["drawn"], shape=[1], dtype=onnx.TensorProto.FLOAT))
        graph.node.append(helper.make_node("Less", ["drawn", "rare"], ["is_rare"]))
        graph.node.append(helper.make_node("Cast", ["is_rare"], ["once"], to=onnx.TensorProto.FLOAT))
        graph.node.append(helper.make_node("Mul", ["once", "far"], ["off"]))
        graph.node.append(helper.make_node("Add", ["own", "off"], ["feature_map"]))

    return changed(folder, "mammography_onnxruntime", "feature_map", add)


def unanswering(folder: Path, grey: float) -> Path:
    """With a mammography encoder that has no number for images whose mean is below `grey`."""

    def add(graph: onnx.GraphProto) -> None:
        node = helper.make_node
        graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3]), "image"))
        graph.initializer.append(numpy_helper.from_array(np.array(grey, np.float32), "grey"))
        graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
        graph.node.extend(
            [
                node("Cast", ["pixels"], ["bright"], to=onnx.TensorProto.FLOAT),
                node("ReduceMean", ["bright", "image"], ["of_image"], keepdims=1),
                node("Sub", ["of_image", "grey"], ["above"]),
                node("Sqrt", ["above"], ["root"]),
                node("Mul", ["root", "nothing"], ["zero"]),
                node("Add", ["own", "zero"], ["feature_map"]),
            ]
        )

    return changed(folder, "mammography_onnxruntime", "feature_map", add)
