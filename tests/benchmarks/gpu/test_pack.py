"""What travels to a borrowed GPU: packed here and unpacked there it is the same to the bit, or it is refused."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from benchmarks.gpu import full_size, pack, unpack
from benchmarks.gpu.drawn import drawn
from benchmarks.gpu.prune import prune
from mpmmu_rt import bundle as bundles
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.errors import DigestMismatch, UsageError
from mpmmu_rt.files import sha256_file
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.spec import MODALITIES


def test_what_is_drawn_never_changes() -> None:
    """Another NumPy, another processor: the same bits."""
    values = drawn("mammography.layer1.0.conv2.weight", (64, 64, 3, 3))
    assert values.dtype == np.float32
    assert hashlib.sha256(values.tobytes()).hexdigest()[:16] == "b57a3d35c17ed0b6"
    assert abs(values.std() / np.sqrt(2 / (64 * 9)) - 1) < 0.02
    assert abs(values.mean()) < 0.01 * values.std()
    assert not np.array_equal(values, drawn("ultrasound.layer1.0.conv2.weight", (64, 64, 3, 3)))


@pytest.fixture(scope="module")
def redrawn(bundle_folder: Path, small_model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small bundle with drawn weights, each output's with a scale of its own, and some of them in half."""
    folder = Path(shutil.copytree(bundle_folder, tmp_path_factory.mktemp("redrawn") / "small.bundle"))
    names: dict[str, tuple[int, ...]] = {}
    for modality in MODALITIES:
        names |= full_size.shapes(modality, small_model.encoders[modality])
    rng = np.random.default_rng(0)
    left = dict(names)
    for one in pack.stored_weights(folder):
        name = next((name for name, shape in left.items() if int(np.prod(shape)) == one.count), None)
        if name is None:
            continue
        values = drawn(name, left.pop(name))
        scale = rng.uniform(0.1, 3, len(values)).astype(np.float32)
        with (folder / one.file).open("r+b") as file:
            file.seek(one.offset)
            file.write((values.reshape(len(values), -1) * scale[:, None]).tobytes())
    assert not left
    bundles.seal(folder, entry_of(folder))
    return Bundle.open(folder)


