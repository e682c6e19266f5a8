"""The scikit-learn head as one small ONNX graph: `lower`.

    scikit-learn ─ families ─▶ expression (`ir`) ─ thresholds: scalers folded into trees ─▶ emit ─▶ ONNX

Trees take the same leaf as scikit-learn for every float32 embedding, as long as a feature comes from one column of the
embedding through scalers, selectors and compositions of these, or is a share of whole votes (of pure leaves). Behind a
projection (PCA, Normalizer) or on other probabilities of other learners they are evaluated on float32 values that may
differ from scikit-learn's in the last bits. All else is float32 arithmetic, within 1e-5 in probability, or the report's
`notes` say where not. An embedding that holds NaN or infinity gives the probability NaN, which the Predictor refuses,
and so does one of which anything makes such a number on the way (`guard`).

A family of estimators is one module that registers itself in `families`, and its name in `_FAMILIES`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx

from mpmmu_rt.errors import UnsupportedEstimator
from mpmmu_rt.export.graphs import ML_OPSET, OPSET, clean
from mpmmu_rt.spec import Array

from . import (
    adaboost,
    bins,
    calibration,
    decision_threshold,
    discriminant,
    emit_forest,
    families,
    forest,
    guard,
    histogram,
    holders,
    ir,
    lgbm,
    linear,
    mlp,
    neighbours,
    power,
    preprocessing,
    quantile,
    selection,
    stacking,
    svm,
    thresholds,
    xgb,
)
from .decision_threshold import operating_threshold as operating_threshold
from .emit import Emitter, Products
from .graph import Graph

HeadEngine = Literal["portable", "onnxruntime"]
REPORT_KEY = "mpmmu.head"
# A family is a module that registers its estimators in `families`; a new one is named here.
_FAMILIES = (
    *(adaboost, bins, calibration, decision_threshold, discriminant, forest, histogram, holders, lgbm, linear, mlp),
    *(neighbours, power, preprocessing, quantile, selection, stacking, svm, xgb),
)


def lower(
    estimator: Any, n_features: int, engine: HeadEngine = "portable", *, products: Products = "gemm"
) -> onnx.ModelProto:
    """A fitted binary classifier as a graph.

    Input `embedding` float32 [N, n_features]; outputs `probability` float32 [N], of class 1, and `base_probability`
    float32 [N, learners]: what each learner of a stack or vote says (a learner without predict_proba: what the stack
    takes from it); for any other classifier, the probability itself. "portable" uses operators of the standard domain
    only; "onnxruntime" may use the tree operator of `ai.onnx.ml`. products="convolution" is for TensorRT-RTX on Turing,
    which has no float32 matrix products. `report` reads what was decided.

    Raises `UnsupportedEstimator` that names the path inside the estimator, its class, and what is supported.
    """
    fitted = getattr(estimator, "n_features_in_", n_features)
    if fitted != n_features:
        raise UnsupportedEstimator(
            f"the head was fitted on {fitted} features and the encoders give {n_features}, expected the same",
            hint="fit the head on the embeddings of these encoders",
        )
    embedding = ir.Embedding(n_features)
    probability, base = _translate(estimator, embedding, "head")
    if not _within(probability):  # a probability that rounds to more than 1 would be refused as none
        clipped = ir.Clip(1, probability, 0.0, 1.0)
        base = tuple(clipped if node is probability else node for node in base)
        probability = clipped
    graph = Graph(portable=engine == "portable")
    emitter = Emitter(graph, products)
    emitter.names[id(embedding)] = "embedding"
    strategies = _write_forests(emitter, [probability, *base], embedding, engine)
    whole = emitter.write(probability)
    parts = [emitter.write(node) for node in base]
    answered = guard.finite(emitter, [probability, *base], embedding, parts)
    kept = graph.op("Where", answered, whole, graph.scalar(float("nan")))
    graph.op("Reshape", kept, graph.constant(np.array([-1])), output="probability")
    graph.op("Concat", *parts, axis=1, output="base_probability")
    model = clean(graph.model(n_features, len(parts), OPSET, ML_OPSET))
    notes = [note for node in ir.walk(probability) if (note := getattr(node, "note", ""))]
    learners = _learners(estimator, len(parts))
    entry = {"engine": engine, "products": products, "learners": learners, "forests": strategies, "notes": notes}
    model.metadata_props.add(key=REPORT_KEY, value=json.dumps(entry))
    return model


def _within(probability: ir.Node) -> bool:
    """Whether an expression is in 0..1 whatever is rounded."""
    match probability:
        case ir.Product():
            return probability.activation == "logistic"
        case ir.Share() | ir.Clip():
            return (probability.low, probability.high) == (0.0, 1.0)
    return False


def report(model: onnx.ModelProto) -> dict[str, Any]:
    """What `lower` decided: `engine`, `products`, `learners` (their names, as `base_probability` has them), `forests`
    (how each tensor's trees are evaluated), and `notes` for the user."""
    entry: dict[str, Any] = json.loads(next(item.value for item in model.metadata_props if item.key == REPORT_KEY))
    return entry


def _translate(estimator: Any, x: ir.Node, path: str) -> tuple[ir.Node, tuple[ir.Node, ...]]:
    """The probability, and those of the learners below it."""
    estimator, path = families.unwrap(estimator, path)
    families.require(families.PROBABILITIES, estimator, x, path, "classifier with predict_proba")
    kind = type(estimator).__name__
    if kind == "Pipeline":
        name, last = estimator.steps[-1]
        return _translate(last, stacking.before_last(estimator, x, path), f"{path}.{name}")
    if kind == "StackingClassifier":
        return stacking.stack(estimator, x, path)
    whole = families.probability(estimator, x, path)
    if kind == "VotingClassifier" and isinstance(whole, ir.Share) and isinstance(whole.x, ir.Sum):
        return whole, whole.x.parts
    return whole, (whole,)


def _learners(estimator: Any, count: int) -> list[str]:
    """What the parts that `_translate` gave are called."""
    estimator, path = families.unwrap(estimator, "head")
    kind = type(estimator).__name__
    if kind == "Pipeline":
        return _learners(estimator.steps[-1][1], count)
    names = stacking.names(estimator, path) if kind in ("StackingClassifier", "VotingClassifier") else []
    return names if len(names) == count else ["head"]


def _write_forests(
    emitter: Emitter, roots: list[ir.Node], embedding: ir.Embedding, engine: HeadEngine
) -> list[dict[str, Any]]:
    """Write every forest; those that read only the embedding together. Returns what was chosen, for the report."""
    exact: list[tuple[ir.Forest, _Folding]] = []
    computed: list[tuple[ir.Forest, _Folding]] = []
    for node in ir.walk(*roots):
        if isinstance(node, ir.Forest):
            folding = _fold(node, embedding)
            plain = all(isinstance(source, ir.Embedding) for source in folding.sources) and folding.exact
            (exact if plain else computed).append((node, folding))
    chosen = []
    if exact:
        merged = emit_forest.merge([(node.trees, f.feature, f.threshold, node.bias) for node, f in exact])
        chosen.append(_write_forest(emitter, "embedding", merged, [node for node, _ in exact], engine, exact=True))
    for node, f in computed:
        x = emitter.graph.beside([emitter.write(source) for source in f.sources])
        merged = emit_forest.merge([(node.trees, f.feature, f.threshold, node.bias)])
        known = f.exact and _known(f)
        chosen.append(_write_forest(emitter, x, merged, [node], engine, exact=known))
    return chosen


def _known(folding: _Folding) -> bool:
    """Whether all that is asked is exact."""
    asked = np.unique(folding.feature[folding.feature >= 0])
    owner = [(source, column) for source in folding.sources for column in range(source.width)]
    return all(thresholds.exact(*owner[int(one)]) for one in asked)


@dataclass(frozen=True)
class _Folding:
    """Where a forest's decisions are taken: on the columns of `sources`, side by side. Thresholds are float32; both
    arrays are as long as the forest's nodes. exact: for every float32 value of the sources."""

    feature: Array
    threshold: Array
    sources: tuple[ir.Node, ...]
    exact: bool


def _fold(node: ir.Forest, embedding: ir.Embedding) -> _Folding:
    """Every decision on the embedding itself where a feature comes from one column of it, or on the votes of one
    ensemble; any other on the forest's input, as it is computed."""
    trees = node.trees
    inner = np.flatnonzero(trees.feature >= 0)
    routes = {int(feature): thresholds.route(node.x, int(feature)) for feature in np.unique(trees.feature[inner])}
    origin = {one: (node.x, one) if route is None else (route.source, route.column) for one, route in routes.items()}
    sources, place = thresholds.side_by_side(list(origin.values()))
    where = dict(zip(origin, place, strict=True))
    feature, threshold = trees.feature.copy(), np.zeros(len(trees.feature), np.float32)
    feature[inner] = [where[int(one)] for one in trees.feature[inner]]
    direct = inner[[routes[int(one)] is not None for one in trees.feature[inner]]]
    found = [route for one in trees.feature[direct] if (route := routes[int(one)]) is not None]
    threshold[direct] = thresholds.fold(found, trees.threshold[direct], double=node.double)
    rest = np.setdiff1d(inner, direct)
    rounded = thresholds.nearest if node.double else thresholds.round_down
    threshold[rest] = rounded(trees.threshold[rest])
    if node.at_values or node.double:
        aside = thresholds.lowered if node.at_values else thresholds.raised
        computed = direct[[not thresholds.whole(route.source) for route in found]]
        inexact = rest[[not thresholds.exact(node.x, int(one)) for one in trees.feature[rest]]]
        threshold[computed] = aside(threshold[computed], 1.0)
        threshold[inexact] = aside(threshold[inexact])
    exact = all(route is None or route.exact for route in routes.values())
    return _Folding(feature, threshold, sources or (embedding,), exact)


def _write_forest(
    emitter: Emitter, x: str, merged: emit_forest.Folded, nodes: list[ir.Forest], engine: HeadEngine, *, exact: bool
) -> dict[str, Any]:
    if emitter.graph.portable:
        merged = replace(merged, threshold=thresholds.normal(merged.threshold))
    strategy = emit_forest.choose(merged, engine)
    if strategy == "product" and emitter.products != "gemm":
        strategy = "traversal"  # the other's products are of stacks of matrices
    for node, name in zip(nodes, emit_forest.write(emitter.graph, x, merged, strategy), strict=True):
        emitter.names[id(node)] = name
    counted = Counter(merged.output.tolist())
    return {"strategy": strategy, "trees": [counted[k] for k in sorted(counted)], "depth": merged.depth, "exact": exact}
