"""What every report is put together from: a document, its header, figures, cards and facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .markup import Markup, el, joined
from .report_style import STYLE


def document(title: str, *sections: Markup) -> str:
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", title),
        el("style", Markup(STYLE)),
    )
    foot = el("footer", "For research and engineering. Not a medical device, not for diagnosis.")
    return f"<!DOCTYPE html>\n{el('html', head, el('body', el('main', *sections, foot)), lang='en')}\n"


def header(kind: str, title: str, lead: str, badge: Markup, *, warnings: Sequence[str | None] = ()) -> Markup:
    """warnings: `Bundle.warning` of each bundle."""
    top = el("p", f"mpmmu-rt · {kind}", class_="kicker")
    banners = [el("p", sentence(one), class_="banner") for one in warnings if one]
    return el("header", top, el("h1", title), badge, el("p", lead, class_="lead"), *banners)


def warnings_of_sides(entry: Mapping[str, Any]) -> list[str]:
    """What a comparison says against the bundles of its sides, once where both have it."""
    found: dict[str, list[str]] = {}
    for side in ("a", "b"):
        if said := entry[side].get("warning"):
            found.setdefault(said, []).append(side.upper())
    return [f"{' and '.join(sides)}: {said}" for said, sides in found.items()]


def badge(text: str, good: bool) -> Markup:
    return el("p", f"{'✓' if good else '!'} {text}", class_="badge" if good else "badge bad")


def key(name: str, value: str, unit: str, below: str) -> Markup:
    shown = el("dd", value, *([" ", el("span", unit, class_="unit")] if unit else []))
    return el("dl", el("dt", name), shown, el("dd", below, class_="below"), class_="key")


def card(title: str, body: Markup, note: str = "") -> Markup:
    return el("section", el("h2", title), body, *([el("p", note, class_="note")] if note else []), class_="card")


def grid(*cards: Markup) -> Markup:
    return el("div", *cards, class_="grid" if len(cards) > 1 else "grid one")


def remainder(ms: float) -> str:
    """What the part of a call is named that no stage explains; it is negative where stages run at the same time."""
    return "between stages" if ms >= 0 else "at the same time"


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def facts(facts: Mapping[str, str]) -> Markup:
    return el("dl", *(joined((el("dt", name), el("dd", value))) for name, value in facts.items()), class_="facts")
