"""A bundle on one GPU, from pixels to probability, without coming back to the host in between.

    main stream    pixels ─ mammography encoder ─┐─ attention pool (kernel) ─ head ─▶ results, in one copy
    side stream    pixels ─ ultrasound encoder ──┘

The side stream is forked from the main one and joined to it by events, so that all of it can be captured into one CUDA
graph. It has run on an H200 and an H100 with torch's encoders and head, and on the H100 with ONNX Runtime's
(docs/gpu.md), **with TensorRT's on no GPU yet**; the tests run it on a simulated CUDA runtime (tests/device).

Where the kernel can't be had, the engine of the whole graph runs instead (`WholeGraph`), and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, cast, get_args

import numpy as np

from mpmmu_rt._optional import require
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.errors import BundleError, EngineError, MissingPackage, UsageError
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target

from .cuda import ALIGNMENT, Resources, Stream, align, on_device
from .interface import DeviceEngine, Tensor
from .run import POISON, Batches, Clock, Pixels, Results, Step, TensorRtSession, Work
from .sidecar import Profile

_EXPORT = "export the bundle again with `mpmmu-rt export`"
_OUTPUTS = ("probability", "base_probability")


class WholeGraphInstead(RuntimeWarning):
    """The fused attention pool can't run here: the engine of the whole graph does."""


class NoKernel(Exception):
    """Why the fused attention pool can't be used with this bundle or on this device."""


def _pools(
    bundle: Bundle, kinds: Mapping[str, str], arrays: Mapping[str, Array], maps: Mapping[Modality, Tensor]
) -> Any:
    """`kernels.attention_pool.Pool` of both modalities, for the feature maps that the encoders' engines give."""
    from mpmmu_rt.kernels.attention_pool import Pool
    from mpmmu_rt.kernels.weights import AttentionKind, PoolWeights

    pools = []
    for modality in MODALITIES:
        if len(maps[modality].shape) != 3:
            raise EngineError(f"{modality} gives {maps[modality]}, expected [N, C, h, w]", hint=_EXPORT)
        channels, height, width = maps[modality].shape
        try:
            kind = cast("AttentionKind", kinds[modality])  # `Bundle.open` has checked it
            weights = PoolWeights.from_arrays(kind, channels, arrays, f"{modality}.attention.")
        except UsageError as error:
            raise BundleError(
                f"{bundle.path} holds other weights for the attention pool of {modality} than its encoder needs: "
                f"{error}",
                hint=_EXPORT,
            ) from error
        pools.append(Pool(weights, height, width))
    return pools[0], pools[1]


