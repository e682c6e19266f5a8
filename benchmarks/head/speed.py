"""The stacking head: ours against scikit-learn, skl2onnx and, where installed, Hummingbird and treelite.

    python -m benchmarks.head.speed > benchmarks/results/head_<machine>.md

663 x 1024 embeddings; logistic regression, RBF SVM under Platt scaling, random forest and Extra-Trees of 300 trees
each, MLP of 32 units. All contenders take turns within each round, in one process (`benchmarks.racing`). Hummingbird
(0.4.12) converts no CalibratedClassifierCV, treelite forests only: both are timed on the two forests alone, which is
marked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier, StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from benchmarks import report
from benchmarks.racing import race, ratio
from mpmmu_rt import machine
from mpmmu_rt._optional import require
from mpmmu_rt.export.head import lower
from mpmmu_rt.export.head import report as facts_of
from mpmmu_rt.spec import Array

FEATURES, ROWS, TREES = 1024, 663, 300
ROUNDS, TURN_S = 15, 0.05
Call = Callable[[Array], Any]


def embeddings(count: int, seed: int) -> tuple[Array, Array]:
    """Post-ReLU embeddings float32 [count, FEATURES] in which a few of twenty hidden factors carry the label."""
    mixing = np.random.default_rng(0).normal(0, 0.3, (20, FEATURES))
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(count, 20))
    embedding = np.maximum(0, factors @ mixing + rng.normal(size=(count, FEATURES))).astype(np.float32)
    return embedding, (factors[:, 0] + factors[:, 1] + rng.normal(0, 0.7, count) > 0.3).astype(int)


def fitted_head() -> Any:
    learners = [
        ("logistic_regression", LogisticRegression(max_iter=2000)),
        ("svm", CalibratedClassifierCV(SVC(), ensemble=False)),
        ("random_forest", RandomForestClassifier(TREES, random_state=0)),
        ("extra_trees", ExtraTreesClassifier(TREES, random_state=0)),
    ]
    meta = MLPClassifier((32,), max_iter=3000, random_state=0)
    head = make_pipeline(StandardScaler(), StackingClassifier(learners, meta, stack_method="predict_proba"))
    return head.fit(*embeddings(ROWS, 0))


def on_onnxruntime(model: Any) -> Call:
    runtime = require("onnxruntime", "this benchmark")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = machine.usable_threads()
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})


def on_openvino(model: Any) -> Call:
    import io

    openvino = require("openvino", "this benchmark")
    core = openvino.Core()
    read = core.read_model(io.BytesIO(model.SerializeToString()))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": machine.usable_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(read, "CPU", settings).create_infer_request()
    return lambda x: request.infer({0: x}, share_inputs=True)


def contenders(head: Any) -> tuple[dict[str, Call], dict[str, Any]]:
    """What is timed, by name, and what our two graphs are."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    ours = {engine: lower(head, FEATURES, engine) for engine in ("onnxruntime", "portable")}
    theirs = to_onnx(
        head,
        initial_types=[("embedding", FloatTensorType([None, FEATURES]))],
        options={"zipmap": False},
        target_opset={"": 18, "ai.onnx.ml": 3},
    )
    calls: dict[str, Call] = {
        "scikit-learn": head.predict_proba,
        "skl2onnx, ONNX Runtime": on_onnxruntime(theirs),
        "ours onnxruntime, ONNX Runtime": on_onnxruntime(ours["onnxruntime"]),
        "ours portable, ONNX Runtime": on_onnxruntime(ours["portable"]),
        "ours portable, OpenVINO": on_openvino(ours["portable"]),
    }
    stack = head.named_steps["stackingclassifier"]
    forests = [stack.named_estimators_[name] for name in ("random_forest", "extra_trees")]
    try:
        from hummingbird.ml import convert
    except ImportError:
        print("hummingbird is not installed", file=sys.stderr)
    else:
        converted = [convert(forest, "torch", embeddings(2, 0)[0]) for forest in forests]
        calls["Hummingbird (torch), two forests only"] = lambda x: [one.predict_proba(x) for one in converted]
    try:
        import treelite
    except ImportError:
        print("treelite is not installed", file=sys.stderr)
    else:
        imported = [treelite.sklearn.import_model(forest) for forest in forests]
        calls["treelite GTIL, two forests only"] = lambda x: [treelite.gtil.predict(one, x) for one in imported]
    facts = {
        name: {"bytes": model.ByteSize(), "nodes": len(model.graph.node), **facts_of(model)}
        for name, model in ours.items()
    }
    return calls, facts


def main() -> None:
    head = fitted_head()
    calls, facts = contenders(head)
    x, _ = embeddings(1000, 1)
    want = head.predict_proba(x)[:, 1]
    packages = ("scikit-learn", "skl2onnx", "hummingbird-ml", "treelite", "torch")
    print(report.heading(f"The stacking head, {ROWS} x {FEATURES}, {TREES} + {TREES} trees", packages))
    print(f"{ROUNDS} rounds, taking turns; p50 of the rounds' medians; ratios of rounds with their quartiles.\n")
    for name, fact in facts.items():
        print(f"- {name}: {fact['bytes'] / 1e6:.1f} MB, {fact['nodes']} nodes, {fact['forests']}")
    for name in ("ours onnxruntime, ONNX Runtime", "ours portable, ONNX Runtime", "ours portable, OpenVINO"):
        got = calls[name](x)
        probability = np.asarray(got[0])
        flips = int(((probability >= 0.5) != (want >= 0.5)).sum())
        print(f"- {name}: max |Δp| {np.abs(probability - want).max():.1e}, {flips} of 1000 labels flipped")
    for batch in (1, 32):
        found = race({name: partial(call, x[:batch]) for name, call in calls.items()}, ROUNDS, turn_s=TURN_S)
        fastest = found["ours onnxruntime, ONNX Runtime"]
        rows = ([name, f"{np.median(ms):.3f}", ratio(ms, fastest, digits=1)] for name, ms in found.items())
        print(f"\n## Batch {batch}\n")
        print(report.table("contender | p50 ms | times ours on ONNX Runtime", rows), end="", flush=True)
    print(f"\n{report.load('at the end')}")


if __name__ == "__main__":
    report.parser(__doc__).parse_args()
    main()
