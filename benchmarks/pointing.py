"""Are maps where lesions are? The pointing game on phantoms, whose lesions are known.

    python -m benchmarks.pointing BUNDLE [--orders 16]

Zhang et al. 2018, "Top-down neural attention by excitation backprop" (arXiv 1608.00507, section 4.2): a hit is a map
whose peak lies on the object. Here: within the mass's ellipse, widened by half a window of the occlusion, by occlusion
or, with --orders, by Shapley values, whose patches are as large as its windows and a quarter as many. Only images
that show their modality's sign count: the others give the model no reason to look at their mass. Chance: the share of
the image that the widened ellipse takes. The centre: what pointing there, whatever the image, would hit; phantoms have
their masses near it, and of the ultrasound images it hits all. Their sign, a shadow, lies below the mass besides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks import report
from mpmmu_rt.explain.occlusion import WINDOWS, Box, occlusion
from mpmmu_rt.explain.shapley import Sampling, shapley
from mpmmu_rt.explain.study import peak
from mpmmu_rt.images import preprocess
from mpmmu_rt.metrics import share_interval
from mpmmu_rt.model.phantom import MAMMOGRAPHY_SIGN, ULTRASOUND_SIGN, Lesion, Phantom, draw
from mpmmu_rt.predictor import Predictor, load
from mpmmu_rt.spec import MODALITIES, Array, Modality

SIGNS: dict[Modality, str] = {"mammography": MAMMOGRAPHY_SIGN, "ultrasound": ULTRASOUND_SIGN}
SEED = 77_000  # of phantoms that no preset trains on


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target", default="onnxruntime:fp32")
    parser.add_argument("--cases", type=int, default=100, help="of each modality")
    parser.add_argument("--orders", type=int, help="by Shapley values, of so many orders")
    given = parser.parse_args()
    sampling = None if given.orders is None else Sampling(given.orders)
    method = "occlusion" if sampling is None else f"Shapley values of {sampling.orders} orders"
    with load(given.bundle, given.target) as predictor:
        print(report.heading("Pointing game", ("onnxruntime", "openvino")))
        print(f"{predictor.bundle.name} on {predictor.target}, {given.cases} phantoms of each modality, seed {SEED}")
        print(f"by {method}\n")
        print(report.columns("modality | n | hits | 95 % interval | by chance | the centre"))
        for modality in MODALITIES:
            hits, chance, centre = play(predictor, modality, given.cases, sampling)
            low, high = share_interval(sum(hits), len(hits))
            print(
                f"| {modality} | {len(hits)} | {sum(hits) / len(hits):.1%} | {low:.1%} to {high:.1%} "
                f"| {sum(chance) / len(chance):.1%} | {sum(centre) / len(centre):.1%} |"
            )


def play(
    predictor: Predictor, modality: Modality, count: int, sampling: Sampling | None
) -> tuple[list[bool], list[float], list[bool]]:
    """Of each phantom whether the peak lies on its mass, the share of the image that would count as that, and whether
    the image's centre does."""
    hits, chance, centre = [], [], []
    for phantom in shown(modality, count):
        size = predictor.bundle.preprocessing.size
        pixels: dict[Modality, Array] = {
            name: preprocess(phantom.image(name), predictor.bundle.preprocessing)[None] for name in MODALITIES
        }
        box = Box(0, 0, size, size)
        if sampling is None:
            found = occlusion(predictor, pixels, modality, box)
        else:
            found = shapley(predictor, pixels, dict.fromkeys(MODALITIES, box), sampling).maps[modality]
        lesion = widened(phantom.lesions[modality])
        hits.append(lesion.reach(*peak(found, box)) <= 1)
        chance.append(math.pi * lesion.half_height * lesion.half_width)
        centre.append(lesion.reach(0.5, 0.5) <= 1)
    return hits, chance, centre


def shown(modality: Modality, count: int) -> Iterator[Phantom]:
    """Phantoms whose image of that modality is suspicious."""
    found = 0
    for phantom in draw(100 * count, seed=SEED):
        if SIGNS[modality] in phantom.signs:
            yield phantom
            found += 1
            if found == count:
                return


def widened(lesion: Lesion) -> Lesion:
    more = 0.5 / WINDOWS
    return replace(lesion, half_height=lesion.half_height + more, half_width=lesion.half_width + more)


if __name__ == "__main__":
    main()
