"""A typed graph on the CPU, with the rounding that its types ask for: a proof of the graph, not of an engine.

ONNX Runtime's CPU provider computes FP16 in float32 and drops the casts, and has no BF16 convolution: it would find
neither rounding nor overflow. `onnx.reference` has both, but takes minutes for a convolution of real size, and can't
gather along a long axis. So: `onnx.reference`, with these few operators put in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from mpmmu_rt.errors import ExportError
from mpmmu_rt.spec import Array

_CONVOLUTIONS = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}


class Rounded:
    """`model` (with its weights, of any types), ready to `run`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._names = [item.name for item in model.graph.output]
        self._evaluator = ReferenceEvaluator(model, new_ops=[Conv, MaxPool, GatherElements])

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output. Each value is rounded to its type; overflow gives infinity, as it would on a device."""
        with np.errstate(all="ignore"):
            return dict(zip(self._names, self._evaluator.run(self._names, dict(feeds)), strict=True))


class Conv(OpRun):  # type: ignore[misc]
    """By torch in float32, rounded once at the end, as tensor cores do. onnx.reference loops over the positions."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        *,
        auto_pad: str | None = None,
        dilations: Sequence[int] | None = None,
        group: int | None = None,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        dims = weight.ndim - 2
        out = _CONVOLUTIONS[dims](
            _float32(x),
            _float32(weight),
            None if bias is None else _float32(bias),
            stride=tuple(strides or [1] * dims),
            padding=_padding(pads, dims, auto_pad),
            dilation=tuple(dilations or [1] * dims),
            groups=group or 1,
        )
        return (out.numpy().astype(x.dtype),)


class MaxPool(OpRun):  # type: ignore[misc]
    """By torch; a maximum rounds nothing."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        *,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        storage_order: int | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        kernel = tuple(kernel_shape or ())
        if len(kernel) != 2 or len(self.onnx_node.output) != 1:
            raise ExportError(
                f"the MaxPool `{self.onnx_node.name}` has {len(kernel)} dimensions and {len(self.onnx_node.output)} "
                "outputs, expected 2 and 1",
                hint="export for a target that runs here",
            )
        out = torch.nn.functional.max_pool2d(
            _float32(x),
            kernel,
            tuple(strides or [1, 1]),
            _padding(pads, 2, auto_pad),
            tuple(dilations or [1, 1]),
            bool(ceil_mode),
        )
        return (out.numpy().astype(x.dtype),)


class GatherElements(OpRun):  # type: ignore[misc]
    """onnx.reference can't gather from more than 64 values along an axis."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, *, axis: int | None = None) -> tuple[Array]:
        return (np.take_along_axis(data, indices, axis or 0),)


def _padding(pads: Sequence[int] | None, dims: int, auto_pad: str | None) -> tuple[int, ...]:
    """torch pads both sides alike. Raises `ExportError` for what else ONNX can say."""
    sides = tuple(pads or [0] * 2 * dims)
    if auto_pad not in (None, "NOTSET") or sides[:dims] != sides[dims:]:
        raise ExportError(
            f"an operator pads by {list(sides)} ({auto_pad}), expected the same on both sides",
            hint="export for a target that runs here",
        )
    return sides[:dims]


def _float32(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.float32))  # a copy: weights are read-only here