class DevicePath:
    """Encoders, fused attention pool and head on one GPU: a `Pipeline`. Threads take turns.

    Memory is allocated once, for the largest batch that all three engines take; more cases run as several batches.
    pool: how the kernel runs. rebuilt: engines that are not the bundle's, how they came about, and why. `batches` tells
    which batch sizes run as CUDA graphs, and why not.
    """

    name = "device path"
    reason: str | None = None  # why it is not the device path that runs

    def __init__(
        self,
        bundle: Bundle,
        target: Target,
        load: Callable[[str, Resources, Stream], DeviceEngine],
        *,
        no_graphs: str | None = None,
        sizes: Sequence[int] = (),
        rebuilt: Mapping[str, str] | None = None,
        ahead: bool = False,
    ) -> None:
        """load: the engine of that name, which will run on that stream; it fills `rebuilt` where it had to build one.
        no_graphs, sizes: as of `Batches`. ahead: the mammogram's encoder does not wait until the ultrasound's pixels
        are copied to pinned memory; a batch is three graphs then, not one.

        Raises `NoKernel`, before anything is allocated where that can be known then.
        """
        kinds = bundle.pool_kinds
        if kinds is None:
            raise NoKernel("the bundle has no weights for it: its attention pools are of a kind of their own")
        arrays = bundle.pool_arrays()
        try:
            self._cupy = require("cupy", "the fused attention pool")
        except MissingPackage as error:
            raise NoKernel(str(error)) from error
        self.head_target = Target(target.engine, "fp32")
        self._ahead = ahead
        self.rebuilt: Mapping[str, str] = {} if rebuilt is None else rebuilt
        with ExitStack() as made, on_device():
            resources = Resources()
            made.callback(resources.close)
            self._main, self._side = resources.stream(), resources.stream()
            self._engines: dict[str, DeviceEngine] = {}
            for name in (*MODALITIES, "head"):
                self._engines[name] = load(name, resources, self._side if name == "ultrasound" else self._main)
                made.callback(self._engines[name].close)
            profile = common(self._engines)
            maps = {modality: self._check_encoder(modality, bundle) for modality in MODALITIES}
            if maps["mammography"].element != maps["ultrasound"].element:
                raise EngineError(
                    f"the encoders give {maps['mammography']} and {maps['ultrasound']}, expected one type", hint=_EXPORT
                )
            self._width = sum(one.shape[0] for one in maps.values())
            results = self._check_head(bundle, self._width)
            self._pool = self._make_pool(_pools(bundle, kinds, arrays, maps), profile.max, maps["mammography"].element)
            made.callback(self._forget_pool)
            self.pool = str(self._pool.strategy)
            self._fork, self._join = resources.event(), resources.event()
            self._cupy_stream = self._foreign(self._main)
            self._pixels = {
                name: Pixels(resources, self._engines[name].tensors["pixels"], profile.max) for name in MODALITIES
            }
            self._maps = {name: resources.device(align(maps[name].bytes(profile.max))) for name in MODALITIES}
            self._results = Results(resources, results, profile.max)
            self._clock = Clock(resources)
            streams = (self._main, self._side)
            self.batches = Batches(
                resources, streams, profile, self._make, self._clock, no_graphs=no_graphs, sizes=sizes
            )
            made.callback(self.batches.close)
            self._resources = made.pop_all()

    def _check_encoder(self, modality: Modality, bundle: Bundle) -> Tensor:
        """The feature map that the encoder gives. Raises `EngineError` unless it takes the bundle's pixels."""
        engine = self._engines[modality]
        pixels = engine.tensors.get("pixels")
        want = bundle.tensors[f"{modality}_pixels"]
        fits = pixels is not None and (pixels.element, pixels.shape) == (want.dtype, want.shape[1:])
        if not fits or engine.inputs != ("pixels",) or engine.outputs != ("feature_map",):
            got = "; ".join(map(str, engine.tensors.values()))
            raise EngineError(f"{modality} has {got}, expected {want} to feature_map", hint=_EXPORT)
        return engine.tensors["feature_map"]

    def _check_head(self, bundle: Bundle, width: int) -> list[Tensor]:
        """What comes back: the embedding, which the kernel writes, and what the head says."""
        engine = self._engines["head"]
        embedding = engine.tensors.get("embedding")
        fits = (
            engine.inputs == ("embedding",)
            and embedding is not None
            and (embedding.element, embedding.shape) == ("float32", (width,))
            and bundle.tensors["embedding"].shape[1:] == (width,)
            and answers(engine)
        )
        if embedding is None or not fits:
            got = "; ".join(map(str, engine.tensors.values()))
            raise EngineError(
                f"the head has {got}, expected embedding float32[N, {width}] to probability float32[N]", hint=_EXPORT
            )
        return [embedding, *(engine.tensors[name] for name in _OUTPUTS if name in engine.outputs)]

    def _make_pool(self, pools: Any, cases: int, element: str) -> Any:
        from mpmmu_rt.kernels.attention_pool import AttentionPool
        from mpmmu_rt.kernels.plan import ElementType

        if element not in get_args(ElementType):
            raise NoKernel(f"the encoders give {element}, and it takes {', '.join(get_args(ElementType))}")
        try:
            return AttentionPool(pools, cases, cast("ElementType", element))
        except UsageError as error:  # nothing fits this device
            raise NoKernel(str(error)) from error

    def _foreign(self, stream: Stream) -> Any:
        """CuPy's view of a stream of ours."""
        kind = self._cupy.cuda.Stream
        if hasattr(kind, "from_external"):  # CuPy 14
            return kind.from_external(stream)
        return self._cupy.cuda.ExternalStream(stream.address)

    def _forget_pool(self) -> None:
        self._pool = self._cupy_stream = None  # CuPy frees what nothing refers to

    def _make(self, batch: int) -> Work:
        main, side, clock, results = self._main, self._side, self._clock, self._results
        at = results.addresses(batch)
        encoders = {
            name: self._engines[name].context(
                batch, {"pixels": self._pixels[name].address, "feature_map": self._maps[name]}
            )
            for name in MODALITIES
        }
        head = self._engines["head"].context(batch, at)
        maps = (self._maps["mammography"], self._maps["ultrasound"])

        def encode(name: Modality, stream: Stream) -> None:
            with clock("transfers", stream):
                # Were the encoder not to write its map, the last patient's would pass for this one's: now it is NaN.
                stream.fill(self._maps[name], ALIGNMENT, POISON)
                self._pixels[name].upload(batch, stream)
            with clock(name, stream):
                encoders[name].execute(stream)

        def finish() -> None:
            with clock("attention_pool", main):
                self._pool.launch(maps, at["embedding"], batch, self._cupy_stream)
            with clock("head", main):
                head.execute(main)
            with clock("transfers", main):
                results.download(batch, main)

        def together() -> None:
            self._fork.record(main)
            side.wait(self._fork)
            encode("ultrasound", side)
            self._join.record(side)
            results.poison(batch, main)
            encode("mammography", main)
            main.wait(self._join)
            finish()

        def begin() -> None:
            results.poison(batch, main)
            encode("mammography", main)

        pixels = {str(name): self._pixels[name].array(batch) for name in MODALITIES}
        steps = [Step(main, pixels, together)]
        if self._ahead:
            mammography, ultrasound = ({str(name): pixels[name]} for name in MODALITIES)
            steps = [
                Step(main, mammography, begin),
                Step(side, ultrasound, lambda: encode("ultrasound", side), done=self._join),
                Step(main, {}, finish, behind=self._join),
            ]
        contexts = [(encoders["mammography"], main), (encoders["ultrasound"], side), (head, main)]
        return Work(steps, results.arrays(batch), contexts)

    def run(self, pixels: Mapping[Modality, Array], embedding: Array) -> tuple[dict[str, Array], dict[str, float]]:
        cases = len(pixels["mammography"])
        check_embedding(embedding, (cases, self._width))
        tensors = self._engines["head"].tensors
        said = {
            name: np.empty((cases, *tensors[name].shape), np.float32)
            for name in _OUTPUTS
            if name in self._engines["head"].outputs
        }

        def take(rows: slice, found: Mapping[str, Array]) -> None:
            for name, array in {**said, "embedding": embedding}.items():
                np.copyto(array[rows], found[name])

        feeds = {str(name): array for name, array in pixels.items()}
        return said, self.batches.run(feeds, cases, take)

    def counts(self, cases: int) -> dict[str, int | str]:
        """As `Batches.counts`, and the kernels of the attention pool. Those inside of engines nobody tells."""
        found = self.batches.counts(cases)  # first: it says where nothing is open any more
        kernels = sum(self._pool.launches(batch) for batch in self.batches.parts(cases))
        return {**found, "device.pool_kernels": kernels}

    @property
    def remarks(self) -> tuple[str, ...]:
        return _remarks(self)

    def close(self) -> None:
        with on_device():
            self._resources.close()


