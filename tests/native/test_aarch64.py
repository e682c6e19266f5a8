"""Cross-compiled for aarch64 and emulated: the golden vectors hold, and known answers are met. Speed can't be shown so.

`make aarch64` fetches what this needs into .aarch64; where that is missing, these tests are skipped.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import once

from .native import build, build_use, checked, engines, tool

ROOT = Path(__file__).parents[2]
STORED = ROOT / "tests/data/bundle_613dfc9"
FOLDER = Path(os.environ.get("MPMMU_AARCH64", ROOT / ".aarch64"))
PREFIX = "aarch64-linux-gnu"
RUN = {"OMP_NUM_THREADS": "1"}
# What `use answers` says of the stored bundle: FNV-1a of 200 preprocessed images, to the bit the same everywhere (3 of
# them without content, and black), and the probability of three batches of noise, within FP32's parity.
PIXELS = "b225d9515df09a25"
KNOWN = (0.431965232, 0.427659094, 0.42348814, 0.427659094, 0.431965232, 0.407636851)
pytestmark = pytest.mark.slow


def hold(said: str) -> None:
    pixels, *probabilities = said.split()
    assert pixels == PIXELS
    np.testing.assert_allclose(np.array(probabilities, np.float64), KNOWN, atol=1e-5)


def test_known_answers_on_this_processor(build_folder: Path, tmp_path: Path) -> None:
    found = engines()
    if "onnxruntime" not in found:
        pytest.skip("onnxruntime is not installed: pip install 'mpmmu-rt[cpu]'")
    program = build_use(build_folder, tmp_path / "use")
    variables = RUN | {"MPMMU_ONNXRUNTIME": str(found["onnxruntime"])}
    hold(checked([str(program), "answers", str(STORED), "onnxruntime:fp32"], **variables))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs `use`, cross-compiled, under qemu."""
    if not (FOLDER / "libonnxruntime.so").is_file():
        pytest.skip(f"{FOLDER.name}/libonnxruntime.so is missing: make aarch64")
    compilers = {"CMAKE_C_COMPILER": tool(f"{PREFIX}-gcc"), "CMAKE_CXX_COMPILER": tool(f"{PREFIX}-g++")}
    root = FOLDER.resolve() / "root"
    include, library = root / "usr/include", root / f"usr/lib/{PREFIX}"
    settings = compilers | {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "OPENSSL_INCLUDE_DIR": str(include),
        "OPENSSL_CRYPTO_LIBRARY": str(library / "libcrypto.so"),
        "ZLIB_INCLUDE_DIR": str(include),
        "ZLIB_LIBRARY": str(root / f"lib/{PREFIX}/libz.so.1"),
    }

    def make(path: Path) -> None:
        build(path, flags=f"-I{include / PREFIX}", settings=settings)
        places = [f"-Wl,-rpath-link,{folder}" for folder in (library, root / f"lib/{PREFIX}")]
        build_use(path, path / "use", *places, compiler=f"{PREFIX}-g++")

    folder = once(tmp_path_factory, "native.aarch64", make)
    paths = ":".join(map(str, (f"/usr/{PREFIX}/lib", library, root / f"lib/{PREFIX}")))
    variables = {"LD_LIBRARY_PATH": paths, "MPMMU_ONNXRUNTIME": str(FOLDER.resolve() / "libonnxruntime.so")}
    given = [part for name, value in (variables | RUN).items() for part in ("-E", f"{name}={value}")]
    return [tool("qemu-aarch64"), "-L", str(root), *given, str(folder / "use")]


def test_known_answers_on_aarch64(emulated: list[str]) -> None:
    hold(checked([*emulated, "answers", str(STORED), "onnxruntime:fp32"]))


def test_what_is_no_bundle_is_refused_on_aarch64(emulated: list[str], tmp_path: Path) -> None:
    assert checked([*emulated, "checks", str(STORED), "2"]).startswith("2 times")
    with pytest.raises(AssertionError, match="x does not exist, expected a bundle"):
        checked([*emulated, "checks", str(tmp_path / "x"), "1"])
