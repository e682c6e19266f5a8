"""The configuration of a model: everything that is needed to build it again, and nothing that is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeVar, cast, get_args

from mpmmu_rt.errors import CheckpointError
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.spec import Modality

Arch = Literal["resnet18", "resnet34", "resnet50"]
AttentionKind = Literal["eca", "cbam", "none"]
ARCHS: tuple[Arch, ...] = get_args(Arch)
ATTENTION_KINDS: tuple[AttentionKind, ...] = get_args(AttentionKind)
_LARGEST = 1e9  # of what pixels in 0..1 are normalised with: more is no number of theirs


@dataclass(frozen=True)
class EncoderConfig:
    """One encoder. `width` is the number of channels after the stem (64 in the ResNet paper)."""

    arch: Arch = "resnet50"
    attention: AttentionKind = "eca"
    in_blocks: bool = True
    in_pool: bool = True
    width: int = 64
    mean: float = 0.449  # ImageNet's channel means and deviations, averaged to grey, of pixels scaled to 0..1
    std: float = 0.226

    def __post_init__(self) -> None:
        _check("arch", self.arch, self.arch in ARCHS, f"one of {', '.join(ARCHS)}")
        _check(
            "attention",
            self.attention,
            self.attention in ATTENTION_KINDS,
            f"one of {', '.join(ATTENTION_KINDS)}",
        )
        for name in ("in_blocks", "in_pool"):
            _check(name, getattr(self, name), isinstance(getattr(self, name), bool), "true or false")
        _check("width", self.width, _whole(self.width) and 4 <= self.width <= 1024, "4 to 1024 channels")
        _check("mean", self.mean, _number(self.mean), f"a number within ±{_LARGEST:g}")
        _check("std", self.std, _number(self.std) and self.std > 0, f"a positive deviation below {_LARGEST:g}")


@dataclass(frozen=True)
class HeadConfig:
    """The stacking head's hyper-parameters (the paper's abstract names the learners, not these)."""

    trees: int = 300
    max_depth: int | None = None
    hidden: int = 32
    folds: int = 5

    def __post_init__(self) -> None:
        deep = self.max_depth is None or (_whole(self.max_depth) and self.max_depth >= 1)
        _check("trees", self.trees, _whole(self.trees) and 1 <= self.trees <= 10_000, "1 to 10,000 trees")
        _check("max_depth", self.max_depth, deep, "at least 1, or nothing")
        _check("hidden", self.hidden, _whole(self.hidden) and 1 <= self.hidden <= 4096, "1 to 4096 units")
        _check("folds", self.folds, _whole(self.folds) and 2 <= self.folds <= 20, "2 to 20 folds")


@dataclass(frozen=True)
class ModelConfig:
    """The whole model: CBAM for mammography and ECA for ultrasound, as the paper has it, unless told otherwise."""

    mammography: EncoderConfig = field(default_factory=lambda: EncoderConfig(attention="cbam"))
    ultrasound: EncoderConfig = field(default_factory=lambda: EncoderConfig(attention="eca"))
    head: HeadConfig = field(default_factory=HeadConfig)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def encoder(self, modality: Modality) -> EncoderConfig:
        return self.mammography if modality == "mammography" else self.ultrasound

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"preprocessing": self.preprocessing.to_json()}

    @classmethod
    def from_json(cls, entry: object) -> ModelConfig:
        """Read what `to_json` wrote; unknown or missing keys are errors, so that a typo can't change a model."""
        parts = _keys("model", entry, cls)
        return cls(
            mammography=_build(EncoderConfig, "mammography", parts["mammography"]),
            ultrasound=_build(EncoderConfig, "ultrasound", parts["ultrasound"]),
            head=_build(HeadConfig, "head", parts["head"]),
            preprocessing=Preprocessing.from_json(cast("Mapping[str, Any]", parts["preprocessing"])),
        )


_Config = TypeVar("_Config", EncoderConfig, HeadConfig)


def _build(kind: type[_Config], name: str, entry: object) -> _Config:
    values = _keys(name, entry, kind)
    try:
        return kind(**values)
    except TypeError as error:
        raise CheckpointError(f"`{name}` holds a value of the wrong type: {error}", hint=_HINT) from error


def _keys(name: str, entry: object, kind: type) -> dict[str, Any]:
    wanted = {item.name for item in fields(kind)}
    if not isinstance(entry, Mapping) or set(entry) != wanted:
        got = ", ".join(sorted(map(str, entry))) if isinstance(entry, Mapping) else type(entry).__name__
        raise CheckpointError(f"`{name}` holds {got}; expected {', '.join(sorted(wanted))}", hint=_HINT)
    return dict(entry)


_HINT = "use the config.json that `mpmmu-rt train` wrote"
# What to do where a training went wrong. Another -o: the state that is kept goes on with the first arguments alone.
DIVERGED = "in Python, lower the learning rate; else another --seed, or no --weights if they are given, and another -o"


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return (_whole(value) or isinstance(value, float)) and abs(cast(float, value)) < _LARGEST


def _check(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise CheckpointError(f"`{name}` is {value!r}, expected {expected}", hint=_HINT)


def reference() -> ModelConfig:
    """Full size: ResNet-50 twice, attention in every block and in the pool, 224 × 224."""
    return ModelConfig()


def tiny() -> ModelConfig:
    """For tests and first steps: ResNet-18 with 16 channels after the stem, 64 × 64; seconds on two cores."""
    config = reference()
    return replace(
        config,
        mammography=replace(config.mammography, arch="resnet18", width=16),
        ultrasound=replace(config.ultrasound, arch="resnet18", width=16),
        head=HeadConfig(trees=100, hidden=16),
        preprocessing=Preprocessing(size=64),
    )


PRESETS = {"reference": reference, "tiny": tiny}
