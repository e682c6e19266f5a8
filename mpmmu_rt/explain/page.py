"""The page of an explanation: images, maps and numbers of every case, in one file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mpmmu_rt import report_parts as pieces
from mpmmu_rt.checks import shortest, shown
from mpmmu_rt.markup import Markup, el, joined, number
from mpmmu_rt.spec import MODALITIES, Modality

from . import block_parts, overlays
from .study import Explanation

Pictures = Mapping[str, bytes]
"""By what they show: `image`, `occlusion` or `shapley`, `attention` where the pool has a spatial gate, and `layer1` to
`layer4` where the blocks of a stage have one."""

_SAYS = {
    "image": "as it was read",
    "occlusion": "covering this lowers (red) or raises (blue) the probability of malignant",
    "shapley": "what each patch adds (red) to the probability of malignant, or takes from it (blue)",
    "attention": "the attention pool's spatial gate, from its lowest to its highest",
}


def pictures(found: Explanation, modality: Modality, size: int) -> dict[str, bytes]:
    """PNG files of one modality. Both modalities share the scale of their maps."""
    image, box = found.images[modality], found.boxes[modality]
    largest = max(float(np.abs(one).max()) for one in found.maps.values())
    drawn = {
        "image": overlays.plain(image),
        "occlusion" if found.shapley is None else "shapley": overlays.signed(image, box, found.maps[modality], largest),
    }
    pool = found.gates.get(modality)
    if pool is not None and pool.spatial is not None:
        drawn["attention"] = overlays.attended(image, box, pool.spatial[0], size)
    if modality in found.blocks:
        drawn |= block_parts.strips(image, box, found.blocks[modality], size)
    return drawn


def document(entry: Mapping[str, Any], drawn: Iterable[Mapping[Modality, Pictures]]) -> str:
    """Of `explanations.json`, and the pictures of each of its cases, in its order."""
    cases = entry["cases"]
    bundle = entry["bundle"]
    count = f"{len(cases)} case{'s' * (len(cases) != 1)}"
    sections = [
        pieces.header(
            "Explanation",
            bundle["name"],
            f"{count} on {entry['target']}; threshold {shortest(entry['threshold'])}",
            pieces.badge(entry["target"], good=True),
            warnings=[entry.get("warning")],
        ),
        el("p", entry["says"], class_="verdict"),
    ]
    for case, of_case in zip(cases, drawn, strict=True):
        sections += _case(case, of_case, entry["threshold"])
    sections += [
        pieces.card(
            "Cases without an answer",
            el("ul", *(el("li", f"{one['case_id']}: {one['error']}") for one in entry["failed"])),
        )
        for _ in entry["failed"][:1]
    ]
    return pieces.document(f"{bundle['name']} - mpmmu-rt explain", *sections)


def _case(case: Mapping[str, Any], drawn: Mapping[Modality, Pictures], threshold: float) -> list[Markup]:
    label = {0: ", labelled benign", 1: ", labelled malignant"}.get(case["label"], "")
    keys = [
        pieces.key("probability", shown(case["probability"], threshold, digits=3), "", f"{case['decision']}{label}")
    ]
    for modality in MODALITIES:
        alone = case["modalities"][modality]["probability_alone"]
        if alone is not None:
            keys.append(pieces.key(f"{modality} alone", number(alone), "", "the other at its training mean"))
    learners = {name.replace("_", " "): f"{value:.3f}" for name, value in case["base_probability"].items()}
    cards = [
        pieces.card(modality.capitalize(), _figures(drawn[modality]), _note(case["modalities"][modality]))
        for modality in MODALITIES
    ]
    banners = [el("p", pieces.sentence(one), class_="banner") for one in case["warnings"]]
    body = [el("h2", case["case_id"]), *banners, el("section", *keys, class_="keys")]
    if learners:
        body.append(pieces.card("What each learner says", pieces.facts(learners)))
    if case["shapley"]:
        body.append(_sum(case))
    body.append(pieces.grid(*cards))
    inner = {modality: blocks for modality in MODALITIES if (blocks := case["modalities"][modality]["blocks"])}
    if inner:
        body.append(pieces.grid(*(_inner(modality, blocks, drawn[modality]) for modality, blocks in inner.items())))
    return body


def _sum(case: Mapping[str, Any]) -> Markup:
    found = case["shapley"]
    of = case["modalities"]
    totals: dict[str, str] = {
        one: f"{of[one]['shapley']['total']:+.3f} \N{PLUS-MINUS SIGN} {found['total_standard_error']:.3f}"
        for one in MODALITIES
    }
    steps = {
        "both images covered": f"{found['probability_covered']:.3f}",
        **totals,
        "as they are": f"{case['probability']:.3f}",
    }
    note = (
        f"Shapley values, by {found['orders']} orders of uncovering patches; the sum of all misses the probability by "
        f"{abs(found['completeness_error']):.0e}. Standard errors are of the draw of orders, that of a patch is "
        f"{found['largest_standard_error']:.3f} at most; more --orders make them smaller."
    )
    return pieces.card("What adds up to the probability", pieces.facts(steps), note)


def _inner(modality: Modality, blocks: Mapping[str, Any], drawn: Pictures) -> Markup:
    stages = {name: png for name, png in drawn.items() if name not in _SAYS}
    return block_parts.card(f"{modality.capitalize()}: attention in the blocks", blocks, stages)


def _figures(drawn: Pictures) -> Markup:
    figures = [
        el(
            "figure",
            el("img", src=f"data:image/png;base64,{base64.b64encode(png).decode()}", alt=_SAYS[name], class_="shown"),
            el("figcaption", _SAYS[name]),
        )
        for name, png in drawn.items()
        if name in _SAYS
    ]
    return el("div", joined(figures), class_="figures")


def _note(found: Mapping[str, Any]) -> str:
    occlusion, added, attention = found["occlusion"], found["shapley"], found["attention"]
    if added:
        text = (
            f"A patch adds {added['least']:+.3f} to {added['most']:+.3f} to the probability, all of this image "
            f"{added['total']:+.3f}."
        )
    else:
        text = f"Covering a part changes the probability by {-occlusion['most']:+.3f} to {-occlusion['least']:+.3f}."
    if attention:
        of_channels = attention["channel"]
        text += (
            f" {attention['kind'].upper()} lets {of_channels['lowest']:.2f} to {of_channels['highest']:.2f} of a "
            f"channel through, {of_channels['median']:.2f} at the median"
        )
        if attention["spatial"]:
            text += f", and {attention['spatial']['lowest']:.2f} to {attention['spatial']['highest']:.2f} of a place"
        text += "."
    return text
