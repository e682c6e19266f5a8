"""The lowered head on other engines: OpenVINO (numbers), TensorRT-RTX (builds), and which operators it is made of."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import onnx
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
)
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    KBinsDiscretizer,
    MinMaxScaler,
    Normalizer,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from mpmmu_rt.export.head import emit_forest, lower, report
from mpmmu_rt.export.head.emit_forest import Folded
from mpmmu_rt.spec import Array
from tests.export.running_heads import on_onnxruntime

# The largest floats, in scikit-learn's own search for NaN.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered in reduce:RuntimeWarning"),
]

SMOOTH, FINAL = 1e-5, 2e-5
RNG = np.random.default_rng(0)
X = np.maximum(RNG.normal(0.3, 1, (150, 12)), 0).astype(np.float32)
Y = (X[:, 0] + X[:, 1] + RNG.normal(0, 0.5, 150) > 1.2).astype(int)
# What TensorRT-RTX 1.7 parses and OpenVINO reads, of the operators that we emit.
STANDARD = {
    *(
        "Abs",
        "Add",
        "And",
        "Cast",
        "Clip",
        "Concat",
        "Div",
        "Equal",
        "Exp",
        "Gather",
        "GatherElements",
        "Gemm",
        "Greater",
    ),
    *("GreaterOrEqual", "Less", "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mul", "ReduceMax", "ReduceSum", "Relu"),
    *("Reshape", "Sigmoid", "Slice", "Sqrt", "Sub", "Tanh", "Transpose", "Where"),
}


@pytest.fixture(scope="module")
def everything() -> Any:
    """A stack with a learner of every family, behind a scaler."""
    logistic = MLPClassifier((5,), activation="logistic", solver="lbfgs", alpha=0.1, max_iter=5000, random_state=0)
    learners = [
        ("lr", LogisticRegression()),
        ("rbf", CalibratedClassifierCV(SVC(), cv=2, ensemble=False)),
        ("poly", CalibratedClassifierCV(SVC(kernel="poly"), cv=2, method="isotonic")),
        ("sigmoid", CalibratedClassifierCV(SVC(kernel="sigmoid", gamma=0.01), cv=2)),
        ("rf", make_pipeline(RobustScaler(), RandomForestClassifier(40, random_state=0))),
        ("et", make_pipeline(SelectKBest(k=5), ExtraTreesClassifier(40, random_state=0))),
        ("gb", GradientBoostingClassifier(n_estimators=20, random_state=0)),
        ("hgb", HistGradientBoostingClassifier(max_iter=10, min_samples_leaf=5)),
        ("stump", DecisionTreeClassifier(max_depth=1)),
        ("leaf", DecisionTreeClassifier(min_samples_split=1000)),
        ("tanh", MLPClassifier((5, 3), activation="tanh", solver="lbfgs", alpha=0.1, max_iter=5000, random_state=0)),
        ("relu", MLPClassifier((5,), activation="relu", solver="lbfgs", alpha=0.1, max_iter=5000, random_state=0)),
        ("logistic", make_pipeline(PCA(4, whiten=True), logistic)),
        ("norm", make_pipeline(MinMaxScaler(clip=True), Normalizer("max"), LogisticRegression())),
    ]
    final = MLPClassifier((4,), activation="tanh", solver="lbfgs", alpha=0.1, max_iter=5000, random_state=0)
    head = make_pipeline(StandardScaler(), StackingClassifier(learners, final, cv=2))
    return head.fit(X, Y)


def force(monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    def choose(forest: Folded, engine: str) -> str:
        return strategy

    monkeypatch.setattr(emit_forest, "choose", choose)


class OpenVino:
    """A model compiled by OpenVINO for the CPU, in float32."""

    def __init__(self, model: onnx.ModelProto) -> None:
        openvino = pytest.importorskip("openvino")
        core = openvino.Core()
        self._compiled = core.compile_model(
            core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )

    def __call__(self, x: Array) -> tuple[Array, Array]:
        result = self._compiled({"embedding": x})
        return np.array(result["probability"]), np.array(result["base_probability"])


# ---------------------------------------------------------------- the graph


@pytest.mark.parametrize("strategy", ["traversal", "product"])
def test_the_portable_form_has_standard_operators_only(
    everything: Any, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, strategy)
    model = lower(everything, 12)
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain for opset in model.opset_import} == {""}
    assert {node.domain for node in model.graph.node} == {""}
    assert {node.op_type for node in model.graph.node} <= STANDARD


def test_products_as_convolutions(everything: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For Turing: no matrix product is left, also where the forests would be some; the numbers are the same."""
    force(monkeypatch, "product")
    model = lower(everything, 12, products="convolution")
    kinds = [node.op_type for node in model.graph.node]
    assert not {"Gemm", "MatMul"} & set(kinds)
    assert "Conv" in kinds
    assert [forest["strategy"] for forest in report(model)["forests"]] == ["traversal"]
    for rows in (1, 33):
        for run in (on_onnxruntime, lambda model, x: OpenVino(model)(x)):
            probability, base = run(model, X[:rows])
            assert np.abs(base - everything[-1].transform(everything[:-1].transform(X[:rows]))).max() <= SMOOTH
            assert np.abs(probability - everything.predict_proba(X[:rows])[:, 1]).max() <= FINAL


