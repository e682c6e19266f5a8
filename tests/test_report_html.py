"""The HTML report: made of its JSON alone, whole, escaped, and laid out without overflow in a real browser."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from dataclasses import asdict, replace
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mpmmu_rt.bench import bench
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.charts import axis, milliseconds
from mpmmu_rt.cli import app
from mpmmu_rt.compare import Turns
from mpmmu_rt.errors import UsageError
from mpmmu_rt.evaluation.choosing import Wanted
from mpmmu_rt.evaluation.study import evaluate
from mpmmu_rt.evaluation.systems import bundle_system
from mpmmu_rt.gate import Rule, judge, undecided
from mpmmu_rt.latency import Effort
from mpmmu_rt.machine import describe
from mpmmu_rt.markup import DASH, Markup, el, number, tick
from mpmmu_rt.model.phantom import write_phantoms
from mpmmu_rt.report_html import page
from mpmmu_rt.spec import Target

FP32 = Target("onnxruntime", "fp32")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def measured(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    effort = Effort(warmup_ms=1, measure_ms=200, max_warmup_ms=1)
    entry = bench(bundle_folder, FP32, 4, effort=effort, idle_s=(0, 0.01), batches=(1, 2, 4, 8)).entry
    entry["counts"] = {"operators": {"Conv": 40, "Gemm": 1}, "engine_bytes": 123456, "kernel_launches": None}
    found: dict[str, Any] = json.loads(json.dumps(entry))
    return found | {"evaluations": evaluation(bundle_folder, tmp_path_factory.mktemp("evaluated") / "phantoms")}


def comparison(rounds: int, slower: float) -> dict[str, Any]:
    """What `compare` writes, of simulated turns: B takes so much longer, and one call of fifty is an outlier."""
    rng = np.random.default_rng(rounds)

    def turn(factor: float) -> list[float]:
        calls = 10 * factor * rng.lognormal(0, 0.03, 60)
        calls[rng.random(60) < 0.02] *= 6
        return [float(call) for call in calls]

    a, b = ([turn(factor) for _ in range(rounds)] for factor in (1, 1 + slower))
    turns = Turns(a, b, [turn(1) for _ in range(min(4, rounds))])
    rule = Rule()
    verdict = judge(turns.logs(), rule) or undecided(turns.logs(), rule, f"{rounds} rounds were not enough")
    estimates = {
        name: {key: value if np.isfinite(value) else None for key, value in asdict(one).items()}
        for name, one in verdict.estimates.items()
    }
    entry = {
        **{"schema": "mpmmu-compare/1", "answer": verdict.answer, "reason": verdict.reason, "rounds": rounds},
        **{"estimates": estimates, "noise_floor": turns.noise_floor(), "rule": asdict(rule), "batch": 32},
        "a": {"bundle": "/models/first.bundle", "digest": "a" * 64, "target": "onnxruntime:fp32"},
        "b": {"bundle": "/models/second.bundle", "digest": "b" * 64, "target": "openvino:fp32"},
        **{"samples_ms": asdict(turns), "seconds": 41.5, "machine": describe()},
    }
    found: dict[str, Any] = json.loads(json.dumps(entry, allow_nan=False))
    return found


def documents(measured: dict[str, Any]) -> dict[str, dict[str, Any]]:
    bare = measured | {"sweep": None, "idle": None, "samples_ms": [3.0], "counts": None}
    bare["latency_ms"] = {"p50": None, "p90": None, "p99": None, "p999": None, "mean": 3.0, "n": 1, "intervals_95": {}}
    return {
        "bench": measured,
        "bench-bare": bare,
        "not-slower": comparison(20, 0.0),
        "slower": comparison(40, 0.2)
        | {"counts": {"a": {"bytes": 1, "ops": 2, "old": 3}, "b": {"bytes": 9, "ops": 2}}},
        "cannot-tell": comparison(2, 0.05),
        "no-round": comparison(0, 0.0),
        **measured["evaluations"],
    }


def evaluation(bundle: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """What `evaluate` writes: with all that may be asked of it, and of few cases of one class, of which one is lost."""
    manifest = read_manifest(write_phantoms(60, folder, seed=3))
    cells = tuple("a much longer name of a device" if row % 3 else "B" for row in range(60))
    devices = replace(manifest, others={"device": cells})
    benign = [case for case in manifest.cases if not case.label][:9]
    few = replace(manifest, cases=(*benign, replace(benign[0], case_id="lost", ultrasound=folder / "none.png")))
    wanted = Wanted(sensitivity=0.9, prevalence=0.01, by=("device",))
    card = {"metrics": {"validation": {"label": [0, 1, 1, 0], "probability": [0.2, 0.7, 0.4, 0.5]}}}
    with bundle_system(bundle, "onnxruntime:fp32") as one, bundle_system(bundle, "openvino:fp32") as two:
        whole = evaluate(replace(one, card=card), devices, wanted, against=replace(two, trained=False)).entry
        bare = evaluate(replace(one, trained=False), few, Wanted()).entry
    both = {"evaluate": whole, "evaluate-few": bare}
    found: dict[str, dict[str, Any]] = json.loads(json.dumps(both, allow_nan=False))
    return found


class Tree(HTMLParser):
    """Every element is closed where it has to be, and what it holds is noted."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.slow
