"""Trees take scikit-learn's own leaf, for every float32 embedding.

How a single wrong leaf in hundreds of trees is seen: copies of the fitted trees get leaf values that name the leaf,
exact in float32, and every tree (or the digits of one sum) is compared for equality with scikit-learn's answer for
the same copy. Inputs lie on, one ulp below and one ulp above every split's threshold in the space of the embedding,
in rows that satisfy the decisions above that split, so that each one really is asked.

Why that proves more than these inputs: scikit-learn's decision at a split is monotone in the embedding's value, and
so is ours; two monotone step functions that agree on both sides of one of the steps are the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline
from sklearn.preprocessing import LabelEncoder, MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier

from mpmmu_rt.export.head import emit_forest, families, ir, lower, report, thresholds
from mpmmu_rt.export.head.emit_forest import Folded
from mpmmu_rt.export.head.graph import Graph
from mpmmu_rt.spec import Array

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Dead channels, in SelectKBest's F test.
    pytest.mark.filterwarnings("ignore:Features .* are constant:UserWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning"),
    # The largest floats, in scikit-learn's own search for NaN.
    pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered in reduce:RuntimeWarning"),
]

STRATEGIES = ("operator", "traversal", "product")
MAX = float(np.finfo(np.float32).max)
_CHUNK = 2**22  # values of the embedding that are checked at a time


# ---------------------------------------------------------------- trees whose values name their leaves


def units(estimator: Any) -> list[Any]:
    """Classifiers that are one coded tree each (of a boosting: as many as fit into one exact sum)."""
    kind = type(estimator).__name__
    if kind == "GradientBoostingClassifier":
        return _coded_boosting(estimator)
    if kind == "HistGradientBoostingClassifier":
        return _coded_histogram(estimator)
    trees = estimator.estimators_ if hasattr(estimator, "estimators_") else [estimator]
    return [_coded_tree(tree) for tree in trees]


def _coded_tree(tree: Any) -> Any:
    tree = copy.deepcopy(tree)
    code = np.arange(tree.tree_.node_count) / 2.0**16  # exact in float32, and so is 1 - code
    tree.tree_.value[:, 0, 0], tree.tree_.value[:, 0, 1] = 1 - code, code
    return tree


def _groups(leaves: Sequence[int]) -> list[list[int]]:
    """Trees in groups whose numbers of nodes multiply to less than 2²⁴."""
    groups: list[list[int]] = []
    product = 2.0**24
    for number, count in enumerate(leaves):
        product *= count
        if product >= 2.0**24:
            groups.append([])
            product = float(count)
        groups[-1].append(number)
    return groups


def _coded_boosting(boosting: Any) -> list[Any]:
    trees = [tree.tree_ for tree in boosting.estimators_[:, 0]]
    coded = []
    for group in _groups([tree.node_count for tree in trees]):
        one = copy.deepcopy(boosting)
        one.init_, one.init, one.learning_rate = "zero", "zero", 1.0
        one.estimators_ = one.estimators_[group]
        step = 1
        for tree in (tree.tree_ for tree in one.estimators_[:, 0]):
            tree.value[:, 0, 0] = step * np.arange(tree.node_count)
            step *= tree.node_count
        coded.append(one)
    return coded


def _coded_histogram(boosting: Any) -> list[Any]:
    coded = []
    for group in _groups([len(predictor.nodes) for (predictor,) in boosting._predictors]):
        one = copy.deepcopy(boosting)
        one._baseline_prediction = np.zeros_like(boosting._baseline_prediction)
        one._predictors = [one._predictors[number] for number in group]
        step = 1
        for (predictor,) in one._predictors:
            predictor.nodes["value"] = step * np.arange(len(predictor.nodes))
            step *= len(predictor.nodes)
        coded.append(one)
    return coded


def coded_stack(estimator: Any) -> Any:
    """A stack whose learners are the units; its base_probability names the leaf of every tree.

    Assembled by hand: what its final estimator says is of no interest here.
    """
    learners = units(estimator)
    method = "decision_function" if "Gradient" in type(estimator).__name__ else "predict_proba"
    width = learners[0].n_features_in_
    stack = StackingClassifier([(str(k), one) for k, one in enumerate(learners)], stack_method=method, cv="prefit")
    stack.estimators_, stack.stack_method_ = learners, [method] * len(learners)
    stack.classes_, stack._label_encoder = np.array([0, 1]), LabelEncoder().fit([0, 1])
    stack.final_estimator_ = LogisticRegression().fit(np.eye(max(2, len(learners)))[:, : len(learners)], _two(learners))
    assert width == stack.n_features_in_
    return stack


def _two(learners: Sequence[Any]) -> Array:
    return np.arange(max(2, len(learners))) % 2


def expected(steps: Sequence[Any], stack: Any, x: Array) -> Array:
    """scikit-learn's leaf names of float32 embeddings, [N, units]."""
    for step in steps:
        x = step.transform(x)
    return np.asarray(stack.transform(x))