def test_the_onnxruntime_form_has_one_operator_for_all_trees(everything: Any) -> None:
    model = lower(everything, 12, "onnxruntime")
    foreign = [node.op_type for node in model.graph.node if node.domain]
    assert foreign == ["TreeEnsembleRegressor"]
    (forest,) = report(model)["forests"]
    assert (forest["strategy"], forest["exact"]) == ("operator", True)
    assert forest["trees"] == [40, 40, 20, 10, 1, 1]


@pytest.mark.slow
def test_large_forests_are_operators_of_their_own() -> None:
    learners = [
        ("small", RandomForestClassifier(5, random_state=0)),
        ("large", RandomForestClassifier(130, max_depth=3, random_state=0)),
        ("boosted", GradientBoostingClassifier(n_estimators=150, max_depth=2, random_state=0)),
        ("stump", DecisionTreeClassifier(max_depth=1)),
    ]
    head = StackingClassifier(learners, LogisticRegression(), cv=2).fit(X, Y)
    model = lower(head, 12, "onnxruntime")
    targets = [
        attribute.i
        for node in model.graph.node
        for attribute in node.attribute
        if node.op_type == "TreeEnsembleRegressor" and attribute.name == "n_targets"
    ]
    assert targets == [1, 1, 2]
    np.testing.assert_allclose(on_onnxruntime(model, X)[1], head.transform(X), rtol=0, atol=SMOOTH)


def chains(trees: int, depth: int) -> Folded:
    """Trees that are one path each, of `depth` inner nodes."""
    inner, leaves = np.arange(depth), np.arange(depth, 2 * depth + 1)
    one = Folded(
        feature=np.r_[np.zeros(depth, np.int64), np.full(depth + 1, -1)],
        threshold=np.zeros(2 * depth + 1, np.float32),
        left=np.r_[leaves[:-1], leaves],
        right=np.r_[inner[1:], leaves[-1], leaves],
        value=np.ones(2 * depth + 1),
        roots=np.zeros(1, np.int64),
        output=np.zeros(1, np.int64),
        bias=np.zeros(1),
    )
    starts = (2 * depth + 1) * np.arange(trees)
    return Folded(
        np.tile(one.feature, trees),
        np.tile(one.threshold, trees),
        (one.left + starts[:, None]).ravel(),
        (one.right + starts[:, None]).ravel(),
        np.tile(one.value, trees),
        starts,
        np.zeros(trees, np.int64),
        one.bias,
    )


def test_products_are_for_deep_trees_of_few_nodes() -> None:
    """Either side of the line that was measured, and of the largest path matrices."""
    chosen = [emit_forest.choose(chains(*shape), "portable") for shape in [(200, 4), (133, 3), (1, 3), (1, 1413)]]
    assert chosen == ["product"] * 4
    chosen = [emit_forest.choose(chains(*shape), "portable") for shape in [(201, 4), (134, 3), (1, 2), (1, 1414)]]
    assert chosen == ["traversal"] * 4
    assert emit_forest.choose(chains(1, 3), "onnxruntime") == "operator"


def test_the_interface(everything: Any) -> None:
    graph = lower(everything, 12).graph
    assert [(value.name, _shape(value)) for value in graph.input] == [("embedding", ["N", 12])]
    assert [(value.name, _shape(value)) for value in graph.output] == [
        ("probability", ["N"]),
        ("base_probability", ["N", 14]),
    ]


def _shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim]


# ---------------------------------------------------------------- OpenVINO


@pytest.mark.parametrize("strategy", ["traversal", "product"])
def test_openvino_per_learner(everything: Any, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, strategy)
    model = lower(everything, 12)
    compiled = OpenVino(model)
    want = everything[-1].transform(everything[:-1].transform(X))
    for rows in (1, 7, 150):
        probability, base = compiled(X[:rows])
        assert (np.abs(base - want[:rows]).max(axis=0) <= SMOOTH).all(), np.abs(base - want[:rows]).max(axis=0)
        assert np.abs(probability - everything.predict_proba(X[:rows])[:, 1]).max() <= FINAL
        for ours, theirs in zip((probability, base), on_onnxruntime(model, X[:rows]), strict=True):
            assert np.abs(ours - theirs).max() <= SMOOTH


