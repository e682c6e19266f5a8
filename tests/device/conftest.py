"""A machine with a simulated GPU, and bundles with engines for it."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")

import shutil

from mpmmu_rt import bundle as bundles
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines.tensorrt import RTX, TENSORRT, TensorRt
from mpmmu_rt.engines.tensorrt import build as tensorrt_build
from mpmmu_rt.engines.tensorrt.device_path import DevicePath, WholeGraph
from mpmmu_rt.engines.tensorrt.sidecar import LICENCE, Built, Profile, Sidecar, graph_digest
from mpmmu_rt.export import Wanted
from mpmmu_rt.export.precision import to_half
from mpmmu_rt.kernels.plan import Device
from mpmmu_rt.kernels.weights import PoolWeights
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.spec import MODALITIES, Array, Modality
from mpmmu_rt.spec import Target as TargetName

from .simulated_cuda import SimulatedCuda
from .simulated_cupy import ADA, SimulatedCupy
from .simulated_tensorrt import SimulatedTensorRt

GPU_NAME, CAPABILITY = b"GeForce RTX 4090", 89
ENGINES: dict[str, TensorRt] = {"tensorrt-rtx": RTX, "tensorrt": TENSORRT}
KINDS = {"mammography": "cbam", "ultrasound": "eca"}


def _typed(model: onnx.ModelProto, name: str, precision: str) -> onnx.ModelProto:
    """The export's FP16; BF16, in which ONNX Runtime has no convolution, of the feature map alone."""
    if precision == "fp32" or name not in MODALITIES:
        return model
    if precision == "fp16":
        model = to_half(model, "fp16")
    (output,) = model.graph.output
    half = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
    if output.type.tensor_type.elem_type != half:
        for node in model.graph.node:
            node.output[:] = ["wide" if one == output.name else one for one in node.output]
            node.input[:] = ["wide" if one == output.name else one for one in node.input]
        model.graph.node.append(helper.make_node("Cast", ["wide"], [output.name], to=half))
        output.type.tensor_type.elem_type = half
    return model


@dataclass(frozen=True)
class Target:
    """A bundle with engines for one target. engines: their bytes, graph and largest batch."""

    bundle: Bundle
    engine: str
    precision: str
    profile: Profile
    engines: tuple[tuple[bytes, Path, int], ...]

    def graph(self, name: str) -> Path:
        return self.bundle.path / f"engines/{self.engine}-{self.precision}/{name}.onnx"


def make_target(
    source: Path, folder: Path, weights: dict[str, Array] | None, engine: str, precision: str, profile: Profile
) -> Target:
    """weights: of the attention pools; None for a bundle without."""
    shutil.copytree(source, folder)
    made, into = [], folder / f"engines/{engine}-{precision}"
    into.mkdir(parents=True)
    version = str(tensorrt_build.library("tensorrt_rtx").__version__)
    for name in (*MODALITIES, "head", "model"):
        graph = into / f"{name}.onnx"
        model = _typed(onnx.load(str(folder / f"onnx/{name}.onnx")), name, precision)
        graph.write_bytes(model.SerializeToString())
        data = f"an engine for {name} in {precision} of {engine}".encode()
        rtx = engine == "tensorrt-rtx"
        sidecar = Sidecar(
            flavour="tensorrt_rtx" if rtx else "tensorrt",
            version=version,
            capabilities=(86, 89) if rtx else (CAPABILITY,),
            device=None if rtx else GPU_NAME.decode(),
            precision=precision,
            achieved={},
            profile=profile,
            graph_sha256=graph_digest(graph),
            engine_sha256=hashlib.sha256(data).hexdigest(),
            engine_bytes=len(data),
            licence=LICENCE,
        )
        Built(data, sidecar).write(graph.with_suffix(".engine"))
        made.append((data, graph, profile.max))
    entry = dict(Bundle.open(source).entry)
    if weights is not None:
        np.savez(folder / "onnx/attention_pool.npz", **cast("dict[str, Any]", weights))
        entry["attention_pool"] = {"weights": "onnx/attention_pool.npz", "kinds": KINDS}
    else:
        entry["attention_pool"] = None
    bundles.seal(folder, entry)
    return Target(Bundle.open(folder), engine, precision, profile, tuple(made))


@pytest.fixture(scope="session")
def weights(small_model: Checkpoint) -> dict[str, Array]:
    """Of the attention pools of the small model, by the names that they have in a bundle."""
    found: dict[str, Array] = {}
    for modality in MODALITIES:
        pool = small_model.encoders[modality].pool
        found |= {f"{modality}.{name}": array.numpy() for name, array in pool.state_dict().items()}
    return found


@pytest.fixture(scope="session")
def target(
    bundle_folder: Path, weights: dict[str, Array], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Target]:
    """A bundle with engines; each made once. Read only."""
    made: dict[tuple[object, ...], Target] = {}

    def get(
        engine: str = "tensorrt-rtx", precision: str = "fp32", profile: Profile | None = None, *, pool: bool = True
    ) -> Target:
        profile = profile or Profile(1, 8, 33)
        key = (engine, precision, profile, pool)
        if key not in made:
            folder = tmp_path_factory.mktemp("device") / "small.bundle"
            made[key] = make_target(bundle_folder, folder, weights if pool else None, engine, precision, profile)
        return made[key]

    return get


