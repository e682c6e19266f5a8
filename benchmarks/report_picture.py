"""docs/bench_report.png: the report of a real run, as a browser shows it; or another report that is there.

    python -m benchmarks.report_picture BUNDLE [TARGET]
    python -m benchmarks.report_picture --page evaluation/report.html --to docs/evaluation.png

Needs Chromium. The picture has few colours and is stored as such.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PICTURE = Path(__file__).parents[1] / "docs" / "bench_report.png"
WIDTH, HEIGHT = 1280, 1640
MOST_BYTES = 200_000


def main(bundle: Path, target: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        page = Path(temporary) / "report.html"
        options = ["--target", target, "--batch", "8", "--sweep", "1,2,4,8,16,32", "--idle", "0,1,10"]
        subprocess.run(
            [sys.executable, "-m", "mpmmu_rt", "bench", str(bundle), *options, "--html", str(page)], check=True
        )
        draw(page, PICTURE)


def draw(page: Path, picture: Path) -> None:
    """The upper part of `page` as a PNG of few colours."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"error: no browser is installed, expected one of {', '.join(BROWSERS)}\nhint: install chromium")
    with tempfile.TemporaryDirectory() as temporary:
        shot, size = Path(temporary) / "report.png", f"--window-size={WIDTH},{HEIGHT}"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size, f"--screenshot={shot}"]
        subprocess.run([browser, *flags, page.resolve().as_uri()], check=True, capture_output=True)
        with Image.open(shot) as drawn:
            drawn.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)
    written = picture.stat().st_size
    if written > MOST_BYTES:
        sys.exit(f"error: {picture} has {written} bytes, expected at most {MOST_BYTES}\nhint: make HEIGHT smaller")
    print(f"wrote {picture}: {written} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("target", nargs="?", default="openvino:fp32")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--to", type=Path, default=PICTURE)
    given = parser.parse_args()
    if (given.bundle is None) == (given.page is None):
        parser.error("got a BUNDLE and --page, or neither; expected one")
    if given.page is None:
        main(given.bundle, given.target)
    else:
        draw(given.page, given.to)