def test_every_document_is_whole(measured: dict[str, Any]) -> None:
    for name, entry in documents(measured).items():
        text = page(entry)
        tree = Tree(text)
        said = " ".join(" ".join(tree.text).split())
        assert "nan" not in text.lower().replace("ensemble", "").replace("malignant", ""), name
        assert not tree.tags & {"script", "link", "img", "iframe", "object"}, name
        assert not tree.attributes & {"src", "href", "onload", "onclick"}, name
        assert not re.search(r"https?:|url\(|@import", text), name
        assert len(text) < 400_000, name
        timed = name != "no-round" and not name.startswith("evaluate")
        for wanted in ("Machine", "What was measured", *(("Every call", "Distribution") if timed else ())):
            assert wanted in said, (name, wanted)
    said = " ".join(Tree(page(measured)).text)
    for wanted in ("Where a call goes", "Cold start", "Throughput by batch", "After a silence", "Parity at export"):
        assert wanted in said
    assert "operators Conv" in said
    assert "not known" in said  # kernel launches
    said = " ".join(" ".join(Tree(page(documents(measured)["slower"])).text).split())
    assert (
        "Counts that differ what A B bytes 1 9 old 3 \N{EN DASH} What noise can't touch. 1 others are the same." in said
    )


def test_counts_that_grew_refuse_what_is_not_slower() -> None:
    counts = {"a": {"bytes": 1, "ops.Conv": 2}, "b": {"bytes": 9, "ops.Conv": 1}}
    moved = [{"name": "bytes", "a": 1, "b": 9, "worse": True}, {"name": "ops.Conv", "a": 2, "b": 1, "worse": False}]
    text = page(comparison(20, 0.0) | {"counts": counts, "moved": moved})
    assert '<p class="badge bad">! refused: 1 count</p>' in text
    assert "<h1>B is refused</h1>" in text
    assert "as for time, not slower: " in text
    assert text.count("not allowed") == 1
    assert '<p class="badge">✓ not slower</p>' in page(comparison(20, 0.0) | {"counts": counts, "moved": moved[1:]})


def test_answers_of_a_comparison() -> None:
    assert "B is slower" in page(comparison(40, 0.2))
    assert "B is not slower" in page(comparison(20, 0.0))
    assert "This machine cannot tell" in page(comparison(2, 0.05))
    assert "too few rounds for an interval" in page(comparison(2, 0.05))


