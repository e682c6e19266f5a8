"""One case explained: its images, what the target says, and what speaks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpmmu_rt.cases import Case
from mpmmu_rt.checks import shortest
from mpmmu_rt.errors import ImageError
from mpmmu_rt.grey import GreyImage
from mpmmu_rt.images import fitted, named, pixels_of, read_image, require_two
from mpmmu_rt.pairs import require_two_files, said_against
from mpmmu_rt.predictor import Predictor
from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import MODALITIES, Array, Modality
from mpmmu_rt.subject import require_one
from mpmmu_rt.verify import PortableHead

from .attention import Gates, gates
from .blocks import BlockGates, InnerGates, inner_gates
from .occlusion import Box, occlusion
from .shapley import Sampling, Shapley, shapley

SCHEMA = "mpmmu-explanation/1"
NEARLY_SHUT, NEARLY_OPEN = 0.1, 0.9  # a gate lets less, or more, of its channel through


@dataclass(frozen=True)
class Explanation:
    """Of one case. images: as they were decoded. boxes: where they lie in the model's square. maps: float32 [S, S] of
    each modality, by occlusion, or where there is `shapley` by that. alone: the probability with the other modality's
    embedding at its training mean; None where the bundle does not know that mean. warnings: as `mpmmu-rt run` says
    them: of the images' headers, that the pair looks swapped, or an image unlike the training's."""

    case: Case
    images: Mapping[Modality, GreyImage]
    boxes: Mapping[Modality, Box]
    probability: float
    decision: str
    base_probability: Mapping[str, float]
    alone: Mapping[Modality, float] | None
    maps: Mapping[Modality, Array]
    shapley: Shapley | None
    gates: Mapping[Modality, Gates]
    blocks: Mapping[Modality, InnerGates]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        modalities = {}
        for modality in MODALITIES:
            pool = self.gates.get(modality)
            modalities[modality] = {
                "image": str(self.case.image(modality)),
                "probability_alone": None if self.alone is None else self.alone[modality],
                "occlusion": self._map_json(modality) if self.shapley is None else None,
                "shapley": None
                if self.shapley is None
                else self._map_json(modality) | {"total": self.shapley.totals[modality]},
                "attention": None if pool is None else _gates_json(pool),
                "blocks": None if modality not in self.blocks else blocks_json(self.blocks[modality]),
            }
        return {
            "case_id": self.case.case_id,
            "label": self.case.label,
            "probability": float(shortest(self.probability)),  # as `run` says it
            "decision": self.decision,
            "warnings": list(self.warnings),
            "base_probability": dict(self.base_probability),
            "shapley": None if self.shapley is None else _shapley_json(self.shapley, self.probability),
            "modalities": modalities,
        }

    def _map_json(self, modality: Modality) -> dict[str, Any]:
        found = self.maps[modality]
        y, x = peak(found, self.boxes[modality])
        # The peak is of the image, in shares of its height and width.
        return {"most": float(found.max()), "least": float(found.min()), "peak": {"y": y, "x": x}}


def peak(found: Array, box: Box) -> tuple[float, float]:
    """Where covering changes the probability most, in either direction, in shares of the image's height and width: the
    middle of all pixels that share the largest change."""
    inside = np.abs(found[box.slices])
    y, x = np.nonzero(inside >= inside.max() * (1 - 1e-6))
    return float((y.mean() + 0.5) / box.height), float((x.mean() + 0.5) / box.width)


def _shapley_json(found: Shapley, probability: float) -> dict[str, Any]:
    return {
        "orders": found.sampling.orders,
        "seed": found.sampling.seed,
        "probability_covered": found.covered,
        "completeness_error": found.covered + sum(found.totals.values()) - probability,
        "largest_standard_error": found.standard_error,  # of a patch
        "total_standard_error": found.totals_error,  # of either modality
    }


def _gates_json(pool: Gates) -> dict[str, Any]:
    of_channels = pool.channel[0]
    spatial = None
    if pool.spatial is not None:
        spatial = {"lowest": float(pool.spatial[0].min()), "highest": float(pool.spatial[0].max())}
    return {
        "kind": pool.kind,
        "channel": {
            "lowest": float(of_channels.min()),
            "median": float(np.median(of_channels)),
            "highest": float(of_channels.max()),
            "strongest": [int(one) for one in np.argsort(-of_channels, kind="stable")[:10]],
        },
        "spatial": spatial,
    }


def blocks_json(inner: InnerGates) -> dict[str, Any]:
    """What `explanations.json` says of the gates in an encoder's blocks."""
    return {
        "graph": inner.graph,
        "kind": inner.kind if inner.blocks else None,
        "not_read": inner.not_read or None,
        "feature_map_difference": inner.difference,  # beside the gates from the one without, in shares of its largest
        "gates": [_block_json(one) for one in inner.blocks],
    }


