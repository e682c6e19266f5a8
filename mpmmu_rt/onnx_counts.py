"""Operators and parameters of an ONNX file, without the package onnx, which a device does not have.

Reads Protocol Buffers' wire format (protobuf.dev, "Encoding": a key `number << 3 | kind`, kinds 0 varint, 1 eight
bytes, 2 length and bytes, 5 four bytes) as far as the counts need it; field numbers are those of onnx.proto3 (IR
version 10). Weights that lie in another file are not read: a tensor's shape says how many they are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .errors import BundleError

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
        for number, value in _fields(memoryview(path.read_bytes())):
            if number == _MODEL_GRAPH:
                graphs += 1
                _graph(_bytes(value), found, 0)
            elif number == _MODEL_FUNCTION:
                for inner, node in _fields(_bytes(value)):
                    if inner == _FUNCTION_NODE:
                        _node(_bytes(node), found, 0)
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
    for number, value in _fields(data):
        if number == _GRAPH_NODE:
            _node(_bytes(value), found, depth)
        elif number == _GRAPH_TENSOR:
            found.parameters += _elements(_bytes(value))
        elif number == _GRAPH_SPARSE:
            found.parameters += _sparse(_bytes(value))


def _node(data: memoryview, found: GraphCounts, depth: int) -> None:
    kind = domain = ""
    for number, value in _fields(data):
        if number == _NODE_TYPE:
            kind = str(_bytes(value), "utf-8")
        elif number == _NODE_DOMAIN:
            domain = str(_bytes(value), "utf-8")
        elif number == _NODE_ATTRIBUTE:
            _attribute(_bytes(value), found, depth)
    found.operators[kind if domain in ("", "ai.onnx") else f"{domain}.{kind}"] += 1


def _attribute(data: memoryview, found: GraphCounts, depth: int) -> None:
    for number, value in _fields(data):
        if number in _ATTRIBUTE_GRAPHS:
            _graph(_bytes(value), found, depth + 1)
        elif number in _ATTRIBUTE_TENSORS:
            found.parameters += _elements(_bytes(value))
        elif number in _ATTRIBUTE_SPARSE:
            found.parameters += _sparse(_bytes(value))
        elif number == _ATTRIBUTE_FLOATS:
            found.parameters += 1 if isinstance(value, int) else len(value) // 4  # packed, or one by one


def _sparse(data: memoryview) -> int:
    return sum(_elements(_bytes(value)) for number, value in _fields(data) if number == _SPARSE_VALUES)


def _elements(tensor: memoryview) -> int:
    dims: list[int] = []
    for number, value in _fields(tensor):
        if number == _TENSOR_DIMS:
            dims += [value] if isinstance(value, int) else _varints(value)
    return math.prod(dims)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field number and value of each field: an int, or the bytes of what has a length."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind} at byte {at}")
        if at + length > len(data):
            raise ValueError(f"a field of {length} bytes at byte {at} of {len(data)}")
        yield key >> 3, data[at : at + length] if kind == 2 else int.from_bytes(data[at : at + length], "little")
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits at byte {at}")


def _varints(data: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message is expected")
    return value
