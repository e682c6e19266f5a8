"""The plots of an evaluation, as inline SVG: from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpmmu_rt.charts import (
    BLUE,
    BOTTOM,
    INK,
    LEFT,
    MUTED,
    ORANGE,
    RIGHT,
    TOP,
    VERMILLION,
    WIDTH,
    Axis,
    Frame,
    axis,
    label,
    svg,
)
from mpmmu_rt.markup import Markup, el

_FIFTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_SHARE = (-0.02, 1.02)


def _unit(name: str) -> Axis:
    return Axis(name, *_SHARE, ticks=_FIFTHS, form=lambda value: f"{value:g}")


def roc(entry: Mapping[str, Any]) -> Markup:
    frame = Frame(_unit("1 - specificity"), _unit("sensitivity"))
    xs, ys = zip(*entry["curves"]["roc"], strict=True)
    marks = [
        frame.line([0, 1], [0, 1], MUTED, 0.8),
        frame.line(xs, ys, BLUE),  # ties of both classes are a slope: so the AUC counts them
    ]
    taken: list[float] = []
    for one in entry["thresholds"]:
        figures = one["figures"]
        x, y = 1 - figures["specificity"]["value"], figures["sensitivity"]["value"]
        down = y > 0.15
        at = frame.py(y) + (18 if down else -8)
        while any(abs(at - other) < 16 for other in taken):
            at += 16 if down else -16
        taken.append(at)
        marks.append(frame.dot(x, y))
        left = frame.px(x) > WIDTH - 190
        text = f"{one['name']}, {one['threshold']:.3g}"
        place = frame.px(x) + (-9 if left else 9)
        marks.append(label(place, at, text, anchor="end" if left else "start", halo=True, colour=VERMILLION))
    return frame.drawn("ROC curve", *marks)


def precision_recall(entry: Mapping[str, Any]) -> Markup:
    frame = Frame(_unit("recall (sensitivity)"), _unit("precision (PPV)"))
    xs, ys = zip(*entry["curves"]["precision_recall"], strict=True)
    share = entry["cases"]["malignant"] / entry["cases"]["judged"]
    level, text = frame.py(share), f"all called malignant: {share:.2f}"
    return frame.drawn(
        "Precision-recall curve",
        el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=level, y2=level, stroke=MUTED, stroke_dasharray="5 4"),
        label(LEFT + 6, level + (16 if share > 0.2 else -6), text, colour=MUTED, halo=True),
        frame.line(xs, ys, BLUE),
    )


def calibration(entry: Mapping[str, Any]) -> Markup:
    frame = Frame(_unit("mean probability of the bin"), _unit("share of malignant"))
    marks = [frame.line([0, 1], [0, 1], MUTED, 0.8)]
    for one in entry["curves"]["calibration"]:
        x = frame.px(one["said"])
        ends = {"y1": frame.py(one["low"]), "y2": frame.py(one["high"])}
        marks.append(el("line", x1=x, x2=x, **ends, stroke=BLUE, stroke_width=1.5, opacity=0.6))
        marks.append(frame.dot(one["said"], one["seen"], BLUE))
        marks.append(label(x + 7, frame.py(one["seen"]) - 5, str(one["rows"]), colour=MUTED, halo=True))
    return frame.drawn("Calibration: share of malignant cases by probability", *marks)


def decision(entry: Mapping[str, Any]) -> Markup:
    """Net benefit; what is far below zero is no use to anyone, and is drawn at the lower edge."""
    found = entry["curves"]["decision"]
    best = max(entry["cases"]["malignant"] / entry["cases"]["judged"], 0.05)
    floor = -0.15 * best
    y = axis("net benefit per case", [floor, best])
    frame = Frame(_unit("threshold probability"), y)
    marks = [el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=frame.py(0), y2=frame.py(0), stroke=MUTED, stroke_width=1.5)]
    for name, colour in (("all", ORANGE), ("model", BLUE)):
        shown = [one for one in found if name == "model" or one[name] >= y.low]
        ys = [max(one[name], y.low) for one in shown]
        marks.append(frame.line([one["threshold"] for one in shown], ys, colour))
    top = (("model", BLUE), ("all called malignant", ORANGE), ("none called malignant", MUTED))
    for at, (name, colour) in enumerate(top):
        marks.append(
            label(WIDTH - RIGHT - 4, TOP + 6 + 18 * at, name, anchor="end", colour=colour, halo=True, bold=True)
        )
    return frame.drawn("Decision curve", *marks)


def histogram(entry: Mapping[str, Any]) -> Markup:
    """Benign upwards, malignant downwards."""
    found = entry["curves"]["histogram"]
    counts = {name: [int(one) for one in found[name]] for name in ("benign", "malignant")}
    most = max(*counts["benign"], *counts["malignant"], 1)
    y = axis("cases", [-most, most])
    y = Axis("cases", y.low, y.high, ticks=y.ticks, form=lambda value: f"{abs(value):g}")
    frame = Frame(_unit("probability"), y)
    bins, marks = len(counts["benign"]), []
    width = (frame.px(1) - frame.px(0)) / bins
    for name, sign, colour in (("benign", 1, BLUE), ("malignant", -1, VERMILLION)):
        for at, count in enumerate(counts[name]):
            if count:
                ends = sorted((frame.py(0), frame.py(sign * count)))
                box = {"x": frame.px(at / bins) + 1, "y": ends[0], "width": width - 2, "height": ends[1] - ends[0]}
                marks.append(el("rect", **box, fill=colour))
        at_y = TOP + 6 if sign > 0 else frame.height - BOTTOM - 8
        marks.append(label(WIDTH - RIGHT - 4, at_y, name, anchor="end", colour=colour, halo=True, bold=True))
    for one in entry["thresholds"][:1]:
        x = frame.px(min(1.0, max(0.0, one["threshold"])))
        ends_of = {"y1": TOP, "y2": frame.height - BOTTOM}
        marks.append(el("line", x1=x, x2=x, **ends_of, stroke=INK, stroke_dasharray="5 4"))
        marks.append(label(x + 5, TOP + 6, f"{one['name']}, {one['threshold']:.3g}", halo=True))
    return frame.drawn("Probabilities by class", *marks)


def confusion(one: Mapping[str, Any]) -> Markup:
    """Counts at one threshold, what is right in blue."""
    cells = (
        ("true_positive", "called malignant", "malignant"),
        ("false_negative", "called benign", "malignant"),
        ("false_positive", "called malignant", "benign"),
        ("true_negative", "called benign", "benign"),
    )
    whole = max(1, sum(int(one[name]) for name, _, _ in cells))
    left, top, wide, high = 96.0, 34.0, (WIDTH - 112.0) / 2, 110.0
    marks = []
    for number, (name, said, is_) in enumerate(cells):
        row, column = divmod(number, 2)
        x, y, right = left + column * (wide + 6), top + row * (high + 6), row == column
        colour = BLUE if right else VERMILLION
        box = {"x": x, "y": y, "width": wide, "height": high, "rx": 6.0}
        marks.append(el("rect", **box, fill=colour, opacity=0.1 + 0.5 * int(one[name]) / whole))
        marks.append(
            el(
                "text",
                str(one[name]),
                x=x + wide / 2,
                y=y + high / 2 + 10,
                text_anchor="middle",
                font_size=30.0,
                fill=INK,
            )
        )
        if not row:
            marks.append(label(x + wide / 2, top - 12, said, anchor="middle", colour=MUTED))
        if not column:
            marks.append(label(left - 10, y + high / 2 + 4, is_, anchor="end", colour=MUTED))
    return svg(f"Confusion at the threshold {one['name']}", top + 2 * high + 14, *marks)


_ALONE = (
    "svg{font:12.5px system-ui,'Segoe UI',Arial,sans-serif}.halo{paint-order:stroke;stroke:#fff;stroke-width:4px;"
    "stroke-linejoin:round}"
)


def every(entry: Mapping[str, Any]) -> dict[str, str]:
    """Each plot as a file of its own; none where there is one class."""
    if not entry["curves"]:
        return {}
    drawn = {
        "roc": roc(entry),
        "precision_recall": precision_recall(entry),
        "calibration": calibration(entry),
        "decision": decision(entry),
        "histogram": histogram(entry),
        "confusion": confusion(entry["thresholds"][0]),
    }
    head = '<svg xmlns="http://www.w3.org/2000/svg"'
    return {
        name: f"{one.replace('<svg', head, 1).replace('</title>', f'</title><style>{_ALONE}</style>', 1)}\n"
        for name, one in drawn.items()
    }
