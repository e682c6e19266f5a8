"""Fixtures that are dear to make: a small model, its checkpoint and its bundle, once per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mpmmu_rt.engines.shared import blob_cache
from mpmmu_rt.export import Limits, Wanted, export_checkpoint
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.model import checkpoint as checkpoints
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.config import EncoderConfig, HeadConfig, ModelConfig
from mpmmu_rt.model.encoder import Encoder
from mpmmu_rt.model.phantom import phantom_pixels, write_phantoms
from mpmmu_rt.model.stacking import fit_head
from mpmmu_rt.spec import MODALITIES, Modality, Target

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _no_cache() -> Iterator[None]:
    """Nothing is kept in the user's cache; tests of the cache name a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(blob_cache.VARIABLE, "off")
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images beside the checkout; skips where it is absent."""
    if not (DATA / "real_pairs.csv").is_file():
        pytest.skip("no real images: ../shared/data/real_pairs.csv is missing")
    return DATA


@pytest.fixture(scope="session")
def small_model() -> Checkpoint:
    """Seeded, untrained, of an odd image size: ResNet-18 with 8 channels at 48 × 48, all four learners."""
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
def checkpoint_folder(small_model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small_model` on disk. Read only: copy it before you change it."""
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    checkpoints.save(small_model, folder)
    return folder


@pytest.fixture(scope="session")
def bundle_folder(checkpoint_folder: Path) -> Path:
    """The bundle of `small_model`. Read only: copy it before you change it."""
    output = checkpoint_folder.with_name("small.bundle")
    # Named, so that the bundle is the same on every processor.
    export_checkpoint(checkpoint_folder, output, wanted=Wanted((Target("openvino", "fp32"),)))
    return output


@pytest.fixture(scope="session")
def int8_folder(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `small_model` with the target openvino:int8. Read only.

    The model is untrained, and its cases lie close together: the limits are open, it proves the way, not the model.
    """
    folder = tmp_path_factory.mktemp("int8")
    wanted = Wanted(
        (Target("openvino", "int8"),), limits=Limits(auc_loss=1, sensitivity_loss=1, flips=1, mean_difference=1)
    )
    calibration = write_phantoms(24, folder / "cases", seed=9)
    export_checkpoint(checkpoint_folder, folder / "int8.bundle", calibration_manifest=calibration, wanted=wanted)
    return folder / "int8.bundle"


@pytest.fixture(scope="session")
def phantom_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 12 phantoms on disk. Read only."""
    return write_phantoms(12, tmp_path_factory.mktemp("phantoms") / "cases", seed=5)
