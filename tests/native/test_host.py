"""What a host does to its process: how it rounds, forks, limits of memory; and what it may not read."""

from __future__ import annotations

import ctypes
import platform
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from mpmmu_rt.images import Preprocessing

from .native import Library, checked
from .test_faults import constant, folder, renamed, sealed_with
from .test_predict import STORED, pixels

__all__ = ["folder"]  # a fixture
ROOT = Path(__file__).parents[2]
# Bits of MXCSR, which glibc keeps at the end of its fenv_t, and of FPCR, at the beginning.
BITS = {
    "x86_64": (28, {"downwards": 0x2000, "upwards": 0x4000, "to zero": 0x6000, "smallest are zero": 0x8040}),
    "aarch64": (0, {"downwards": 2 << 22, "upwards": 1 << 22, "to zero": 3 << 22, "smallest are zero": 1 << 24}),
}
WAYS = ["downwards", "upwards", "to zero", "smallest are zero"]


@contextmanager
def arithmetic(way: str) -> Iterator[None]:
    """As a host may set it for its thread, which finds it as it was."""
    at, bits = BITS[platform.machine()]
    libm = ctypes.CDLL("libm.so.6")

    def now() -> bytearray:
        room = (ctypes.c_char * 64)()
        libm.fegetenv(room)
        return bytearray(room.raw)

    def begin(environment: bytearray) -> None:
        libm.fesetenv((ctypes.c_char * 64).from_buffer(environment))

    before = now()
    changed = before.copy()
    struct.pack_into("<I", changed, at, struct.unpack_from("<I", before, at)[0] | bits[way])
    begin(changed)
    try:
        yield
        after = now()
    finally:
        begin(before)
    assert struct.unpack_from("<I", after, at)[0] & bits[way] == bits[way]


@pytest.mark.parametrize("way", WAYS)
def test_pixels_are_the_same_however_the_host_rounds(library: Library, way: str) -> None:
    drawn = np.random.default_rng(5)
    images = [drawn.integers(0, 256, drawn.integers(40, 300, 2), dtype=np.uint8) for _ in range(12)]
    how = Preprocessing(49)
    want = [library.preprocess(image, how, 1.3) for image in images]
    with arithmetic(way):
        got = [library.preprocess(image, how, 1.3) for image in images]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_the_same_however_the_host_rounds(library: Library, folder: Path, way: str) -> None:
    """Also of a model whose numbers are the smallest that there are."""

    def small(graph: onnx.GraphProto) -> None:
        renamed(graph, "embedding")
        for times, given, made in ((1e-39, "raw", "less"), (1e38, "less", "embedding")):
            graph.node.append(helper.make_node("Mul", [given, constant(graph, f"x{made}", np.float32(times))], [made]))

    sealed_with(folder, "attention_pool_onnxruntime", small)
    given = pixels(32, 3)
    with library.open(folder, threads=1) as model:
        want = model.predict(given)
    with arithmetic(way), library.open(folder, threads=1) as model:
        got = model.predict(given)
    np.testing.assert_array_equal(got.embedding, want.embedding)
    np.testing.assert_array_equal(got.probability, want.probability)


FORKED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from tests.native.native import Library, engines
library, noise = Library(Path(sys.argv[1]), engines()), np.random.default_rng(0)
given = {name: noise.integers(0, 256, (4, 1, 32, 32), np.uint8) for name in ("mammography", "ultrasound")}
def said():
    with library.open(sys.argv[2], "openvino:fp32", 2) as model:
        return model.predict(given).probability
want = said()
child = os.fork()
if child == 0:
    signal.alarm(20)
    print((said() == want).all(), flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.slow
def test_a_fork_opens_a_bundle_after_its_parent_closed_one(library: Library) -> None:
    """As servers do that look at a bundle before they start their workers: OpenVINO is not to count on threads that
    the fork has not."""
    if "openvino" not in library.engines:
        pytest.skip("openvino is not installed: pip install 'mpmmu-rt[openvino]'")
    ran = checked([sys.executable, "-c", FORKED, str(library.path), str(STORED)], PYTHONPATH=str(ROOT))
    assert ran == "True\n0\n"


LIMITED = """
import re, resource, sys
from pathlib import Path
import numpy as np
from tests.native.native import Library, NativeError, engines
library, noise = Library(Path(sys.argv[1]), engines()), np.random.default_rng(0)
given = {name: noise.integers(0, 256, (512, 1, 32, 32), np.uint8) for name in ("mammography", "ultrasound")}
for room in (2, 4, 8, 16, 32, 64, 1024):
    with library.open(sys.argv[2], threads=1) as model:
        size = int(re.search(r"VmSize:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (size + room * 2**20, -1))
        try:
            model.predict(given)
            print("said")
        except NativeError as error:
            print(error.status, str(error)[:19], error.hint, sep="|")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
"""


@pytest.mark.slow
def test_an_engine_without_memory_is_not_the_bundles_fault(library: Library) -> None:
    ran = checked([sys.executable, "-c", LIMITED, str(library.path), str(STORED)], PYTHONPATH=str(ROOT)).splitlines()
    assert "OUT_OF_MEMORY|ONNX Runtime failed|use smaller batches, or close what is not needed" in ran
    assert {line.partition("|")[0] for line in ran} == {"OUT_OF_MEMORY", "said"}


UNREAD = """
import os, sys
from pathlib import Path
from tests.native.native import Library, NativeError
library = Library(Path(sys.argv[1]), {})
os.chdir(sys.argv[2])
if os.geteuid() == 0:  # who may read everything
    os.setuid(65534)
try:
    library.check(".")
except NativeError as error:
    print(error.status, error, error.hint, sep="|")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [
        ("onnx/weights.bin", 0, "./onnx/weights.bin can't be read: Permission denied, expected a file"),
        ("golden", 0o600, "./golden/golden.npz can't be looked at, expected a file"),
        ("onnx", 0o311, "./onnx can't be listed, expected a folder of the bundle"),
    ],
)
def test_what_may_not_be_read_is_not_called_altered(
    library: Library, folder: Path, name: str, mode: int, said: str
) -> None:
    folder.chmod(0o755)
    (folder / name).chmod(mode)
    try:
        ran = checked([sys.executable, "-c", UNREAD, str(library.path), str(folder)], PYTHONPATH=str(ROOT))
    finally:
        (folder / name).chmod(0o755)
    assert ran == f"BUNDLE_ERROR|{said}|check its permissions and the disk\n"