class WholeGraph:
    """The engine of the whole graph: a `Pipeline`. reason: why it is not the device path that runs."""

    name = "whole graph"
    pool = None

    def __init__(self, bundle: Bundle, target: Target, session: TensorRtSession, reason: str) -> None:
        self.head_target = target
        self.reason = reason
        self.rebuilt: Mapping[str, str] = {"model": session.rebuilt} if session.rebuilt else {}
        self.batches = session.batches
        self._session = session
        width = bundle.tensors["embedding"].shape[1]
        tensors = session.tensors
        fits = (
            set(session.inputs) == {f"{modality}_pixels" for modality in MODALITIES}
            and "embedding" in session.outputs
            and (tensors["embedding"].element, tensors["embedding"].shape) == ("float32", (width,))
            and answers(session)
        )
        if not fits:
            session.close()
            got = "; ".join(map(str, tensors.values()))
            raise EngineError(
                f"the whole graph has {got}, expected embedding float32[N, {width}] and probability float32[N]",
                hint=_EXPORT,
            )

    def run(self, pixels: Mapping[Modality, Array], embedding: Array) -> tuple[dict[str, Array], dict[str, float]]:
        check_embedding(embedding, (len(pixels["mammography"]), *self._session.tensors["embedding"].shape))
        feeds = {f"{modality}_pixels": array for modality, array in pixels.items()}
        found, spent = self._session.timed(feeds, {"embedding": embedding})
        return {name: found[name] for name in _OUTPUTS if name in found}, spent

    def counts(self, cases: int) -> dict[str, int | str]:
        return self.batches.counts(cases)

    @property
    def remarks(self) -> tuple[str, ...]:
        return _remarks(self)

    def close(self) -> None:
        self._session.close()


def _remarks(pipeline: DevicePath | WholeGraph) -> tuple[str, ...]:
    said = [f"the engine of {name} was {how}" for name, how in pipeline.rebuilt.items()]
    if pipeline.reason:
        said.append(f"the whole graph runs as one engine, without the fused attention pool: {pipeline.reason}")
    if pipeline.batches.not_captured:
        said.append(f"batches run without CUDA graphs: {pipeline.batches.not_captured}")
    return tuple(said)


def check_embedding(embedding: Array, shape: tuple[int, ...]) -> None:
    if embedding.dtype != np.float32 or embedding.shape != shape:
        raise UsageError(
            f"`embedding` is {embedding.dtype}{list(embedding.shape)}, expected float32{list(shape)}",
            hint="leave it out to get a new array",
        )


def answers(engine: DeviceEngine | TensorRtSession) -> bool:
    """Whether it gives `probability` float32 [N], and `base_probability` float32 [N, learners] or none."""
    found = {name: engine.tensors[name] for name in _OUTPUTS if name in engine.outputs}
    return (
        "probability" in found
        and all(one.element == "float32" for one in found.values())
        and found["probability"].shape == ()
        and len(found.get("base_probability", found["probability"]).shape) == len(found) - 1
    )


def common(engines: Mapping[str, DeviceEngine]) -> Profile:
    """The batches that all engines take. Raises `EngineError` if there are none."""
    least = max(one.profile.min for one in engines.values())
    most = min(one.profile.max for one in engines.values())
    if least > most:
        got = ", ".join(f"{name} {one.profile}" for name, one in engines.items())
        raise EngineError(f"the engines take different batches: {got}; expected some in common", hint=_EXPORT)
    return Profile(least, most, most)
