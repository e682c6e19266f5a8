"""Plots as inline SVG, without a script: axes with units, and colours that colour-blind readers tell apart.

Colours are those of Okabe and Ito (2008, "Color universal design"); what a colour says is also written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .markup import Markup, el, joined, number, tick
from .spec import Array

BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7"
INK, MUTED, GRID = "#1b2430", "#5b6675", "#e3e7ec"
SIDES = {"a": BLUE, "b": VERMILLION}
PARTS = (BLUE, SKY, GREEN, ORANGE, PURPLE, VERMILLION, "#7f8a99", "#b9c1cb")
WIDTH, HEIGHT = 480.0, 290.0
LEFT, RIGHT, TOP, BOTTOM = 80.0, 16.0, 20.0, 50.0
HEAVY_TAIL = 4.0  # times the median: from there on an axis is logarithmic


@dataclass(frozen=True)
class Axis:
    """label: with its unit. low, high: of the data. log: base-10 logarithm."""

    label: str
    low: float
    high: float
    log: bool = False
    ticks: tuple[float, ...] = ()
    form: Callable[[float], str] = tick

    def at(self, value: float) -> float:
        """Where it lies, 0..1."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / ((high - low) or 1.0)


def axis(label: str, values: Sequence[float], *, zero: bool = False, log: bool = False) -> Axis:
    """Around all of `values`, from 0 where `zero`; ticks at 1, 2 and 5 times powers of ten. log: where there are two
    ticks to read it by, which the label then says."""
    low, high = float(min(values)), float(max(values))
    if log:
        low, high = low / 1.06, high * 1.06
        ticks = _log_ticks(low, high)
        if len(ticks) >= 2:
            return Axis(f"{label}, logarithmic", low, high, True, ticks)
    span = (high - low) or abs(high) or 1.0
    low, high = 0.0 if zero and low >= 0 else low - 0.06 * span, high + 0.06 * span
    step = _step(high - low)
    first = math.ceil(low / step - 1e-9)
    ticks = tuple(k * step for k in range(first, math.floor(high / step + 1e-9) + 1))
    return Axis(label, low, high, False, ticks)


def _step(span: float) -> float:
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(power * m for m in (1, 2, 5, 10) if span / (power * m) <= 5.5)


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = tuple(m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high)
        if len(ticks) <= 7:
            break
    return ticks


