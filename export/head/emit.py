"""The intermediate form as ONNX operators of the standard domain (trees: `emit_forest`)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mpmmu_rt.spec import Array

from . import emit_curves, emit_kernels, emit_split, emit_steps, ir
from .graph import Graph

_FLOAT32_MAX = float(np.finfo(np.float32).max)
# A shift's float32 remainder is subtracted too if it would move the scaled value by more than this.
_REMAINDER = 1e-8
_FAR = 16  # deviations from zero: an offset that costs a digit and more where it is subtracted late
_ROUNDS, _STOP = 2, 0.005 / 2  # of libsvm's coupling of two classes


# How a matrix product is written: as such, or as a convolution of 1 × 1 images. TensorRT-RTX has no float32 matrix
# product on compute capability 7.5 (Turing), but convolves there; products in float16 cost 1e-3 in probability.
Products = Literal["gemm", "convolution"]


class Emitter:
    """Writes nodes into a graph, each once. `names` holds those that were written, forests beforehand; `inside` what
    they were made of: a product before its activation, the norm of rows."""

    def __init__(self, graph: Graph, products: Products = "gemm") -> None:
        self.graph = graph
        self.products = products
        self.names: dict[int, str] = {}
        self.inside: dict[int, str] = {}

    def write(self, node: ir.Node) -> str:
        """The name of the value of `node`; writes whatever it needs."""
        stack = [node]
        while stack:
            one = stack[-1]
            missing = [child for child in ir.inputs(one) if id(child) not in self.names]
            if id(one) in self.names:
                stack.pop()
            elif missing:
                stack.extend(reversed(missing))
            else:
                self.names[id(stack.pop())] = self._write(one)
        return self.names[id(node)]

    def _write(self, node: ir.Node) -> str:
        graph = self.graph
        match node:
            case ir.Embedding():
                return "embedding"
            case ir.Select():
                return graph.op("Gather", self._of(node.x), graph.constant(node.index), axis=1)
            case ir.Concat():
                return graph.op("Concat", *(self._of(part) for part in node.parts), axis=1)
            case ir.Elementwise():
                return self._elementwise(node)
            case ir.Normalise():
                return self._normalise(node)
            case ir.Product():
                return self._product(node)
            case ir.Square():
                return graph.op("Mul", self._of(node.x), self._of(node.x))
            case ir.Kernel():
                return emit_kernels.kernel(self, self._of(node.x), node)
            case ir.Interpolate():
                return self._interpolate(node)
            case ir.Clip():
                return self._clip(self._of(node.x), node.low, node.high)
            case ir.Logit():
                sides = [graph.op("Add", self._of(side), graph.scalar(node.epsilon)) for side in ir.inputs(node)]
                return graph.op("Sub", *(graph.op("Log", side) for side in sides))
            case ir.Coupling():
                return self._coupling(self._of(node.x))
            case ir.Above():
                kind = "GreaterOrEqual" if node.inclusive else "Greater"
                above = graph.op(kind, self._of(node.x), graph.scalar(node.threshold))
                return graph.op("Cast", above, to=1)
            case ir.Curve():
                return emit_curves.curve(graph, self.write, node)
            case ir.YeoJohnson():
                return emit_curves.yeo_johnson(graph, self._of(node.x), node.powers)
            case ir.Within():
                return emit_steps.within(graph, self.write, node)
            case ir.Count():
                return emit_steps.count(graph, self._of(node.x), node)
            case ir.Sum():
                return self._sum(node)
            case ir.Share():
                x = self._of(node.x)
                if node.count != 1:
                    x = graph.op("Div", x, graph.scalar(node.count))
                return self._clip(x, node.low, node.high)
        raise TypeError(f"no operator for {type(node).__name__}")

    def _of(self, node: ir.Node) -> str:
        return self.names[id(node)]

    def shift(self, x: str, offset: Array, scale: float | Array = 1.0) -> str:
        """x - offset, to float32's last bit even for an offset that dwarfs the differences: offset = high + low."""
        high = offset.astype(np.float32)
        low = (offset - high).astype(np.float32)
        if high.any():
            x = self.graph.op("Sub", x, self.graph.constant(high))
        if (np.abs(low * scale) > _REMAINDER).any():
            x = self.graph.op("Sub", x, self.graph.constant(low))
        return x

    def affine(self, x: str, weight: Array, bias: Array | None = None) -> str:
        """x @ weight + bias, as the one operator or the three of `products`."""
        graph = self.graph
        added = [] if bias is None else [graph.constant(bias)]
        if self.products == "gemm":
            return graph.op("Gemm" if added else "MatMul", x, graph.constant(weight), *added)
        image = graph.op("Reshape", x, graph.constant(np.array([-1, weight.shape[0], 1, 1])))
        filtered = graph.op("Conv", image, graph.constant(weight.T[:, :, None, None]), *added)
        return graph.op("Reshape", filtered, graph.constant(np.array([-1, weight.shape[1]])))

    def _elementwise(self, node: ir.Elementwise) -> str:
        x = self.shift(self._of(node.x), node.offset, node.scale)
        scale = np.clip(node.scale, -_FLOAT32_MAX, _FLOAT32_MAX)
        if (np.abs(node.offset) * scale > _FAR).any():
            # OpenVINO would make x / scale - offset / scale of it, which rounds where x - offset does not.
            x = self._clip(x, -_FLOAT32_MAX, _FLOAT32_MAX)
        if (scale != 1).any():  # divided where scikit-learn divides: far from zero the last bit counts
            by = 1 / np.maximum(scale, 1 / _FLOAT32_MAX) if node.divides else scale
            x = self.graph.op("Div" if node.divides else "Mul", x, self.graph.constant(by))
        return self._clip(x, node.low, node.high)

    def _clip(self, x: str, low: float, high: float) -> str:
        if np.isinf(low) and np.isinf(high):
            return x
        return self.graph.op("Clip", x, self.graph.scalar(low), self.graph.scalar(high))

    def _normalise(self, node: ir.Normalise) -> str:
        graph, x = self.graph, self._of(node.x)
        axes = graph.constant(np.array([1]))
        if node.norm == "l2":
            square = graph.op("ReduceSum", graph.op("Mul", x, x), axes)
            norm = graph.op("Sqrt", square)
        else:
            norm = graph.op({"l1": "ReduceSum", "max": "ReduceMax"}[node.norm], graph.op("Abs", x), axes)
        self.inside[id(node)] = norm
        # scikit-learn leaves a row alone whose norm is below ten rounding units.
        units = np.finfo(np.float64 if node.double else np.float32).eps
        tiny = graph.op("Less", norm, graph.scalar(10 * float(units)))
        return graph.op("Div", x, graph.op("Where", tiny, graph.scalar(1.0), norm))

    def _product(self, node: ir.Product) -> str:
        graph, x = self.graph, self._of(node.x)
        if node.centre is not None:
            x = self.shift(x, node.centre)
        if emit_split.splits(node):
            parts, weight, bias = emit_split.affine(graph, x, node.weight, node.bias)
            x = emit_split.total(graph, self.affine(parts, weight), bias, node.weight.shape[1])
        elif node.weight.shape == (1, 1):
            if node.weight[0, 0] != 1:
                x = graph.op("Mul", x, graph.constant(node.weight))
            if node.bias.any():
                x = graph.op("Add", x, graph.constant(node.bias))
        else:
            x = self.affine(x, node.weight, node.bias)
        if node.activation == "identity":
            return x
        self.inside[id(node)] = x
        if node.activation == "tail":  # ONNX Runtime's Sigmoid is 17 % off at -15 and zero below -18
            unit = graph.scalar(1.0)
            negative = graph.op("Mul", x, graph.scalar(-1.0))
            return graph.op("Div", unit, graph.op("Add", unit, graph.op("Exp", negative)))
        return graph.op({"logistic": "Sigmoid", "tanh": "Tanh", "relu": "Relu"}[node.activation], x)

    def _sum(self, node: ir.Sum) -> str:
        parts = self.graph.op("Concat", *(self._of(part) for part in node.parts), axis=1)
        if set(node.weights) == {1.0}:  # of whole votes exact in any order
            return self.graph.op("ReduceSum", parts, self.graph.constant(np.array([1])))
        return self.affine(parts, np.array(node.weights)[:, None])

    def _coupling(self, one: str) -> str:
        """libsvm's multiclass_probability of two classes. With s Platt's probability of class 1, p its estimate and
        e = p - s, a round updates both classes in turn and normalises: the formulas are libsvm's, simplified."""
        graph = self.graph
        unit = graph.scalar(1.0)
        zero = graph.op("Sub", unit, one)  # s of class 0, as libsvm does
        p = graph.scalar(0.5)  # of class 0
        for _ in range(_ROUNDS):
            error = graph.op("Sub", p, zero)
            rest = graph.op("Sub", unit, p)
            residual = graph.op("Mul", graph.op("Abs", error), graph.op("Max", p, rest))
            done = graph.op("Less", residual, graph.scalar(_STOP))
            slip = graph.op("Div", graph.op("Mul", error, rest), graph.op("Mul", one, one))
            first = graph.op("Div", graph.op("Sub", p, slip), graph.op("Sub", unit, slip))
            push = graph.op("Mul", graph.op("Sub", first, zero), first)
            both = graph.op("Add", unit, graph.op("Div", push, graph.op("Mul", zero, zero)))
            p = graph.op("Where", done, p, graph.op("Div", first, both))
        return graph.op("Sub", unit, p)

    def _interpolate(self, node: ir.Interpolate) -> str:
        """By how far x is beyond each breakpoint, which is exact near it, and from which one on it rises."""
        graph, x, xs, ys = self.graph, self._of(node.x), node.xs, node.ys
        if len(xs) == 1:
            return graph.op("Add", graph.op("Mul", x, graph.scalar(0.0)), graph.scalar(float(ys[0])))
        high = xs.astype(np.float32)
        beyond = graph.op("Sub", x, graph.constant(high))
        low = graph.constant((xs - high).astype(np.float32))
        if node.rest is None:
            beyond = graph.op("Sub", beyond, low)
        else:
            beyond = graph.op("Add", beyond, graph.op("Sub", self._of(node.rest), low))
        passed = graph.op("GreaterOrEqual", beyond, graph.scalar(0.0))
        within = graph.constant(np.r_[False, np.ones(len(xs) - 2, bool), False].astype(np.float32))
        counted = graph.op("Mul", graph.op("Cast", passed, to=1), within)
        segment = graph.op("Cast", graph.op("ReduceSum", counted, graph.constant(np.array([1]))), to=7)
        with np.errstate(divide="ignore", over="ignore"):
            slope = np.clip(np.diff(ys) / np.diff(xs), 0, _FLOAT32_MAX)
        steep, base, top = (
            graph.op("Gather", graph.constant(table), segment, axis=0) for table in (slope, ys[:-1], ys[1:])
        )
        # Held below the first breakpoint; a steep step between neighbours must not overshoot its upper end.
        run = graph.op("Max", graph.op("GatherElements", beyond, segment, axis=1), graph.scalar(0.0))
        return graph.op("Min", graph.op("Add", graph.op("Mul", run, steep), base), top)
