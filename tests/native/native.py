"""The C library by ctypes, and what it takes to build it."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pytest

import mpmmu_rt
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.spec import MODALITIES, Array, Modality, StrPath

SOURCES = Path(mpmmu_rt.__file__).parent / "native"
STATUSES = (
    *("OK", "USAGE_ERROR", "BUNDLE_ERROR", "DIGEST_MISMATCH", "PIXELS_ERROR", "MISSING_LIBRARY", "ENGINE_ERROR"),
    *("ANSWER_ERROR", "PARITY_ERROR", "OUT_OF_MEMORY", "INTERNAL_ERROR"),
)


class Options(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("target", ctypes.c_char_p),
        ("onnxruntime", ctypes.c_char_p),
        ("openvino", ctypes.c_char_p),
        ("threads", ctypes.c_uint32),
    )


class How(ctypes.Structure):
    _fields_ = (("side", ctypes.c_uint32), ("pad", ctypes.c_uint32), ("physical", ctypes.c_uint32))


class Info(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("name", ctypes.c_char_p),
        ("digest", ctypes.c_char_p),
        ("target", ctypes.c_char_p),
        ("head_target", ctypes.c_char_p),
        ("engine", ctypes.c_char_p),
        ("trained", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("threshold", ctypes.c_double),
        ("preprocessing", How),
        ("embedding_width", ctypes.c_size_t),
        ("learners", ctypes.c_size_t),
        ("warning", ctypes.c_char_p),
    )


class Outputs(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("probability", ctypes.c_void_p),
        ("malignant", ctypes.c_void_p),
        ("base_probability", ctypes.c_void_p),
        ("embedding", ctypes.c_void_p),
    )


class SelfTest(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("cases", ctypes.c_size_t),
        ("embedding", ctypes.c_double),
        ("embedding_limit", ctypes.c_double),
        ("probability", ctypes.c_double),
        ("probability_limit", ctypes.c_double),
        ("flipped", ctypes.c_size_t),
        ("batch", ctypes.c_double),
        ("batch_limit", ctypes.c_double),
        ("proven_embedding", ctypes.c_double),
        ("proven_probability", ctypes.c_double),
    )


class NativeError(Exception):
    def __init__(self, status: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.status, self.hint = status, hint


@dataclass(frozen=True)
class Said:
    """As `mpmmu_rt.Prediction`; base_probability is None where the head has none."""

    probability: Array
    malignant: Array
    base_probability: Array | None
    embedding: Array


class Library:
    """`libmpmmu.so`, and where its engines are."""

    def __init__(self, path: Path, engines: Mapping[str, Path]) -> None:
        self.path, self.engines = path, dict(engines)
        self.c = ctypes.CDLL(str(path))
        for name in ("mpmmu_last_error", "mpmmu_last_hint"):
            getattr(self.c, name).restype = ctypes.c_char_p

    def do(self, name: str, *arguments: object) -> None:
        if status := getattr(self.c, name)(*arguments):
            said, hint = self.c.mpmmu_last_error().decode(errors="replace"), self.c.mpmmu_last_hint().decode()
            raise NativeError(STATUSES[status], said, hint)

    def check(self, folder: StrPath) -> None:
        self.do("mpmmu_check", os.fsencode(folder))

    def preprocess(self, grey: Array, how: Preprocessing, pixel_aspect: float) -> Array:
        given = How(how.size, how.fit == "pad", how.aspect == "physical")
        pixels = np.full((1, how.size, how.size), 77, np.uint8)
        grey = np.ascontiguousarray(grey)
        shape = (ctypes.c_size_t(length) for length in grey.shape)
        aspect = ctypes.c_double(pixel_aspect)
        self.do("mpmmu_preprocess", ctypes.byref(given), address(grey), *shape, aspect, address(pixels))
        return pixels

    def open(self, folder: StrPath, target: str | None = None, threads: int = 0) -> Model:
        return Model(self, folder, target, threads)


class Model:
    def __init__(self, library: Library, folder: StrPath, target: str | None, threads: int) -> None:
        self.library, self.handle = library, ctypes.c_void_p()
        paths = [os.fsencode(library.engines[name]) if name in library.engines else None for name in ENGINES]
        options = Options(ctypes.sizeof(Options), target.encode() if target else None, *paths, threads)
        library.do("mpmmu_open", os.fsencode(folder), ctypes.byref(options), ctypes.byref(self.handle))

    @property
    def info(self) -> Info:
        info = Info(ctypes.sizeof(Info))
        self.library.do("mpmmu_get_info", self.handle, ctypes.byref(info))
        return info

    def predict(self, pixels: Mapping[Modality, Array]) -> Said:
        info, cases = self.info, len(pixels["mammography"])
        said = Said(
            np.full(cases, 7, np.float32),
            np.full(cases, 7, np.uint8),
            np.full((cases, info.learners), 7, np.float32) if info.learners else None,
            np.full((cases, info.embedding_width), 7, np.float32),
        )
        self.predict_into(pixels, said)
        return said

    def predict_into(self, pixels: Mapping[Modality, Array], said: Said) -> None:
        base = None if said.base_probability is None else said.base_probability.ctypes.data
        places = (said.probability.ctypes.data, said.malignant.ctypes.data, base, said.embedding.ctypes.data)
        outputs = Outputs(ctypes.sizeof(Outputs), *places)
        given = [np.ascontiguousarray(pixels[modality]) for modality in MODALITIES]
        cases = ctypes.c_size_t(len(given[0]))
        self.library.do("mpmmu_predict", self.handle, *map(address, given), cases, ctypes.byref(outputs))

    def self_test(self, result: SelfTest | None = None) -> SelfTest:
        result = result or SelfTest(ctypes.sizeof(SelfTest))
        self.library.do("mpmmu_self_test", self.handle, ctypes.byref(result))
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.library.c.mpmmu_close(self.handle)


def address(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


ENGINES = {"onnxruntime": "capi/libonnxruntime.so*", "openvino": "libs/libopenvino_c.so*"}


def engines() -> dict[str, Path]:
    """The C libraries in the wheels that are installed."""
    found = {}
    for name, pattern in ENGINES.items():
        spec = importlib.util.find_spec(name)
        if spec and spec.origin and (paths := sorted(Path(spec.origin).parent.glob(pattern))):
            found[name] = paths[0]
    return found


def tool(name: str) -> str:
    """The path of a program, also beside this Python; skips the test where it is missing."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is missing")
    return found