def _block_json(block: BlockGates) -> dict[str, Any]:
    lowest, quarter, median, three_quarters, highest = np.quantile(block.channel, (0, 0.25, 0.5, 0.75, 1)).tolist()
    spatial = None
    if block.spatial is not None:
        height, width = block.spatial.shape
        low, high = float(block.spatial.min()), float(block.spatial.max())
        spatial = {"height": height, "width": width, "lowest": low, "highest": high}
    return {
        "block": block.name,
        "channel": {
            "count": block.channel.size,
            "lowest": lowest,
            "lower_quartile": quarter,
            "median": median,
            "upper_quartile": three_quarters,
            "highest": highest,
            "nearly_shut": float((block.channel < NEARLY_SHUT).mean()),
            "nearly_open": float((block.channel > NEARLY_OPEN).mean()),
        },
        "spatial": spatial,
    }


def explain(
    predictor: Predictor,
    case: Case,
    head: PortableHead | None = None,
    *,
    mean: Array | None = None,
    frame: int | None = None,
    sampling: Sampling | None = None,
    progress: Progress = silent,
) -> Explanation:
    """Explain what `predictor` says of `case`.

    head: of `mpmmu_rt.verify.portable_head`, and mean: float32 [D], the mean embedding of the training; with both, what
    each modality says alone. sampling: Shapley values by it, and not occlusion. Raises `ImageError` for images that
    can't be read or are one and the same, and what `predict` raises.
    """
    preprocessing = predictor.bundle.preprocessing
    images: dict[Modality, GreyImage] = {}
    boxes: dict[Modality, Box] = {}
    pixels: dict[Modality, Array] = {}
    warnings: list[str] = []
    for modality, path in _paths(case).items():
        image = images[modality] = read_image(path, modality=modality, frame=frame)
        boxes[modality] = Box(*fitted(image.grey.shape, preprocessing, image.pixel_aspect))
        with named(path):
            read = pixels_of(image, preprocessing)
        pixels[modality] = read.pixels[None]
        warnings += [f"{modality}: {one}" for one in read.warnings]
    require_two(pixels)
    warnings += require_one({modality: image.subject for modality, image in images.items()})
    warnings += said_against(pixels, predictor.bundle.modality_check)[0]
    said = predictor.predict(pixels)
    probability = float(said.probability[0])
    base = [] if said.base_probability is None else [float(one) for one in said.base_probability[0]]
    names = predictor.bundle.learners or tuple(f"learner {row}" for row in range(1, len(base) + 1))
    feature_maps = predictor.feature_maps(pixels) if predictor.bundle.pool_kinds else {}
    added = None if sampling is None else shapley(predictor, pixels, boxes, sampling, progress)
    maps: Mapping[Modality, Array]
    if added is None:
        maps = {
            modality: occlusion(predictor, pixels, modality, boxes[modality], progress, before=probability)
            for modality in MODALITIES
        }
    else:
        maps = added.maps
    return Explanation(
        case=case,
        images=images,
        boxes=boxes,
        probability=probability,
        decision=said.decision[0],
        base_probability=dict(zip(names, base, strict=True)),
        alone=None if head is None or mean is None else _alone(predictor, head, said.embedding[0], mean),
        maps=maps,
        shapley=added,
        gates=gates(predictor.bundle, feature_maps) if feature_maps else {},
        blocks=inner_gates(predictor, pixels, feature_maps) if feature_maps else {},
        warnings=tuple(warnings),
    )


def _paths(case: Case) -> dict[Modality, Path]:
    found = {modality: path for modality in MODALITIES if (path := case.image(modality)) is not None}
    if missing := [modality for modality in MODALITIES if modality not in found]:
        raise ImageError(
            f"case `{case.case_id}` has no {missing[0]} image, expected both", hint="add it to the manifest"
        )
    require_two_files(found)
    return found


def _alone(predictor: Predictor, head: PortableHead, embedding: Array, mean: Array) -> dict[Modality, float]:
    """The probability of each modality's own embedding beside the other's training mean."""
    width = int(predictor.bundle.tensors["mammography_feature_map"].shape[1])
    own = {"mammography": slice(0, width), "ultrasound": slice(width, None)}
    asked = np.repeat(mean[None].astype(np.float32), len(MODALITIES), 0)
    for row, modality in enumerate(MODALITIES):
        asked[row, own[modality]] = embedding[own[modality]]
    return {modality: float(one) for modality, one in zip(MODALITIES, head.probability(asked), strict=True)}
