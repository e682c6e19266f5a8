"""The attention pools as the CUDA kernel takes them: the weights of both modules, as they were trained."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from mpmmu_rt.checks import relative_difference
from mpmmu_rt.errors import ParityError
from mpmmu_rt.facts import RELATIVE_TOLERANCE
from mpmmu_rt.kernels.weights import AttentionKind, PoolWeights
from mpmmu_rt.model.attention import CBAM, ECA, AttentionPool
from mpmmu_rt.spec import MODALITIES, Array, Modality

from .encoders import Encoders

_KINDS: dict[type[nn.Module], AttentionKind] = {ECA: "eca", CBAM: "cbam", nn.Identity: "none"}


def pool_weights(encoders: Encoders) -> tuple[dict[Modality, AttentionKind], dict[str, Array]] | None:
    """The kind of each modality's pool, and the arrays of both, float32, by name (`mammography.attention.conv.weight`).

    None where a module is the user's own and has no attention pool: the kernel can't take its place then.
    """
    kinds: dict[Modality, AttentionKind] = {}
    arrays: dict[str, Array] = {}
    for modality in MODALITIES:
        # Not of the modules that are traced: `rewrite.one_mlp` has doubled a bias there.
        pool = encoders.pool.get_submodule(modality)
        if not isinstance(pool, AttentionPool) or type(pool.attention) not in _KINDS:
            return None
        kinds[modality] = _KINDS[type(pool.attention)]
        arrays |= {f"{modality}.{name}": tensor.numpy() for name, tensor in pool.state_dict().items()}
    return kinds, arrays


def require_pools(
    kinds: Mapping[Modality, AttentionKind], arrays: Mapping[str, Array], stages: Mapping[str, Array]
) -> None:
    """Raise `ParityError` unless these weights turn the original's feature maps into its embedding.

    stages: `<modality>.feature_map` float32 [N, C, h, w] and `embedding` float32 [N, D] of the original.
    """
    maps = {modality: stages[f"{modality}.feature_map"] for modality in MODALITIES}
    pools = [PoolWeights.from_arrays(kinds[m], maps[m].shape[1], arrays, f"{m}.attention.") for m in MODALITIES]
    got = np.concatenate([pool.pool(maps[m]) for pool, m in zip(pools, MODALITIES, strict=True)], axis=1)
    difference = relative_difference(got, stages["embedding"])
    if not difference <= RELATIVE_TOLERANCE:
        raise ParityError(
            f"the weights of the attention pools give an embedding that differs from the original by {difference:.3g}, "
            f"relative, expected at most {RELATIVE_TOLERANCE:.3g}",
            hint="this is a defect of the export: report it with `mpmmu-rt doctor`",
        )