def json_folder() -> Path:
    """The folder that holds nlohmann/json.hpp; skips the test where there is none."""
    spec = importlib.util.find_spec("nlohmann_json")
    places = [Path(spec.origin).parent / "include"] if spec and spec.origin else []
    for folder in (*places, Path("/usr/include")):
        if (folder / "nlohmann/json.hpp").is_file():
            return folder
    pytest.skip("nlohmann/json.hpp is missing: pip install nlohmann-json, or apt install nlohmann-json3-dev")


def require_headers(compiler: str, *headers: str) -> None:
    for header in headers:
        command, line = [compiler, "-E", "-x", "c", "-"], f"#include <{header}>"
        if subprocess.run(command, input=line, text=True, capture_output=True, check=False).returncode:
            pytest.skip(f"{header} is missing: apt install libssl-dev zlib1g-dev")


HOST = Path(__file__).with_name("host")


def build(
    folder: Path, sources: Path = SOURCES, *, flags: str = "", kind: str = "Release", settings: Mapping[str, str] = {}
) -> Path:
    """Builds the library into `folder` with CMake; skips the test where something is missing.

    flags: of compiler and linker. settings: for CMake, in place of a compiler and libraries of this machine.
    """
    if "OPENSSL_INCLUDE_DIR" not in settings:
        require_headers(tool("gcc"), "openssl/evp.h", "zlib.h")
    whole = {
        "CMAKE_BUILD_TYPE": kind,
        "CMAKE_C_COMPILER": tool("gcc"),
        "CMAKE_C_FLAGS": flags,
        "CMAKE_CXX_COMPILER": tool("g++"),
        "CMAKE_CXX_FLAGS": flags,
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
        "MPMMU_JSON_INCLUDE": str(json_folder()),
        **settings,
    }
    given = [f"-D{name}={value}" for name, value in whole.items()]
    checked([tool("cmake"), "-S", str(sources), "-B", str(folder), "-G", "Ninja", *given])
    checked([tool("cmake"), "--build", str(folder)])
    return folder


def build_use(library: Path, program: Path, *flags: str, compiler: str = "g++") -> Path:
    """host/use.cpp, linked with the library in the folder `library`."""
    source, include = str(HOST / "use.cpp"), str(SOURCES / "include")
    command = [tool(compiler), "-std=c++17", "-O1", "-g", "-pthread", *flags, "-I", include, source]
    checked([*command, "-L", str(library), "-lmpmmu", f"-Wl,-rpath,{library}", "-o", str(program)])
    return program


def checked(command: Iterable[str], **more: str) -> str:
    """What a command prints; an assertion where it fails."""
    ran = subprocess.run([*command], capture_output=True, text=True, env=os.environ | more, timeout=7200, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    return ran.stdout
