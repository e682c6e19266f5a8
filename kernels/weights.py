"""The weights of an attention pool as NumPy arrays, and the float64 reference that they define."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mpmmu_rt.errors import UsageError

from . import reference

AttentionKind = Literal["eca", "cbam", "none"]
Array = np.ndarray[Any, np.dtype[Any]]

_CBAM = {"fc1.weight": "fc1", "fc1.bias": "fc1_bias", "fc2.weight": "fc2", "fc2.bias": "fc2_bias"}
_SPATIAL = {"spatial.conv.weight": "spatial"}
# What an array is called, and the field that holds it; of CBAM there are two forms. The exporter's rewrite `one_mlp`
# applies the second layer once, to the sum of both descriptors, and has doubled its bias: here it is halved again.
_ORIGINAL = {f"channel.{name}": field for name, field in _CBAM.items()} | _SPATIAL
_ONE_MLP = _CBAM | _SPATIAL
_FORMS: dict[AttentionKind, tuple[dict[str, str], ...]] = {
    "none": ({},),
    "eca": ({"conv.weight": "eca"},),
    "cbam": (_ORIGINAL, _ONE_MLP),
}


@dataclass(frozen=True)
class PoolWeights:
    """The attention of one modality's pool; all arrays float32, empty where the kind has none.

    eca [k], k odd; fc1 [H, C], fc1_bias [H], fc2 [C, H], fc2_bias [C]; spatial [2, k, k], k odd, over (mean, maximum).
    Raises `UsageError` where the shapes don't belong together.
    """

    kind: AttentionKind
    channels: int
    eca: Array
    fc1: Array
    fc1_bias: Array
    fc2: Array
    fc2_bias: Array
    spatial: Array

    def __post_init__(self) -> None:
        hidden, c = len(self.fc1_bias), self.channels
        size = self.eca.size if self.kind == "eca" else self.spatial.shape[-1]
        shapes: dict[str, dict[str, tuple[int, ...]]] = {
            "none": {},
            "eca": {"eca": (size,)},
            "cbam": {
                "fc1": (hidden, c),
                "fc1_bias": (hidden,),
                "fc2": (c, hidden),
                "fc2_bias": (c,),
                "spatial": (2, size, size),
            },
        }
        want = shapes[self.kind]
        for name in ("eca", "fc1", "fc1_bias", "fc2", "fc2_bias", "spatial"):
            array: Array = getattr(self, name)
            if array.dtype != np.float32 or array.shape != want.get(name, (0,)):
                raise UsageError(
                    f"`{name}` of {self.kind} is {array.dtype}{list(array.shape)}, "
                    f"expected float32{list(want.get(name, (0,)))} for {c} channels"
                )
        if self.kind != "none" and (size % 2 == 0 or (self.kind == "cbam" and not hidden)):
            raise UsageError(
                f"{self.kind} has kernel size {size} and {hidden} hidden units, expected an odd size, and ≥ 1"
            )

    @property
    def hidden(self) -> int:
        return len(self.fc1_bias)

    @property
    def size(self) -> int:
        """Of the convolution: across channels for ECA, across positions for CBAM; 0 for none."""
        return self.eca.size if self.kind == "eca" else int(self.spatial.shape[-1])

    @classmethod
    def from_arrays(cls, kind: AttentionKind, channels: int, arrays: Mapping[str, Array], prefix: str) -> PoolWeights:
        """From the initialisers of the bundle's `attention_pool.onnx` (prefix `mammography.attention.`) or the
        `state_dict` of an `AttentionPool` as NumPy arrays (prefix `attention.`).

        Every array below the prefix must belong to `kind`, and every array of `kind` must be there: `UsageError`.
        """
        found = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        names = next((form for form in _FORMS[kind] if set(form) == set(found)), None)
        if names is None:
            raise UsageError(
                f"below `{prefix}` there are {sorted(found)}, expected {sorted(_FORMS[kind][0])} for {kind}",
                hint="the attention kind of each modality is in the bundle's model configuration",
            )
        fields = dict.fromkeys(("eca", "fc1", "fc1_bias", "fc2", "fc2_bias", "spatial"), np.zeros(0, np.float32))
        for name, field in names.items():
            array = found[name].astype(np.float32)  # float16 weights of a float16 graph are exact in float32
            shape = {"eca": (-1,), "fc1": array.shape[:2], "fc2": array.shape[:2], "spatial": array.shape[-3:]}
            fields[field] = array.reshape(shape.get(field, array.shape))
        if names is _ONE_MLP:
            fields["fc2_bias"] = fields["fc2_bias"] / np.float32(2)  # exact
        return cls(kind, channels, **fields)

    def pool(self, feature_map: Array) -> Array:
        """The reference: float [N, C, h, w] to float64 [N, C], in float64 throughout (`kernels/reference.py`)."""
        x = feature_map.astype(np.float64)
        if self.kind == "eca":
            x = reference.eca(x, self.eca.astype(np.float64))
        elif self.kind == "cbam":
            names = ("fc1", "fc1_bias", "fc2", "fc2_bias", "spatial")
            x = reference.cbam(x, *(getattr(self, name).astype(np.float64) for name in names))
        return reference.average_pool(x)
