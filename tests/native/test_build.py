"""What `mpmmu-rt native` writes builds, installs, and is used from C, C++ and Rust."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mpmmu_rt import load
from mpmmu_rt.bundle import UNTRAINED, seal
from mpmmu_rt.images import preprocess
from mpmmu_rt.spec import MODALITIES, Array, Modality

from .native import SOURCES, Library, checked, engines, json_folder, tool

STORED = Path(__file__).parents[1] / "data" / "bundle_613dfc9"
NEEDED = {
    "libcrypto",
    "libz",
    "libstdc++",
    "libm",
    "libgcc_s",
    "libc",
    "ld-linux-x86-64",
    "ld-linux-aarch64",
    "libpthread",
    "libdl",
}
CONSUMER = """
cmake_minimum_required(VERSION 3.18)
project(consumer LANGUAGES CXX)
find_package(mpmmu 0.1 REQUIRED)
add_executable(consumer main.cpp)
target_link_libraries(consumer PRIVATE mpmmu::mpmmu)
"""
MAIN = """
#include <mpmmu.h>
#include <cstdio>
int main(int, char **arguments) {
  mpmmu_model *model = nullptr;
  if (mpmmu_open(arguments[1], nullptr, &model) != MPMMU_OK) return std::puts(mpmmu_last_error()), 1;
  mpmmu_info info{};
  info.size = sizeof info;
  if (mpmmu_get_info(model, &info) != MPMMU_OK) return 1;
  std::printf("%u %s\\n", mpmmu_abi_version(), info.digest);
  mpmmu_close(model);
}
"""


@pytest.fixture(scope="module")
def installed(build_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("prefix")
    checked([tool("cmake"), "--install", str(build_folder), "--prefix", str(prefix)])
    return prefix


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A mammogram and an ultrasound image as raw grey, of other shapes than the model's."""
    folder, drawn = tmp_path_factory.mktemp("images"), np.random.default_rng(4)
    paths = [folder / "mammogram.pgm", folder / "ultrasound.pgm"]
    for path, shape in zip(paths, [(90, 61), (47, 80)], strict=True):
        Image.fromarray(drawn.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return paths


def probability(images: list[Path], target: str) -> float:
    """What the Predictor says of the same grey."""
    with load(STORED, target, threads=1) as predictor:
        pixels: dict[Modality, Array] = {}
        for modality, path in zip(MODALITIES, images, strict=True):
            grey = np.asarray(Image.open(path))
            pixels[modality] = preprocess(grey, predictor.bundle.preprocessing)[None]
        return float(predictor.predict(pixels).probability[0])


def decide(
    program: Path, *arguments: object, folder: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    found = engines()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPMMU_ONNXRUNTIME": str(found.get("onnxruntime", ""))}
    environment |= {"MPMMU_OPENVINO": str(found.get("openvino", "")), "LD_LIBRARY_PATH": str(folder or ""), **more}
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("target", ["onnxruntime:fp32", "openvino:fp32"])
def test_the_example_decides(library: Library, build_folder: Path, images: list[Path], target: str) -> None:
    if target.partition(":")[0] not in library.engines:
        pytest.skip("openvino is not installed: pip install 'mpmmu-rt[openvino]'")
    ran = decide(build_folder / "decide", STORED, *images, MPMMU_TARGET=target)
    assert (ran.returncode, ran.stderr) == (0, "")
    said, decision = ran.stdout.split()
    assert np.float32(said) == np.float32(probability(images, target))
    assert decision == ("malignant" if float(said) >= 0.4 else "benign")


def test_the_example_refuses_a_tampered_bundle(
    library: Library, build_folder: Path, images: list[Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(STORED, tmp_path / "copy.bundle"))
    weights = folder / "onnx/weights.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    ran = decide(build_folder / "decide", folder, *images)
    assert (ran.returncode, ran.stdout) == (3, "")
    first, second = ran.stderr.splitlines()
    assert re.match(r"error: .*weights.bin has \d+ bytes and another SHA-256 than bundle.json says", first)
    assert second == "hint: the bundle was altered or damaged: do not use it; copy or export it again"


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"P5 4 4 255", b"P5 4 4 255\n123", b"P6 1 1 255\n123", b"P5 0 4 255\n", b"P5 99999999999 9 255\n1"),
        *(b"P5 4 4 65535\n" + bytes(32), b"P5 4 4 4095\n" + bytes(32), b"P5 4 4 2550\n" + bytes(16)),
        *(b"P5 4 4 255x" + bytes(16), b"P5 4 4 25\n" + bytes(16)),
    ],
)
def test_the_example_refuses_what_is_no_image(
    library: Library, build_folder: Path, images: list[Path], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.pgm").write_bytes(content)
    ran = decide(build_folder / "decide", STORED, images[0], tmp_path / "a.pgm")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("error: ")
    assert "\nhint: " in ran.stderr


def test_the_example_decides_nothing_of_an_image_without_content(
    library: Library, build_folder: Path, images: list[Path], tmp_path: Path
) -> None:
    """Beside its padding it is no single grey value any more."""
    Image.fromarray(np.full((90, 61), 128, np.uint8)).save(tmp_path / "blank.pgm")
    ran = decide(build_folder / "decide", STORED, tmp_path / "blank.pgm", images[1])
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("error: `grey` is blank: grey value 128 everywhere, expected an image with content\n")


def test_the_example_says_how_it_is_used(build_folder: Path) -> None:
    ran = decide(build_folder / "decide")
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", "usage: decide BUNDLE MAMMOGRAM.pgm ULTRASOUND.pgm\n")


def test_the_example_is_short() -> None:
    lines = (SOURCES / "examples/decide.c").read_text(encoding="utf-8").splitlines()
    body = lines[next(at for at, line in enumerate(lines) if line.startswith("int main")) :]
    assert len(body) <= 40


@pytest.mark.slow
def test_a_cmake_package_is_found_from_cpp(library: Library, installed: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(CONSUMER)
    (tmp_path / "main.cpp").write_text(MAIN)
    settings = [f"-DCMAKE_PREFIX_PATH={installed}", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
    checked([tool("cmake"), "-S", str(tmp_path), "-B", str(tmp_path / "b"), "-G", "Ninja", *settings])
    checked([tool("cmake"), "--build", str(tmp_path / "b")])
    ran = decide(tmp_path / "b/consumer", STORED)
    assert ran.stdout == f"1 {load(STORED).bundle.digest}\n"


@pytest.mark.slow
def test_pkg_config_says_how_to_link(library: Library, installed: Path, images: list[Path], tmp_path: Path) -> None:
    (package,) = installed.rglob("mpmmu.pc")
    says = checked([tool("pkg-config"), "--cflags", "--libs", "mpmmu"], PKG_CONFIG_PATH=str(package.parent)).split()
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    checked([tool("gcc"), *strict, str(SOURCES / "examples/decide.c"), "-o", str(tmp_path / "decide"), *says])
    ran = decide(tmp_path / "decide", STORED, *images, folder=package.parents[1])
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_the_example_in_rust_says_the_same(
    library: Library, build_folder: Path, images: list[Path], tmp_path: Path
) -> None:
    command = [tool("rustc"), "-O", "-D", "warnings", str(SOURCES / "examples/decide.rs"), "-L", str(build_folder)]
    checked([*command, "-l", "mpmmu", "-o", str(tmp_path / "decide")])
    ran = decide(tmp_path / "decide", STORED, *images, folder=build_folder)
    assert (ran.returncode, ran.stderr) == (0, "")
    said = decide(build_folder / "decide", STORED, *images).stdout.split()
    assert np.float32(ran.stdout.split()[0]) == np.float32(said[0])
    assert ran.stdout.split()[1] == said[1]
    folder = Path(shutil.copytree(STORED, tmp_path / "copy.bundle"))
    seal(folder, json.loads((folder / "bundle.json").read_text()) | {"trained": False})
    for program in (tmp_path / "decide", build_folder / "decide"):
        ran = decide(program, folder, *images, folder=build_folder)
        assert (ran.returncode, ran.stderr) == (0, f"warning: {UNTRAINED}\n")


def test_it_needs_no_engine_to_link_and_shows_nothing_else(build_folder: Path) -> None:
    library = str(build_folder / "libmpmmu.so")
    needed = re.findall(r"NEEDED.*\[(\S+?)\.so", checked([tool("readelf"), "-d", library]))
    assert set(needed) <= NEEDED
    assert {"libcrypto", "libz"} <= set(needed)
    symbols = [line.split()[-1] for line in checked([tool("nm"), "-D", "--defined-only", library]).splitlines()]
    header = (SOURCES / "include/mpmmu.h").read_text(encoding="utf-8")
    declared = set(re.findall(r"^MPMMU_API .*?(mpmmu_\w+)\(", header, re.MULTILINE))
    assert declared == set(symbols)


def test_it_is_small(build_folder: Path, tmp_path: Path) -> None:
    checked([tool("strip"), "-o", str(tmp_path / "stripped"), str(build_folder / "libmpmmu.so")])
    assert (tmp_path / "stripped").stat().st_size < 2**20


@pytest.mark.slow
def test_openvinos_header_declares_what_is_declared_here(tmp_path: Path) -> None:
    if "openvino" not in (found := engines()):
        pytest.skip("openvino is not installed: pip install 'mpmmu-rt[openvino]'")
    include = found["openvino"].parents[1] / "include"
    if not (include / "openvino/c/openvino.h").is_file():
        pytest.skip("openvino/c/openvino.h is missing from this wheel")
    pairs = {"PartialShape": "ov_partial_shape_t", "Dimension": "ov_dimension_t", "Shape": "ov_shape_t"}
    pairs |= {"Layer": "ov_profiling_info_t", "Layers": "ov_profiling_info_list_t", "Version": "ov_version_t"}
    fields = {"exec_type": "Layer", "node_type": "Layer"}
    source = '#include <openvino/c/openvino.h>\n#include <type_traits>\n#include "openvino_abi.h"\n'
    source += "template <class F> struct Count;\n"
    source += (
        "template <class R, class... A> struct Count<R (*)(A...)> { static constexpr int value = sizeof...(A); };\n"
    )
    source += "template <class R, class... A> struct Count<R (*)(A..., ...)> { static constexpr int value = -1; };\n"
    source += "#define CHECK(name, result, parameters) \\\n"
    source += "  static_assert(Count<decltype(mpmmu::ov::Api::name)>::value == Count<decltype(&ov_##name)>::value);\n"
    source += "MPMMU_OPENVINO(CHECK)\n"
    source += "".join(f"static_assert(sizeof(mpmmu::ov::{a}) == sizeof({b}));\n" for a, b in pairs.items())
    for name, owner in fields.items():
        ours, theirs = f"offsetof(mpmmu::ov::{owner}, {name})", f"offsetof({pairs[owner]}, {name})"
        source += f"static_assert({ours} == {theirs});\n"
    (tmp_path / "check.cpp").write_text(source)
    flags = ["-std=c++17", "-fsyntax-only", "-I", str(include), "-I", str(SOURCES / "src")]
    checked([tool("g++"), *flags, str(tmp_path / "check.cpp")])


@pytest.mark.slow
def test_clang_finds_nothing_to_warn_of(tmp_path: Path) -> None:
    """But in what reads JSON, which takes the longest, and which the fuzzer compiles with clang."""
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"]
    folders = ["-I", str(SOURCES / "include"), "-isystem", str(json_folder())]
    sources = [str(one) for one in (SOURCES / "src").glob("*.cpp") if one.stem not in ("bundle", "json")]
    checked([tool("clang++"), *flags, *folders, *sources])
