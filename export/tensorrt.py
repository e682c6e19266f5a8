"""Engines for the bundle: graphs of the right types, built, and refused where they fall short of their name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import onnx
from onnx import helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from mpmmu_rt.engines.shared.gpu import gpu
from mpmmu_rt.engines.tensorrt import build as tensorrt_build
from mpmmu_rt.engines.tensorrt.sidecar import Built, Flavour, Profile, Sidecar, write_profile
from mpmmu_rt.errors import ExportError
from mpmmu_rt.spec import MODALITIES, Array, Modality

from .graphs import join, save_sharing_weights
from .precision import Half, islands, shares, to_half

# Of the multiply-accumulates before the embedding, in the precision that the target names: a product or two on FP32
# islands are part of the design, and so is INT8's stem in float, a sixth of a small encoder (of ResNet-50, 1 %); a
# graph that is FP32 in the main is not what was asked for.
MIN_SHARES = {"fp32": 0.9, "fp16": 0.9, "bf16": 0.9, "int8": 0.75}


@dataclass(frozen=True)
class Parts:
    """The FP32 graphs of a model, with their weights; for INT8 the encoders are quantized ones, signed.

    head: lowered with products="convolution", which builds for every GPU: Turing (7.5) has no float32 matrix products.
    """

    encoders: Mapping[Modality, onnx.ModelProto]
    pool: onnx.ModelProto
    head: onnx.ModelProto

    def whole(self) -> onnx.ModelProto:
        return join(self.encoders["mammography"], self.encoders["ultrasound"], self.pool, self.head)


def typed(parts: Parts, precision: str, pixels: Mapping[Modality, Array]) -> dict[str, onnx.ModelProto]:
    """The graphs that a device gets, by name, with their weights: both encoders, `head` and `model`, the whole.

    In FP16 and BF16 encoders and pool have that type, but for what `islands` finds with `pixels` (uint8 [N, 1, S, S],
    real images) in FP16, and the feature maps leave the encoders in it: half the bytes for whoever pools them. They
    leave in float32 for FP32 and INT8 (whose pool is FP32), and for both modalities where one of them is an island.
    The head is FP32 everywhere. Raises what `precision.to_half` and `precision.islands` do.
    """
    whole = parts.whole()
    encoders: dict[Modality, onnx.ModelProto] = {m: _copy(parts.encoders[m]) for m in MODALITIES}
    if precision in get_args(Half):
        half = cast("Half", precision)
        feeds = {f"{modality}_pixels": pixels[modality] for modality in MODALITIES}
        kept = islands(whole, feeds) if half == "fp16" else frozenset[str]()
        encoders = _half_encoders(parts, half, kept)
        whole = to_half(whole, half, kept)
    return {str(m): encoders[m] for m in MODALITIES} | {"head": _copy(parts.head), "model": whole}


def _half_encoders(parts: Parts, precision: Half, kept: frozenset[str]) -> dict[Modality, onnx.ModelProto]:
    """kept: the islands of the whole graph, in which the names of an encoder begin with its modality (`join`)."""
    own = {m: [name.removeprefix(f"{m}_") for name in kept if name.startswith(f"{m}_")] for m in MODALITIES}
    for half_outputs in (True, False):
        found = {m: to_half(parts.encoders[m], precision, own[m], half_outputs=half_outputs) for m in MODALITIES}
        if len({graph.graph.output[0].type.tensor_type.elem_type for graph in found.values()}) == 1:
            break
    return found


def write(
    folder: Path,
    graphs: Mapping[str, onnx.ModelProto],
    *,
    flavour: Flavour,
    precision: str,
    capabilities: tuple[int, ...] = (),
    profile: Profile | None = None,
) -> dict[str, Sidecar]:
    """Write `graphs` (of `typed`), their weights, and an engine and its sidecar of each to the new `folder`.

    profile: the batches that the engines take, also those that a device builds itself (`profile.json`); `Profile()` if
    None.
    The weights, which the parts and the whole share, are stored once; the graphs are left without them. TensorRT
    builds only where there is a GPU: elsewhere it is given the graphs alone, which the runtime builds from, and {} is
    returned. Raises what `build` does, and what `require_precision` does before anything is built.
    """
    folder.mkdir(parents=True)
    save_sharing_weights(graphs, folder)
    write_profile(folder, profile or Profile())
    for name in graphs:
        require_precision(_load(folder / f"{name}.onnx"), precision)
    if flavour == "tensorrt" and gpu() is None:
        return {}
    sidecars: dict[str, Sidecar] = {}
    for name in graphs:
        built = build(
            folder / f"{name}.onnx", flavour=flavour, precision=precision, capabilities=capabilities, profile=profile
        )
        built.write(folder / f"{name}.engine")
        sidecars[name] = built.sidecar
    return sidecars


def build(
    graph: Path | bytes,
    *,
    flavour: Flavour,
    precision: str,
    capabilities: tuple[int, ...] = (),
    profile: Profile | None = None,
) -> Built:
    """Build an engine from an ONNX graph whose types are those of `precision`, as the `build` of TensorRT does.

    `sidecar.achieved` holds the share of all multiply-accumulates in each precision, the head's with them, by the
    graph's types: these engines are strongly typed, and what one holds can be read only where it can be loaded.

    Raises what that and `require_precision` do, and `ExportError` for an unknown precision.
    """
    if precision not in MIN_SHARES:
        raise ExportError(
            f"the precision is `{precision}`, expected one of {', '.join(MIN_SHARES)}", hint="such as tensorrt-rtx:fp16"
        )
    model = onnx.load_from_string(graph) if isinstance(graph, bytes) else _load(graph)
    require_precision(model, precision)
    return tensorrt_build.build(
        graph,
        flavour=flavour,
        precision=precision,
        capabilities=capabilities,
        profile=profile,
        achieved=shares(model),
    )


def require_precision(model: onnx.ModelProto, precision: str) -> None:
    """Raise `ExportError` if too few of the products before the embedding are in `precision` (`MIN_SHARES`), or any
    behind it, in the head, is not in FP32. No products are no failure."""
    parts: tuple[tuple[Literal["encoders", "head"], str, float], ...] = (
        ("encoders", precision, MIN_SHARES[precision]),
        ("head", "fp32", 1.0),
    )
    for part, wanted, least in parts:
        achieved = shares(model, part)
        if achieved and achieved.get(wanted, 0.0) < least:
            got = ", ".join(f"{share:.1%} {name}" for name, share in achieved.items())
            raise ExportError(
                f"the graph computes its {part} in {got}, expected at least {least:.0%} {wanted}",
                hint="convert it with `precision.to_half`, or name the precision that it has",
            )


def _load(path: Path) -> onnx.ModelProto:
    """What `shares` needs of a graph: of its stored weights type and shape alone, but for integers, which shapes may
    depend on."""
    model = onnx.load(path, load_external_data=False)
    kept = []
    for tensor in model.graph.initializer:
        if not uses_external_data(tensor):
            kept.append(tensor)
        elif tensor.data_type == onnx.TensorProto.INT64:
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            kept.append(tensor)
        else:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(kept)
    return model


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())
