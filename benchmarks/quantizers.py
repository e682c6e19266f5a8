"""Static INT8 quantizers against each other: speed on OpenVINO, accuracy, and whether TensorRT-RTX builds the graphs.

    python benchmarks/quantizers.py make BUNDLE WORK       # float and every quantizer's graphs to WORK/<name>/
    python benchmarks/quantizers.py speed WORK
    python benchmarks/quantizers.py accuracy BUNDLE WORK [MANIFEST]

`make` needs onnxruntime, and nncf for its row; Model Optimizer, whose requirements contradict ours, runs elsewhere on
WORK/float and WORK/calibration.npz, and its graphs are put in WORK/modelopt (its own choice of ranges) and in
"WORK/modelopt, largest" (`--calibration_method max`). Speed is measured on the full-size
reference bundle, accuracy on the trained tiny one, on phantoms that are neither trained nor calibrated on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from mpmmu_rt import machine
from mpmmu_rt._optional import require
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.export import quantization
from mpmmu_rt.export.quantization import Layer, Point, Ranges, placement, ranges, rewrite
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.spec import MODALITIES, Array, Modality

CALIBRATION_SEED, HELD_OUT_SEED, HELD_OUT = 77, 9999, 1000
ROUNDS = 9
_SAMPLE = 100_000  # values of a tensor in 8 images
Graphs = dict[Modality, Any]


# ---------------------------------------------------------------- make


def make(bundle: Path, work: Path) -> None:
    import onnx

    preprocessing = Bundle.open(bundle).preprocessing
    cases = 256 if preprocessing.size < 200 else 32  # the full-size model is for speed
    pixels, _ = phantom_pixels(cases, seed=CALIBRATION_SEED, preprocessing=preprocessing)
    work.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {str(modality): array for modality, array in pixels.items()}
    np.savez(work / "calibration.npz", **arrays)
    graphs: Graphs = {modality: onnx.load(bundle / "onnx" / f"{modality}.onnx") for modality in MODALITIES}
    save(graphs, work / "float")
    for name, quantizer in quantizers().items():
        start = time.perf_counter()
        try:
            found = {modality: quantizer(graphs[modality], pixels[modality]) for modality in MODALITIES}
        except ImportError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        save(found, work / name)
        print(f"{name}: {time.perf_counter() - start:.1f} s for {cases} cases", flush=True)


def save(graphs: Graphs, folder: Path) -> None:
    import onnx

    folder.mkdir(exist_ok=True)
    for modality, graph in graphs.items():
        onnx.save(graph, folder / f"{modality}.onnx")


def quantizers() -> dict[str, Callable[[Any, Array], Any]]:
    """Our own as it is shipped; with fewer of its points; with other ranges; then the others."""
    return {
        "ours": lambda graph, x: quantization.quantize(graph, quantization.calibrate(graph, x)),
        "ours unsigned": lambda graph, x: quantization.quantize(graph, quantization.calibrate(graph, x), unsigned=True),
        "ours, inputs of layers only": lambda graph, x: with_points(graph, x, {1}),
        "ours, and what gates read": lambda graph, x: with_points(graph, x, {1, 2}),
        "ours, before max pooling": lambda graph, x: with_points(graph, x, {1, 2, 3}, before_pooling=True),
        "ours, least squares": lambda graph, x: quantization.quantize(graph, other_ranges(graph, x, least_squares)),
        "ours, 99.99 %": lambda graph, x: quantization.quantize(graph, other_ranges(graph, x, percentile)),
        "onnxruntime": lambda graph, x: by_onnxruntime(graph, x, gates=True),
        "onnxruntime without gates": lambda graph, x: by_onnxruntime(graph, x, gates=False),
        "nncf": lambda graph, x: by_nncf(graph, x, largest=False),
        "nncf, largest": lambda graph, x: by_nncf(graph, x, largest=True),
    }


def with_points(graph: Any, x: Array, rules: set[int], before_pooling: bool = False) -> Any:
    """Our graph with the points of some rules of `placement.points` only."""

    def chosen_points(model: Any, chosen: Iterable[Layer]) -> tuple[Point, ...]:
        chosen = tuple(chosen)
        inputs = {name for layer in chosen for name in layer.inputs}
        read = [name for node in model.graph.node for name in node.input]
        kept = []
        for point in placement.points(model, chosen):
            rule = 1 if point.tensor in inputs else 2 if read.count(point.tensor) > 1 else 3
            if rule in rules:
                kept.append(point)
        if before_pooling:
            pooled = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "MaxPool"}
            kept = [Point(pooled.get(point.tensor, point.tensor), point.signed) for point in kept]
        return tuple(kept)

    found = quantization.calibrate(graph, x)
    pools = [node for node in graph.graph.node if node.op_type == "MaxPool"]
    limit = dict(found.limit) | {node.input[0]: found.limit[node.output[0]] for node in pools}
    with patch.object(rewrite, "points", chosen_points):
        return quantization.quantize(graph, Ranges(limit, found.cases, found.sha256))


def other_ranges(graph: Any, x: Array, choose: Callable[[Array], float]) -> Ranges:
    """A limit per tensor from a sample of its magnitudes."""
    tensors = list(placement.candidates(graph))
    session = ranges.session(ranges.with_outputs(graph, tensors))
    rng = np.random.default_rng(0)
    parts: dict[str, list[Array]] = {tensor: [] for tensor in tensors}
    for at in range(0, len(x), 8):
        for tensor, value in zip(tensors, session.run(tensors, {"pixels": x[at : at + 8]}), strict=True):
            values = np.abs(value).ravel()
            parts[tensor].append(values if len(values) <= _SAMPLE else values[rng.integers(0, len(values), _SAMPLE)])
    return Ranges({tensor: choose(np.concatenate(values)) for tensor, values in parts.items()}, len(x), "")


def least_squares(values: Array) -> float:
    counts, edges = np.histogram(values, 2048)
    centres = (edges[1:] + edges[:-1]) / 2
    limits = values.max() * np.linspace(0.2, 1, 161)
    step = limits[:, None] / rewrite.LEVELS
    error = np.minimum(np.rint(centres / step), rewrite.LEVELS) * step - centres
    return float(limits[np.argmin((error**2 * counts).sum(1))])


def percentile(values: Array) -> float:
    return float(np.percentile(values, 99.99))


def by_onnxruntime(graph: Any, x: Array, gates: bool) -> Any:
    """`quantize_static` with the options that TensorRT needs; without `gates`, our layers only."""
    import tempfile

    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = iter(range(0, len(x), 4))

        def get_next(self) -> dict[str, Array] | None:
            at = next(self._rows, None)
            return None if at is None else {"pixels": x[at : at + 4]}

    ours = {name for layer in placement.layers(graph) for name in layer.outputs}
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(graph, f"{folder}/float.onnx")
        quantize_static(
            f"{folder}/float.onnx",
            f"{folder}/int8.onnx",
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=None if gates else ["Conv"],
            nodes_to_quantize=None if gates else [n.name for n in graph.graph.node if n.output[0] in ours],
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
        return onnx.load(f"{folder}/int8.onnx")


def by_nncf(graph: Any, x: Array, largest: bool) -> Any:
    """NNCF's post-training quantization, symmetric, for the CPU; with its own choice of ranges or with the largest."""
    import importlib

    import onnx

    nncf = importlib.import_module("nncf")
    estimators = importlib.import_module("nncf.quantization.range_estimator")
    minmax = estimators.RangeEstimatorParametersSet.MINMAX
    ours = {name for layer in placement.layers(graph) for name in layer.outputs}
    others = [node.name for node in graph.graph.node if node.op_type == "Conv" and node.output[0] not in ours]
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    return nncf.quantize(
        copy,
        nncf.Dataset([{"pixels": x[at : at + 1]} for at in range(len(x))]),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(x),
        ignored_scope=nncf.IgnoredScope(names=others),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=minmax if largest else None
        ),
    )


