"""ONNX files without the package onnx, which a device does not have: Protocol Buffers' wire format.

protobuf.dev, "Encoding": a key `number << 3 | kind`, kinds 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
Field numbers are those of onnx.proto3 (IR version 10).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_OUTPUT = 1, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_TYPE = 1, 2, 4
_VALUE_NAME = 1


@dataclass(frozen=True)
class Node:
    """An operator of a graph, and the names of the tensors that it reads and makes."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def nodes(model: bytes) -> list[Node]:
    """The operators of an ONNX model's graph, in its order. Raises `ValueError` or `IndexError` for what is none."""
    found = []
    for number, graph in fields(memoryview(model)):
        if number == _MODEL_GRAPH:
            for inner, node in fields(as_bytes(graph)):
                if inner == _GRAPH_NODE:
                    found.append(_node(as_bytes(node)))
    return found


def _node(data: memoryview) -> Node:
    said: dict[int, list[str]] = {_NODE_INPUT: [], _NODE_OUTPUT: [], _NODE_TYPE: []}
    for number, value in fields(data):
        if number in said:
            said[number].append(str(as_bytes(value), "utf-8"))
    return Node("".join(said[_NODE_TYPE]), tuple(said[_NODE_INPUT]), tuple(said[_NODE_OUTPUT]))


def with_outputs(model: bytes, tensors: Sequence[str]) -> bytes:
    """The ONNX model whose graph also gives `tensors`, by their names, after its own outputs.

    A message that is written twice is one: what is repeated in it comes one after the other, and a parser must read it
    so (protobuf.dev, "Last One Wins"). Nothing of the graph itself is touched.
    """
    outputs = b"".join(_message(_GRAPH_OUTPUT, _message(_VALUE_NAME, name.encode())) for name in tensors)
    return model + _message(_MODEL_GRAPH, outputs)


def _message(number: int, content: bytes) -> bytes:
    return _as_varint(number << 3 | 2) + _as_varint(len(content)) + content


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
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


def varints(data: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


def as_bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message is expected")
    return value
