"""Fixtures that are dear to make: a small model, its checkpoint, its draft and its bundles, once for all workers."""

from __future__ import annotations

import os

# Before anything loads OpenMP: workers that share cores get a share of threads each, for threads that wait for each
# other beside those of another worker cost up to four times.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _WORKERS > 1:
    _CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _CORES // _WORKERS)))

import contextlib
import copy
import functools
import hashlib
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn
from torch._export.utils import _collect_all_valid_cia_ops
from torch.export import decomp_utils, exported_program
from torch.onnx._internal.exporter._registration import ONNXRegistry

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines.shared import blob_cache
from mpmmu_rt.export import Data, Limits, Wanted, build, encoders, export_checkpoint, parity
from mpmmu_rt.export.cases import phantoms
from mpmmu_rt.export.draft import Draft
from mpmmu_rt.export.encoders import Encoders
from mpmmu_rt.export.tracing import trace
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.model import checkpoint as checkpoints
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.config import PRESETS, EncoderConfig, HeadConfig, ModelConfig, tiny
from mpmmu_rt.model.encoder import Encoder
from mpmmu_rt.model.phantom import phantom_pixels, write_phantoms
from mpmmu_rt.model.stacking import fit_head
from mpmmu_rt.progress import silent
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
Made = Callable[[Path], object]
Traced = Callable[[], contextlib.AbstractContextManager[None]]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of what a script starts with `&`, which commands inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)


def once(factory: pytest.TempPathFactory, name: str, make: Made) -> Path:
    """What `make` writes, whole or not at all, to the path it is given: by the first worker that asks. Read only."""
    base = factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)
    with FileLock(shared / f"{name}.lock"):
        if not (shared / name).exists():
            make(shared / name)
    return shared / name


@pytest.fixture(scope="session", autouse=True)
def _no_cache() -> Iterator[None]:
    """Nothing is kept in the user's cache; tests of the cache name a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(blob_cache.VARIABLE, "off")
        yield


@pytest.fixture(scope="session", autouse=True)
def _operators_listed_once() -> Iterator[None]:
    """torch lists all its operators, and those of ONNX, anew for each graph, which is a third of a small export.

    Each caller gets a list of its own.
    """
    listed = functools.cache(_collect_all_valid_cia_ops)
    registry = functools.cache(ONNXRegistry.from_torchlib)

    def fresh(_: type[ONNXRegistry], /, *opset: int, **named: int) -> ONNXRegistry:
        found = copy.copy(registry(*opset, **named))
        found.functions = {name: list(functions) for name, functions in found.functions.items()}
        return found

    with pytest.MonkeyPatch.context() as patch:
        for module in (exported_program, decomp_utils):
            patch.setattr(module, "_collect_all_valid_cia_ops", lambda: set(listed()))
        patch.setattr(ONNXRegistry, "from_torchlib", classmethod(fresh))
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images beside the checkout; skips where it is absent."""
    if not (DATA / "real_pairs.csv").is_file():
        pytest.skip("no real images: ../shared/data/real_pairs.csv is missing")
    return DATA


