"""The plots of a report that stand for one thing each: parts of a whole, silences, batches, rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .charts import (
    BLUE,
    BOTTOM,
    GREEN,
    INK,
    LEFT,
    MUTED,
    PARTS,
    RIGHT,
    SIDES,
    TOP,
    VERMILLION,
    WIDTH,
    Axis,
    Frame,
    axis,
    label,
    svg,
)
from .gate import statistics
from .markup import Markup, el, number, table

_BAR = 46.0


def parts(title: str, shares: Mapping[str, float], total: float, unit: str, per: int = 1) -> Markup:
    """A bar of the parts of `total`, and below it a table of them. per: pairs, where the time of one is told too."""
    positive = sum(max(0.0, value) for value in shares.values()) or 1.0
    x, drawn = 0.0, []
    for at, value in enumerate(shares.values()):
        width = max(0.0, value) / positive * WIDTH
        colour = PARTS[at % len(PARTS)]
        drawn.append(el("rect", x=x, y=0.0, width=width, height=_BAR, fill=colour, stroke="#fff"))
        if width > 11 * len(text := f"{value / total:.0%}"):
            ink = "#fff" if colour in (BLUE, VERMILLION, "#7f8a99") else INK
            drawn.append(label(x + width / 2, _BAR / 2 + 5, text, anchor="middle", colour=ink, bold=True))
        x += width
    rows = []
    for at, (name, value) in enumerate(shares.items()):
        swatch = el("span", class_="swatch", style=f"background:{PARTS[at % len(PARTS)]}")
        cells: list[object] = [el("span", swatch, name.replace("_", " ")), number(value)]
        rows.append([*cells, *([number(value / per)] if per > 1 else []), f"{value / total:.1%}"])
    whole = [number(total), *([number(total / per)] if per > 1 else []), "100.0%"]
    rows.append([el("b", cell) for cell in ("all", *whole)])
    header = ["part", unit, *([f"{unit} per pair"] if per > 1 else []), "share"]
    return el("div", svg(title, _BAR, *drawn), table(header, rows))


def silences(idle: Mapping[str, Any]) -> Markup:
    """The call after each silence: every repeat, and the medians joined."""
    gaps = idle["gaps"]
    names = [f"{gap['seconds']:g} s" for gap in gaps]
    places = Axis(
        "silence before the call",
        -0.5,
        len(gaps) - 0.5,
        ticks=tuple(range(len(gaps))),
        form=lambda value: names[round(value)],
    )
    everything = [ms for gap in gaps for ms in gap["samples_ms"]]
    frame = Frame(places, axis("ms of one pair", [0.0, *everything], zero=True))
    xs = [at for at, gap in enumerate(gaps) for _ in gap["samples_ms"]]
    marks = [
        frame.line(range(len(gaps)), [gap["median_ms"] for gap in gaps], BLUE),
        frame.dots(xs, everything, BLUE, 8, 0.6),
    ]
    for at, gap in enumerate(gaps):
        text = f"{number(gap['median_ms'])} ms"
        marks.append(label(frame.px(at) + 10, frame.py(gap["median_ms"]) - 8, text, halo=True))
    return frame.drawn("Latency of the first call after a silence", *marks)


def throughput(sweep: Mapping[str, Any]) -> Markup:
    steps = sweep["steps"]
    batches, rates = [step["batch"] for step in steps], [step["pairs_per_s"] for step in steps]
    frame = Frame(_batch_axis(batches), axis("pairs per second", [0.0, *rates], zero=True))
    (at,) = (step for step in steps if step["batch"] == sweep["knee"])
    enough = frame.py(sweep["enough"] * max(rates))
    return frame.drawn(
        "Throughput by batch",
        _stroke((LEFT, enough), (WIDTH - RIGHT, enough), GREEN, 1.5, "5 4"),
        frame.line(batches, rates, BLUE),
        frame.dots(batches, rates, BLUE, 8),
        _ring(frame, at["batch"], at["pairs_per_s"], f"knee: {number(at['pairs_per_s'])} pairs/s", convex=False),
    )


def latency_by_batch(sweep: Mapping[str, Any]) -> Markup:
    steps = sweep["steps"]
    batches, means = [step["batch"] for step in steps], [step["mean_ms"] for step in steps]
    spread = max(means) > 20 * min(means)
    frame = Frame(_batch_axis(batches), axis("ms per call", means if spread else [0.0, *means], zero=True, log=spread))
    (at,) = (step for step in steps if step["batch"] == sweep["knee"])
    return frame.drawn(
        "Mean latency by batch",
        frame.line(batches, means, BLUE),
        frame.dots(batches, means, BLUE, 8),
        _ring(frame, at["batch"], at["mean_ms"], f"knee: {number(at['mean_ms'])} ms", convex=True),
    )


def _batch_axis(batches: Sequence[int]) -> Axis:
    step = math.ceil(len(batches) / 9)
    low, high = min(batches) / 1.25, max(batches) * 1.25
    return Axis("pairs per call", low, high, True, tuple(batches[::-1][::step]), lambda value: f"{value:.0f}")


def _ring(frame: Frame, x: float, y: float, text: str, *, convex: bool) -> Markup:
    """Around a point of a rising curve, its text where the curve is not: above a convex one, below another."""
    px, py = frame.px(x), frame.py(y)
    left = px > WIDTH - 190 or (convex and px > LEFT + 150)
    ring = el("circle", cx=px, cy=py, r=8.5, fill="none", stroke=VERMILLION, stroke_width=2.5)
    beside = (px - 16, py + 4) if left else (px + 16, py + 4)
    at = (px - 8 if left else px - 4, py - 17) if convex else beside if left else (px + 4, py + 26)
    anchor = "end" if left else "start"
    return el("g", ring, label(*at, text, anchor=anchor, colour=VERMILLION, halo=True, bold=True))


def both_by_round(samples: Mapping[str, Sequence[Sequence[float]]]) -> Markup:
    """Every call of both sides: the rounds in the order they were run, A left and B right in each."""
    from .charts import milliseconds

    everything = [ms for side in ("a", "b") for calls in samples[side] for ms in calls]
    count = len(samples["a"])
    rounds = Axis("round", 0.4, count + 0.6, ticks=tuple(range(1, count + 1, math.ceil(count / 10))))
    frame = Frame(rounds, milliseconds(everything))
    marks = []
    for side, shift in (("a", -0.17), ("b", 0.17)):
        xs = [at + shift for at, calls in enumerate(samples[side], 1) for _ in calls]
        marks.append(frame.dots(xs, [ms for calls in samples[side] for ms in calls], SIDES[side], 3.2, 0.5))
    for at, side in enumerate(("a", "b")):
        marks.append(label(LEFT + 8 + 26 * at, TOP + 6, side.upper(), colour=SIDES[side], halo=True, bold=True))
    return frame.drawn("Each call of A and B in ms, by round", *marks)


def slowdowns(entry: Mapping[str, Any]) -> Markup:
    """B against A, a plot for each statistic: every round, the estimate with its interval, and what is allowed."""
    samples, allowed = entry["samples_ms"], entry["rule"]["max_slowdown"] * 100
    found = []
    for name, one in entry["estimates"].items():
        pairs = zip(samples["a"], samples["b"], strict=True)
        rounds = [(statistics(b)[name] / statistics(a)[name] - 1) * 100 for a, b in pairs]
        ends = [None if one[end] is None else one[end] * 100 for end in ("low", "high")]
        found.append(_estimate(name, rounds, one["slowdown"] * 100, ends, allowed))
    return el("div", *found)


def _estimate(
    name: str, rounds: Sequence[float], median: float, ends: Sequence[float | None], allowed: float
) -> Markup:
    """All in percent. Rounds as dots that are spread a little; below them the median and its interval, dotted where an
    end of it is not known. Rounds far out lie at the edge."""
    inner = np.quantile(rounds, [0.05, 0.95]).tolist()
    x = axis("", [*inner, *(end for end in ends if end is not None), median, 0.0, allowed, -allowed])
    x = Axis(
        f"% that the {name} call of B is slower", x.low, x.high, ticks=x.ticks, form=lambda v: f"{v:+.4g}" if v else "0"
    )
    frame = Frame(x, Axis("", 0.0, 1.0), 150.0)
    bottom, limit, zero = frame.height - BOTTOM, frame.px(allowed), frame.px(0)
    dots = "".join(
        f"M{frame.px(min(max(v, x.low), x.high)):.1f} {TOP + 14 + 26 * (k * 0.618 % 1):.1f}h0"
        for k, v in enumerate(rounds)
    )
    low, high = (frame.px(edge if end is None else end) for end, edge in zip(ends, (x.low, x.high), strict=True))
    below, left = TOP + 60, limit > WIDTH - 110
    at, anchor = (limit - 4, "end") if left else (limit + 4, "start")
    beyond = max(0.0, WIDTH - RIGHT - limit)
    marks = [
        el("rect", x=limit, y=TOP, width=beyond, height=bottom - TOP, fill=VERMILLION, opacity=0.09),
        _stroke((zero, TOP), (zero, bottom), MUTED, 1.0),
        _stroke((limit, TOP), (limit, bottom), VERMILLION, 1.0, "5 4"),
        label(at, TOP - 6, f"allowed {allowed:.3g}%", anchor=anchor, colour=VERMILLION, halo=True),
        el("path", d=dots, stroke=BLUE, stroke_width=4.5, stroke_linecap="round", opacity=0.45, fill="none"),
        _stroke((low, below), (high, below), INK, 2.5, "2 5" if None in ends else None),
    ]
    for end, place in zip(ends, (low, high), strict=True):
        if end is not None:
            marks.append(_stroke((place, below - 5), (place, below + 5), INK, 2.5))
    marks.append(el("circle", cx=frame.px(median), cy=below, r=5.5, fill=INK, stroke="#fff"))
    marks.append(label(8, TOP + 31, name, bold=True))
    marks.append(label(8, below + 4, f"{median:+.1f}%", bold=True))
    return frame.drawn(f"By how much the {name} call of B is slower than A's, in percent", *marks)


def _stroke(
    begin: tuple[float, float], end: tuple[float, float], colour: str, width: float, dashes: str | None = None
) -> Markup:
    (x1, y1), (x2, y2) = begin, end
    return el("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=colour, stroke_width=width, stroke_dasharray=dashes)
