"""A bundle that is written over while a Predictor of it lives: its answers stay those of what was opened, or end."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpmmu_rt import bundle as bundles
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.errors import DigestMismatch, UsageError
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.predictor import Predictor, load
from mpmmu_rt.spec import Array, Modality, Target

TARGET = "onnxruntime:fp32"


@pytest.fixture(params=["old", "just written"])
def folder(bundle_folder: Path, tmp_path: Path, request: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be changed: of which the file system's clock tells a later change, or not yet."""
    if request.param == "old":
        monkeypatch.setattr(bundles, "_TICKS_NS", 0)
    copied = Path(shutil.copytree(bundle_folder, tmp_path / "b"))
    time.sleep(0.02)  # the clock's tick
    return copied


def change(path: Path, *, in_place: bool) -> None:
    """As `cp` or as a rename would: as long as before, and of the same time."""
    data, times = path.read_bytes(), path.stat()
    place = path if in_place else path.with_name("new")
    with place.open("r+b" if in_place else "wb") as file:
        file.write(bytes(byte ^ 1 for byte in data))
    os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))
    place.replace(path)


def pixels_of(bundle: Bundle, cases: int) -> dict[Modality, Array]:
    return phantom_pixels(cases, seed=4, preprocessing=bundle.preprocessing)[0]


@pytest.mark.parametrize("in_place", [True, False])
def test_what_is_loaded_later_is_what_was_opened(folder: Path, in_place: bool) -> None:
    opened = Bundle.open(folder)
    with Predictor(opened, Target.parse(TARGET)) as predictor:
        pixels = predictor.check(pixels_of(opened, 1))
        predictor.run_graph("model", {f"{name}_pixels": array for name, array in pixels.items()})
        os.utime(folder / "onnx/head.onnx")  # touched, and the same
        opened.require_unchanged()
        change(folder / "golden/golden.npz", in_place=in_place)
        with pytest.raises(DigestMismatch, match="another SHA-256"):
            predictor.feature_maps(pixels)
    with pytest.raises(DigestMismatch, match="another SHA-256"):
        opened.require_unchanged()
    with pytest.raises(DigestMismatch, match="another SHA-256"):
        Predictor(opened, Target.parse(TARGET))


def test_golden_vectors_of_another_bundle_are_refused(folder: Path, bundle_folder: Path) -> None:
    opened = Bundle.open(folder)
    with np.load(folder / "golden/golden.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays["probability"] = arrays["probability"][::-1]
    with (folder / "golden/golden.npz").open("wb") as file:
        np.savez(file, **arrays)
    with pytest.raises(DigestMismatch):
        opened.golden()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnxruntime:fp32", "openvino:fp32"])
@pytest.mark.parametrize("renamed", [True, False])
def test_answers_stay_those_of_the_weights_that_were_loaded_or_end(folder: Path, target: str, renamed: bool) -> None:
    """ONNX Runtime maps what it does not pack, and the head of every target on the processor runs there."""
    with load(folder, target, threads=2) as predictor:
        pixels = pixels_of(predictor.bundle, 35)
        want = predictor.predict(pixels).probability
        first = {name: array[:1] for name, array in pixels.items()}
        weights = folder / "onnx/weights.bin"
        noise = np.random.default_rng(0).normal(0, 0.05, weights.stat().st_size // 4).astype("<f4").tobytes()
        (folder / "../noise").write_bytes(noise)
        if renamed:
            (folder / "../noise").replace(weights)
            for given in (first, pixels):  # OpenVINO compiles a model for one case now
                got = predictor.predict(given).probability
                np.testing.assert_allclose(got, want[: len(got)], rtol=0, atol=1e-5)
        else:
            times = weights.stat()
            os.utime(weights)  # touched, and the same
            np.testing.assert_array_equal(predictor.predict(pixels).probability, want)
            shutil.copyfile(folder / "../noise", weights)
            os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # as `cp -p` may
            for _ in range(2):
                with pytest.raises(DigestMismatch, match=r"weights\.bin was written to while it was in use"):
                    predictor.predict(pixels)
            weights.write_bytes(b"")  # ONNX Runtime would end the process
            with pytest.raises(DigestMismatch, match="written to"):
                predictor.predict(first)


def test_a_target_that_was_not_proven_is_for_measuring_alone(bundle_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"openvino:int8 was not proven when .* was exported, expected one of onnx"):
        load(bundle_folder, "openvino:int8")  # which every processor has