def _small_model() -> Checkpoint:
    encoder = EncoderConfig(arch="resnet18", width=8)
    config = ModelConfig(
        mammography=EncoderConfig(arch="resnet18", width=8, attention="cbam"),
        ultrasound=encoder,
        head=HeadConfig(trees=12, hidden=4),
        preprocessing=Preprocessing(size=48),
    )
    pixels, label = phantom_pixels(80, seed=1, preprocessing=config.preprocessing)
    encoders: dict[Modality, Encoder] = {}
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        for index, modality in enumerate(MODALITIES):
            torch.manual_seed(index)
            encoders[modality] = Encoder(config.encoder(modality)).eval()
        parts = [encoders[modality](torch.from_numpy(pixels[modality])).numpy() for modality in MODALITIES]
    head = fit_head(np.concatenate(parts, 1), label, [str(row) for row in range(80)], config.head, seed=0)
    return Checkpoint(config, encoders, head, 0.4, {"trained_on": "nothing: a model for tests"})


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small_model` on disk. Read only: copy it before you change it."""
    return once(tmp_path_factory, "checkpoint", lambda path: checkpoints.save(_small_model(), path))


@pytest.fixture(scope="session")
def small_model(checkpoint_folder: Path) -> Checkpoint:
    """Seeded, untrained, of an odd image size: ResNet-18 with 8 channels at 48 × 48, all four learners."""
    return checkpoints.load(checkpoint_folder)


def _digest_of(module: nn.Module, example: Sequence[Tensor]) -> str:
    """Of all that a trace of our own encoders is made from: layers, configurations, weights, and example inputs."""
    configs = [getattr(part, "config", None) for part in module.modules()]
    found = hashlib.sha256(f"{module} {configs}".encode())
    for name, tensor in (*module.state_dict().items(), *enumerate(example)):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return found.hexdigest()


@pytest.fixture(scope="session")
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """In the block, encoders that torch has traced already, to the bit, have the graphs of then: most of what a small
    export takes. For tests of what is done with the graphs; the first trace is always torch's own."""

    def remembered(
        module: nn.Module, example: tuple[Tensor, ...], inputs: Sequence[str], output: str, name: str = ""
    ) -> onnx.ModelProto:
        def make(path: Path) -> None:
            graph = trace(module, example, inputs, output, name)
            path.write_bytes(graph.SerializeToString())

        path = once(tmp_path_factory, f"{_digest_of(module, example)}.{'.'.join(inputs)}.{output}", make)
        return onnx.ModelProto.FromString(path.read_bytes())

    @contextlib.contextmanager
    def traced() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoders, "trace", remembered)
            yield

    return traced


@pytest.fixture
def traces_kept(traced_once: Traced) -> Iterator[None]:
    """All of a test in `traced_once`."""
    with traced_once():
        yield


@pytest.fixture(scope="session")
def bundle_folder(checkpoint_folder: Path, traced_once: Traced, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `small_model`. Read only: copy it before you change it."""

    def make(path: Path) -> None:
        with traced_once():
            # Named, so that the bundle is the same on every processor.
            export_checkpoint(checkpoint_folder, path, wanted=Wanted((Target("openvino", "fp32"),)))

    return once(tmp_path_factory, "small.bundle", make)


@pytest.fixture(scope="session")
def few(small_model: Checkpoint) -> Data:
    """Cases to judge on: fewer than the export would draw."""
    return phantoms(12, 10, small_model.config.preprocessing, silent)


@pytest.fixture(scope="session")
def begun(small_model: Checkpoint, bundle_folder: Path) -> Draft:
    """The draft that `bundle_folder` was finished from: no target but the first is made. Read only."""
    entry = copy.deepcopy(dict(Bundle.open(bundle_folder).entry)) | {"targets": ["onnxruntime:fp32"], "precision": {}}
    preprocessing = small_model.config.preprocessing
    cases = phantoms(build.PARITY_CASES, build.PARITY_SEED, preprocessing, silent)
    encoders = Encoders(dict(small_model.encoders), preprocessing.size)
    original = parity.run_original(encoders, small_model.head, cases.pixels)
    flat = build.run_flat(encoders, cases)
    return Draft(bundle_folder, entry, small_model.head, original, cases, Wanted(), flat=flat)


@pytest.fixture(scope="session")
def finished(begun: Draft, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Wanted], Bundle]:
    """The export of `small_model` from where its graphs are written, which takes most of the time, to its end."""

    def finish(wanted: Wanted) -> Bundle:
        folder = Path(shutil.copytree(begun.folder, tmp_path_factory.mktemp("finished") / "small.bundle"))
        draft = replace(
            begun, folder=folder, entry=copy.deepcopy(begun.entry), wanted=wanted, rankings={}, exact=set(), _floats={}
        )
        draft.seal()
        build.finish(draft)
        return Bundle.open(folder)

    return finish


@pytest.fixture(scope="session")
def int8_folder(checkpoint_folder: Path, traced_once: Traced, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `small_model` with the target openvino:int8. Read only.

    The model is untrained, and its cases lie close together: the limits are open, it proves the way, not the model.
    """

    cases = once(tmp_path_factory, "int8.cases", lambda path: write_phantoms(24, path, seed=9))

    def make(path: Path) -> None:
        limits = Limits(auc_loss=1, sensitivity_loss=1, flips=1, mean_difference=1)
        wanted = Wanted((Target("openvino", "int8"),), limits=limits)
        with traced_once():
            export_checkpoint(checkpoint_folder, path, calibration_manifest=cases / "manifest.csv", wanted=wanted)

    return once(tmp_path_factory, "int8.bundle", make)


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset `tiny` with a small head: a training fits six and more, which takes most of its time."""
    monkeypatch.setitem(PRESETS, "tiny", lambda: replace(tiny(), head=HeadConfig(trees=5, hidden=4, folds=2)))


# mpmmu-rt in a process of its own, with `few_trees`: what follows are its arguments.
COMMAND_WITH_FEW_TREES = (
    "-c",
    "from dataclasses import replace\n"
    "from mpmmu_rt.cli import main\n"
    "from mpmmu_rt.model.config import PRESETS, HeadConfig, tiny\n"
    "PRESETS['tiny'] = lambda: replace(tiny(), head=HeadConfig(trees=5, hidden=4, folds=2))\n"
    "main()",
)


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """INT8 whose every layer in 8 bits misses the limits is given up: no layer is tried in float. For the command line,
    whose users can't ask for that; the search itself is tested in `export/test_quantization_gate.py`."""
    monkeypatch.setattr("mpmmu_rt.export.Limits", functools.partial(Limits, float_share=0))


@pytest.fixture(scope="session")
def phantom_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 12 phantoms on disk. Read only."""
    return once(tmp_path_factory, "phantoms", lambda path: write_phantoms(12, path, seed=5)) / "manifest.csv"


@pytest.fixture
def save_dicom(tmp_path: Path) -> Callable[..., Path]:
    """Writes a minimal DICOM image: stored values [H, W] or [H, W, 3]; an element that is None is left out."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'mpmmu-rt[dicom]'")

    def save(stored: Array, *, name: str = "a.dcm", implicit: bool = False, **elements: object) -> Path:
        colour = stored.ndim == 3
        uids = {"MG": "1.2.840.10008.5.1.4.1.1.1.2", "US": "1.2.840.10008.5.1.4.1.1.6.1"}
        ds = pydicom.Dataset()
        usual = {
            "SOPClassUID": uids.get(str(elements.get("Modality", "MG")), uids["MG"]),
            "SOPInstanceUID": "1.2.3.4",
            "Modality": "MG",
            "SamplesPerPixel": 3 if colour else 1,
            "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
            "PlanarConfiguration": 0 if colour else None,
            "Rows": stored.shape[0],
            "Columns": stored.shape[1],
            "BitsAllocated": stored.itemsize * 8,
            "BitsStored": stored.itemsize * 8,
            "PixelRepresentation": int(stored.dtype.kind == "i"),
        } | elements
        usual.setdefault("HighBit", int(str(usual["BitsStored"])) - 1)
        for keyword, value in usual.items():
            if value is not None:
                setattr(ds, keyword, value)
        ds.file_meta = pydicom.dataset.FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"
        ds.file_meta.MediaStorageSOPClassUID = usual["SOPClassUID"] or uids["MG"]
        ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        data = stored.tobytes()
        ds.add_new("PixelData", "OB" if stored.itemsize == 1 else "OW", data + b"\0" * (len(data) % 2))
        path = tmp_path / name
        with warnings.catch_warnings(action="ignore"):  # pydicom's of what a test breaks on purpose
            ds.save_as(path, enforce_file_format=True)
        return path

    return save
