"""How mkdocs makes a site of these pages, which are written to be read in the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Any, config: Any) -> Any:
    """README is the first page, and is written once."""
    from mkdocs.structure.files import File

    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """What lies outside of docs/ is no part of the site: a link to it becomes the name of its place."""
    outside = r"\.\./[^)\s]+" if page.file.src_uri != "index.md" else r"(?:benchmarks/|CHANGELOG)[^)\s]+"
    return re.sub(rf"!?\[([^\]]*)\]\(({outside})\)", lambda found: f"{found[1]} (`{found[2]}`)", markdown)
