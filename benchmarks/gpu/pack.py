"""What travels to a borrowed GPU, made on a machine with a network: `make gpu-pack`.

    python -m benchmarks.gpu.pack [--out .gpu-pack] [--bundle BUNDLE] [--wheel FILE] [--only bundle|onnxruntime]

    .gpu-pack/bundle/       the full-size reference bundle, with what the processor says of its cases. Its larger
                            weights are drawn again there, from their names: only their scales travel, and every file
                            is held to its digest
    .gpu-pack/onnxruntime/  onnxruntime-gpu for the Python and the GPU there, without code for other GPUs, or for
                            language models, and without what no session needs

Each is one archive; `benchmarks.gpu.unpack` is the other end. Takes some 10 minutes of two cores.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from benchmarks.gpu.device_answers import ask_processor, draw, write_expected
from benchmarks.gpu.drawn import drawn
from benchmarks.gpu.full_size import LEAST, full_size, shapes
from benchmarks.gpu.prune import prune
from benchmarks.gpu.stage import say
from benchmarks.gpu.unpack import ARCHIVE, BUNDLE, EXPECTED, RECIPES, SCALES
from benchmarks.report import ROOT, parser
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.errors import MpmmuError, UsageError
from mpmmu_rt.files import atomic_file
from mpmmu_rt.model.config import ModelConfig
from mpmmu_rt.model.encoder import Encoder
from mpmmu_rt.spec import MODALITIES, Array

CAPABILITY = 90
WHEEL = ("onnxruntime-gpu==1.31.1", "312")  # what is pruned, and for which Python
_PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
# Of the wheel, what a session on CUDA never loads.
_UNUSED = ("onnxruntime/transformers/", "onnxruntime/quantization/", "onnxruntime/tools/", "onnxruntime/datasets/")
_UNUSED_LIBRARIES = ("onnxruntime/capi/libonnxruntime.so", "onnxruntime/capi/libonnxruntime_providers_tensorrt.so")
# Kernels of language models, nine tenths of the device code: no convolutional network calls them.
_LANGUAGE = re.compile("flash|cutlass|3llm|fused_moe|fmha|[mM]oe|MoE|[aA]ttention|matmul_nbits|Beam|[rR]otary|[pP]aged")
_X86 = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6}]


# ------------------------------------------------------------ the bundle


@dataclass(frozen=True)
class Stored:
    """Where a weight lies in a bundle. element: NumPy's type."""

    file: str
    offset: int
    element: str
    count: int


@dataclass(frozen=True)
class Recipe:
    """A weight that is drawn: each output's weights times its scale, then in `element`, at `offset` of `file`."""

    file: str
    offset: int
    element: str
    name: str
    shape: tuple[int, ...]


def pack_bundle(bundle: Bundle, out: Path) -> int:
    """Write the pack of `bundle`, whose encoders `full_size.redraw` has drawn, to the folder `out`; returns its size.

    Raises `UsageError` where less than 9/10 of what could be drawn was found again.
    """
    config = ModelConfig.from_json(bundle.entry["model"])
    names: dict[str, tuple[int, ...]] = {}
    for modality in MODALITIES:
        names |= shapes(modality, Encoder(config.encoder(modality)))
    files = {path: bytearray((bundle.path / path).read_bytes()) for path in bundle.entry["files"]}
    found, scales = find(stored_weights(bundle.path), files, names)
    lost = names.keys() - scales.keys()
    if len(lost) > len(names) / 10:
        raise UsageError(
            f"{len(lost)} of {len(names)} weights of {bundle.path} are not the drawn ones, {min(lost)} among them; "
            "expected next to none",
            hint="make the bundle with benchmarks.gpu.full_size",
        )
    for recipe in found:
        size = int(np.prod(recipe.shape)) * np.dtype(recipe.element).itemsize
        files[recipe.file][recipe.offset : recipe.offset + size] = bytes(size)
    held = io.BytesIO()
    arrays: dict[str, Any] = scales
    np.savez(held, **arrays)
    pixels = draw(bundle)
    with tempfile.TemporaryDirectory(prefix="pack-") as scratch:
        expected = Path(scratch) / EXPECTED
        write_expected(expected, bundle, pixels, ask_processor(bundle, pixels))
        answers = expected.read_bytes()
    everything: dict[str, bytes] = {f"{BUNDLE}/{path}": bytes(data) for path, data in files.items()}
    everything[f"{BUNDLE}/bundle.json"] = (bundle.path / "bundle.json").read_bytes()
    everything |= {EXPECTED: answers, SCALES: held.getvalue()}
    everything[RECIPES] = json.dumps([asdict(one) for one in found]).encode()
    return archive(out, everything)


