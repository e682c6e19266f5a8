"""What every result says of itself: the command that makes it again, its conditions, and Markdown tables."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mpmmu_rt import machine
from mpmmu_rt.files import atomic_file

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """One whose help is a script's docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def heading(title: str, packages: tuple[str, ...] = ()) -> str:
    """Title, command and conditions. packages: distributions whose versions count here besides the runtime's."""
    facts = machine.describe()
    memory = f"{facts['memory_bytes'] / 1e9:.1f} GB; " if facts["memory_bytes"] else ""
    versions = facts["packages"] | machine.package_versions(packages)
    return (
        f"# {title}\n\nMade by `{command()}`.\n\n"
        f"{', '.join([facts['cpu'], *facts['cpu_features']])}; {facts['threads']} threads; {memory}{facts['system']}; "
        f"Python {facts['python']}; commit {commit_of_tree()}.\n"
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}.\n"
        f"{load('at the start')}\n"
    )


def load(when: str) -> str:
    return f"Load average {os.getloadavg()[0]:.2f} {when}."


def command() -> str:
    """The command of this process, to be repeated from the root of the tree.

    Of a path outside of it the name alone: a result names no folder of the machine that it is from.
    """
    main = sys.modules["__main__"].__spec__
    script = f"-m {main.name.removesuffix('.__main__')}" if main else Path(sys.argv[0]).name
    return " ".join(["python", script, *map(_shown, sys.argv[1:])])


def _shown(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    path = Path(os.path.abspath(value)) if value.startswith(("/", "..")) else None
    if path is not None:
        value = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    return f"{option}{equals}{value}"


def commit_of_tree() -> str:
    """`unknown` where there is no git, or no repository."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    describe = [git, "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(describe, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def table(header: str, rows: Iterable[Iterable[object]]) -> str:
    """Markdown. header: the columns, with `|` between them."""
    return "\n".join([columns(header), *map(row, rows)]) + "\n"


def columns(header: str) -> str:
    """The first two lines of a table whose rows are still to come."""
    return f"| {header} |\n|" + "---|" * (header.count("|") + 1)


def row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(cell, cells))} |"


def cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def folder_of(gpu: str) -> Path:
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def save(folder: Path, name: str, report: Mapping[str, Any], text: str) -> None:
    """`name`.json and `name`.md, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, content in (("json", json.dumps(report, indent=1, default=str) + "\n"), ("md", text)):
        with atomic_file(folder / f"{name}.{suffix}") as partial:
            partial.write_text(content, encoding="utf-8")
