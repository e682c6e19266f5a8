"""`config.pbtxt`: Triton's ModelConfig as protobuf text. A test parses each with Triton's own schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TYPES = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float16": "TYPE_FP16", "float32": "TYPE_FP32"}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a model. dims: without the batch, -1 for any length. ragged: requests of several lengths share a
    batch. scalar: the graph has no such dimension, and Triton, which knows no tensor without one, adds it."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False
    ragged: bool = False
    scalar: bool = False

    def text(self) -> str:
        more = " optional: true" if self.optional else ""
        more += " allow_ragged_batch: true" if self.ragged else ""
        more += " reshape: { shape: [] }" if self.scalar else ""
        return f"{{ name: {quoted(self.name)} data_type: {TYPES[self.dtype]} dims: {list(self.dims)}{more} }}"


@dataclass(frozen=True)
class Batching:
    """most: cases in a batch. preferred: sizes that are run at once; none for any. delay_us: how long a case may wait
    for others."""

    most: int
    preferred: tuple[int, ...] = ()
    delay_us: int = 0

    def text(self) -> str:
        sizes = f"  preferred_batch_size: {list(self.preferred)}\n" if self.preferred else ""
        return f"dynamic_batching {{\n{sizes}  max_queue_delay_microseconds: {self.delay_us}\n}}\n"


@dataclass(frozen=True)
class Instances:
    """count: processes, on each of the GPUs where it is for one: those of `gpus`, or all if none is named."""

    count: int = 1
    gpu: bool = False
    gpus: tuple[int, ...] = ()

    def text(self) -> str:
        where = f"KIND_GPU{f' gpus: {list(self.gpus)}' if self.gpus else ''}" if self.gpu else "KIND_CPU"
        return f"instance_group [ {{ kind: {where} count: {self.count} }} ]\n"


def model(
    name: str,
    backend: str,
    tensors: tuple[Sequence[Tensor], Sequence[Tensor]],
    batching: Batching,
    instances: Instances,
    parameters: Mapping[str, str],
) -> str:
    """The configuration of a model that a backend runs. tensors: its inputs and its outputs."""
    return (
        _head(name, f"backend: {quoted(backend)}", batching.most, tensors)
        + batching.text()
        + instances.text()
        + "".join(_parameter(key, value) for key, value in parameters.items())
    )


def ensemble(
    name: str,
    tensors: tuple[Sequence[Tensor], Sequence[Tensor]],
    most: int,
    steps: Sequence[tuple[str, Mapping[str, str], Mapping[str, str]]],
    parameters: Mapping[str, str],
) -> str:
    """The configuration of a model that is others, joined. steps: the name of each, and what its inputs and outputs are
    called in the ensemble."""
    texts = []
    for step, inputs, outputs in steps:
        maps = [
            f"      {kind} {{ key: {quoted(key)} value: {quoted(value)} }}\n"
            for kind, pairs in (("input_map", inputs), ("output_map", outputs))
            for key, value in pairs.items()
        ]
        texts.append(f"    {{\n      model_name: {quoted(step)}\n      model_version: -1\n{''.join(maps)}    }}")
    joined = ",\n".join(texts)
    return (
        _head(name, 'platform: "ensemble"', most, tensors)
        + f"ensemble_scheduling {{\n  step [\n{joined}\n  ]\n}}\n"
        + "".join(_parameter(key, value) for key, value in parameters.items())
    )


def _head(name: str, kind: str, most: int, tensors: tuple[Sequence[Tensor], Sequence[Tensor]]) -> str:
    lines = [
        f"name: {quoted(name)}",
        kind,
        f"max_batch_size: {most}",
        "version_policy: { latest: { num_versions: 1 } }",
    ]
    for key, group in zip(("input", "output"), tensors, strict=True):
        lines += [f"{key} [", ",\n".join(f"  {tensor.text()}" for tensor in group), "]"]
    return "\n".join(lines) + "\n"


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {quoted(key)} value: {{ string_value: {quoted(value)} }} }}\n"


def quoted(text: str) -> str:
    """A string of protobuf's text format, which takes JSON's escapes of ASCII."""
    return json.dumps(text)
