"""How far the lowered head is from scikit-learn: real data, random heads, and what the largest forests cost to lower.

    python -m benchmarks.head_exactness > benchmarks/results/head_exactness_<machine>.md

Real data: `load_breast_cancer`, 60/40 split, the project's four learners under an MLP. Random heads: those of
`tests/export/test_head_random.py`, which is run. Large: random forest and Extra-Trees of 1000 trees of unlimited
depth each under a logistic regression, 663 x 4096, each form lowered in a process of its own.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier, StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from benchmarks.head import Call, on_onnxruntime, on_openvino
from mpmmu_rt import machine
from mpmmu_rt.export.head import HeadEngine, lower

ROOT = Path(__file__).parents[1]
LEARNERS = ("LR", "SVM", "RF", "ET")
LARGE_TREES, LARGE_ROWS, LARGE_FEATURES = 1000, 663, 4096
FORMS: tuple[HeadEngine, ...] = ("onnxruntime", "portable")


def conditions() -> str:
    described = machine.describe()
    names = ("scikit-learn", "scipy", "numpy", "onnx", "onnxruntime", "openvino", "hypothesis")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    sources = b"".join(path.read_bytes() for path in sorted((ROOT / "export/head").glob("*.py")))
    return (
        f"{described['cpu']} {described['cpu_features']}, {described['threads']} threads, "
        f"Python {described['python']}, {machine.package_versions(names)}.\n"
        f"Commit {commit}; export/head/*.py sha256 {hashlib.sha256(sources).hexdigest()[:12]}."
    )


def breast_cancer() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    train, x, label, y = train_test_split(x.astype(np.float32), y, test_size=0.4, random_state=0, stratify=y)
    learners = [
        ("LR", LogisticRegression(max_iter=5000)),
        ("SVM", CalibratedClassifierCV(SVC(), cv=3, ensemble=False)),
        ("RF", RandomForestClassifier(300, random_state=0)),
        ("ET", ExtraTreesClassifier(300, random_state=0)),
    ]
    meta = MLPClassifier((8,), activation="tanh", solver="lbfgs", alpha=0.1, max_iter=5000, random_state=0)
    head = make_pipeline(StandardScaler(), StackingClassifier(learners, meta, stack_method="predict_proba", cv=5))
    head.fit(train, label)
    want = head.predict_proba(x)[:, 1]
    base = head[-1].transform(head[:-1].transform(x))
    runs: dict[str, Call] = {
        "onnxruntime form, ONNX Runtime": on_onnxruntime(lower(head, 30, "onnxruntime")),
        "portable form, ONNX Runtime": on_onnxruntime(lower(head, 30)),
        "portable form, OpenVINO": on_openvino(lower(head, 30)),
        "portable form of convolutions, ONNX Runtime": on_onnxruntime(lower(head, 30, products="convolution")),
    }
    print(f"\n## load_breast_cancer: {len(x)} test cases, scikit-learn's AUC {roc_auc_score(y, want):.6f}\n")
    print("| form | " + " | ".join(f"{name} max \\|Δp\\|" for name in (*LEARNERS, "final")), "| Δ AUC | flips |")
    print("|---" * 8 + "|")
    for name, run in runs.items():
        found = run(x)
        probability, parts = np.asarray(found[0]), np.asarray(found[1])
        off = [*np.abs(parts - base).max(axis=0), np.abs(probability - want).max()]
        auc = roc_auc_score(y, probability) - roc_auc_score(y, want)
        flips = int(((probability > 0.5) != (want > 0.5)).sum())
        print(f"| {name} |", " | ".join(f"{one:.1e}" for one in off), f"| {auc:.1e} | {flips} |", flush=True)


def random_heads() -> None:
    test = "tests/export/test_head_random.py"
    ran = subprocess.run([sys.executable, "-m", "pytest", test, "-q", "-s"], cwd=ROOT, capture_output=True, text=True)
    print(f"\n## Random heads ({test})\n")
    print("\n".join(line for line in ran.stdout.splitlines() if "distinct heads" in line or " passed" in line))
    if ran.returncode:
        raise SystemExit(ran.stdout)


def large(form: HeadEngine) -> dict[str, Any]:
    """Fit and lower; what that took."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(0.3, 1, (LARGE_ROWS, LARGE_FEATURES)), 0).astype(np.float32)
    signal = x[:, :100].sum(1)
    y = (signal + rng.normal(0, 8, LARGE_ROWS) > np.median(signal)).astype(int)
    forests = [kind(LARGE_TREES, random_state=0) for kind in (RandomForestClassifier, ExtraTreesClassifier)]
    stack = StackingClassifier(
        [("RF", forests[0].fit(x, y)), ("ET", forests[1].fit(x, y))], LogisticRegression(), cv="prefit"
    ).fit(x, y)
    trees = [tree.tree_ for forest in forests for tree in forest.estimators_]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    model = lower(stack, LARGE_FEATURES, form)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fresh = np.maximum(rng.normal(0.3, 1, (200, LARGE_FEATURES)), 0).astype(np.float32)
    off = np.abs(np.asarray(on_onnxruntime(model)(fresh)[0]) - stack.predict_proba(fresh)[:, 1]).max()
    return {
        "nodes": sum(tree.node_count for tree in trees),
        "depth": max(tree.max_depth for tree in trees),
        "seconds": seconds,
        "megabytes": model.ByteSize() / 1e6,
        "before": before / 1024,
        "after": after / 1024,
        "off": off,
    }


def large_forests() -> None:
    print(f"\n## RF and ET of {LARGE_TREES} unlimited trees each, {LARGE_ROWS} x {LARGE_FEATURES}\n")
    print("| form | tree nodes | depth | s to lower | MB of graph | MiB peak before | after | max \\|Δp\\| |")
    print("|---" * 8 + "|")
    for form in FORMS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            one = pool.apply(large, (form,))
        print(
            f"| {form} | {one['nodes']} | {one['depth']} | {one['seconds']:.2f} | {one['megabytes']:.1f} | "
            f"{one['before']:.0f} | {one['after']:.0f} | {one['off']:.1e} |",
            flush=True,
        )


def main() -> None:
    print(f"# The lowered head against scikit-learn\n\n{conditions()}", flush=True)
    breast_cancer()
    random_heads()
    large_forests()


if __name__ == "__main__":
    main()
