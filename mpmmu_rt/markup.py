"""HTML and SVG as text: whatever is no `Markup` is escaped, so that no value of a report can become an element."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


DASH = "\N{EN DASH}"
_VOID = ("meta", "br", "wbr")


def el(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. `class_` is `class`, `stroke_width` is `stroke-width`; an attribute that is None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{joined(children)}</{name}>")


def joined(children: Iterable[object]) -> Markup:
    return Markup("".join(one if isinstance(one, Markup) else html.escape(_text(one)) for one in children))


def _text(value: object) -> str:
    """Coordinates to a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def number(value: float | None, digits: int = 3) -> str:
    """To so many significant digits, without an exponent; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def tick(value: float) -> str:
    """Of an axis: all its digits and no more."""
    return "0" if abs(value) < 1e-12 else f"{float(f'{value:.6g}'):,.10g}"


def table(header: Iterable[object], rows: Iterable[Iterable[object]], *, text_columns: int = 1) -> Markup:
    """The first `text_columns` columns to the left, the rest, which are numbers, to the right."""

    def cells(kind: str, row: Iterable[object]) -> Markup:
        return el(
            "tr",
            *(el(kind, cell, class_=None if at < text_columns else "number") for at, cell in enumerate(row)),
        )

    body = el("tbody", *(cells("td", row) for row in rows))
    return el("div", el("table", el("thead", cells("th", header)), body), class_="table")
