"""Torch encoders to ONNX.

A module of our own (`mpmmu_rt.model.encoder.Encoder`) is cut into features and attention pool, so that the pool
can run elsewhere; any other module that maps pixels to an embedding is exported whole, and its pool is the
concatenation of the two embeddings. So is one of our own that says something else when it is called: a subclass, or one
with hooks. What the export is held to is always what the module says when it is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from mpmmu_rt.errors import ExportError
from mpmmu_rt.model.encoder import Encoder
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import MODALITIES, Array, Modality

from .modules import copied, described, require_exportable
from .reasons import one_line
from .rewrite import rewrite
from .tracing import TRACE_BATCH, trace

_WRAP = "wrap it in a module whose `forward` returns the embedding alone: one vector per case"


def is_cut(module: nn.Module) -> bool:
    """Whether calling `module` is its features, then its pool, and nothing else: ours, unchanged in all its parts."""
    if type(module) is not Encoder or any(map(_is_changed, module.modules())):
        return False
    with torch.device("meta"):
        new = Encoder(module.config)
    return _kinds(module) == _kinds(new)


def _is_changed(part: nn.Module) -> bool:
    overridden = {"forward", "features", "features_of_grey", "pool"} & part.__dict__.keys()
    return bool(part._forward_hooks or part._forward_pre_hooks or overridden)


def _kinds(module: nn.Module) -> dict[str, type[nn.Module]]:
    """The classes of its parts; `fc` is training's."""
    return {name: type(part) for name, part in module.named_modules() if name != "fc"}


class Features(nn.Module):
    """Pixels uint8 [N, 1, S, S] to the feature map float32 [N, C, h, w], or [N, C] for a module that is not cut."""

    def __init__(self, module: nn.Module, *, cut: bool, name: str = "the module") -> None:
        """Of a copy: the caller's module keeps its training mode. Raises what `modules.copied` does."""
        super().__init__()
        self.cut = cut
        self.training = False
        self.module = copied(module, name)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.module.features(pixels) if self.cut else self.module(pixels)  # type: ignore[operator]
        return out


class Pool(nn.Module):
    """Both feature maps to the fused embedding float32 [N, C₁ + C₂]."""

    def __init__(self, modules: Mapping[Modality, nn.Module], cut: Mapping[Modality, bool]) -> None:
        super().__init__()
        self.training = False
        for modality in MODALITIES:
            pool = modules[modality].get_submodule("pool") if cut[modality] else nn.Identity()
            self.add_module(modality, copied(pool))

    def forward(self, mammography_feature_map: Tensor, ultrasound_feature_map: Tensor) -> Tensor:
        maps = (mammography_feature_map, ultrasound_feature_map)
        parts = [self.get_submodule(modality)(part) for modality, part in zip(MODALITIES, maps, strict=True)]
        return torch.cat(parts, 1)


