"""OpenVINO on the CPU: FP32, BF16, and INT8 with what is not quantized in FP32 or in BF16.

Both encoders and the attention pool are joined to one model. A batch is spread over streams, so that each core works on
its own cases and the feature maps stay in its cache. For a batch so small that streams would get several threads each,
the model is cut in two: the encoders run beside each other, for half of the threads on all of an encoder do more than
all of them on a layer.

A request holds one case, or, of a large batch, several, as the weights of the last layers are then read once for all of
them. A case's answer must not depend on what shares its batch: such a model is used after it has
said of noise what the model of one case says of it, to the bit.

What was compiled for INT8 is kept on disk (`blob_cache`), and its precision is checked when it comes back: OpenVINO
reads a stored FP32 model back in BF16, where the processor has it, unless it is told again what was asked for.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mpmmu_rt import __version__, machine
from mpmmu_rt._optional import require
from mpmmu_rt.bundle import Bundle, HeadGraph
from mpmmu_rt.errors import EngineError, MpmmuError
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target, in_8_bits

from . import Traits
from .shared.blob_cache import BlobCache
from .shared.host_head import HostHead
from .shared.openvino_streams import Shape, Streams, halves
from .shared.words import closed, in_part, words_of

_PURPOSE = "the targets openvino:fp32, openvino:bf16, openvino:int8 and openvino:int8-bf16"
# What is not 8 bits wide in an INT8 graph stays FP32, so that the graph alone decides the result, not the processor:
# but for `int8-bf16`, a target of its own, as matrix units (AMX) compute no FP32.
INFERENCE_PRECISION = {"fp32": "f32", "bf16": "bf16", "int8": "f32", "int8-bf16": "bf16"}
# Where a stored model is read faster than compiled: INT8 in half the time, FP32 and BF16 not (benchmarks/NOTES.md).
_STORED = ("int8", "int8-bf16")
_MAX_ISA = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # by both names
_OWN_MAX_ISA = "OV_CPU_MAX_ISA"  # of what OpenVINO computes without oneDNN: seen in 2026.4.1
# Seen to fail with OpenVINO 2026.4.1; with AVX-512 and without its BF16 instructions it still computes in BF16.
_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2")
# Cases of a request where there are enough. INT8 with the rest in FP32 gains nothing by more (benchmarks/NOTES.md).
CASES_PER_REQUEST = {"fp32": 4, "bf16": 4, "int8": 1, "int8-bf16": 4}
LEAST_REQUESTS = 4  # a stream gets of several cases, or else none: such a model has to be compiled, and asked, first


_JOINED = "joined"  # beside the halves
_REFUSED = (RuntimeError, UnicodeDecodeError)  # the latter: see `words_of`


class OpenVinoSession:
    """A graph in OpenVINO. Calls from several threads take turns."""

    def __init__(self, compiled: Any, graph: Path, outputs: Sequence[str]) -> None:
        """outputs: their names, in the graph's order: compiled, some have several, as operators that only reshape are
        dropped."""
        self._request = compiled.create_infer_request()
        self._graph = graph
        self._lock = threading.Lock()
        self._wanted = {item.any_name: (item.element_type.to_dtype(), item.partial_shape) for item in compiled.inputs}
        self.inputs = tuple(self._wanted)
        self.outputs = tuple(outputs)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            with self._lock:
                if self._request is None:
                    raise closed()
                self._check(feeds)
                found = self._request.infer({name: np.ascontiguousarray(array) for name, array in feeds.items()})
                return {name: np.array(found[at]) for at, name in enumerate(self.outputs)}
        # OpenVINO raises RuntimeError of its own failures and KeyError or TypeError of what its binding can't take.
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise _failed(self._graph.name, error) from error

    def _check(self, feeds: Mapping[str, Array]) -> None:
        """OpenVINO takes what is missing for empty, converts other dtypes, and answers."""
        if feeds.keys() != self._wanted.keys():
            raise ValueError(f"the inputs are {', '.join(feeds) or 'nothing'}, expected {', '.join(self.inputs)}")
        for name, (dtype, shape) in self._wanted.items():
            lengths = list(feeds[name].shape)
            fits = len(lengths) == len(shape) and all(
                want.is_dynamic or want.get_length() == got for want, got in zip(shape, lengths, strict=True)
            )
            if feeds[name].dtype != dtype or not fits:
                raise ValueError(f"`{name}` is {feeds[name].dtype}{lengths}, expected {dtype.name}{shape}")

    def close(self) -> None:
        with self._lock:
            self._request = None


class OpenVinoEmbedder:
    """Both encoders and the attention pool. Any number of threads may share it."""

    def __init__(self, runtime: Any, bundle: Bundle, precision: str, threads: int) -> None:
        self._runtime = runtime
        self._bundle: Bundle | None = bundle  # None once closed
        self._precision = precision
        self._threads = threads
        self._name = bundle.name
        self._lock = threading.Lock()
        self._streams: dict[Shape, Streams] = {}
        self._together = CASES_PER_REQUEST[precision]
        self._may_part = True  # until a model that can't be cut, or halves that say something else
        self._compared: set[Shape] = set()
        self.remarks: tuple[str, ...] = ()
        self._core = _core(runtime)
        self._model: Any = None
        self._cache = BlobCache.default() if precision in _STORED else None
        # Streams are compiled when they are needed. What can't be read fails here, but for what has been read before.
        shapes = [self._shape_of(1), self._shape_of(threads)]
        if not any(self._is_stored(bundle, shape) for shape in shapes):
            self._model = self._read(bundle)

    def embed(self, pixels: Mapping[Modality, Array], embedding: Array) -> dict[str, float]:
        start = time.perf_counter()
        try:
            for streams, rows in self._parts(len(embedding)):
                streams.run({modality: array[rows] for modality, array in pixels.items()}, embedding[rows])
        except (RuntimeError, ValueError) as error:
            raise _failed(self._name, error) from error
        return {"encoders": (time.perf_counter() - start) * 1e3}

    def counts(self, cases: int) -> dict[str, int | str]:
        """What OpenVINO made of the graphs, by its own word: layers, after fusion, and what they are computed in."""
        streams = self._parts(cases)[0][0]
        kinds = Counter(kind for model in streams.models for kind in convolution_precisions(model))
        achieved = {model.get_property("INFERENCE_PRECISION_HINT").get_type_name() for model in streams.models}
        return {
            "cases.of.a.request": streams.cases,
            "models.at.once": len(streams.models),
            "layers": sum(len(model.get_runtime_model().get_ops()) for model in streams.models),
            "precision.achieved": ", ".join(sorted(achieved)),
            "precision.convolutions": ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())),
        }

    def _parts(self, cases: int) -> list[tuple[Streams, slice]]:
        """What runs which rows of a batch of so many cases: requests of several, as far as they keep all streams busy,
        and of one."""
        parts = []
        with self._lock:
            if self._bundle is None:
                raise EngineError(f"{self._name} is closed, expected a loaded bundle", hint="load it again")
            shape = self._shape_of(cases)
            full = shape.streams * self._together
            whole = cases - cases % full if self._together > 1 and cases >= LEAST_REQUESTS * full else 0
            if whole and (several := self._of_several(self._bundle, Shape(shape.streams, self._together))):
                parts.append((several, slice(0, whole)))
            else:
                whole = 0
            if whole < cases:
                parts.append((self._of_one(self._bundle, shape), slice(whole, cases)))
        return parts

    def _shape_of(self, cases: int) -> Shape:
        """For requests of one case. Streams in powers of two: a process holds few, whatever batches it meets."""
        streams = 1 << (min(cases, self._threads).bit_length() - 1)
        return Shape(streams, apart=self._may_part and 2 * streams <= self._threads)

    def _of_one(self, bundle: Bundle, shape: Shape) -> Streams:
        """Compiled on first use. Halves, unless they can't be had, or say something else than the joined model where
        that is there: to compile it for them alone would double the start."""
        if shape not in self._streams:
            made = self._made(bundle, shape)
            if made is None:  # it can't be cut
                self._may_part = False
                return self._of_one(bundle, Shape(shape.streams))
            self._streams[shape] = made
        if self._may_part:
            self._compare_halves(bundle)
        return self._streams.get(shape) or self._of_one(bundle, Shape(shape.streams))

    def _compare_halves(self, bundle: Bundle) -> None:
        joined = next((streams for shape, streams in self._streams.items() if shape == Shape(shape.streams)), None)
        for shape in [shape for shape in self._streams if shape.apart and shape not in self._compared]:
            if joined is None:
                return
            if not _agree(bundle, joined, self._streams[shape], 1):
                self._may_part = False
                self._streams = {shape: streams for shape, streams in self._streams.items() if not shape.apart}
                self.remarks += (
                    "OpenVINO rounds an encoder that runs beside the other otherwise than after it, on this processor: "
                    "from here on they take turns",
                )
                return
            self._compared.add(shape)

    def _of_several(self, bundle: Bundle, shape: Shape) -> Streams | None:
        """Streams of requests of several cases; None where they say something else than requests of one."""
        if shape in self._streams:
            return self._streams[shape]
        alone, several = self._of_one(bundle, Shape(shape.streams)), self._made(bundle, shape)
        if several is not None and _agree(bundle, alone, several, shape.cases):
            self._streams[shape] = several
            return several
        self._together = 1
        self.remarks += (
            f"OpenVINO rounds {shape.cases} cases of a request otherwise than one, on this processor: each is a "
            "request of its own",
        )
        return None

    def _read(self, bundle: Bundle) -> Any:
        try:
            model = _join(self._runtime, self._core, bundle, self._precision)
        except (*_REFUSED, KeyError) as error:
            raise _cannot_load(f"the graphs of {bundle.name}", error) from error
        bundle.require_unchanged()  # this may be long after the bundle was opened
        return model

    def _made(self, bundle: Bundle, shape: Shape) -> Streams | None:
        """None for halves of a model that can't be cut."""
        parts = self._threads_of(shape)
        with ThreadPoolExecutor(len(parts)) as pool:  # to compile takes one thread, and so does to read what is stored
            stored = [found for found in pool.map(lambda part: self._stored(bundle, shape, part), parts) if found]
            if len(stored) == len(parts):
                return Streams([model for model, _ in stored], shape, [blob for _, blob in stored])
            if self._model is None:
                self._model = self._read(bundle)
            cut = halves(self._runtime, self._model) if shape.apart else {_JOINED: self._model}
            if cut is None:
                return None
            compiled = pool.map(lambda part: self._compiled(bundle, shape, part, cut[part]), parts)
            return Streams(list(compiled), shape)

    def _threads_of(self, shape: Shape) -> dict[str, int]:
        """What is compiled, and for how many threads: the joined model, or the half of each modality."""
        if not shape.apart:
            return {_JOINED: self._threads}
        less = self._threads // len(MODALITIES)
        return dict(zip(MODALITIES, (self._threads - less, less), strict=True))

    def _compiled(self, bundle: Bundle, shape: Shape, part: str, model: Any) -> Any:
        if shape.cases > 1:
            model = model.clone()
            model.reshape({one.any_name: [shape.cases, *list(one.shape)[1:]] for one in model.inputs})
        threads = self._threads_of(shape)[part]
        compiled = _compile(self._core, model, self._precision, threads, shape.streams, self._name)
        if self._cache:
            exported = compiled.export_model()
            blob = exported if isinstance(exported, bytes) else exported.getvalue()  # the former in 2025.0
            self._cache.store(self._facts(bundle, shape, part), blob)
        return compiled

    def _is_stored(self, bundle: Bundle, shape: Shape) -> bool:
        cache = self._cache
        return cache is not None and all(
            cache.holds(self._facts(bundle, shape, part)) for part in self._threads_of(shape)
        )

    def _stored(self, bundle: Bundle, shape: Shape, part: str) -> tuple[Any, Array] | None:
        """What was compiled in another process, and the memory that it goes on reading from."""
        facts = self._facts(bundle, shape, part)
        blob = self._cache.load(facts) if self._cache else None
        if self._cache is None or blob is None:
            return None
        settings = _settings(self._precision, self._threads_of(shape)[part], shape.streams)
        try:
            try:
                compiled = self._core.import_model(self._runtime.Tensor(blob, shared_memory=True), "CPU", settings)
            except TypeError:  # before 2025.4 it takes bytes, and a copy of them
                compiled = self._core.import_model(blob.tobytes(), "CPU", settings)
            _check_precision(compiled, self._precision, self._name)
        except (*_REFUSED, EngineError) as error:
            self._cache.drop(facts, _reason(error))
            return None
        return compiled, blob

    def _facts(self, bundle: Bundle, shape: Shape, part: str) -> dict[str, str]:
        """All that the compiled model depends on."""
        settings = _settings(self._precision, self._threads_of(shape)[part], shape.streams)
        return {
            "bundle": bundle.digest,
            **self._machine,
            **{name: str(value) for name, value in settings.items()},
            "cases": str(shape.cases),
            "part": part,
            "precision": self._precision,
        }

    @cached_property
    def _machine(self) -> dict[str, str]:
        """What compiles, and for which processor."""
        return {
            "mpmmu-rt": __version__,
            "openvino": str(self._runtime.get_version()),
            "processor": str(self._core.get_property("CPU", "FULL_DEVICE_NAME")),
            "features": " ".join(machine.describe()["cpu_features"]),
            "capabilities": " ".join(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
            "held to": _held_to(),
            "own kernels held to": os.environ.get(_OWN_MAX_ISA, ""),
        }

    def close(self) -> None:
        with self._lock:
            self._streams = {}
            self._model = self._bundle = None


def _agree(bundle: Bundle, alone: Streams, other: Streams, cases: int) -> bool:
    """Whether two say the same of noise, to the bit."""
    size, drawn = bundle.preprocessing.size, np.random.default_rng(0)
    noise: dict[Modality, Array] = {
        modality: drawn.integers(0, 256, (cases, 1, size, size), np.uint8) for modality in MODALITIES
    }
    width = int(bundle.tensors["embedding"].shape[1])
    one, two = (np.empty((cases, width), np.float32) for _ in range(2))
    alone.run(noise, one)
    other.run(noise, two)
    return np.array_equal(one, two)


class OpenVino:
    name = "openvino"
    precisions = ("fp32", "bf16", "int8", "int8-bf16")
    head: HeadGraph = "head"
    traits = Traits(case_by_case=True)

    def problem(self, precision: str = "fp32") -> MpmmuError | None:
        try:
            runtime = require("openvino", _PURPOSE)
            if precision in _STORED:
                require("platformdirs", f"the target openvino:{precision}")
        except MpmmuError as error:
            return error
        if not hasattr(runtime, "Core"):
            return in_part("openvino", "pip install --force-reinstall openvino")
        try:
            able = runtime.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        except _REFUSED as error:
            return EngineError(
                f"OpenVINO can't use this processor: {_reason(error)}, expected its plugin for processors",
                hint="pip install --force-reinstall openvino",
            )
        rounds = INFERENCE_PRECISION.get(precision) == "bf16"
        if rounds and "BF16" not in able:
            held = os.environ.get(_OWN_MAX_ISA)
            return EngineError(
                f"this processor{f', held to {held} by {_OWN_MAX_ISA},' if held else ''} computes {', '.join(able)}, "
                "expected BF16 (AVX-512 BF16 or AMX)",
                hint=f"{f'unset {_OWN_MAX_ISA}, or ' if held else ''}use openvino:fp32 or openvino:int8",
            )
        # What OpenVINO says it is able to do is the processor's word, whatever oneDNN was told to leave unused.
        if rounds and _held_to().upper() in _WITHOUT_BF16:
            return EngineError(
                f"{_MAX_ISA[0]} holds this processor to {_held_to()}, expected AVX512_CORE or later for BF16",
                hint=f"unset {' and '.join(_MAX_ISA)}, or use openvino:fp32 or openvino:int8",
            )
        return None

    def version(self) -> str:
        return str(require("openvino", _PURPOSE).__version__).partition("-")[0]

    def load(self, graph: Path, precision: str, threads: int) -> OpenVinoSession:
        return self.load_showing(graph, (), precision, threads)

    def load_showing(self, graph: Path, tensors: Sequence[str], precision: str, threads: int) -> OpenVinoSession:
        core = _core(require("openvino", _PURPOSE))
        try:
            model = core.read_model(str(graph))
            if tensors:
                model.add_outputs(list(tensors))
            outputs = [next((name for name in tensors if name in item.names), item.any_name) for item in model.outputs]
        except _REFUSED as error:
            raise _cannot_load(graph.name, error) from error
        return OpenVinoSession(_compile(core, model, precision, threads, 1, graph.name), graph, outputs)

    def pipeline(self, bundle: Bundle, precision: str, threads: int) -> HostHead:
        return HostHead.load(
            bundle, Target(self.name, precision), threads, lambda: self._embedder(bundle, precision, threads)
        )

    def graph(self, bundle: Bundle, modality: Modality, precision: str) -> Path:
        return bundle.graph_for(self.name, modality, precision)

    def layers_in_8_bits(self, bundle: Bundle, precision: str, threads: int) -> int:
        core, count = _core(require("openvino", _PURPOSE)), 0
        for modality in MODALITIES:
            graph = bundle.graph(modality, precision)
            try:
                model = core.read_model(str(graph))
            except _REFUSED as error:
                raise _cannot_load(graph.name, error) from error
            kinds = convolution_precisions(_compiled(core, model, precision, threads, 1, graph.name))
            count += sum(kind in ("i8", "u8") for kind in kinds)
        return count

    def _embedder(self, bundle: Bundle, precision: str, threads: int) -> OpenVinoEmbedder:
        return OpenVinoEmbedder(require("openvino", _PURPOSE), bundle, precision, threads)


def _core(runtime: Any) -> Any:
    """A core that reads weights into memory: of a file that it maps, it would see what is written there later."""
    core = runtime.Core()
    core.set_property({runtime.properties.enable_mmap(): False})
    return core


def _held_to() -> str:
    """The instruction set that oneDNN was told not to go beyond; empty where it was told nothing."""
    return next((os.environ[name] for name in _MAX_ISA if os.environ.get(name)), "")


def _join(runtime: Any, core: Any, bundle: Bundle, precision: str) -> Any:
    """`mammography_pixels` and `ultrasound_pixels` [1, 1, S, S] to `embedding` [1, D]."""
    pool = core.read_model(str(bundle.graph_for("openvino", "attention_pool")))
    inputs = []
    for modality in MODALITIES:
        encoder = core.read_model(str(bundle.graph_for("openvino", modality, precision)))
        pixels = encoder.input("pixels").get_node()
        pixels.output(0).set_names({f"{modality}_pixels"})
        feature_map = encoder.output("feature_map").get_node().input_value(0)
        for consumer in pool.input(f"{modality}_feature_map").get_target_inputs():
            consumer.replace_source_output(feature_map)
        inputs.append(pixels)
    embedding = pool.output("embedding").get_node()
    model = runtime.Model([embedding], inputs, bundle.name)
    model.reshape({f"{m}_pixels": [1, *bundle.tensors[f"{m}_pixels"].shape[1:]] for m in MODALITIES})
    return model


def _settings(precision: str, threads: int, streams: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": INFERENCE_PRECISION[precision],
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        # Pinned, two predictors on one machine would sit on the same cores.
        "ENABLE_CPU_PINNING": False,
    }


def _compile(core: Any, model: Any, precision: str, threads: int, streams: int, name: str) -> Any:
    compiled = _compiled(core, model, precision, threads, streams, name)
    _check_precision(compiled, precision, name)
    return compiled


def _compiled(core: Any, model: Any, precision: str, threads: int, streams: int, name: str) -> Any:
    try:
        return core.compile_model(model, "CPU", _settings(precision, threads, streams))
    except _REFUSED as error:
        raise _cannot_load(name, error) from error


def _check_precision(compiled: Any, precision: str, name: str) -> None:
    """Raise `EngineError` unless OpenVINO computes in what was asked for."""
    achieved = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if achieved != INFERENCE_PRECISION[precision]:
        raise EngineError(
            f"OpenVINO computes {name} in {achieved} on this processor, expected {INFERENCE_PRECISION[precision]}",
            hint="use openvino:fp32",
        )
    # Graphs without convolutions have nothing to prove.
    found = convolution_precisions(compiled) if in_8_bits(precision) else []
    if found and not {"i8", "u8"} & set(found):
        raise EngineError(
            f"OpenVINO computes no layer of {name} in 8 bits on this processor, expected most of them",
            hint="use openvino:fp32",
        )


def convolution_precisions(compiled: Any) -> list[str]:
    """What every convolution of a compiled model really runs in, by OpenVINO's own word: `f32`, `bf16`, `i8`, `u8`."""
    kinds = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [info for info in kinds if info["layerType"].astype(str) == "Convolution"]
    return [str(info["runtimePrecision"].astype(str)) for info in kinds]


def _failed(name: str, error: Exception) -> EngineError:
    return EngineError(
        f"OpenVINO failed in {name}: {_reason(error)}",
        hint="`mpmmu-rt verify BUNDLE` tells whether the bundle or the input is at fault",
    )


def _cannot_load(name: str, error: Exception) -> EngineError:
    return EngineError(
        f"OpenVINO can't load {name}: {_reason(error)}", hint="export the bundle again, or update openvino"
    )


def _reason(error: Exception) -> str:
    """The last lines: OpenVINO's messages begin with where in its sources they were raised. Of operators that it can't
    convert, their names come last, and the reason of one before them."""
    said, _, summary = words_of(error).partition("\nSummary:")
    last = [next((line for line in reversed(part.splitlines()) if line.strip()), "") for part in (summary, said)]
    return (": ".join(line.strip("- ") for line in last if line) or type(error).__name__)[:300]


ENGINE = OpenVino()