def stored_weights(folder: Path) -> list[Stored]:
    """Every large float that a graph of the bundle keeps in a file of weights, each once."""
    found: dict[tuple[str, int], Stored] = {}
    for path in sorted(folder.rglob("*.onnx")):
        for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
            count = int(np.prod(tensor.dims))
            if not uses_external_data(tensor) or count < LEAST:
                continue
            element = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
            if element.kind == "f":
                place = ExternalDataInfo(tensor)
                file = (path.parent / place.location).relative_to(folder).as_posix()
                found[file, place.offset] = Stored(file, place.offset, element.str, count)
    # The full precision first: the scales are found in it.
    return sorted(found.values(), key=lambda one: (-np.dtype(one.element).itemsize, one.file, one.offset))


def find(
    stored: Iterable[Stored], files: Mapping[str, bytes | bytearray], names: Mapping[str, tuple[int, ...]]
) -> tuple[list[Recipe], dict[str, Array]]:
    """Which of the stored weights are drawn ones, to the bit; and each one's scales float32 [output]."""
    recipes: list[Recipe] = []
    scales: dict[str, Array] = {}
    made = {name: drawn(name, shape).reshape(shape[0], -1) for name, shape in names.items()}
    for one in stored:
        values = np.frombuffer(files[one.file], one.element, one.count, one.offset)
        for name, own in made.items():
            if own.size != one.count:
                continue
            want = values.reshape(own.shape)
            scale = scales.get(name)
            if scale is None and one.element == "<f4":
                scale = scale_of(want, own)
            if scale is not None and np.array_equal((own * scale[:, None]).astype(one.element), want):
                scales[name] = scale
                recipes.append(Recipe(one.file, one.offset, one.element, name, tuple(names[name])))
                break
    return recipes, scales


def scale_of(want: Array, own: Array) -> Array | None:
    """float32 [output] by which `own` becomes `want` to the bit, both [output, …]; None where there is none."""
    at = np.abs(own).argmax(1)
    rows = np.arange(len(own))
    about = (want[rows, at].astype(np.float64) / own[rows, at]).astype(np.float32)
    if not np.allclose(own[0] * about[0], want[0], rtol=1e-5, atol=0):
        return None
    found = np.full(len(own), np.nan, np.float32)
    nearby = [about]
    for end in (-np.inf, np.inf):
        first = np.nextafter(about, np.float32(end))
        nearby += [first, np.nextafter(first, np.float32(end))]
    for scale in nearby:
        fits = (own * scale[:, None] == want).all(1)
        found[fits] = scale[fits]
    return None if np.isnan(found).any() else found


# ------------------------------------------------------------ onnxruntime


def pack_onnxruntime(wheel: Path, out: Path, capability: int = CAPABILITY) -> int:
    """Write the pack of onnxruntime-gpu, with device code for one compute capability, to `out`; returns its size."""

    def kept() -> Iterator[tuple[str, bytes]]:
        with zipfile.ZipFile(wheel) as opened:
            for name in opened.namelist():
                if not name.endswith("/") and not name.startswith((*_UNUSED, *_UNUSED_LIBRARIES)):
                    data = opened.read(name)
                    yield name, prune(data, capability, _LANGUAGE.search)[0] if name == _PROVIDER else data

    return archive(out, dict(kept()))


def fetch(folder: Path) -> Path:
    requirement, python = WHEEL
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (27, 28, 34)]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", *platforms]
    subprocess.run([*command, f"--python-version={python}", f"--dest={folder}", requirement], check=True)
    (wheel,) = folder.glob("onnxruntime_gpu-*.whl")
    return wheel


# ------------------------------------------------------------ both


def archive(out: Path, files: Mapping[str, bytes]) -> int:
    """One archive of `files` in the folder `out`; returns its size. Machine code is filtered."""
    out.mkdir(parents=True, exist_ok=True)
    with (
        atomic_file(out / ARCHIVE) as partial,
        lzma.open(partial, "wb", format=lzma.FORMAT_XZ, filters=_X86) as packed,
        tarfile.open(fileobj=packed, mode="w") as opened,
    ):
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            opened.addfile(entry, io.BytesIO(data))
    return (out / ARCHIVE).stat().st_size


def make(given: argparse.Namespace) -> None:
    def tell(description: str, done: int, total: int, *more: str) -> None:
        print(f"{description}: {done} of {total}", file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="pack-") as scratch:
        if given.only != "onnxruntime":
            folder = given.bundle or Path(scratch) / BUNDLE
            bundle = Bundle.open(folder) if given.bundle else full_size(folder, tell)
            say_size("bundle", pack_bundle(bundle, given.out / "bundle"))
        if given.only != "bundle":
            wheel = given.wheel or fetch(Path(scratch))
            say_size("onnxruntime", pack_onnxruntime(wheel, given.out / "onnxruntime"))


def say_size(name: str, size: int) -> None:
    print(f"{name}: {size / 2**20:.1f} MiB")


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=ROOT / ".gpu-pack")
    options.add_argument("--bundle", type=Path, help="one that benchmarks.gpu.full_size has made, instead of another")
    options.add_argument("--wheel", type=Path, help=f"of {WHEEL[0]}, instead of asking the package index")
    options.add_argument("--only", choices=("bundle", "onnxruntime"))
    try:
        make(options.parse_args())
    except MpmmuError as error:
        return say(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
