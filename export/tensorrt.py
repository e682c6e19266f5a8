"""Engines for the bundle: a graph of the right types, built, and refused where it falls short of its target's name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast, get_args

import onnx

from mpmmu_rt.engines import tensorrt_build
from mpmmu_rt.engines.tensorrt_sidecar import Built, Flavour, Profile, Sidecar
from mpmmu_rt.errors import ExportError
from mpmmu_rt.spec import Array

from .graphs import save_sharing_weights
from .precision import Half, islands, shares, to_half

# Of the multiply-accumulates, in the precision that the target names: a product or two on FP32 islands and the head
# are part of the design; a graph that is FP32 in the main is not what was asked for.
MIN_SHARE = 0.9
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


def write(
    folder: Path,
    models: Mapping[str, onnx.ModelProto],
    feeds: Mapping[str, Mapping[str, Array]],
    *,
    flavour: Flavour,
    precision: str,
    capabilities: tuple[int, ...] = (),
    profile: Profile | None = None,
    fp32: Collection[str] = (),
) -> dict[str, Sidecar]:
    """Write graphs in `precision`, their weights, and an engine and its sidecar of each to the new `folder`.

    models: the FP32 graphs (for int8: the quantized ones) by name, with their weights, which are left alone. feeds:
    real images for each, to find what must stay FP32 in FP16. fp32: the models that compute in FP32 in this target too:
    the stacking head, and the attention pool of an INT8 target. TensorRT builds only where there is a GPU: elsewhere it
    is given the graphs alone, which the runtime builds from, and {} is returned.

    Raises what `build` and `precision.to_half` do.
    """
    folder.mkdir(parents=True)
    typed: dict[str, onnx.ModelProto] = {}
    for name, model in models.items():
        if precision in get_args(Half) and name not in fp32:
            kept = islands(model, feeds[name]) if precision == "fp16" else frozenset[str]()
            typed[name] = to_half(model, cast("Half", precision), kept)
        else:
            typed[name] = onnx.ModelProto.FromString(model.SerializeToString())
        require_precision(shares(typed[name]), "fp32" if name in fp32 else precision)
    save_sharing_weights(typed, folder)
    if flavour == "tensorrt" and tensorrt_build.gpu() is None:
        return {}
    sidecars: dict[str, Sidecar] = {}
    for name in models:
        built = build(
            folder / f"{name}.onnx",
            flavour=flavour,
            precision=precision,
            capabilities=capabilities,
            profile=profile,
            fp32=name in fp32,
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
    fp32: bool = False,
) -> Built:
    """Build an engine from an ONNX graph whose types are those of `precision`, as `tensorrt_build.build` does.

    fp32: the graph computes in FP32 in this target too: the stacking head. `sidecar.achieved` holds the share
    of multiply-accumulates in each precision, by the graph's types: these engines are strongly typed, and what one
    holds can be read only where it can be loaded.

    Raises what `tensorrt_build.build` does, and `ExportError` if less than `MIN_SHARE` is in `precision`.
    """
    if precision not in PRECISIONS:
        raise ExportError(
            f"the precision is `{precision}`, expected one of {', '.join(PRECISIONS)}", hint="such as tensorrt-rtx:fp16"
        )
    model = onnx.load_from_string(graph) if isinstance(graph, bytes) else onnx.load(graph, load_external_data=False)
    achieved = shares(model)
    require_precision(achieved, "fp32" if fp32 else precision)
    return tensorrt_build.build(
        graph, flavour=flavour, precision=precision, capabilities=capabilities, profile=profile, achieved=achieved
    )


def require_precision(achieved: Mapping[str, float], precision: str) -> None:
    """Raise `ExportError` if less than `MIN_SHARE` of the products are in `precision`; no products are no failure."""
    if achieved and achieved.get(precision, 0.0) < MIN_SHARE:
        got = ", ".join(f"{share:.1%} {name}" for name, share in achieved.items())
        raise ExportError(
            f"the graph computes in {got}, expected at least {MIN_SHARE:.0%} {precision}",
            hint="convert it with `precision.to_half`, or name the precision that it has",
        )