def poisoned(value: Any) -> Any:
    """Every text of a document, and every key of a mapping of the user's making, as an attacker would have it."""
    if isinstance(value, dict):
        return {key: inner if key in ("schema", "state", "answer") else poisoned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [poisoned(one) for one in value]
    if isinstance(value, str):
        return f"</style></title><script>alert('{value}')</script>\"'><img src=x onerror=alert(1)>"
    return value


@pytest.mark.slow
def test_whatever_comes_from_outside_is_text(measured: dict[str, Any]) -> None:
    for name, entry in documents(measured).items():
        plain, bad = Tree(page(entry)), Tree(page(poisoned(entry)))
        assert bad.tags <= plain.tags | {"b"}, name
        assert bad.attributes <= plain.attributes, name
        assert "alert(" in "".join(bad.text)


@pytest.mark.slow
def test_a_result_that_was_changed_is_drawn_or_refused(measured: dict[str, Any], tmp_path: Path) -> None:
    """One value, chosen at random, is another: the page is drawn, or the error has its two lines."""
    rng = random.Random(11)
    deep: dict[str, Any] = {}
    for _ in range(900):  # as JSON is read still
        deep = {"deep": deep}
    strange: list[Any] = [None, "text", -1, 0, 1e308, float("nan"), float("inf"), [], {}, True, [0, -1], 10**400, deep]
    stored = [entry for entry in documents(measured).values()]
    refused = 0
    for _ in range(100):
        entry = json.loads(json.dumps(rng.choice(stored)))
        place, key = rng.choice(places(entry))
        place[key] = rng.choice(strange)
        (tmp_path / "r.json").write_text(json.dumps(entry))
        result = CliRunner().invoke(app, ["report", str(tmp_path / "r.json"), "-o", str(tmp_path / "r.html")])
        lines = [line.partition(":")[0] for line in result.stderr.splitlines()]
        assert (result.exit_code, lines) in ((0, [f"wrote {tmp_path / 'r.html'}"]), (2, ["error", "hint"])), (
            result.stderr
        )
        refused += result.exit_code == 2
        if result.exit_code == 0:
            Tree((tmp_path / "r.html").read_text())
    assert 10 < refused < 90


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every value of a document, and a share of those of long lists."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))[:3] if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *places(value[key])]]


@pytest.mark.parametrize("entry", [{}, {"schema": "mpmmu-bench/1"}, {"schema": ["mpmmu-bench/2"]}, {"schema": None}])
def test_what_is_no_result_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected one of mpmmu-bench/2, mpmmu-compare/1, mpmmu-evaluate/1"):
        page(entry)


def test_markup_escapes_all_but_markup() -> None:
    assert el("p", "<&>", Markup("<b>x</b>"), 3, 1.5, title='"<', class_="a", none=None) == (
        '<p title="&quot;&lt;" class="a">&lt;&amp;&gt;<b>x</b>31.5</p>'
    )
    assert [number(value) for value in (0, 0.01234, 1.5, 1234.5, None, float("inf"))] == [
        *("0", "0.0123", "1.50", "1,234", DASH, DASH)
    ]
    assert [tick(value) for value in (0.1 + 0.2, 1e-15, 20000.0, -0.5)] == ["0.3", "0", "20,000", "-0.5"]


def test_an_axis_is_called_logarithmic_where_it_is() -> None:
    """One tick is too few to read a logarithm by: then it is none."""
    for slowest, log in ((9.0, False), (90.0, True)):
        found = milliseconds([2.13] * 10 + [slowest])
        assert (found.log, found.label) == (log, "ms per call, logarithmic" if log else "ms per call")


@pytest.mark.slow
def test_stages_that_run_at_the_same_time_are_called_so(measured: dict[str, Any]) -> None:
    """As in the text of `bench`: there is nothing between them."""
    ledger = measured["ledger"] | {"remainder_ms": -1.5}
    said = " ".join(Tree(page(measured | {"ledger": ledger})).text)
    assert "at the same time" in said
    assert "between stages" not in said


def test_axes_hold_their_values_and_few_ticks() -> None:
    rng = random.Random(7)
    for _ in range(500):
        low = rng.uniform(0.001, 1) * 10 ** rng.randint(-3, 5)
        values = [low, low * rng.choice([1.0, 1.001, 1.5, 30, 4000])]
        for log in (False, True):
            found = axis("ms", values, log=log)
            assert 0 <= found.at(values[0]) <= found.at(values[1]) <= 1
            assert 2 <= len(found.ticks) <= 8, (values, log)
            assert all(-1e-9 <= found.at(one) <= 1 + 1e-9 for one in found.ticks)
            assert len({found.form(one) for one in found.ticks}) == len(found.ticks)


# ---------------------------------------------------------------- in a browser

MEASURE = """
const seen = {};
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument, width = frame.clientWidth, out = [];
  for (const one of page.body.querySelectorAll("*")) {
    const box = one.getBoundingClientRect(), svg = one.ownerSVGElement;
    const within = svg ? svg.getBoundingClientRect() : {left: 0, right: width, top: -1, bottom: 1e9};
    const drawn = !svg || one.tagName !== "title";
    if (drawn && (box.right > within.right + 1.5 || box.left < within.left - 1.5 ||
        box.bottom > within.bottom + 1.5 || box.top < within.top - 1.5))
      out.push(one.tagName + " " + (one.textContent || "").slice(0, 40));
    if (one.scrollWidth > one.clientWidth + 1 && one.clientWidth > 0 && !svg) out.push("scrolls: " + one.tagName);
  }
  const small = [...page.querySelectorAll("svg text")].filter(t => t.getBoundingClientRect().height < 9).length;
  seen[frame.id] = {wide: page.documentElement.scrollWidth - width, out, small, height: page.body.scrollHeight,
                    svgs: page.querySelectorAll("svg").length};
}
document.getElementById("seen").textContent = JSON.stringify(seen);
"""


def browse(browser: str, folder: Path, *arguments: str) -> str:
    """What a headless browser says, with a profile of its own."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
    own = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run([browser, *flags, own, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_nothing_overflows_in_a_browser(measured: dict[str, Any], tmp_path: Path) -> None:
    """In frames of the widths of a screen and of a telephone; a screenshot of each is kept beside the page."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    frames = []
    pages = {name: page(entry) for name, entry in documents(measured).items()}
    for name, text in pages.items():
        for width in WIDTHS:
            inner = text.replace("&", "&amp;").replace('"', "&quot;")
            frames.append(
                f'<iframe id="{name}-{width}" style="width:{width}px;height:900px;border:0" srcdoc="{inner}"></iframe>'
            )
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f"<!DOCTYPE html><meta charset=utf-8>{''.join(frames)}<pre id=seen></pre>"
        f"<script>onload = () => {{{MEASURE}}}</script>",
        encoding="utf-8",
    )
    out = browse(browser, tmp_path, "--virtual-time-budget=5000", "--dump-dom", wrapper.as_uri())
    printed = re.search(r'<pre id="seen">(.*?)</pre>', out, re.DOTALL)
    assert printed, out[-500:]
    seen = json.loads(printed[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert set(seen) == {f"{name}-{width}" for name in pages for width in WIDTHS}
    for name, one in seen.items():
        assert one["out"] == [], name
        assert one["wide"] <= 0, name
        assert one["small"] == 0, f"{name}: {one['small']} texts are too small to read"
        assert one["svgs"] >= (0 if name.startswith(("no-round", "evaluate-few")) else 2), name
    for name, width in product(("bench", "evaluate"), WIDTHS):
        height = seen[f"{name}-{width}"]["height"] + 40
        frame = next(one for one in frames if f'id="{name}-{width}"' in one)
        frame = frame.replace("height:900px", f"height:{height}px")
        alone, shot = tmp_path / "alone.html", tmp_path / f"{name}-{width}.png"
        alone.write_text(f"<!DOCTYPE html><meta charset=utf-8><body style='margin:0'>{frame}", encoding="utf-8")
        browse(browser, tmp_path, f"--window-size={width},{height}", f"--screenshot={shot}", alone.as_uri())
        with Image.open(shot) as picture:
            assert picture.height >= height - 1
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50  # something was drawn
