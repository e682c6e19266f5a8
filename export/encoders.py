"""Torch encoders to ONNX.

A module of our own (`mpmmu_rt.model.encoder.Encoder`) is cut into features and attention pool, so that the pool
can run elsewhere; any other module that maps pixels to an embedding is exported whole, and its pool is the
concatenation of the two embeddings. So is one of our own that says something else when it is called: a subclass, or one
with hooks. What the export is held to is always what the module says when it is called.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from mpmmu_rt.errors import ExportError
from mpmmu_rt.model.encoder import Encoder
from mpmmu_rt.spec import MODALITIES, Array, Modality

from .graphs import OPSET, clean
from .rewrite import rewrite

_TRACE_BATCH = 2  # torch specialises on a batch of 1
_MAX_BATCH = 4096


def is_cut(module: nn.Module) -> bool:
    """Whether calling `module` is its features and then its pool, and nothing else."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    overridden = {"forward", "features", "features_of_grey", "pool"} & module.__dict__.keys()
    return type(module) is Encoder and not hooked and not overridden


class Features(nn.Module):
    """Pixels uint8 [N, 1, S, S] to the feature map float32 [N, C, h, w], or [N, C] for a module that is not cut."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.cut = is_cut(module)
        # A copy: the caller's module keeps its training mode.
        self.module = copy.deepcopy(module).cpu()
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.module.features(pixels) if self.cut else self.module(pixels)  # type: ignore[operator]
        return out


class Pool(nn.Module):
    """Both feature maps to the fused embedding float32 [N, C₁ + C₂]."""

    def __init__(self, modules: Mapping[Modality, nn.Module]) -> None:
        super().__init__()
        self.mammography = _pool(modules["mammography"])
        self.ultrasound = _pool(modules["ultrasound"])
        self.eval()

    def forward(self, mammography_feature_map: Tensor, ultrasound_feature_map: Tensor) -> Tensor:
        parts = [self.mammography(mammography_feature_map), self.ultrasound(ultrasound_feature_map)]
        return torch.cat(parts, 1)


def _pool(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module.pool).cpu() if isinstance(module, Encoder) and is_cut(module) else nn.Identity()


class Encoders:
    """Both encoders and their pool in torch: the original that the export is checked against."""

    def __init__(self, modules: Mapping[Modality, nn.Module], size: int) -> None:
        """Check that each module maps uint8 [N, 1, size, size] to float32. Raises `ExportError`."""
        self.size = size
        self.features = {modality: Features(modules[modality]) for modality in MODALITIES}
        self.pool = Pool(modules)
        # What is traced; `features` and `pool` stay the original that the export is checked against.
        self._fast: dict[Modality, nn.Module] = {
            modality: rewrite(module) if isinstance(module, Encoder) and is_cut(module) else module
            for modality, module in modules.items()
        }
        self._example: dict[Modality, Tensor] = {}
        for modality in MODALITIES:
            self._example[modality] = self._probe(modality)

    def _probe(self, modality: Modality) -> Tensor:
        noise = torch.randint(
            0, 256, (_TRACE_BATCH, 1, self.size, self.size), generator=torch.Generator().manual_seed(0)
        )
        try:
            with torch.inference_mode():
                out = self.features[modality](noise.to(torch.uint8))
        # Whatever the user's module raises is the reason, and has no common base.
        except Exception as error:
            raise ExportError(
                f"the {modality} module fails on pixels uint8 [2, 1, {self.size}, {self.size}]: {error}",
                hint="it must take uint8 pixels; scaling and normalisation belong into the module",
            ) from error
        wanted = 4 if self.features[modality].cut else 2
        if not isinstance(out, Tensor) or out.dtype != torch.float32 or out.ndim != wanted or len(out) != _TRACE_BATCH:
            got = f"{out.dtype}{list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise ExportError(
                f"the {modality} module gives {got}, expected float32 [N, D]",
                hint="return one embedding per case",
            )
        return out.clone()  # an ordinary tensor, not one of inference mode, for the tracer

    def run(self, pixels: Mapping[Modality, Array], batch: int = 16) -> dict[str, Array]:
        """Feature maps and embedding of pixels uint8 [N, 1, S, S], computed by torch in FP32.

        The embedding is what the modules say when they are called. They get copies: one that works in place changes
        no image of the caller's.
        """
        parts: dict[str, list[Array]] = {"embedding": [], **{f"{modality}.feature_map": [] for modality in MODALITIES}}
        count = len(pixels["mammography"])
        with torch.inference_mode():
            for start in range(0, count, batch):
                said = []
                for modality in MODALITIES:
                    few, features = pixels[modality][start : start + batch], self.features[modality]
                    said.append(features.module(torch.from_numpy(few.copy())))
                    found = features(torch.from_numpy(few.copy())) if features.cut else said[-1]
                    parts[f"{modality}.feature_map"].append(found.numpy())
                parts["embedding"].append(torch.cat(said, 1).numpy())
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def shapes(self) -> dict[str, tuple[int | str, ...]]:
        """The shapes of the feature maps and of the embedding, with "N" for the batch."""
        maps: dict[str, tuple[int | str, ...]] = {
            f"{modality}_feature_map": ("N", *example.shape[1:]) for modality, example in self._example.items()
        }
        with torch.inference_mode():
            width = self.pool(*(self._example[modality] for modality in MODALITIES)).shape[1]
        return maps | {"embedding": ("N", width)}

    def features_graph(self, modality: Modality) -> onnx.ModelProto:
        """`pixels` to `feature_map`."""
        noise = torch.zeros(_TRACE_BATCH, 1, self.size, self.size, dtype=torch.uint8)
        return _trace(Features(self._fast[modality]), (noise,), ["pixels"], "feature_map")

    def pool_graph(self) -> onnx.ModelProto:
        """`mammography_feature_map` and `ultrasound_feature_map` to `embedding`."""
        names = [f"{modality}_feature_map" for modality in MODALITIES]
        return _trace(Pool(self._fast), tuple(self._example[modality] for modality in MODALITIES), names, "embedding")


def _trace(module: nn.Module, example: tuple[Tensor, ...], inputs: Sequence[str], output: str) -> onnx.ModelProto:
    batch = torch.export.Dim("N", min=1, max=_MAX_BATCH)
    # It warns of each torchvision operator that it can't register; ours use none.
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch's exporter calls what torch itself deprecates.
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            # Both inputs of the pool share the batch N, which is meant.
            warnings.filterwarnings("ignore", message="# The axis name: N", category=UserWarning)
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=tuple({0: batch} for _ in example),
                verbose=False,
            )
    # Dynamo raises what the module's own code raises: no common base.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(
            f"torch can't export the graph of `{output}`: {reason}",
            hint="the module must be traceable by torch.export with a dynamic batch",
        ) from error
    finally:
        registration.setLevel(level)
    if program is None:
        raise ExportError(f"torch exported nothing for `{output}`, expected a graph", hint="update torch")
    return clean(program.model_proto)