def entry_of(folder: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((folder / "bundle.json").read_text())
    return {key: value for key, value in entry.items() if key not in ("files", "sha256")}


@pytest.mark.slow
def test_a_bundle_arrives_to_the_bit(redrawn: Bundle, tmp_path: Path) -> None:
    size = pack.pack_bundle(redrawn, tmp_path / "pack")
    weights = sum(facts["bytes"] for path, facts in redrawn.entry["files"].items() if path.endswith("weights.bin"))
    assert size < weights / 2
    folder, expected = unpack.unpack_bundle(tmp_path / "pack", tmp_path / "there")
    assert Bundle.open(folder).digest == redrawn.digest
    for path in redrawn.entry["files"]:
        assert sha256_file(folder / path) == sha256_file(redrawn.path / path)
    with np.load(expected) as answers:
        assert str(answers["bundle"]) == redrawn.digest
        assert answers["embedding"].shape[0] == answers["probability"].shape[0] == 256


@pytest.mark.slow
def test_other_bits_than_were_packed_are_refused(
    redrawn: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where NumPy drew others."""
    pack.pack_bundle(redrawn, tmp_path / "pack")
    monkeypatch.setattr(unpack, "drawn", lambda name, shape: drawn(name, shape) * np.float32(1 + 2**-20))
    with pytest.raises(DigestMismatch, match=r"weights\.bin has"):
        unpack.unpack_bundle(tmp_path / "pack", tmp_path / "there")


def test_a_bundle_of_other_weights_is_no_pack(bundle_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="are not the drawn ones"):
        pack.pack_bundle(Bundle.open(bundle_folder), tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_weights_in_half_are_found_by_the_scales_of_the_whole() -> None:
    name, shape = "ultrasound.layer1.0.conv1.weight", (16, 300, 1, 1)
    scale = np.random.default_rng(2).uniform(-2, 2, 16).astype(np.float32)
    whole = drawn(name, shape).reshape(16, -1) * scale[:, None]
    files = {"a": whole.tobytes(), "b": whole.astype(np.float16).tobytes(), "c": (whole + 1).tobytes()}
    stored = [pack.Stored("a", 0, "<f4", 4800), pack.Stored("c", 0, "<f4", 4800), pack.Stored("b", 0, "<f2", 4800)]
    recipes, scales = pack.find(stored, files, {name: shape, "another": shape})
    assert [one.file for one in recipes] == ["a", "b"]
    assert np.array_equal(scales[name], scale)


def test_what_is_no_pack_is_refused(tmp_path: Path) -> None:
    (tmp_path / unpack.ARCHIVE).write_bytes(b"no archive")
    with pytest.raises(UsageError, match=r"files.tar.xz can't be read: file could not be opened"):
        unpack.unpack_bundle(tmp_path, tmp_path / "there")


# ------------------------------------------------------------ device code


def library(*binaries: list[tuple[int, bytes]], section: bytes = b".nv_fatbin") -> bytes:
    """An ELF file with fat binaries, each a list of (compute capability, code)."""
    code = b""
    for entries in binaries:
        body = b""
        for capability, payload in entries:
            header = struct.pack("<HHIQ", 2, 0x101, 64, len(payload)).ljust(28, b"\1")
            body += (header + struct.pack("<I", capability)).ljust(64, b"\1") + payload
        code += struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body + bytes(-len(body) % 8) + bytes(8)
    names = b"\0.text\0" + section + b"\0"
    text = b"code of the processor"
    parts, at = [], 64
    for data in (text, code, names):
        parts.append((at, len(data)))
        at += len(data)
    table = b""
    for name, (offset, size) in zip((1, 7, 0), parts, strict=True):
        table += struct.pack("<IIQQQQ", name, 1, 0, 0, offset, size).ljust(64, b"\0")
    header = b"\x7fELF\x02\x01".ljust(40, b"\0") + struct.pack("<Q", at)
    header = header.ljust(58, b"\0") + struct.pack("<HHH", 64, 3, 2)
    return header + text + code + names + table


def test_the_code_of_other_gpus_becomes_zeros_and_nothing_else_moves() -> None:
    one, other = b"ninety." * 9, b"eighty.." * 5
    before = library([(80, other), (90, one)], [(90, b"ninety again!"), (120, other), (75, b"old")])
    after, found = prune(before, 90)
    assert found == {80: 40, 90: 63 + 13, 120: 40, 75: 3}
    assert len(after) == len(before)
    assert after.count(one) == 1
    assert after.count(b"ninety again!") == 1
    assert other not in after
    assert b"old" not in after
    changed = [index for index in range(len(before)) if before[index] != after[index]]
    assert len(changed) == 40 + 40 + 3
    assert prune(after, 90)[0] == after


def test_code_whose_kernels_are_all_needless_goes_too() -> None:
    def code(*kernels: str) -> bytes:
        plain = b"".join(b"\0.text." + name.encode() + b"\0" for name in kernels) + b"machine code"
        return zstandard.ZstdCompressor().compress(plain)

    kept = [code("_Z4reluPf"), code("_Z4flashPf", "_Z4castPf"), b"no kernel is named here", code()]
    gone = [code("_Z5flashPf"), code("_Z5flashPf", "_Z5flashPh")]
    plain = b"\0.text.flash_plain\0"
    after, _ = prune(library([(90, one) for one in (*kept, *gone, plain)]), 90, re.compile("flash").search)
    assert all(one in after for one in kept)
    assert not any(one in after for one in (*gone, plain))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"MZ, a library of Windows", "no 64-bit little-endian ELF"),
        (library([(80, b"x")]), r"code for \[80\], expected some for 90"),
        (library([(90, b"x")], section=b".nothing__"), "holds no device code"),
    ],
)
def test_what_can_t_be_pruned_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        prune(data, 90)


# ------------------------------------------------------------ the environment


def wheel(path: Path) -> Path:
    """Of a package that says what it is, beside what is not packed."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("onnxruntime/__init__.py", "__version__ = 'of the pack'\n")
        made.writestr("onnxruntime/transformers/big.py", "")
        made.writestr("onnxruntime/capi/libonnxruntime.so.1.31.1", "")
        made.writestr("onnxruntime/capi/libonnxruntime_providers_cuda.so", library([(80, b"x" * 99), (90, b"kept")]))
        made.writestr("onnxruntime_gpu-1.31.1.dist-info/METADATA", "Name: onnxruntime-gpu\nVersion: 1.31.1\n")
    return path


@pytest.mark.slow
def test_the_environment_has_one_onnxruntime_and_all_else(tmp_path: Path) -> None:
    pack.pack_onnxruntime(wheel(tmp_path / "own.whl"), tmp_path / "pack")
    python = unpack.environment(tmp_path / "pack", tmp_path / "there")
    code = (
        "import importlib.metadata as m, json, numpy, onnx, onnxruntime\n"
        "names = {d.metadata['Name'].lower() for d in m.distributions()}\n"
        "print(json.dumps([onnxruntime.__version__, onnxruntime.__file__, [n for n in names if 'onnxruntime' in n]]))\n"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    version, file, names = json.loads(done.stdout)
    assert (version, names) == ("of the pack", ["onnxruntime-gpu"])
    folder = Path(file).parent
    assert folder.is_relative_to(tmp_path / "there")
    assert sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc") == [
        "__init__.py",
        "libonnxruntime_providers_cuda.so",
    ]
    assert b"kept" in (folder / "capi/libonnxruntime_providers_cuda.so").read_bytes()


def test_folders_of_one_name_are_joined_and_the_first_file_wins(tmp_path: Path) -> None:
    for place, files in {"a": ("nvidia/one/x", "both.py"), "b": ("nvidia/two/y", "nvidia/one/x", "both.py")}.items():
        for file in files:
            (tmp_path / place / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place / file).write_text(place)
    target = tmp_path / "target"
    target.mkdir()
    for place in "ab":
        unpack.link(tmp_path / place, target)
    assert (target / "nvidia/one/x").read_text() == "a"
    assert (target / "nvidia/two/y").read_text() == "b"
    assert (target / "both.py").read_text() == "a"
    assert (tmp_path / "a/nvidia").is_dir()
    assert not (tmp_path / "a/nvidia/two").exists()  # what is installed is left alone