class Encoders:
    """Both encoders and their pool in torch: the original that the export is checked against."""

    def __init__(self, modules: Mapping[Modality, nn.Module], size: int) -> None:
        """Check that each module maps uint8 [N, 1, size, size] to float32 [N, D]. Raises `ExportError`."""
        self.size = size
        self.names = {modality: described(modules[modality], modality) for modality in MODALITIES}
        for modality in MODALITIES:
            require_exportable(modules[modality], self.names[modality])
        cut = {modality: is_cut(modules[modality]) for modality in MODALITIES}
        self.features = {m: Features(modules[m], cut=cut[m], name=self.names[m]) for m in MODALITIES}
        self.pool = Pool(modules, cut)
        # What is traced; `features` and `pool` stay the original that the export is checked against.
        self._fast: dict[Modality, nn.Module] = {
            modality: rewrite(module) if isinstance(module, Encoder) and cut[modality] else module
            for modality, module in modules.items()
        }
        self._widths: dict[Modality, int] = {}
        self._example = {modality: self._probe(modality) for modality in MODALITIES}

    def _probe(self, modality: Modality) -> Tensor:
        """The feature maps of two images of noise, after one alone."""
        noise = torch.randint(
            0, 256, (TRACE_BATCH, 1, self.size, self.size), generator=torch.Generator().manual_seed(0)
        ).to(torch.uint8)
        for count in (TRACE_BATCH, 1):
            out = self.ask(modality, noise[:count].clone())
        self._widths[modality] = out.shape[1]
        features = self.features[modality]
        with torch.no_grad():
            return features(noise) if features.cut else self.ask(modality, noise)

    def ask(
        self,
        modality: Modality,
        pixels: Tensor,
        mode: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> Tensor:
        """What a module says when it is called: float32 [N, D], of pixels uint8 [N, 1, S, S] that it may change.

        Without autograd and uncompiled, but for what `mode` sets. Raises `ExportError` for anything else that it gives.
        """
        name, module = self.names[modality], self.features[modality].module
        shape = f"uint8{list(pixels.shape)}"
        try:
            # A compiled module is the Python that it was compiled from; compiling takes minutes and a compiler.
            with torch.compiler.set_stance("force_eager"), torch.no_grad(), mode():
                out = module(pixels)
        # Whatever the user's module raises is the reason, and has no common base.
        except Exception as error:
            raise ExportError(
                f"{name} fails on pixels {shape}: {one_line(error)}",
                hint="it must take uint8 pixels, one case or many, on the CPU, without autocast or autograd; scaling "
                "and normalisation belong into the module",
            ) from error
        _require_embedding(out, len(pixels), name)
        return out.detach()  # type: ignore[no-any-return]

    def run(self, pixels: Mapping[Modality, Array], batch: int = 16, progress: Progress = silent) -> dict[str, Array]:
        """Feature maps and embedding of pixels uint8 [N, 1, S, S], computed by torch in FP32.

        The embedding is what the modules say when they are called. They get copies: one that works in place changes
        no image of the caller's.
        """
        parts: dict[str, list[Array]] = {"embedding": [], **{f"{modality}.feature_map": [] for modality in MODALITIES}}
        count = len(pixels["mammography"])
        with torch.no_grad():
            for start in range(0, count, batch):
                progress("running the original", start, count, "cases")
                said = []
                for modality in MODALITIES:
                    few, features = pixels[modality][start : start + batch], self.features[modality]
                    said.append(self.ask(modality, torch.from_numpy(few.copy())))
                    found = features(torch.from_numpy(few.copy())) if features.cut else said[-1]
                    parts[f"{modality}.feature_map"].append(found.numpy())
                parts["embedding"].append(torch.cat(said, 1).numpy())
        progress("running the original", count, count, "cases")
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def width(self, modality: Modality) -> int:
        """The number of values that a module gives for a case."""
        return self._widths[modality]

    def shapes(self) -> dict[str, tuple[int | str, ...]]:
        """The shapes of the feature maps and of the embedding, with "N" for the batch."""
        maps: dict[str, tuple[int | str, ...]] = {
            f"{modality}_feature_map": ("N", *example.shape[1:]) for modality, example in self._example.items()
        }
        with torch.no_grad():
            width = self.pool(*(self._example[modality] for modality in MODALITIES)).shape[1]
        return maps | {"embedding": ("N", width)}

    def features_graph(self, modality: Modality) -> onnx.ModelProto:
        """`pixels` to `feature_map`."""
        noise = torch.zeros(TRACE_BATCH, 1, self.size, self.size, dtype=torch.uint8)
        features, name = self.features[modality], self.names[modality]
        return trace(
            Features(self._fast[modality], cut=features.cut, name=name), (noise,), ["pixels"], "feature_map", name
        )

    def pool_graph(self) -> onnx.ModelProto:
        """`mammography_feature_map` and `ultrasound_feature_map` to `embedding`."""
        names = [f"{modality}_feature_map" for modality in MODALITIES]
        cut = {modality: features.cut for modality, features in self.features.items()}
        return trace(
            Pool(self._fast, cut), tuple(self._example[modality] for modality in MODALITIES), names, "embedding"
        )


def _require_embedding(out: object, count: int, name: str) -> None:
    """Raise `ExportError` unless `out` is float32 [count, D] in plain memory on the CPU."""
    wanted = f"float32[{count}, D]"
    if not isinstance(out, Tensor):
        held = f" of {len(out)}" if isinstance(out, tuple | list) else ""
        held = f" with {', '.join(map(str, out))}" if isinstance(out, Mapping) else held
        raise ExportError(f"{name} gives a {type(out).__name__}{held}, expected a tensor {wanted}", hint=_WRAP)
    got = f"{str(out.dtype).removeprefix('torch.')}{list(out.shape)}"
    if out.device.type != "cpu" or out.layout != torch.strided:
        raise ExportError(
            f"{name} gives {got} on `{out.device}` ({out.layout}), expected {wanted} on `cpu`, strided",
            hint="compute on the device and in the layout of the pixels that it is given",
        )
    if out.ndim != 2 or len(out) != count or not out.shape[1]:
        hint = _WRAP
        if out.ndim == 4 and len(out) == count:
            hint = "pool the feature map: `.mean((2, 3))`"
        elif count == 1 and out.ndim == 1:
            hint = "keep the axis of the cases when there is one: flatten(1), or squeeze with its axes, for squeeze()"
        cases = "one case" if count == 1 else f"{count} cases"
        raise ExportError(f"{name} gives {got} for {cases}, expected {wanted}", hint=hint)
    if out.dtype != torch.float32:
        raise ExportError(f"{name} gives {got}, expected {wanted}", hint="end its `forward` with `.float()`")
