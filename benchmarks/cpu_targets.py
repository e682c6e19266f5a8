"""The CPU targets against torch and each other, and what attention costs them.

    python -m benchmarks.cpu_targets > benchmarks/results/cpu_targets_<machine>.md

The reference pair (ResNet-50 twice, 224 × 224, random weights). All contenders of a table take turns within each
round, in one process; a ratio is that of one round, and its spread is the interquartile range over the rounds.

attention tax: the pair with attention over the same pair without any, encoders alone, on the same engine. `as traced`
is the graph without the rewrites of `mpmmu_rt.export.rewrite`, each of which is then added.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from mpmmu_rt import machine
from mpmmu_rt.engines import known_engine
from mpmmu_rt.export import Data, Limits, Wanted, encoders, export_bundle, reference
from mpmmu_rt.export.quantization import calibrate, quantize
from mpmmu_rt.export.rewrite import REWRITES, Rewrite, rewrite
from mpmmu_rt.model.config import EncoderConfig
from mpmmu_rt.model.encoder import Encoder
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.predictor import load
from mpmmu_rt.progress import silent
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target

ROUNDS = {1: 15, 32: 5}
# Without BF16 where the processor has none.
TARGETS = tuple(
    text
    for text in ("onnxruntime:fp32", "openvino:fp32", "openvino:bf16", "openvino:int8")
    if known_engine(Target.parse(text)).problem(Target.parse(text).precision) is None
)
STEPS: dict[str, tuple[Rewrite, ...]] = {
    "as traced": (),
    "batch norms folded": ("batch_norms",),
    "and one MLP": ("batch_norms", "one_mlp"),
    "and inner mean (all)": REWRITES,
}
Call = Callable[[], object]
Pixels = Mapping[Modality, Array]


def race(calls: Mapping[str, Call], rounds: int) -> dict[str, Array]:
    """Milliseconds of every call in every round, after two calls of each to warm up."""
    for call in calls.values():
        call()
        call()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            spent[name].append((time.perf_counter() - start) * 1e3)
    return {name: np.array(values) for name, values in spent.items()}


def ratio(over: Array, under: Array) -> str:
    low, middle, high = np.percentile(over / under, [25, 50, 75])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def pair(cases: int) -> dict[Modality, Array]:
    rng = np.random.default_rng(cases)
    return {modality: rng.integers(0, 256, (cases, 1, 224, 224), dtype=np.uint8) for modality in MODALITIES}


def whole_model(folder: Path) -> None:
    """Every target's Predictor against torch eager FP32 with scikit-learn's head."""
    checkpoint = reference.build(silent)
    preprocessing = checkpoint.config.preprocessing

    def drawn(count: int, seed: int) -> Data:
        pixels, labels = phantom_pixels(count, seed=seed, preprocessing=preprocessing)
        return Data(pixels, labels, f"{count} phantoms")

    # Random weights decide nothing: the limits are open, and no accuracy is read off here.
    limits = Limits(auc_loss=1, sensitivity_loss=1, flips=1, mean_difference=1)
    wanted = Wanted(tuple(map(Target.parse, TARGETS)), drawn(16, 1), drawn(16, 2), limits)
    export_bundle(
        folder / "b",
        mammography=checkpoint.encoders["mammography"],
        ultrasound=checkpoint.encoders["ultrasound"],
        head=checkpoint.head,
        preprocessing=preprocessing,
        parity_cases=drawn(8, 3),
        wanted=wanted,
    )
    predictors = {target: load(folder / "b", target) for target in TARGETS}
    original = encoders.Encoders(dict(checkpoint.encoders), preprocessing.size)
    for batch, rounds in ROUNDS.items():
        pixels = pair(batch)

        def torch_eager(pixels: Pixels = pixels) -> Array:
            found: Array = checkpoint.head.predict_proba(original.run(pixels, batch=32)["embedding"])
            return found

        calls: dict[str, Call] = {"torch eager + scikit-learn": torch_eager}
        for target, predictor in predictors.items():
            calls[target] = partial(predictor.predict, pixels)
        spent = race(calls, rounds)
        print(f"\n### Whole model, batch {batch}\n")
        print("| | ms per pair, p50 | times torch | times onnxruntime:fp32 |\n|---|---|---|---|")
        for name, values in spent.items():
            against = ratio(spent["torch eager + scikit-learn"], values), ratio(spent["onnxruntime:fp32"], values)
            print(f"| {name} | {np.median(values) / batch:.2f} | {against[0]} | {against[1]} |", flush=True)
        _overhead(predictors["openvino:int8"], pixels, rounds)


def _overhead(predictor: Any, pixels: Pixels, rounds: int) -> None:
    """The Predictor against the compiled model and the head alone: the same requests, without checks or copies out."""
    batch = len(pixels["mammography"])
    embedding = predictor.predict(pixels).embedding
    streams = predictor._pipeline.embedder._for(batch)
    into = np.empty_like(embedding)

    def raw() -> None:
        streams.run(pixels, into)
        predictor._pipeline._head.run({"embedding": embedding})

    spent = race({"raw": raw, "predictor": lambda: predictor.predict(pixels)}, 4 * rounds)
    more = np.median(spent["predictor"] - spent["raw"])
    times = ratio(spent["predictor"], spent["raw"])
    print(f"\n{predictor.target}, Predictor over its compiled model: {times}, {more:.3f} ms per call.")


def attention_tax(folder: Path) -> None:
    """Encoders alone, batch 32 on two streams (OpenVINO) or all threads (ONNX Runtime)."""
    torch.manual_seed(0)
    plain = Encoder(EncoderConfig(attention="none", in_blocks=False, in_pool=False)).eval()
    gated = {kind: Encoder(EncoderConfig(attention=kind)).eval() for kind in ("cbam", "eca")}
    graphs = {"plain": _trace(rewrite(plain))}
    for step, rewrites in STEPS.items():
        graphs |= {f"{kind} {step}": _trace(rewrite(encoder, rewrites)) for kind, encoder in gated.items()}
    for engine, precision in (("openvino", "f32"), ("openvino", "bf16"), ("openvino", "int8"), ("onnxruntime", "f32")):
        if precision == "bf16" and "openvino:bf16" not in TARGETS:
            continue
        calls = {}
        for name, graph in graphs.items():
            if precision == "int8" and ("as traced" in name or "folded" in name or "one MLP" in name):
                continue
            path = folder / "encoder.onnx"
            onnx.save(_quantized(graph) if precision == "int8" else graph, str(path))
            calls[name] = _encoder_on(engine, path, precision)
        spent = race(calls, ROUNDS[32])
        print(f"\n### Attention tax, {engine} {precision}, batch 32\n")
        print("| graph | pair, ms per pair | tax |\n|---|---|---|")
        print(f"| without attention | {2 * np.median(spent['plain']) / 32:.2f} | 1 |")
        for step in STEPS:
            if f"cbam {step}" in spent:
                both = spent[f"cbam {step}"] + spent[f"eca {step}"]
                print(f"| {step} | {np.median(both) / 32:.2f} | {ratio(both, 2 * spent['plain'])} |", flush=True)


def _trace(encoder: Encoder) -> onnx.ModelProto:
    pixels = torch.zeros(2, 1, 224, 224, dtype=torch.uint8)
    return encoders._trace(encoders.Features(encoder), (pixels,), ["pixels"], "feature_map")


def _quantized(graph: onnx.ModelProto) -> onnx.ModelProto:
    return quantize(graph, calibrate(graph, pair(8)["mammography"]), unsigned=True)


def _encoder_on(engine: str, path: Path, precision: str) -> Call:
    pixels = pair(32)["mammography"]
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = machine.usable_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"pixels": pixels})
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape([1, 1, 224, 224])
    threads = machine.usable_threads()
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
    }
    requests = openvino.AsyncInferQueue(core.compile_model(model, "CPU", settings), 2 * threads)

    def call() -> None:
        for row in range(32):
            requests.start_async({0: pixels[row : row + 1]}, share_inputs=True)
        requests.wait_all()

    return call


if __name__ == "__main__":
    facts = machine.describe()
    load_before = os.getloadavg()[0]
    print("# CPU targets\n")
    print(f"{facts['cpu']}, {', '.join(facts['cpu_features'])}; {facts['threads']} threads; Python {facts['python']}.")
    print(", ".join(f"{name} {version}" for name, version in facts["packages"].items()), end="")
    print(f", torch {torch.__version__}; load average at the start {load_before:.1f}.")
    torch.set_num_threads(facts["threads"])
    with tempfile.TemporaryDirectory() as temporary:
        if "tax" not in sys.argv:
            whole_model(Path(temporary))
        if "whole" not in sys.argv:
            attention_tax(Path(temporary))
    print(f"\nLoad average at the end {os.getloadavg()[0]:.1f}.")
