"""A module to an ONNX graph whose batch is dynamic, by torch's exporter, and why it can't be had."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from mpmmu_rt.errors import ExportError

from .graphs import OPSET, clean
from .reasons import first_cause, one_line, place
from .simplify import simplify

TRACE_BATCH = 2  # torch specialises on a batch of 1
_MAX_BATCH = 4096
_OWN = str(Path(__file__).resolve().parent)
_BY_NUMBER = (
    "compute all cases at once: no Python loop over them, no `if` and no fixed shape that depends on their number"
)
_DRAWING = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
# They warn of each torchvision operator that the exporter can't register, and say again what is raised.
_LOUD = ("torch.onnx._internal.exporter._registration", "torch.fx.experimental.symbolic_shapes", "torch._dynamo")


def trace(
    module: nn.Module, example: tuple[Tensor, ...], inputs: Sequence[str], output: str, name: str = ""
) -> onnx.ModelProto:
    """The graph of `module`, whose inputs and output have the batch N in front.

    name: what messages call it. Raises `ExportError` with torch's own reason, and for a graph that only some numbers of
    cases go through.
    """
    name = name or f"the graph of `{output}`"
    batch = torch.export.Dim("N", min=1, max=_MAX_BATCH)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=tuple({0: batch} for _ in example),
                optimize=False,  # see `simplify`
                verbose=False,
            )
            if program is not None:
                simplify(program.model)
    # Dynamo raises what the module's own code raises: no common base.
    except Exception as error:
        cause = first_cause(error)
        raise ExportError(
            f"torch can't export {name}: {one_line(cause)}{place(cause, _OWN)}", hint=_hint(cause)
        ) from error
    if program is None:
        raise ExportError(f"torch exported nothing for {name}, expected a graph", hint="update torch")
    _require_every_batch(program, name)
    _require_no_chance(program, name)
    return clean(program.model_proto)


def _hint(cause: BaseException) -> str:
    if isinstance(cause, GuardOnDataDependentSymNode):
        return "a graph has no `if` on values and no shape from them: compute both ways and choose with torch.where"
    if "No ONNX function found" in str(cause) or "DispatchError" in type(cause).__name__:
        return "compute it by operators that ONNX has, such as sort for median, or torch.einsum"
    return (
        "the module must be traceable by torch.export with a dynamic batch: tensors in, torch operators, a tensor out"
    )


def _require_every_batch(program: Any, name: str) -> None:
    """torch's exporter turns a batch that the module's code fixes, or bounds, into one that the graph has."""
    graph = program.model_proto.graph
    for value in (*graph.input, *graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if not first.dim_param:
            raise ExportError(
                f"{name} is exported for {first.dim_value} cases alone: its code depends on their number, expected "
                "any number",
                hint=_BY_NUMBER,
            )
    for bounds in program.exported_program.range_constraints.values():
        if bounds.upper < _MAX_BATCH or bounds.lower > TRACE_BATCH:
            raise ExportError(
                f"{name} is exported for {max(1, int(bounds.lower))} to {bounds.upper} cases alone: its code takes "
                "another way for other numbers, expected one way for any number",
                hint=_BY_NUMBER,
            )


def _require_no_chance(program: Any, name: str) -> None:
    """Numbers that a module draws alike in every call, from a seed of its own, an engine draws anew."""
    for node in program.model_proto.graph.node:
        if node.op_type in _DRAWING or (node.op_type == "Dropout" and len(node.input) > 2):
            raise ExportError(
                f"{name} draws random numbers ({node.op_type} in its graph), expected none: a graph has no seed",
                hint="keep them in a buffer of the module, or leave them out of evaluation mode",
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What torch's exporter says beside what it raises: warnings, and the part of a graph that it got to."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            # torch's exporter calls what torch itself deprecates.
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            # A feature map that a module keeps; what the graph says without it is held to the original.
            warnings.filterwarnings(
                "ignore", message="The tensor attribute.* assigned during export", category=UserWarning
            )
            # Both inputs of the pool share the batch N, which is meant.
            warnings.filterwarnings("ignore", message="# The axis name: N", category=UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
