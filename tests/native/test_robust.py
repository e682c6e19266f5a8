"""Under sanitizers, and for long: the small sizes of `python -m benchmarks.native.robust`."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import once

from .native import HOST, SOURCES, build, build_use, checked, engines, json_folder, tool

STORED = Path(__file__).parents[1] / "data" / "bundle_613dfc9"
CORPUS = Path(__file__).with_name("corpus.zip")
SANITIZERS = {"thread": "-fsanitize=thread", "address": "-fsanitize=address,undefined -fno-sanitize-recover=all"}
THREADED = ("api", "library", "model", "onnxruntime", "openvino")
# OpenVINO's threads are bound by a library that sanitizers don't take. It keeps 1,536 bytes to the end, however often a
# model is opened: no leak of ours, and told apart from one by their number alone.
RUN = {"OMP_NUM_THREADS": "1", "TBB_ENABLE_SANITIZERS": "1", "ASAN_OPTIONS": "detect_leaks=0"}
# Of a model that has two threads: those are the engines' own.
NOT_THE_ENGINES = {"TSAN_OPTIONS": f"suppressions={Path(__file__).with_name('tsan.txt')}"}
pytestmark = pytest.mark.slow


def steady(said: str) -> str:
    """What `use` said of resident memory; an assertion where it has grown by more than an allocator keeps."""
    early, late = map(int, re.findall(r"(\d+) kB", said))
    assert late < early + 4096, said
    return said


def objects(build_folder: Path, *names: str) -> list[str]:
    return [str(build_folder / f"CMakeFiles/mpmmu.dir/src/{name}.cpp.o") for name in names]


@pytest.fixture(scope="module")
def with_address(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library with AddressSanitizer and UndefinedBehaviorSanitizer, and `use`."""
    flags = SANITIZERS["address"]

    def make(path: Path) -> None:
        build(path, flags=flags, kind="Debug", settings={"CMAKE_CXX_FLAGS_DEBUG": "-O0 -g1", "MPMMU_EXAMPLES": "OFF"})
        build_use(path, path / "use", *flags.split())

    return once(tmp_path_factory, "native.address", make)


@pytest.fixture(scope="module")
def with_thread(build_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`use` with ThreadSanitizer in all that knows threads."""
    others = [path.stem for path in (SOURCES / "src").glob("*.cpp") if path.stem not in THREADED]

    def make(path: Path) -> None:
        path.mkdir()
        sources = [str(SOURCES / f"src/{name}.cpp") for name in THREADED] + [str(HOST / "use.cpp")]
        folders = ["-I", str(SOURCES / "include"), "-isystem", str(json_folder())]
        command = [tool("g++"), "-std=c++17", "-g1", "-pthread", SANITIZERS["thread"], *folders, *sources]
        checked([*command, *objects(build_folder, *others), "-lcrypto", "-lz", "-ldl", "-o", str(path / "use")])

    return once(tmp_path_factory, "native.thread", make)


@pytest.fixture(scope="module")
def use(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Runs host/use.cpp on the library with a sanitizer, and says what it printed."""
    found = engines()
    if "onnxruntime" not in found:
        pytest.skip("onnxruntime is not installed: pip install 'mpmmu-rt[cpu]'")
    paths = {f"MPMMU_{name.upper()}": str(path) for name, path in found.items()}

    def run(sanitizer: str, *arguments: object, **more: str) -> str:
        program: Path = request.getfixturevalue(f"with_{sanitizer}") / "use"
        return checked([str(program), *map(str, arguments)], **(RUN | paths | more))

    return run


@pytest.mark.parametrize("target", ["onnxruntime:fp32", "openvino:int8"])
@pytest.mark.parametrize(("sanitizer", "of_model"), [("thread", 1), ("thread", 2), ("address", 2)])
def test_two_threads(use: Callable[..., str], sanitizer: str, of_model: int, target: str) -> None:
    """Whatever a model of one thread does counts; one of two loads its parts beside each other."""
    if target.partition(":")[0] not in engines():
        pytest.skip("openvino is not installed: pip install 'mpmmu-rt[openvino]'")
    more = NOT_THE_ENGINES if of_model > 1 else {}
    assert use(sanitizer, "threads", STORED, target, 150, of_model, **more) == "300 calls, 0 wrong\n"


def test_nothing_is_left_behind(use: Callable[..., str]) -> None:
    assert use("address", "opens", STORED, "onnxruntime:fp32", 10, ASAN_OPTIONS="detect_leaks=1").startswith("10 times")
    assert use("address", "answers", STORED, "onnxruntime:fp32", ASAN_OPTIONS="detect_leaks=1")


def test_memory_stays_where_it_is(build_folder: Path, tmp_path: Path) -> None:
    found = engines()
    if "onnxruntime" not in found:
        pytest.skip("onnxruntime is not installed: pip install 'mpmmu-rt[cpu]'")
    program = build_use(build_folder, tmp_path / "use")
    for arguments in (("opens", STORED, "onnxruntime:fp32", 50), ("checks", STORED, 500)):
        steady(checked([str(program), *map(str, arguments)], **RUN, MPMMU_ONNXRUNTIME=str(found["onnxruntime"])))


def test_memory_that_grows_is_seen() -> None:
    assert steady("5 times, 100 kB after a tenth, 4195 kB at the end\n")
    with pytest.raises(AssertionError):
        steady("5 times, 100 kB after a tenth, 4196 kB at the end\n")


def test_what_the_fuzzer_found_before(with_address: Path, tmp_path: Path) -> None:
    """JSON, .npz files, and bundles that were sealed as no export seals them."""
    with zipfile.ZipFile(CORPUS) as stored:
        stored.extractall(tmp_path / "corpus")
    inputs = sorted(map(str, (tmp_path / "corpus").iterdir()))
    assert len(inputs) > 500
    folders = ["-I", str(SOURCES / "src"), "-I", str(SOURCES / "include"), "-isystem", str(json_folder())]
    command = [tool("g++"), "-std=c++17", *SANITIZERS["address"].split(), *folders]
    command += [str(HOST / "reading.cpp"), str(HOST / "inputs.cpp")]
    program = str(tmp_path / "inputs")
    read = objects(with_address, "bundle", "files", "json", "npz")
    checked([*command, *read, "-lcrypto", "-lz", "-o", program])
    assert checked([program, *inputs], TMPDIR=str(tmp_path)) == f"{len(inputs)} inputs\n"