# ---------------------------------------------------------------- inputs around every threshold


def folded(estimator: Any, steps: Sequence[Any], width: int) -> tuple[ir.Trees, Array, Array]:
    """The estimator's trees, and for each node the column and the threshold in the space of the embedding."""
    x: ir.Node = ir.Embedding(width)
    for step in steps:
        x = families.transform(step, x, "step")
    respond = families.decision if "Gradient" in type(estimator).__name__ else families.probability
    forest = votes(respond(estimator, x, "trees"))
    trees = forest.trees
    routes = [thresholds.route(x, int(feature)) for feature in trees.feature[trees.feature >= 0]]
    assert all(route is not None for route in routes)
    known = [route for route in routes if route is not None]
    column, threshold = trees.feature.copy(), np.zeros(len(trees.feature), np.float32)
    column[trees.feature >= 0] = [route.column for route in known]
    threshold[trees.feature >= 0] = thresholds.fold(known, trees.threshold[trees.feature >= 0])
    return trees, column, threshold


def votes(node: ir.Node) -> ir.Forest:
    """The trees below a mean."""
    forest = node.x if isinstance(node, ir.Product | ir.Share) else node
    assert isinstance(forest, ir.Forest)
    return forest


def around(trees: ir.Trees, column: Array, threshold: Array, rows: Array, rng: np.random.Generator) -> Array:
    """For every split: rows that reach it, with its column on the threshold, an ulp below, and an ulp above."""
    made = []
    stack: list[tuple[int, dict[int, tuple[float, float]]]] = [(int(root), {}) for root in trees.roots]
    while stack:
        node, box = stack.pop()
        feature = int(column[node])
        if feature < 0:
            continue
        low, high = box.get(feature, (-MAX, MAX))
        row = rows[rng.integers(len(rows))].copy()
        for one, (least, most) in box.items():
            row[one] = np.clip(row[one], np.float32(least), np.float32(most))
        limit = threshold[node]
        with np.errstate(over="ignore"):
            above = np.nextafter(limit, np.float32(np.inf))
            below = np.nextafter(limit, np.float32(-np.inf))
        for value in (below, limit, above):
            if low <= value <= high and np.isfinite(value):
                made.append(row.copy())
                made[-1][feature] = value
        if limit >= low:
            stack.append((int(trees.left[node]), {**box, feature: (low, min(high, float(limit)))}))
        if above <= high:
            stack.append((int(trees.right[node]), {**box, feature: (max(low, float(above)), high)}))
    return np.array(made, np.float32) if made else rows


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def forced(monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    def choose(forest: Folded, engine: str) -> str:
        return strategy

    monkeypatch.setattr(emit_forest, "choose", choose)


def prove(
    monkeypatch: pytest.MonkeyPatch,
    steps: Sequence[Any],
    estimator: Any,
    rows: Array,
    *,
    strategies: Sequence[str] = STRATEGIES,
    what: str = "",
) -> int:
    """Assert that no leaf differs on the rows and around the thresholds; returns how many rows were compared."""
    rng = np.random.default_rng(0)
    width = rows.shape[1]
    inputs = np.concatenate([rows, around(*folded(estimator, steps, width), rows, rng)])
    stack = coded_stack(estimator)
    head = Pipeline([*((f"step{k}", step) for k, step in enumerate(steps)), ("stack", stack)])
    want = np.concatenate([expected(steps, stack, part) for part in _parts(inputs)])
    for strategy in strategies:
        forced(monkeypatch, strategy)
        model = lower(head, width, "onnxruntime")
        if report(model)["forests"]:
            assert [(f["strategy"], f["exact"]) for f in report(model)["forests"]] == [(strategy, True)]
        running = session(model)
        got = np.concatenate([running.run(["base_probability"], {"embedding": part})[0] for part in _parts(inputs)])
        wrong = np.argwhere(got != want)
        assert not len(wrong), f"{what}{strategy}: {len(wrong)} wrong leaves, first (row, tree) {wrong[0]}"
    return len(inputs)


def _parts(inputs: Array) -> list[Array]:
    return np.array_split(inputs, -(-inputs.size // _CHUNK))


# ---------------------------------------------------------------- data and estimators


def data(rows: int, width: int, seed: int, *, scale: float = 1.0, offset: float = 0.0) -> tuple[Array, Array]:
    """Embeddings float32 as after a ReLU, mean pooled: non-negative, some channels dead; labels that depend on them."""
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.normal(0.3, 1.0, (rows, width)), 0)
    x[:, rng.random(width) < 0.1] = 0
    y = (
        x[:, : max(1, width // 3)].sum(1) + rng.normal(0, 0.5, rows) > np.median(x[:, : max(1, width // 3)].sum(1))
    ) * 1
    y[:2] = 0, 1
    return (x * scale + offset).astype(np.float32), y


ESTIMATORS: dict[str, Callable[[], Any]] = {
    "forest": lambda: RandomForestClassifier(12, random_state=0),
    "extra": lambda: ExtraTreesClassifier(12, class_weight="balanced", random_state=0),
    "tree": lambda: DecisionTreeClassifier(random_state=0),
    "extra tree": lambda: ExtraTreeClassifier(random_state=0),
    "boosting": lambda: GradientBoostingClassifier(n_estimators=12, subsample=0.7, random_state=0),
    "histogram": lambda: HistGradientBoostingClassifier(max_iter=12, min_samples_leaf=3, max_leaf_nodes=6),
}

PREPROCESSING: dict[str, Callable[[], list[Any]]] = {
    "nothing": list,
    "standard": lambda: [StandardScaler()],
    "standard without mean": lambda: [StandardScaler(with_mean=False)],
    "minmax": lambda: [MinMaxScaler()],
    "minmax clipped": lambda: [MinMaxScaler((-0.3, 0.7), clip=True)],
    "robust": lambda: [RobustScaler()],
    "maxabs": lambda: [MaxAbsScaler()],
    "two scalers": lambda: [StandardScaler(), MinMaxScaler(clip=True)],
    "selectors": lambda: [VarianceThreshold(1e-4), StandardScaler(), SelectKBest(k=4)],
    "union": lambda: [FeatureUnion([("a", StandardScaler()), ("b", make_pipeline(SelectKBest(k=3), RobustScaler()))])],
    "union, then a scaler": lambda: [FeatureUnion([("a", MinMaxScaler()), ("b", "passthrough")]), StandardScaler()],
    "columns": lambda: [
        ColumnTransformer(
            [("a", StandardScaler(), [5, 1, 1, -2]), ("b", MinMaxScaler(), slice(0, 3)), ("c", "drop", [4])],
            remainder="passthrough",
        )
    ],
    "a scaler, then duplicated columns, then a scaler": lambda: [
        StandardScaler(),
        ColumnTransformer([("a", MaxAbsScaler(), [1, 2, 1, 3]), ("b", RobustScaler(), [1, 0])]),
        FeatureUnion([("c", MinMaxScaler()), ("d", SelectKBest(k=3))]),
        RobustScaler(),
    ],
    "duplicated columns": lambda: [ColumnTransformer([("a", "passthrough", [1, 1, 0, 3, 1])]), RobustScaler()],
}


def fit(steps: Sequence[Any], estimator: Any, x: Array, y: Array) -> tuple[list[Any], Any]:
    fitted, values = [], x
    for step in steps:
        fitted.append(step.fit(values, y))
        values = step.transform(values)
    return fitted, estimator.fit(values, y)


# ---------------------------------------------------------------- the proof


@pytest.mark.slow
@pytest.mark.parametrize("before", PREPROCESSING)
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_every_tree_takes_the_leaf_of_scikit_learn(kind: str, before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data(90, 9, seed=len(kind) + len(before))
    steps, estimator = fit(PREPROCESSING[before](), ESTIMATORS[kind](), x, y)
    assert prove(monkeypatch, steps, estimator, x) > len(x) + 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "offset"), [(1e-30, 0.0), (1e-37, 0.0), (1e30, 0.0), (1e-3, 1e4), (1.0, 1e4), (1.0, -1e7), (3e36, 0.0)]
)
@pytest.mark.parametrize("before", ["nothing", "standard", "minmax clipped", "robust", "maxabs", "two scalers"])
def test_extreme_scales(scale: float, offset: float, before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data(60, 5, seed=3, scale=scale, offset=offset)
    steps, estimator = fit(PREPROCESSING[before](), RandomForestClassifier(5, random_state=1), x, y)
    prove(monkeypatch, steps, estimator, x)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ESTIMATORS)
def test_the_whole_range_of_float32(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Denormals, both zeros, the largest values: as inputs, and as thresholds."""
    x, y = data(80, 6, seed=5)
    estimator = ESTIMATORS[kind]().fit(x, y)
    tiny = np.float32(1e-45)
    special = np.array([0.0, -0.0, tiny, -tiny, 1e-38, -1e-38, 1, -1, MAX, -MAX], np.float32)
    rows = np.random.default_rng(0).choice(special, (200, 6))
    prove(monkeypatch, [], estimator, np.concatenate([x, rows]))
    for value in (0.0, -0.0, float(tiny), -float(tiny), 1e-50, -1e-50, 1e-40, 2.0**-126, MAX, -MAX, 1e300, -1e300):
        changed = _with_thresholds(estimator, value)
        prove(monkeypatch, [], changed, np.concatenate([x, rows]), what=f"threshold {value}, ")


def _with_thresholds(estimator: Any, value: float) -> Any:
    """A copy whose splits of feature 0 and 1 all have one threshold."""
    changed = copy.deepcopy(estimator)
    if hasattr(changed, "_predictors"):
        for (predictor,) in changed._predictors:
            predictor.nodes["num_threshold"][predictor.nodes["feature_idx"] <= 1] = value
        return changed
    trees = np.ravel(changed.estimators_) if hasattr(changed, "estimators_") else [changed]
    for tree in trees:
        tree.tree_.threshold[(tree.tree_.feature == 0) | (tree.tree_.feature == 1)] = value
    return changed


@pytest.mark.slow
def test_a_single_wrong_leaf_of_three_hundred_trees_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof can fail: a threshold that is one ulp off in one tree."""
    x, y = data(120, 20, seed=1)
    steps, forest = fit([StandardScaler()], RandomForestClassifier(300, random_state=0), x, y)
    prove(monkeypatch, steps, forest, x, strategies=("traversal",))
    fold = thresholds.fold

    def off_by_one(routes: list[thresholds.Route], limits: Array, *, double: bool = False) -> Array:
        found = fold(routes, limits, double=double)
        # Of the coded stack, whose trees are folded one by one: the 200th.
        calls.append(len(found))
        if len(calls) == 201 + 1:
            found[0] = np.nextafter(found[0], np.float32(np.inf))
        return found

    calls: list[int] = []
    monkeypatch.setattr(thresholds, "fold", off_by_one)
    with pytest.raises(AssertionError, match=r"wrong leaves, first \(row, tree\) \[\s*\d+\s+200\]"):
        prove(monkeypatch, steps, forest, x, strategies=("traversal",))


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2, 7, None])
@pytest.mark.parametrize("trees", [1, 2, 33])
def test_depths(depth: int | None, trees: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data(150, 8, seed=trees)
    estimator = ExtraTreesClassifier(trees, max_depth=depth, random_state=0).fit(x, y)
    prove(monkeypatch, [], estimator, x)


@pytest.mark.parametrize("width", [1, 2, 3, 1000, 4096])
@pytest.mark.parametrize("before", ["nothing", "standard"])
def test_widths(width: int, before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data(60, width, seed=width)
    steps, estimator = fit(PREPROCESSING[before](), RandomForestClassifier(7, random_state=0), x, y)
    prove(monkeypatch, steps, estimator, x)


def test_constant_features_and_single_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data(50, 4, seed=0)
    x[:] = 3.0
    steps, estimator = fit([StandardScaler()], RandomForestClassifier(3, random_state=0), x, y)
    assert all(tree.tree_.node_count == 1 for tree in estimator.estimators_)
    stack = coded_stack(estimator)
    rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    for strategy in STRATEGIES:
        forced(monkeypatch, strategy)
        for head in (Pipeline([("s", steps[0]), ("stack", stack)]), Pipeline([("s", steps[0]), ("forest", estimator)])):
            got = session(lower(head, 4)).run(None, {"embedding": rows})
            np.testing.assert_allclose(got[0], head.predict_proba(rows)[:, 1], rtol=0, atol=1e-6)
            assert got[1].shape == (9, 3 if head.steps[-1][0] == "stack" else 1)


@pytest.mark.slow
def test_trees_of_very_different_depth_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The traversal cuts the table as trees arrive: leaves at the root, stumps and deep trees, mixed."""
    x, y = data(400, 6, seed=2)
    noisy = np.random.default_rng(1).permutation(y)
    rng = np.random.default_rng(0)
    deep = [ExtraTreeClassifier(random_state=k).fit(x, noisy) for k in range(3)]
    stumps = [ExtraTreeClassifier(max_depth=1 + k % 3, random_state=k).fit(x, y) for k in range(17)]
    roots = [DecisionTreeClassifier(min_samples_split=1000, random_state=k).fit(x, y) for k in range(9)]
    assert min(tree.get_depth() for tree in deep) >= 12
    for _ in range(3):
        forest = RandomForestClassifier(1, random_state=0).fit(x, y)
        trees = [*deep, *stumps, *roots]
        forest.estimators_ = [trees[k] for k in rng.permutation(len(trees))]
        prove(monkeypatch, [], forest, x)


def test_feature_counts_differ_between_merged_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random Forest, Extra-Trees and boosting behind different scalers become one structure over the embedding."""
    x, y = data(100, 12, seed=4)
    learners = [
        ("a", make_pipeline(StandardScaler(), RandomForestClassifier(9, random_state=0))),
        ("b", make_pipeline(SelectKBest(k=5), MinMaxScaler(), ExtraTreesClassifier(9, random_state=0))),
        ("c", DecisionTreeClassifier(max_depth=1)),
        ("d", GradientBoostingClassifier(n_estimators=5, random_state=0)),
        ("e", HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=5)),
        ("f", BaggingClassifier(DecisionTreeClassifier(), 5, max_features=0.5, random_state=0)),
        ("g", VotingClassifier([("x", RandomForestClassifier(3, random_state=1))], voting="soft")),
    ]
    head = StackingClassifier(learners, LogisticRegression(), cv=3).fit(x, y)
    for strategy in STRATEGIES:
        forced(monkeypatch, strategy)
        model = lower(head, 12, "onnxruntime")
        assert [f["exact"] for f in report(model)["forests"]] == [True]
        assert report(model)["forests"][0]["trees"] == [9, 9, 1, 5, 5, 1, 1, 1, 1, 1, 3]
        got = session(model).run(["base_probability"], {"embedding": x})[0]
        np.testing.assert_allclose(got, head.transform(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scaler", [StandardScaler(), MinMaxScaler(), RobustScaler(), MaxAbsScaler()])
def test_a_threshold_is_the_last_float_that_goes_left(scaler: Any) -> None:
    """Against the scaler itself, for random thresholds, with many of one column (several blocks of the search)."""
    x, _ = data(200, 7, seed=9, offset=0.37)
    scaler.fit(x)
    rng = np.random.default_rng(0)
    column = rng.choice(7, 3000, p=[0.9, 0.1, 0, 0, 0, 0, 0])
    wanted = rng.normal(0, 2, 3000)
    node = families.transform(scaler, ir.Embedding(7), "scaler")
    routes = [route for one in column if (route := thresholds.route(node, int(one))) is not None]
    found = thresholds.fold(routes, wanted)
    for value, left in ((found, True), (np.nextafter(found, np.float32(np.inf)), False)):
        matrix = np.zeros((3000, 7), np.float32)
        matrix[np.arange(3000), column] = value
        moved = scaler.transform(matrix)[np.arange(3000), column]
        assert ((moved.astype(np.float64) <= wanted) == left).all()


def test_blocks_of_the_search_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data(100, 5, seed=2)
    steps, estimator = fit([StandardScaler(), RobustScaler()], ExtraTreesClassifier(20, random_state=0), x, y)
    whole = folded(estimator, steps, 5)[2]
    monkeypatch.setattr(thresholds, "_CELLS", 35)
    np.testing.assert_array_equal(folded(estimator, steps, 5)[2], whole)


def test_passed_through_columns_of_a_stack_stay_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A final forest reads probabilities, which are float32 arithmetic, and columns of the embedding behind a scaler:
    those splits are folded all the same. Its trees here ask columns only, so that they can be compared."""
    x, y = data(120, 6, seed=8)
    x[:, 0] = y * 1000 + np.arange(120)  # one column that decides alone
    stack = StackingClassifier(
        [("constant", LogisticRegression(C=1e-9))], RandomForestClassifier(9, random_state=0), passthrough=True, cv=3
    )
    head = make_pipeline(StandardScaler(), stack).fit(x, y)
    final = head.named_steps["stackingclassifier"].final_estimator_
    model = lower(head, 6)
    assert [f["exact"] for f in report(model)["forests"]] == [False] if _asks(final, 0) else [True]
    trees, column, limit = _passed(final, head, 6)
    rows = around(trees, column, limit, x, np.random.default_rng(0))
    got = session(model).run(["probability"], {"embedding": rows})[0]
    np.testing.assert_allclose(got, head.predict_proba(rows)[:, 1], rtol=0, atol=1e-6)


def _asks(forest: Any, feature: int) -> bool:
    return any((tree.tree_.feature == feature).any() for tree in forest.estimators_)


def _passed(final: Any, head: Any, width: int) -> tuple[ir.Trees, Array, Array]:
    """The final forest's splits of passed-through columns, on the embedding; other splits count as leaves."""
    x = families.transform(head.steps[0][1], ir.Embedding(width), "scale")
    trees = votes(families.probability(final, ir.concat(ir.Clip(1, x, 0, 1), x), "final")).trees
    feature = np.where(trees.feature > 0, trees.feature - 1, -1)
    inner = feature >= 0
    routes = [route for one in feature[inner] if (route := thresholds.route(x, int(one))) is not None]
    limit = np.zeros(len(feature), np.float32)
    limit[inner] = thresholds.fold(routes, trees.threshold[inner])
    return trees, feature, limit


def test_what_is_not_exact_says_so() -> None:
    x, y = data(80, 6, seed=0)
    head = make_pipeline(PCA(3, random_state=0), RandomForestClassifier(3, random_state=0)).fit(x, y)
    assert [f["exact"] for f in report(lower(head, 6))["forests"]] == [False]
    # Beside a projection scikit-learn may widen the other columns to float64: their scaler is not folded.
    union = FeatureUnion([("pca", PCA(2, random_state=0)), ("rest", "passthrough")])
    head = make_pipeline(union, StandardScaler(), RandomForestClassifier(3, random_state=0)).fit(x, y)
    assert [f["exact"] for f in report(lower(head, 6))["forests"]] == [False]
    calibrated = CalibratedClassifierCV(RandomForestClassifier(3, random_state=0), cv=2).fit(x, y)
    assert [f["exact"] for f in report(lower(calibrated, 6))["forests"]] == [True]


def test_the_operator_refuses_trees_that_do_not_start_at_their_root() -> None:
    folded_trees = Folded(
        np.array([-1, 0, -1]),
        np.zeros(3, np.float32),
        np.array([0, 0, 2]),
        np.array([0, 2, 2]),
        np.array([1.0, 0.0, 2.0]),
        np.array([1]),
        np.array([0]),
        np.zeros(1),
    )
    with pytest.raises(ValueError, match="first node"):
        emit_forest.write(Graph(), "x", folded_trees, "operator")
