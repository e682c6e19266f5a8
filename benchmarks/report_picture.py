"""docs/bench_report.png: the report of a real run, as a browser shows it.

    python -m benchmarks.report_picture BUNDLE [TARGET]

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
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"error: no browser is installed, expected one of {', '.join(BROWSERS)}\nhint: install chromium")
    with tempfile.TemporaryDirectory() as temporary:
        page, shot = Path(temporary) / "report.html", Path(temporary) / "report.png"
        options = ["--target", target, "--batch", "8", "--sweep", "1,2,4,8,16,32", "--idle", "0,1,10"]
        subprocess.run(
            [sys.executable, "-m", "mpmmu_rt", "bench", str(bundle), *options, "--html", str(page)], check=True
        )
        size = f"--window-size={WIDTH},{HEIGHT}"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size, f"--screenshot={shot}"]
        subprocess.run([browser, *flags, page.as_uri()], check=True, capture_output=True)
        with Image.open(shot) as picture:
            picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    written = PICTURE.stat().st_size
    if written > MOST_BYTES:
        sys.exit(f"error: {PICTURE} has {written} bytes, expected at most {MOST_BYTES}\nhint: make HEIGHT smaller")
    print(f"wrote {PICTURE}: {written} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("target", nargs="?", default="openvino:fp32")
    given = parser.parse_args()
    main(given.bundle, given.target)
