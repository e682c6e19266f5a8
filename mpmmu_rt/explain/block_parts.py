"""What a page shows of the gates in the blocks: spatial maps stage by stage, and how far channels are let through."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from mpmmu_rt import report_parts as pieces
from mpmmu_rt.charts import BLUE, GRID, INK, LEFT, MUTED, RIGHT, SKY, WIDTH, label, svg
from mpmmu_rt.grey import GreyImage
from mpmmu_rt.markup import Markup, el, joined

from . import overlays
from .blocks import InnerGates
from .occlusion import Box

_ROW, _TOP, _BOTTOM = 19.0, 20.0, 40.0
_SHARES = 104.0  # to the right of the axis, for what is nearly shut and nearly open


def stage(block: str) -> str:
    """`layer2` of `layer2.0`."""
    return block.partition(".")[0]


def strips(image: GreyImage, box: Box, inner: InnerGates, size: int) -> dict[str, bytes]:
    """PNG of each stage, by its name: the spatial gates of its blocks, in their order; {} for a kind without."""
    found = {}
    for name, blocks in groupby(inner.blocks, lambda one: stage(one.name)):
        maps = [one.spatial for one in blocks if one.spatial is not None]
        if maps:
            found[name] = overlays.strip(image, box, maps, size)
    return found


def card(title: str, inner: Mapping[str, Any], pictures: Mapping[str, bytes]) -> Markup:
    """inner: of `explanations.json`; pictures: what `strips` draws of it."""
    if inner["not_read"]:
        return pieces.card(title, el("p", f"Not shown: {inner['not_read']}."))
    gates = inner["gates"]
    note = f"{inner['kind'].upper()}, as {inner['graph']} computes it; with its gates as outputs its feature map is "
    difference = inner["feature_map_difference"]
    note += "the same to the bit." if difference == 0 else f"{difference:.0e} of its largest value off."
    if pictures:
        note += " Yellow is where a map is highest; the figures say by how much."
    return pieces.card(title, joined([*_stages(gates, pictures), _plot(gates)]), note)


def _stages(gates: Sequence[Mapping[str, Any]], pictures: Mapping[str, bytes]) -> list[Markup]:
    stages = {name: list(blocks) for name, blocks in groupby(gates, lambda one: stage(one["block"]))}
    most = max(map(len, stages.values()))
    shown = []
    for name, png in pictures.items():
        blocks = stages[name]
        spatial = [one["spatial"] for one in blocks]
        places = f"{spatial[0]['height']} by {spatial[0]['width']}"
        ranges = ", ".join(f"{one['lowest']:.2f} to {one['highest']:.2f}" for one in spatial)
        what = f"{name}, {places} places: {ranges}"
        # So that the images of all stages have one size.
        width = f"width:min({100 * len(blocks) / most:.2f}%,{len(blocks) * overlays.SMALL_SIDE}px)"
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        picture = el("img", src=source, alt=f"Spatial gates of {what}", style=width)
        shown.append(el("figure", picture, el("figcaption", what), class_="strip"))
    return shown


def _plot(gates: Sequence[Mapping[str, Any]]) -> Markup:
    """Of every block a row: the channels' gates from the lowest to the highest, the middle half, the median."""
    right = WIDTH - RIGHT - _SHARES
    bottom = _TOP + _ROW * len(gates)

    def px(value: float) -> float:
        return LEFT + value * (right - LEFT)

    parts = [label(right + 12, _TOP - 7, "< 0.1", colour=MUTED), label(right + 66, _TOP - 7, "> 0.9", colour=MUTED)]
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(el("line", x1=px(value), x2=px(value), y1=_TOP, y2=bottom, stroke=GRID))
        parts.append(label(px(value), bottom + 15, f"{value:g}", anchor="middle", colour=MUTED))
    for row, one in enumerate(gates):
        of, y = one["channel"], _TOP + _ROW * (row + 0.5)
        parts.append(label(LEFT - 8, y + 4, one["block"], anchor="end", colour=MUTED))
        parts.append(el("line", x1=px(of["lowest"]), x2=px(of["highest"]), y1=y, y2=y, stroke=SKY, stroke_width=2.0))
        middle = {"x1": px(of["lower_quartile"]), "x2": px(of["upper_quartile"])}
        parts.append(el("line", **middle, y1=y, y2=y, stroke=BLUE, stroke_width=7.0))
        parts.append(el("circle", cx=px(of["median"]), cy=y, r=3.5, fill="#fff", stroke=INK))
        parts.append(label(right + 12, y + 4, f"{of['nearly_shut']:.0%}"))
        parts.append(label(right + 66, y + 4, f"{of['nearly_open']:.0%}"))
    parts.append(
        label((LEFT + right) / 2, bottom + 33, "of a channel let through: all, middle half, median", anchor="middle")
    )
    return svg("How much of each channel the gates of each block let through", bottom + _BOTTOM, *parts)