@dataclass(frozen=True)
class Frame:
    """A plot's area and its two axes."""

    x: Axis
    y: Axis
    height: float = HEIGHT

    def px(self, value: float) -> float:
        return LEFT + self.x.at(value) * (WIDTH - LEFT - RIGHT)

    def py(self, value: float) -> float:
        return self.height - BOTTOM - self.y.at(value) * (self.height - BOTTOM - TOP)

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: str, width: float = 2.0) -> Markup:
        path = "M" + "L".join(f"{self.px(x):.1f} {self.py(y):.1f}" for x, y in zip(xs, ys, strict=True))
        return el("path", d=path, fill="none", stroke=colour, stroke_width=width, stroke_linejoin="round")

    def dots(self, xs: Sequence[float], ys: Sequence[float], colour: str, size: float, opacity: float = 1.0) -> Markup:
        """One path of lines without length, whose caps are round: thousands of dots stay small."""
        path = "".join(f"M{self.px(x):.1f} {self.py(y):.1f}h0" for x, y in zip(xs, ys, strict=True))
        return el(
            "path", d=path, stroke=colour, stroke_width=size, stroke_linecap="round", opacity=opacity, fill="none"
        )

    def dot(self, x: float, y: float, colour: str = VERMILLION) -> Markup:
        return el("circle", cx=self.px(x), cy=self.py(y), r=4.5, fill=colour, stroke="#fff")

    def level(self, y: float, text: str, colour: str = INK) -> Markup:
        at = self.py(y)
        return joined(
            (
                el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, stroke=colour, stroke_dasharray="5 4"),
                label(WIDTH - RIGHT, at - 5, text, anchor="end", colour=colour, halo=True),
            )
        )

    def drawn(self, title: str, *marks: Markup) -> Markup:
        """The SVG. title: what it shows, for those who can't see it."""
        parts = [*self._grid(), *marks]
        return svg(title, self.height, *parts)

    def _grid(self) -> list[Markup]:
        bottom, right = self.height - BOTTOM, WIDTH - RIGHT
        parts = []
        for value in self.y.ticks:
            at = self.py(value)
            parts.append(el("line", x1=LEFT, x2=right, y1=at, y2=at, stroke=GRID))
            parts.append(label(LEFT - 8, at + 4, self.y.form(value), anchor="end", colour=MUTED))
        for value in self.x.ticks:
            at = self.px(value)
            parts.append(el("line", x1=at, x2=at, y1=bottom, y2=bottom + 5, stroke=MUTED))
            parts.append(label(at, bottom + 19, self.x.form(value), anchor="middle", colour=MUTED))
        parts.append(el("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, stroke=MUTED))
        parts.append(label((LEFT + right) / 2, self.height - 10, self.x.label, anchor="middle"))
        middle = (TOP + bottom) / 2
        if self.y.label:
            turned = f"translate(14 {middle:.0f}) rotate(-90)"
            parts.append(el("text", self.y.label, text_anchor="middle", fill=INK, transform=turned))
        return parts


def svg(title: str, height: float, *parts: Markup) -> Markup:
    return el("svg", el("title", title), *parts, viewBox=f"0 0 {WIDTH:.0f} {height:.0f}", role="img", aria_label=title)


def label(
    x: float, y: float, text: str, *, anchor: str = "start", colour: str = INK, halo: bool = False, bold: bool = False
) -> Markup:
    """halo: readable where it crosses other marks."""
    return el(
        "text",
        text,
        x=x,
        y=y,
        text_anchor=anchor,
        fill=colour,
        class_="halo" if halo else None,
        font_weight="600" if bold else None,
    )


def milliseconds(values: Sequence[float], label: str = "ms per call") -> Axis:
    """Linear, or logarithmic where the slowest call is far from the median."""
    heavy = max(values) > HEAVY_TAIL * float(np.median(values)) and min(values) > 0
    return axis(label, values, log=heavy)


def calls(samples_ms: Sequence[float], levels: Mapping[str, float]) -> Markup:
    """Every call in the order it was made."""
    count = len(samples_ms)
    frame = Frame(axis("call", [0, count], zero=True), milliseconds(samples_ms))
    numbers = list(range(1, count + 1))
    size = 5.0 if count < 100 else 3.5 if count < 1000 else 2.2
    return frame.drawn(
        f"Each of {count} calls in ms, in order",
        frame.dots(numbers, samples_ms, BLUE, size, 0.55),
        *(frame.level(value, f"{name} {number(value)} ms") for name, value in levels.items()),
    )


def ecdf(sides: Mapping[str, Sequence[float]], colours: Mapping[str, str], marks: Mapping[str, float]) -> Markup:
    """Share of calls that took no longer. marks: percentiles of a single side, name → share 0..1."""
    everything = [value for samples in sides.values() for value in samples]
    x = milliseconds(everything, "a call takes at most, ms")
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    frame = Frame(x, Axis("share of calls", 0.0, 1.0, ticks=shares, form=lambda v: f"{v:.0%}"))
    drawn = []
    for at, (name, samples) in enumerate(sides.items()):
        ordered = np.sort(np.asarray(samples, float))
        xs = np.concatenate(([x.low], np.repeat(ordered, 2), [x.high]))
        ys = np.concatenate(([0.0, 0.0], np.repeat(np.arange(1, len(ordered) + 1) / len(ordered), 2)))
        drawn.append(frame.line(*_thinned(xs, ys), colours[name]))
        if len(sides) > 1:
            y = frame.py(0.16) + 20 * at
            drawn.append(label(WIDTH - RIGHT - 6, y, name, anchor="end", colour=colours[name], bold=True))
    (samples,) = sides.values() if len(sides) == 1 else ([],)
    for name, share in marks.items():
        x_at = float(np.quantile(samples, share))
        px, py = frame.px(x_at), frame.py(share)
        drawn.append(frame.dot(x_at, share))
        # Where there is room: at its upper end the curve is flat, so one goes above and the next below.
        left, above = px > WIDTH - 130, 0.95 < share < 0.995
        text = f"{name} {number(x_at)} ms"
        x_of, y_of = px + (-9 if left else 9), py + (-7 if above else 16)
        drawn.append(label(x_of, y_of, text, anchor="end" if left else "start", halo=True))
    return frame.drawn("Share of calls that take at most so long", *drawn)


def _thinned(xs: Array, ys: Array, most: int = 900) -> tuple[list[float], list[float]]:
    """Few enough points to draw; the first and last hundred, where the tails are, stay."""
    if len(xs) > most:
        inner = np.linspace(100, len(xs) - 101, most - 200).astype(int)
        keep = np.concatenate((np.arange(100), inner, np.arange(len(xs) - 100, len(xs))))
        xs, ys = xs[keep], ys[keep]
    return xs.tolist(), ys.tolist()
