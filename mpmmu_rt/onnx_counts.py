"""Operators and parameters of an ONNX file, without the package onnx, which a device does not have.

Read as far as the counts need it (`onnx_wire`). Weights that lie in another file are not read: a tensor's shape says
how many they are.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .errors import BundleError
from .onnx_wire import as_bytes, fields, varints

_MODEL_GRAPH, _MODEL_FUNCTION = 7, 25
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_SPARSE = 1, 5, 15
_FUNCTION_NODE = 7
_NODE_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_GRAPHS, _ATTRIBUTE_TENSORS, _ATTRIBUTE_SPARSE, _ATTRIBUTE_FLOATS = (6, 11), (5, 10), (22, 23), 7
_TENSOR_DIMS = 1
_SPARSE_VALUES = 1
_DEEPEST = 32  # graphs inside of attributes of graphs


@dataclass
class GraphCounts:
    """operators: how often each type occurs, `domain.Type` outside of ONNX's own domain, inner graphs and functions
    included. parameters: numbers that the graph holds: elements of initializers and of tensors and lists of floats in
    attributes, which is where a forest has its thresholds and leaves."""

    operators: Counter[str] = field(default_factory=Counter)
    parameters: int = 0


def count_graph(path: Path) -> GraphCounts:
    """The counts of an ONNX file. Raises `BundleError` for one that is no ONNX model."""
    found = GraphCounts()
    try:
        graphs = 0
        for number, value in fields(memoryview(path.read_bytes())):
            if number == _MODEL_GRAPH:
                graphs += 1
                _graph(as_bytes(value), found, 0)
            elif number == _MODEL_FUNCTION:
                for inner, node in fields(as_bytes(value)):
                    if inner == _FUNCTION_NODE:
                        _node(as_bytes(node), found, 0)
        if graphs != 1:
            raise ValueError(f"it holds {graphs} graphs")
    except (ValueError, IndexError) as error:
        raise BundleError(
            f"{path} is no readable ONNX model: {error}, expected one graph", hint="export the bundle again"
        ) from error
    return found


def _graph(data: memoryview, found: GraphCounts, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"its graphs lie more than {_DEEPEST} deep in each other")
    for number, value in fields(data):
        if number == _GRAPH_NODE:
            _node(as_bytes(value), found, depth)
        elif number == _GRAPH_TENSOR:
            found.parameters += _elements(as_bytes(value))
        elif number == _GRAPH_SPARSE:
            found.parameters += _sparse(as_bytes(value))


def _node(data: memoryview, found: GraphCounts, depth: int) -> None:
    kind = domain = ""
    for number, value in fields(data):
        if number == _NODE_TYPE:
            kind = str(as_bytes(value), "utf-8")
        elif number == _NODE_DOMAIN:
            domain = str(as_bytes(value), "utf-8")
        elif number == _NODE_ATTRIBUTE:
            _attribute(as_bytes(value), found, depth)
    found.operators[kind if domain in ("", "ai.onnx") else f"{domain}.{kind}"] += 1


def _attribute(data: memoryview, found: GraphCounts, depth: int) -> None:
    for number, value in fields(data):
        if number in _ATTRIBUTE_GRAPHS:
            _graph(as_bytes(value), found, depth + 1)
        elif number in _ATTRIBUTE_TENSORS:
            found.parameters += _elements(as_bytes(value))
        elif number in _ATTRIBUTE_SPARSE:
            found.parameters += _sparse(as_bytes(value))
        elif number == _ATTRIBUTE_FLOATS:
            found.parameters += 1 if isinstance(value, int) else len(value) // 4  # packed, or one by one


def _sparse(data: memoryview) -> int:
    return sum(_elements(as_bytes(value)) for number, value in fields(data) if number == _SPARSE_VALUES)


def _elements(tensor: memoryview) -> int:
    dims: list[int] = []
    for number, value in fields(tensor):
        if number == _TENSOR_DIMS:
            dims += [value] if isinstance(value, int) else varints(value)
    return math.prod(dims)