# ---------------------------------------------------------------- speed


def contenders(work: Path) -> list[str]:
    first = ["float", "ours", "ours unsigned"]
    others = sorted(folder.name for folder in work.iterdir() if folder.is_dir() and folder.name not in first)
    return [*first, *others]


def compiled(path: Path, hint: str, **settings: Any) -> Callable[[Array], Array]:
    core = require("openvino", "this benchmark").Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": machine.usable_threads()} | settings
    model = core.compile_model(core.read_model(path), "CPU", settings | {"INFERENCE_PRECISION_HINT": hint})
    request = model.create_infer_request()
    return lambda x: np.array(request.infer({0: x}, share_inputs=True)[0])


def take_turns(calls: Mapping[str, Callable[[Array], Array]], x: Array) -> dict[str, Array]:
    """ms per image of each contender in each round: float64 [rounds]."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    repeats = 1 if len(x) > 1 else 10
    for turn in range(ROUNDS + 1):
        for name, call in calls.items():
            samples = []
            for _ in range(repeats):
                start = time.perf_counter()
                call(x)
                samples.append((time.perf_counter() - start) * 1e3 / len(x))
            if turn:
                found[name].append(float(np.median(samples)))
    return {name: np.array(values) for name, values in found.items()}


def speed(work: Path) -> None:
    print("\nInference on OpenVINO, ms per image: p50 of the rounds, and how many times FP32's speed in the same round")
    print("(median, quartiles). FP32 and BF16 are OpenVINO's precision for what is not 8 bits.\n")
    for modality in MODALITIES:
        calls = {
            f"{name}, rest {hint}": compiled(work / name / f"{modality}.onnx", hint)
            for name in contenders(work)
            for hint in ("f32", "bf16")
        }
        size = np.load(work / "calibration.npz")[modality].shape[-1]
        for batch in (32, 1):
            x = np.random.default_rng(0).integers(0, 256, (batch, 1, size, size), dtype=np.uint8)
            found = take_turns(calls, x)
            print(f"### {modality}, batch {batch}\n\n| contender | ms per image | times float |\n|---|---|---|")
            for name, values in found.items():
                low, middle, high = np.percentile(found["float, rest f32"] / values, [25, 50, 75])
                print(f"| {name} | {np.median(values):.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) |", flush=True)
            print()


# ---------------------------------------------------------------- accuracy


def accuracy(bundle: Path, work: Path, manifest: Path | None) -> None:
    from sklearn.metrics import roc_auc_score

    opened = Bundle.open(bundle)
    sets = [("phantoms", *phantom_pixels(HELD_OUT, seed=HELD_OUT_SEED, preprocessing=opened.preprocessing))]
    if manifest:
        sets.append(("real pairs", *real(manifest, opened.preprocessing)))
    print("\nAgainst the float graphs on OpenVINO; embedding error is ‖Δ‖ / ‖embedding‖. 8 bits, the rest in FP32.\n")
    print(
        "| contender | cases | TensorRT-RTX | embedding error | correlation | AUC loss | flips | sensitivity loss |",
        end="",
    )
    print(" mean \\|Δp\\| | max \\|Δp\\| |\n|---|---|---|---|---|---|---|---|---|---|")
    head = [on_onnxruntime(opened.graph("attention_pool")), on_onnxruntime(opened.graph("head_onnxruntime"))]
    for source, pixels, label in sets:
        results = dict(run_all(work, pixels, head))
        want_embedding, want = results["float"]
        for name, (embedding, got) in results.items():
            error = np.linalg.norm(embedding - want_embedding) / np.linalg.norm(want_embedding)
            correlation = np.corrcoef(embedding.ravel(), want_embedding.ravel())[0, 1]
            loss = roc_auc_score(label, want) - roc_auc_score(label, got)
            flips = int(np.sum((want >= opened.threshold) != (got >= opened.threshold)))
            sick = label == 1
            sensitivity = np.mean(want[sick] >= opened.threshold) - np.mean(got[sick] >= opened.threshold)
            difference = np.abs(want - got)
            print(
                f"| {name} | {len(label)} {source} | {'' if name == 'float' else builds(work / name)} | {error:.4f} | "
                f"{correlation:.5f} | {loss:+.4f} | {flips} | {sensitivity:+.4f} | {difference.mean():.4f} | "
                f"{difference.max():.3f} |",
                flush=True,
            )


def run_all(work: Path, pixels: Mapping[Modality, Array], head: list[Any]) -> Iterator[tuple[str, tuple[Array, Array]]]:
    """Embedding and probability of every contender; `float` also in BF16."""
    for name, hint in (("float", "f32"), ("float", "bf16"), *((name, "f32") for name in contenders(work)[1:])):
        maps = {}
        for modality in MODALITIES:
            call, x = compiled(work / name / f"{modality}.onnx", hint), pixels[modality]
            maps[f"{modality}_feature_map"] = np.concatenate([call(x[at : at + 32]) for at in range(0, len(x), 32)])
        embedding = head[0](maps, "embedding")
        yield name if hint == "f32" else "float in BF16", (embedding, head[1]({"embedding": embedding}, "probability"))


def on_onnxruntime(graph: Path) -> Callable[[Mapping[str, Array], str], Array]:
    session = require("onnxruntime", "this benchmark").InferenceSession(graph)
    return lambda feeds, output: np.array(session.run([output], dict(feeds))[0])


def real(manifest: Path, preprocessing: Preprocessing) -> tuple[dict[Modality, Array], Array]:
    from mpmmu_rt.cases import read_manifest
    from mpmmu_rt.images import read_pixels

    cases = read_manifest(manifest).cases
    pixels: dict[Modality, Array] = {}
    for modality in MODALITIES:
        paths = [case.image(modality) for case in cases]
        pixels[modality] = np.stack([read_pixels(path, preprocessing) for path in paths if path is not None])
    return pixels, np.array([case.label for case in cases])


def builds(folder: Path) -> str:
    """Whether TensorRT-RTX builds both encoders for compute capabilities 8.6, 8.9 and 12.0, or the reason why not."""
    if not (folder / f"{MODALITIES[0]}.onnx").is_file():
        return ""
    trt = require("tensorrt_rtx", "this benchmark")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    for modality in MODALITIES:
        builder = trt.Builder(logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        if not parser.parse((folder / f"{modality}.onnx").read_bytes()):
            return str(parser.get_error(0).desc()).split("\n")[0].replace("|", "/")[:90]
        config = builder.create_builder_config()
        config.num_compute_capabilities = 3
        for index, capability in enumerate(("SM86", "SM89", "SM120")):
            config.set_compute_capability(getattr(trt.ComputeCapability, capability), index)
        profile = builder.create_optimization_profile()
        channels, height, width = network.get_input(0).shape[1:]
        profile.set_shape("pixels", *((batch, channels, height, width) for batch in (1, 32, 32)))
        config.add_optimization_profile(profile)
        if builder.build_serialized_network(network, config) is None:
            return "does not build"
    return "builds"


def main() -> None:
    command, paths = sys.argv[1], [Path(argument) for argument in sys.argv[2:]]
    if command != "make":
        facts = machine.describe()
        print(f"{facts['cpu']} {facts['cpu_features']}, {facts['threads']} threads, ", end="")
        print(f"{machine.package_versions(('openvino', 'onnxruntime', 'nncf', 'tensorrt_rtx', 'numpy'))}.")
    if command == "make":
        make(*paths)
    elif command == "speed":
        speed(*paths)
    else:
        accuracy(paths[0], paths[1], paths[2] if len(paths) > 2 else None)


if __name__ == "__main__":
    main()