@pytest.mark.parametrize("strategy", ["traversal", "product"])
def test_openvino_takes_the_leaves_of_onnxruntime(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds, their neighbours, subnormals, both zeros and the largest floats. A tree alone has exact values.

    OpenVINO makes subnormal constants zero, so that a threshold between -1.2e-38 and 1.2e-38 is zero there.
    """
    force(monkeypatch, strategy)
    head = DecisionTreeClassifier(max_depth=5, random_state=0).fit(X, Y)
    tree = head.tree_
    code = np.arange(tree.node_count) / 2.0**12
    tree.value[:, 0, 0], tree.value[:, 0, 1] = 1 - code, code
    special = np.array([0, -0.0, 1e-45, -1e-45, 1e-39, -1e-39, 3.4e38, -3.4e38], np.float32)
    limits = tree.threshold[tree.feature >= 0].astype(np.float32)
    near = [np.nextafter(limits, np.float32(side)) for side in (-np.inf, np.inf)]
    for changed in (None, 0.0, 2.0**-126, -(2.0**-126), 1e300, -1e300):
        if changed is not None:
            tree.threshold[tree.feature == tree.feature[0]] = changed
        x = np.random.default_rng(0).choice(np.concatenate([limits, *near, special]), (3000, 12))
        probability, _ = OpenVino(lower(head, 12))(x)
        want = head.predict_proba(x)[:, 1].astype(np.float32)
        np.testing.assert_array_equal(probability, want, err_msg=f"threshold {changed}")


@pytest.mark.parametrize("strategy", ["traversal", "product"])
@pytest.mark.parametrize("head", [DecisionTreeClassifier(max_depth=2), DecisionTreeClassifier(min_samples_split=1000)])
def test_openvino_gives_nan_where_the_embedding_is_not_finite(
    head: Any, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(monkeypatch, strategy)
    head = make_pipeline(StandardScaler(), head).fit(X, Y)
    x = np.tile(X[:1], (5, 1))
    x[0, 3], x[1, 0], x[2, 11], x[3, 0], x[3, 1] = np.nan, np.inf, -np.inf, np.inf, -np.inf
    probability, _ = OpenVino(lower(head, 12))(x)
    np.testing.assert_array_equal(np.isnan(probability), [True, True, True, True, False])
    np.testing.assert_allclose(probability[4:], head.predict_proba(x[4:])[:, 1], rtol=0, atol=1e-6)


def test_openvino_gives_nan_for_a_whole_head(everything: Any) -> None:
    x = np.tile(X[:1], (3, 1))
    x[0, 3], x[1, 0] = np.nan, np.inf
    np.testing.assert_array_equal(np.isnan(OpenVino(lower(everything, 12))(x)[0]), [True, True, False])


# ---------------------------------------------------------------- TensorRT-RTX


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["traversal", "product"])
@pytest.mark.parametrize("capability", ["SM80", "SM86", "SM89", "SM120"])
def test_tensorrt_rtx_builds_the_portable_form(
    everything: Any, strategy: str, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU: parsed, and built for a named compute capability."""
    force(monkeypatch, strategy)
    assert built(lower(everything, 12), capability) > 10_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Bins whose width are too small:UserWarning")
@pytest.mark.parametrize(
    "step",
    [
        KBinsDiscretizer(3, encode="onehot-dense", strategy="uniform"),
        QuantileTransformer(n_quantiles=20, output_distribution="normal"),
        PowerTransformer(),
    ],
)
def test_tensorrt_rtx_builds_steps_and_curves(step: Any) -> None:
    model = lower(make_pipeline(step, LogisticRegression()).fit(X, Y), 12)
    assert {node.op_type for node in model.graph.node} <= STANDARD
    assert built(model, "SM86") > 10_000


@pytest.mark.slow
def test_tensorrt_rtx_builds_for_turing_with_convolutions_only(everything: Any) -> None:
    with pytest.raises(AssertionError, match="FP32 GEMM"):
        built(lower(everything, 12), "SM75")
    assert built(lower(everything, 12, products="convolution"), "SM75") > 10_000


def built(model: onnx.ModelProto, capability: str) -> int:
    """The bytes of the engine; fails with the parser's or the builder's own words."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    said: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                said.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), [parser.get_error(k).desc() for k in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    profile = builder.create_optimization_profile()
    width = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    profile.set_shape("embedding", (1, width), (8, width), (32, width))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, said
    size = int(engine.nbytes)
    del engine, config, parser, network, builder
    gc.collect()
    return size
