"""The report of `bench`, `compare` or `evaluate`: one page, built from their JSON alone.

No script, no network, nothing beside the file. Whatever the JSON holds is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import report_charts as plots
from . import report_parts as pieces
from .charts import BLUE, SIDES, calls, ecdf
from .errors import UsageError
from .evaluation import page as evaluation_page
from .markup import DASH, Markup, el, joined, number, table
from .stability import line_of

_PERCENTILES = {"p50": (0.5, "median"), "p90": (0.9, "p90"), "p99": (0.99, "p99"), "p999": (0.999, "p99.9")}
# What is observed: how it is called, and how its value is written.
_OBSERVED: dict[str, tuple[str, Callable[[float], str]]] = {
    "stolen": ("steal time", lambda v: f"{v:.2f} processors"),
    "others": ("other load", lambda v: f"{v:.2f} processors"),
    "waiting": ("CPU pressure", lambda v: f"{v:.0%} of the time"),
    "throttled": ("quota throttling", lambda v: f"{v:.1%} of the time"),
    "heat": ("thermal throttling", lambda v: f"{v} times"),
    "clock": ("clock frequency", lambda v: f"{v:+.1%} at the end"),
    "switches_per_s": ("context switches", lambda v: f"{v:,.0f} involuntary a second"),
}


def page(entry: Mapping[str, Any]) -> str:
    """An HTML document of the JSON that `bench`, `compare` or `evaluate` writes. Raises `UsageError` for any other."""
    schema = entry.get("schema")
    if not isinstance(schema, str) or schema not in _BODIES:
        raise UsageError(
            f"the result has the schema {schema!r}, expected one of {', '.join(_BODIES)}",
            hint="name what `bench --json`, `compare --json` or `evaluate` wrote; what another version wrote is "
            "measured again",
        )
    return pieces.document(*_BODIES[schema](entry))


# ---------------------------------------------------------------- bench


def _bench(entry: Mapping[str, Any]) -> tuple[str, *tuple[Markup, ...]]:
    latency, conditions, batch = entry["latency_ms"], entry["conditions"], entry["batch"]
    stable = conditions["state"] == "stable"
    samples = entry["samples_ms"]
    told = {key: one for key, one in _PERCENTILES.items() if latency[key] is not None}
    ledger, cold = entry["ledger"], entry["cold_start"]
    title = f"{entry['target']}, batch {batch}"
    levels = {name: latency[key] for key, (_, name) in told.items() if key in ("p50", "p99")}
    pairs = "pair" if batch == 1 else "pairs"
    parts = [
        pieces.header(
            "Latency",
            title,
            f"{entry['bundle']['name']}, {batch} {pairs} per call",
            pieces.badge(conditions["state"], stable),
            warnings=[entry.get("warning")],
        ),
        el(
            "section",
            *(_figure(latency, key, name) for key, (_, name) in _PERCENTILES.items()),
            pieces.key("mean", f"{number(latency['mean'])}", "ms", f"{latency['n']} calls"),
            pieces.key("throughput", number(entry["throughput_pairs_per_s"]), "pairs/s", "of the mean"),
            class_="keys",
        ),
        el("p", line_of(conditions), class_="verdict" if stable else "verdict bad"),
        pieces.grid(
            pieces.card("Every call", calls(samples, levels), "In the order they were made, after the warm-up."),
            pieces.card(
                "Distribution",
                ecdf({"all": samples}, {"all": BLUE}, {name: p for p, name in told.values()}),
                "A percentile is told where its 95 % interval lies between samples.",
            ),
        ),
        pieces.grid(
            pieces.card(
                "Where a call goes",
                plots.parts(
                    "Stages of a call",
                    ledger["stages_ms"] | {pieces.remainder(ledger["remainder_ms"]): ledger["remainder_ms"]},
                    ledger["total_ms"],
                    "ms",
                    batch,
                ),
                f"Means. {pieces.sentence(ledger['advice'])}",
            ),
            pieces.card(
                "Cold start",
                plots.parts(
                    "Parts of the cold start",
                    cold["parts_ms"] | {"not explained": cold["remainder_ms"]},
                    cold["total_ms"],
                    "ms",
                ),
                f"From starting a process to its first prediction. A second call took "
                f"{number(cold['second_call_ms'])} ms; {_peak(entry['peak_rss_bytes'])}.",
            ),
        ),
    ]
    if sweep := entry.get("sweep"):
        knee = (
            f"The knee, batch {sweep['knee']}, is the smallest that reaches {sweep['enough']:.0%} of the best (dashed)."
        )
        parts.append(
            pieces.grid(
                pieces.card("Throughput by batch", plots.throughput(sweep), knee),
                pieces.card("Latency by batch", plots.latency_by_batch(sweep), "Mean of the calls of each batch."),
            )
        )
    idle = entry.get("idle")
    silence = (
        pieces.card("After a silence", plots.silences(idle), "One pair at a time, each dot a call.") if idle else None
    )
    parts.append(pieces.grid(*(one for one in (silence, _observed(conditions)) if one)))
    if targets := entry.get("targets"):
        parts.append(pieces.grid(_targets(targets, batch)))
    parts += _tail(entry, {"target": entry["target"], "head": f"on {entry['head_target']}", "batch": str(batch)})
    return (f"{title} - mpmmu-rt bench", *parts)


def _peak(count: int | None) -> str:
    return "peak memory is not known" if count is None else f"peak memory {number(count / 1e6)} MB"


def _targets(found: Mapping[str, Any], batch: int) -> Markup:
    rows: list[list[object]] = []
    for row in found["rows"]:
        flipped = f"{row['flipped']} of {row['cases']}" if row["cases"] else DASH
        took = [number(row["median_ms"] / batch), number(row["pairs_per_s"])] if row["median_ms"] else [DASH, DASH]
        rows.append([row["target"], *took, flipped, row["problem"] or ("" if row["proven"] else "never run before")])
    note = "Medians of calls that took turns. Flipped: decisions at export, against FP32."
    return pieces.card("All targets", table(["target", "ms per pair", "pairs/s", "flipped", ""], rows), note)


def _figure(latency: Mapping[str, Any], key: str, name: str) -> Markup:
    value, ends = latency[key], latency["intervals_95"].get(key)
    if value is None:
        return pieces.key(name, DASH, "", f"{latency['n']} samples do not tell")
    return pieces.key(name, number(value), "ms", f"{number(ends[0])} to {number(ends[1])}" if ends else "")


def _observed(conditions: Mapping[str, Any]) -> Markup:
    seen = conditions["observed"]
    suspects = {one["name"] for one in conditions["suspects"]}
    rows: list[list[object]] = []
    for key, (name, written) in _OBSERVED.items():
        value = "not known" if seen[key] is None else written(seen[key])
        rows.append([name, el("b", f"{value}, a suspect", class_="suspect") if name in suspects else value])
    warmup = conditions["warmup"]
    settled = {True: "settled", False: "did not settle", None: "too few to tell"}[warmup["settled"]]
    rows.append(["warm-up", f"{warmup['calls']} calls, {settled}"])
    rows.append(["median, later half", f"{conditions['drift']:.1%} from the earlier"])
    note = f"By what the system tells of the {number(seen['seconds'])} s, of {seen['processors']} processors."
    return pieces.card("What else the machine did", table(["", ""], rows), note)


# ---------------------------------------------------------------- compare


def _compare(entry: Mapping[str, Any]) -> tuple[str, *tuple[Markup, ...]]:
    samples, answer = entry["samples_ms"], entry["answer"]
    pooled = {side.upper(): [ms for calls_ms in samples[side] for ms in calls_ms] for side in ("a", "b")}
    colours = {side.upper(): colour for side, colour in SIDES.items()}
    sides = joined(
        el(
            "p",
            el("span", class_="swatch", style=f"background:{SIDES[side]}"),
            el("b", f"{side.upper()} "),
            f"{entry[side]['bundle']} on {entry[side]['target']}",
            class_="side",
        )
        for side in ("a", "b")
    )
    floor = ", ".join(f"{name} {share:.1%}" for name, share in entry["noise_floor"].items())
    allowed = f"{entry['rule']['max_slowdown']:.1%}"
    # Counts beyond what is allowed refuse B, however long it takes.
    worse = [one["name"] for one in entry.get("moved") or () if one["worse"]]
    badge = f"refused: {len(worse)} {'count' if len(worse) == 1 else 'counts'}" if worse else answer
    title = "B is refused" if worse else "This machine cannot tell" if answer == "cannot tell" else f"B is {answer}"
    lead = f"as for time, {answer}: {entry['reason']}" if worse else entry["reason"]
    estimates = [
        pieces.key(f"{name} call", f"{one['slowdown']:+.1%}", "", f"{_ends(one)}")
        for name, one in entry["estimates"].items()
    ]
    parts = [
        pieces.header(
            "Comparison",
            title,
            f"{lead}; up to {allowed} slower is allowed",
            pieces.badge(badge, answer == "not slower" and not worse),
            warnings=pieces.warnings_of_sides(entry),
        ),
        sides,
        el(
            "section",
            *estimates,
            pieces.key("rounds", str(entry["rounds"]), "", f"in {number(entry['seconds'])} s"),
            pieces.key("batch", str(entry["batch"]), "", "pairs per call"),
            class_="keys",
        ),
    ]
    if entry.get("counts"):
        parts.append(_counts(entry["counts"], worse))
    if entry["rounds"]:
        parts += [
            pieces.grid(
                pieces.card(
                    "B against A", plots.slowdowns(entry), "A dot a round; below them the median and its interval."
                ),
                pieces.card("Distribution", ecdf(pooled, colours, {}), "All calls of all rounds."),
            ),
        ]
    note = "A and B take turns in fresh processes, in an order drawn by lot."
    every = [pieces.card("Every call", plots.both_by_round(samples), note)] if entry["rounds"] else []
    facts = {f"{side.upper()}, SHA-256": entry[side]["digest"] for side in ("a", "b")}
    facts["noise floor"] = f"A differs from itself by up to: {floor}" if floor else "not known"
    facts["error rate"] = f"{entry['rule']['alpha']:g} of a run; two say the same before B is called slower"
    parts += _tail({key: value for key, value in entry.items() if key != "counts"}, facts, *every)
    return (f"{title} - mpmmu-rt compare", *parts)


def _ends(one: Mapping[str, Any]) -> str:
    if one["low"] is None and one["high"] is None:
        return "too few rounds for an interval"
    low, high = ("?" if one[end] is None else f"{one[end]:+.1%}" for end in ("low", "high"))
    return f"{low} to {high}"


# ---------------------------------------------------------------- what both have


def _counts(counts: Mapping[str, Any], worse: Sequence[str] = ()) -> Markup:
    """Of one side, or of two, where those that differ are shown and the others counted. worse: not allowed."""
    if set(counts) != {"a", "b"}:
        return pieces.card("Counts", table(["what", ""], _flat("", counts)), "What noise can't touch.")
    a, b = (dict(_flat("", counts[side])) for side in ("a", "b"))
    names = list(dict.fromkeys((*a, *b)))
    rows: list[list[object]] = []
    for name in (name for name in names if a.get(name) != b.get(name)):
        refused = el("b", f"{name}, not allowed", class_="suspect") if name in worse else name
        rows.append([refused, a.get(name, DASH), b.get(name, DASH)])
    same = f"{len(names) - len(rows)} {'others' if rows else 'counts'} are the same."
    return pieces.card(
        "Counts that differ" if rows else "Counts",
        table(["what", "A", "B"], rows) if rows else el("p", same),
        f"What noise can't touch. {same if rows else ''}",
    )


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [row for key, inner in value.items() for row in _flat(f"{name} {key}".strip(), inner)]
    if isinstance(value, list | tuple):
        return [(name, ", ".join(str(one) for one in value) or DASH)]
    return [(name, "not known" if value is None else f"{value:,}" if isinstance(value, int) else str(value))]


def _tail(entry: Mapping[str, Any], facts: Mapping[str, str], *first: Markup) -> list[Markup]:
    """Counts, contract, machine and parity, after other cards."""
    parts = [_counts(entry["counts"])] if entry.get("counts") else []
    machine = entry["machine"]
    parity = (entry.get("bundle") or {}).get("parity")
    about = dict(facts)
    if "bundle_digest" in entry:
        about["bundle, SHA-256"] = entry["bundle_digest"]
    for remark in entry.get("remarks", ()):
        about[f"note {len(about)}"] = remark
    if "contract" in entry:
        about["contract"] = entry["contract"]
    if "measured_at" in entry:
        about["when"] = entry["measured_at"]
    rows = {
        "processor": machine["cpu"],
        "extensions": ", ".join(machine["cpu_features"]) or "none that matter",
        "threads": str(machine["threads"]),
        "memory": "not known" if machine["memory_bytes"] is None else f"{number(machine['memory_bytes'] / 2**30)} GiB",
        "system": f"{machine['system']}, Python {machine['python']}",
        "packages": ", ".join(f"{name} {version}" for name, version in machine["packages"].items()),
    }
    cards = [*first, pieces.card("What was measured", pieces.facts(about)), pieces.card("Machine", pieces.facts(rows))]
    if "bundle" in entry:
        found = (
            pieces.facts({key.replace("_", " "): _plain(value) for key, value in parity.items()}) if parity else None
        )
        none = el("p", "The bundle holds no report of this target.", class_="note")
        note = "What the export proved of this target against the original."
        cards.append(pieces.card("Parity at export", found or none, note))
    return [*parts, pieces.grid(*cards)]


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "never run when it was built"
    return number(value, 4) if isinstance(value, float) else str(value)


_BODIES: dict[str, Callable[[Mapping[str, Any]], tuple[str, *tuple[Markup, ...]]]] = {
    "mpmmu-bench/2": _bench,
    "mpmmu-compare/1": _compare,
    "mpmmu-evaluate/1": evaluation_page.body,
}