@pytest.fixture(scope="session")
def exported(finished: Callable[[Wanted], Bundle]) -> Target:
    """A bundle as the export writes it, engines and all. Read only."""
    folder = finished(Wanted((TargetName("tensorrt-rtx", "fp32", (CAPABILITY,)),))).path
    graphs = sorted((folder / "engines/tensorrt-rtx-fp32").glob("*.onnx"))
    profile = Sidecar.read(graphs[0].with_name(f"{graphs[0].stem}.engine.json")).profile
    engines = tuple((graph.with_suffix(".engine").read_bytes(), graph, profile.max) for graph in graphs)
    return Target(Bundle.open(folder), "tensorrt-rtx", "fp32", profile, engines)


class Driver:
    """libcuda as far as `gpu` asks it."""

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = ordinal
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = GPU_NAME
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: CAPABILITY // 10, 76: CAPABILITY % 10}[attribute]
        return 0


@dataclass
class Machine:
    """A simulated GPU, as `plug` sets it up."""

    cuda: SimulatedCuda
    trt: SimulatedTensorRt
    cupy: SimulatedCupy | None
    target: Target
    opened: list[DevicePath | WholeGraph] = field(default_factory=list)
    spoilt: bool = False  # by a test that breaks the rules on purpose

    def open(self, **options: Any) -> DevicePath | WholeGraph:
        pipeline = ENGINES[self.target.engine].pipeline(self.target.bundle, self.target.precision, 1, **options)
        self.opened.append(pipeline)
        return pipeline

    def finish(self) -> None:
        """Everything is closed, given back, and was allowed."""
        for pipeline in self.opened:
            pipeline.close()
        self.opened.clear()
        if self.cuda.live() or self.trt.contexts:
            gc.collect()  # errors that were raised hold on to what was made
        self.cuda.close()
        if self.spoilt:
            return
        assert not self.cuda.violations
        assert not self.cuda.races
        assert not self.cuda.live()
        assert self.trt.contexts == 0


@pytest.fixture
def plug(target: Callable[..., Target], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Machine]]:
    """Set up a machine of that seed for a target, in place of the last one; it is checked at the end."""
    library = ctypes.CDLL
    monkeypatch.setattr(
        ctypes, "CDLL", lambda name, *rest, **more: Driver() if name == "libcuda.so.1" else library(name, *rest, **more)
    )
    monkeypatch.setattr(tensorrt_build, "_LOGS", {})
    machines: list[Machine] = []

    def machine(
        of: Target | None = None, *, seed: int = 0, cupy: bool = True, device: Device = ADA, old_cupy: bool = False
    ) -> Machine:
        if machines:
            machines.pop().finish()
        of = of or target()
        cuda = SimulatedCuda(seed)
        trt = SimulatedTensorRt(of.engine.replace("-", "_"), cuda)
        for engine, graph, largest in of.engines:
            trt.note(engine, graph, largest)
        fake = SimulatedCupy(cuda, device, old=old_cupy) if cupy else None
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
        monkeypatch.setitem(sys.modules, trt.__name__, trt)
        monkeypatch.setitem(sys.modules, "cupy", fake)  # None: it can't be imported
        machines.append(Machine(cuda, trt, fake, of))
        return machines[-1]

    yield machine
    for one in machines:
        one.finish()


Pixels = dict[Modality, Array]


@dataclass
class Cases:
    """Pixels, and what the target's own graphs say of them on the processor, with the float64 attention pool."""

    pixels: Pixels
    embedding: Array
    probability: Array
    base_probability: Array


def on_processor(graph: Path, feeds: dict[str, Array], output: str) -> Array:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    found: Array = session.run([output], feeds)[0]
    return found


@pytest.fixture(scope="session")
def cases(target: Callable[..., Target], weights: dict[str, Array]) -> Callable[..., Cases]:
    """Noise, with another grey level for each case and modality: each case has another answer."""
    made: dict[tuple[object, ...], Cases] = {}

    def get(count: int, of: Target | None = None) -> Cases:
        of = of or target()
        key = (count, of.engine, of.precision)
        if key not in made:
            size = of.bundle.preprocessing.size
            rng = np.random.default_rng(3)
            pixels: Pixels = {
                modality: np.clip(
                    rng.normal(rng.uniform(40, 200, (count, 1, 1, 1)), 50, (count, 1, size, size)), 0, 255
                ).astype(np.uint8)
                for modality in MODALITIES
            }
            parts = []
            for modality in MODALITIES:
                model = onnx.load(str(of.graph(modality)))
                rounded = model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16
                if rounded:  # NumPy can't take it: back to float32, which is exact
                    model.graph.node.append(
                        helper.make_node("Cast", ["feature_map"], ["exact"], to=onnx.TensorProto.FLOAT)
                    )
                    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("exact", 1, ["N", None, None, None]))
                session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
                maps = session.run(None, {"pixels": pixels[modality]})[0]
                kind: Any = KINDS[modality]
                pool = PoolWeights.from_arrays(kind, maps.shape[1], weights, f"{modality}.attention.")
                parts.append(pool.pool(maps))
            embedding = np.concatenate(parts, 1).astype(np.float32)
            said = {
                name: on_processor(of.graph("head"), {"embedding": embedding}, name)
                for name in ("probability", "base_probability")
            }
            made[key] = Cases(pixels, embedding, **said)
        return made[key]

    return get
