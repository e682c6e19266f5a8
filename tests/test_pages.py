"""The pages that list what the code does: exit codes, environment variables, the messages of troubleshooting."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpmmu_rt import baseline, errors
from mpmmu_rt.cli import compare

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path for folder in ("mpmmu_rt", "export", "kernels") for path in (ROOT / folder).rglob("*.py")
)  # rglob does not follow links
NATIVE = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "mpmmu_rt/native/src").glob("*.cpp"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# Properties of OpenVINO's and words of processors, in a module that reads the environment too.
NO_VARIABLES = {
    *("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "ENABLE_CPU_PINNING", "FULL_DEVICE_NAME", "NUM_STREAMS"),
    *("OPTIMIZATION_CAPABILITIES", "AVX2_VNNI", "AVX2_VNNI_2"),
}

OF_CMAKE = {"MPMMU_JSON_INCLUDE"}  # a setting that the tests of the native library pass, and read from nowhere


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def first_cells(text: str) -> list[str]:
    return [line.split("|")[1].strip() for line in text.splitlines() if re.match(r"\| [^-|]", line)]


def templates(path: Path) -> Iterator[str]:
    """Every text of a module, `…` for what is put into it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


# ---------------------------------------------------------------- exit codes


def test_exit_codes() -> None:
    said = {int(cell) for cell in first_cells(page("exit-codes")) if cell.isdecimal()}
    raised = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    assert said == {0, 143, *raised, *compare.EXIT_CODES.values(), *baseline.EXIT_CODES.values()}


# ---------------------------------------------------------------- environment


def capitals(paths: list[Path], pattern: str) -> set[str]:
    return {
        text
        for path in paths
        if re.search(r"\benviron\b|\bgetenv\b", path.read_text(encoding="utf-8"))
        for text in templates(path)
        if re.fullmatch(pattern, text)
    }


def test_every_variable_that_is_read_is_listed() -> None:
    users, testers = (
        set(re.findall(r"`([A-Z0-9_]+)`", " ".join(first_cells(part))))
        for part in page("environment").split("For tests, to make them look", 1)
    )
    read = capitals(SOURCES, r"[A-Z][A-Z0-9]*_[A-Z0-9_]+")
    native = {name for text in NATIVE if "getenv" in text for name in re.findall(r'"(MPMMU_[A-Z0-9_]+)"', text)}
    assert users == (read | native) - NO_VARIABLES
    assert read >= NO_VARIABLES, "a word that is not there any more"
    assert testers == capitals(TESTS, r"MPMMU_[A-Z0-9_]+") - users - OF_CMAKE


# ---------------------------------------------------------------- troubleshooting

CODE = {text for path in SOURCES for text in templates(path)}
# A message may hold back-ticks itself: a cell of the first column is one message.
MESSAGES = [cell[1:-1] for cell in first_cells(page("troubleshooting")) if cell.startswith("`")]


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 20
    assert len(set(MESSAGES)) == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_are_the_codes(message: str) -> None:
    assert any(message in text for text in CODE), message


def test_a_message_that_is_not_there_is_seen() -> None:
    assert not any("… was not proved when … was exported" in text for text in CODE)


# ---------------------------------------------------------------- the site


def test_every_page_is_in_the_site() -> None:
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == {"index.md", *(path.name for path in (ROOT / "docs").glob("*.md"))}


@pytest.mark.slow
def test_the_site_is_built_and_asks_for_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    api = (tmp_path / "site/python/index.html").read_text(encoding="utf-8")
    named = [
        f"{module}.{name}"
        for module, names in re.findall(
            r"^::: (\S+)\n    options:\n      members: \[(.+)\]", page("python"), re.MULTILINE
        )
        for name in names.split(", ")
    ]
    assert len(named) > 20
    for name in (*named, "mpmmu_rt.predictor.Predictor.predict_files", "mpmmu_rt.errors.MpmmuError"):
        assert f'id="{name}"' in api, name  # a member that there is not is left out without a word
    for path in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', path.read_text(encoding="utf-8"))
        assert fetched == [], path.name
