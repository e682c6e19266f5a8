"""The CPU targets against torch and each other, and what attention costs them.

    python -m benchmarks.cpu.targets > benchmarks/results/cpu_targets_<machine>.md

The reference pair (ResNet-50 twice, 224 × 224, random weights). All contenders of a table take turns within each
round, in one process (`benchmarks.racing`).

attention tax: the pair with attention over the same pair without any, encoders alone, on the same engine. `as traced`
is the graph without the rewrites of `mpmmu_rt.export.rewrite`, each of which is then added; `and for OpenVINO` with
those of `mpmmu_rt.export.openvino_graph`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from benchmarks import report
from benchmarks.racing import Call, race, ratio
from mpmmu_rt import machine
from mpmmu_rt.engines import known_engine
from mpmmu_rt.engines.openvino import INFERENCE_PRECISION
from mpmmu_rt.export import Data, Limits, Wanted, encoders, export_bundle, reference, tracing
from mpmmu_rt.export.openvino_graph import for_openvino
from mpmmu_rt.export.quantization import calibrate, quantize
from mpmmu_rt.export.rewrite import REWRITES, Rewrite, rewrite
from mpmmu_rt.model.config import EncoderConfig
from mpmmu_rt.model.encoder import Encoder
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.predictor import load
from mpmmu_rt.progress import silent
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target, in_8_bits

ROUNDS = {1: 15, 32: 5}
# Without BF16 where the processor has none.
TARGETS = tuple(
    text
    for text in ("onnxruntime:fp32", "openvino:fp32", "openvino:bf16", "openvino:int8", "openvino:int8-bf16")
    if known_engine(Target.parse(text)).problem(Target.parse(text).precision) is None
)
STEPS: dict[str, tuple[Rewrite, ...]] = {
    "as traced": (),
    "batch norms folded": ("batch_norms",),
    "and one MLP": ("batch_norms", "one_mlp"),
    "and inner mean (all)": REWRITES,
}
OF_OPENVINO = "and for OpenVINO"
Pixels = Mapping[Modality, Array]


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
        print(report.columns(" | ms per pair, p50 | times torch | times onnxruntime:fp32"))
        for name, values in spent.items():
            against = ratio(spent["torch eager + scikit-learn"], values), ratio(spent["onnxruntime:fp32"], values)
            print(report.row([name, f"{np.median(values) / batch:.2f}", *against]), flush=True)
        _overhead(predictors["openvino:int8"], pixels, rounds)


def _overhead(predictor: Any, pixels: Pixels, rounds: int) -> None:
    """The Predictor against its two halves alone: the same requests, without checks or copies out."""
    embedding = predictor.predict(pixels).embedding
    embedder = predictor._pipeline.embedder
    into = np.empty_like(embedding)

    def raw() -> None:
        embedder.embed(pixels, into)
        predictor._pipeline._head.run({"embedding": embedding})

    spent = race({"raw": raw, "predictor": lambda: predictor.predict(pixels)}, 4 * rounds)
    more = np.median(spent["predictor"] - spent["raw"])
    times = ratio(spent["predictor"], spent["raw"])
    print(f"\n{predictor.target}, Predictor over its halves: {times}, {more:.3f} ms per call.")


def attention_tax(folder: Path) -> None:
    """Encoders alone, batch 32 on two streams (OpenVINO) or all threads (ONNX Runtime)."""
    torch.manual_seed(0)
    plain = Encoder(EncoderConfig(attention="none", in_blocks=False, in_pool=False)).eval()
    gated = {kind: Encoder(EncoderConfig(attention=kind)).eval() for kind in ("cbam", "eca")}
    graphs = {"plain": _trace(rewrite(plain))}
    for step, rewrites in STEPS.items():
        graphs |= {f"{kind} {step}": _trace(rewrite(encoder, rewrites)) for kind, encoder in gated.items()}
    last = list(STEPS)[-1]
    kept = {name: graph for name, graph in graphs.items() if name == "plain" or name.endswith(last)}
    forms = {False: graphs, True: {name: _quantized(graph) for name, graph in kept.items()}}
    for engine, precision in (
        *(("openvino", precision) for precision in ("fp32", "bf16", "int8", "int8-bf16")),
        ("onnxruntime", "fp32"),
    ):
        if known_engine(Target(engine, precision)).problem(precision):
            continue
        made = forms[in_8_bits(precision)]
        if engine != "openvino":
            _table(folder, made, engine, precision, 1)
            continue
        tuned = {f"{kind} {OF_OPENVINO}": for_openvino(made[f"{kind} {last}"]) for kind in gated}
        _table(folder, made | tuned, engine, precision, 1)
        _table(folder, {"plain": made["plain"], **tuned}, engine, precision, 4)


def _table(folder: Path, graphs: Mapping[str, onnx.ModelProto], engine: str, precision: str, cases: int) -> None:
    """cases: of a request."""
    calls = {}
    for name, graph in graphs.items():
        path = folder / "encoder.onnx"
        onnx.save(graph, str(path))
        calls[name] = _encoder_on(engine, path, precision, cases)
    spent = race(calls, ROUNDS[32])
    of = "" if cases == 1 else f", requests of {cases} cases"
    print(f"\n### Attention tax, {engine}:{precision}, batch 32{of}\n")
    print(report.columns("graph | pair, ms per pair | tax | ECA's, CBAM's"))
    print(report.row(["without attention", f"{2 * np.median(spent['plain']) / 32:.2f}", 1, ""]))
    for step in (*STEPS, OF_OPENVINO):
        if f"cbam {step}" in spent:
            both = spent[f"cbam {step}"] + spent[f"eca {step}"]
            each = ", ".join(f"{np.median(spent[f'{kind} {step}'] / spent['plain']):.2f}" for kind in ("eca", "cbam"))
            tax = ratio(both, 2 * spent["plain"])
            print(report.row([step, f"{np.median(both) / 32:.2f}", tax, each]), flush=True)


def _trace(encoder: Encoder) -> onnx.ModelProto:
    pixels = torch.zeros(2, 1, 224, 224, dtype=torch.uint8)
    return tracing.trace(encoders.Features(encoder, cut=True), (pixels,), ["pixels"], "feature_map")


def _quantized(graph: onnx.ModelProto) -> onnx.ModelProto:
    return quantize(graph, calibrate(graph, pair(8)["mammography"]), unsigned=True)


def _encoder_on(engine: str, path: Path, precision: str, cases: int) -> Call:
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
    model.reshape([cases, 1, 224, 224])
    threads = machine.usable_threads()
    settings = {
        "INFERENCE_PRECISION_HINT": INFERENCE_PRECISION[precision],
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
    }
    requests = openvino.AsyncInferQueue(core.compile_model(model, "CPU", settings), 2 * threads)

    def call() -> None:
        for row in range(0, 32, cases):
            requests.start_async({0: pixels[row : row + cases]}, share_inputs=True)
        requests.wait_all()

    return call


def main(only: str | None) -> None:
    print(report.heading("CPU targets", ("torch", "scikit-learn")), end="")
    torch.set_num_threads(machine.usable_threads())
    with tempfile.TemporaryDirectory() as temporary:
        if only != "tax":
            whole_model(Path(temporary))
        if only != "whole":
            attention_tax(Path(temporary))
    print(f"\n{report.load('at the end')}")


if __name__ == "__main__":
    parser = report.parser(__doc__)
    parser.add_argument("only", nargs="?", choices=["whole", "tax"], help="the whole model or the attention tax alone")
    main(parser.parse_args().only)
