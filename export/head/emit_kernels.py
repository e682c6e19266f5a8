"""Kernels with support vectors as ONNX.

A kernel of vectors that are close together, for its γ, is next to the same number for all: a decision is then a small
difference of sums that are thousands of times larger, of which float32 keeps nothing. `ir.Kernel.centre` takes that
number away before it is rounded: what is summed is the kernel's difference from that of a point amid the vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mpmmu_rt.spec import Array

from . import ir
from .emit_curves import exp_minus_one
from .graph import Graph

if TYPE_CHECKING:
    from .emit import Emitter

_GAMMA_LOW, _GAMMA_HIGH = 1e-12, 1e12


def kernel(emitter: Emitter, x: str, node: ir.Kernel) -> str:
    """[N, vectors] of x [N, F]."""
    if node.centre is not None:
        return _differences(emitter, x, node, node.centre)
    if node.kind == "rbf":
        return _rbf(emitter, x, node.vectors, node.gamma)
    inner = emitter.affine(x, node.gamma * node.vectors.T, np.full(len(node.vectors), node.coef0))
    if node.kind == "sigmoid":
        return emitter.graph.op("Tanh", inner)
    return _power(emitter.graph, inner, node.degree)


def _rbf(emitter: Emitter, x: str, vectors: Array, gamma: float) -> str:
    """exp(-γ|x-v|²) by one matrix product; both sides are centred first, which no distance notices, so that
    |x|² + |v|² - 2x·v does not cancel."""
    graph = emitter.graph
    centre = vectors.mean(axis=0)
    if (np.abs(centre) > vectors.std(axis=0)).any():
        x, vectors = emitter.shift(x, centre), vectors - centre
    x, vectors, gamma = _scaled(graph, x, vectors, gamma)
    bias = -gamma * (vectors**2).sum(axis=1)
    return graph.op("Exp", _exponent(emitter, x, vectors, gamma, bias))


def _scaled(graph: Graph, x: str, vectors: Array, gamma: float) -> tuple[str, Array, float]:
    """Embeddings of an extreme scale, of which |x|² or γ alone would leave the range of float32, brought into it."""
    if _GAMMA_LOW < gamma < _GAMMA_HIGH:
        return x, vectors, gamma
    return graph.op("Mul", x, graph.scalar(gamma**0.5)), vectors * gamma**0.5, 1.0


def _exponent(emitter: Emitter, x: str, vectors: Array, gamma: float, bias: Array | None) -> str:
    """γ (2 x·v - |x|²) + bias."""
    graph = emitter.graph
    cross = emitter.affine(x, 2 * gamma * vectors.T, bias)
    square = graph.op("ReduceSum", graph.op("Mul", x, x), graph.constant(np.array([1])))
    return graph.op("Sub", cross, graph.op("Mul", square, graph.scalar(gamma)))


def _differences(emitter: Emitter, x: str, node: ir.Kernel, centre: Array) -> str:
    """K(x, v) - K(c, v), from u = x - c."""
    graph, at_centre = emitter.graph, node.exact(centre[None])[0]
    u = emitter.shift(x, centre)
    if node.kind == "rbf":  # K(c, v) (exp(γ (2 u·(v - c) - |u|²)) - 1)
        u, around, gamma = _scaled(graph, u, node.vectors - centre, node.gamma)
        grown = exp_minus_one(graph, _exponent(emitter, u, around, gamma, None))
        return graph.op("Mul", grown, graph.constant(at_centre[None]))
    start = node.gamma * centre @ node.vectors.T + node.coef0
    moved = emitter.affine(u, node.gamma * node.vectors.T)
    if node.kind == "sigmoid":  # tanh(s + e) - tanh(s), by its addition theorem
        rise = graph.op("Tanh", moved)
        grown = graph.op("Mul", rise, graph.constant((1 - at_centre**2)[None]))
        below = graph.op("Add", graph.op("Mul", rise, graph.constant(at_centre[None])), graph.scalar(1.0))
        return graph.op("Div", grown, below)
    # (s + e)ᵈ - sᵈ = e Σ (s + e)ᵏ sᵈ⁻¹⁻ᵏ, by Horner's scheme
    whole = graph.op("Add", moved, graph.constant(start[None]))
    terms = graph.constant(np.ones((1, 1)) * float(node.degree > 0))
    for power in range(1, node.degree):
        terms = graph.op("Add", graph.op("Mul", terms, whole), graph.constant(start[None] ** power))
    return graph.op("Mul", moved, terms)


def _power(graph: Graph, x: str, degree: int) -> str:
    """By products: engines differ on Pow of a negative base."""
    if degree == 0:
        return graph.op("Add", graph.op("Mul", x, graph.scalar(0.0)), graph.scalar(1.0))
    power = x
    for bit in bin(degree)[3:]:
        power = graph.op("Mul", power, power)
        if bit == "1":
            power = graph.op("Mul", power, x)
    return power
