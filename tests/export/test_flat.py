"""Images with a part of one grey: an epsilon decides there, and an engine may make a number of NaN."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

import mpmmu_rt
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines import engines
from mpmmu_rt.errors import AnswerError, ExportError, ParityError
from mpmmu_rt.export import Data, Limits, Wanted, export_bundle, parity, targets
from mpmmu_rt.export.cases import phantoms
from mpmmu_rt.export.draft import FIRST, Draft
from mpmmu_rt.export.flat import Flat, flattened
from mpmmu_rt.export.targets import proofs
from mpmmu_rt.export.tracing import trace
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.progress import silent
from mpmmu_rt.spec import MODALITIES, Array, Target

SIZE = 48
WIDE = Limits(auc_loss=1, sensitivity_loss=1, flips=1, mean_difference=1)
TINY = [0.0, 1e-9, 1e-8, 1e-7, 1e-3, 1.0]


class Of(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_no_constant_is_taken_for_another() -> None:
    """torch's own optimisation takes 1e-8 for 0 and 1.000009 for 1. All in one trace, each of a column of its own."""
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda x: x + 1e-8,
        lambda x: 1e-9 + x,
        lambda x: x - 1e-8,
        lambda x: torch.log(x + 1e-8),
        lambda x: 1 / (x + 1e-12),
        lambda x: x * 1.000009,
        lambda x: x / 1.000009,
        lambda x: x / (x.sum(1, keepdim=True) + 1e-8),
        lambda x: torch.rsqrt(x * x + 1e-12),
        lambda x: functional.normalize(x - x, dim=1, eps=1e-12) + x,
        lambda x: (x + 1e-8) * 1 + 0,
    ]

    def beside(x: Tensor) -> Tensor:
        return torch.stack([function(x[:, column]) for column, function in enumerate(functions)], 1)

    x = torch.tensor([TINY, TINY])[:, None].repeat(1, len(functions), 1)
    model = trace(Of(beside).eval(), (x,), ["x"], "y")
    said = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})[0]
    for column, function in enumerate(functions):
        np.testing.assert_allclose(said[:, column], function(x[:, column]).numpy(), rtol=2e-6, err_msg=str(column))


class Contrast(nn.Module):
    """Pixels uint8 [N, 1, S, S] to float32 [N, 16], by the contrast in windows of 9 x 9, which is 0 / 0 without an
    epsilon where an image is flat."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.first, self.second = nn.Conv2d(1, 8, 5, 2, 2), nn.Conv2d(8, 16, 3, 2, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.float()
        high, low = functional.max_pool2d(x, 9, 1, 4), -functional.max_pool2d(-x, 9, 1, 4)
        x = (x - low) / (high - low + self.epsilon) if self.epsilon else (x - low) / (high - low)
        x = functional.max_pool2d(self.first(x).relu(), 3, 2, 1)
        found: Tensor = self.second(x).relu().mean((2, 3))
        return found


def exported(module: nn.Module, path: Path, wanted: Wanted | None = None, width: int = 16) -> Bundle:
    drawn = np.random.default_rng(0)
    head = LogisticRegression().fit(drawn.random((60, 2 * width), np.float32), np.arange(60) % 2)
    wanted = wanted or Wanted((Target("onnxruntime", "fp32"), Target("openvino", "fp32")))
    both: dict[str, Any] = dict.fromkeys(MODALITIES, module.eval())
    return export_bundle(path, **both, head=head, preprocessing=SIZE, wanted=wanted)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(2)


def test_what_is_no_number_on_a_flat_part_is_no_model(tmp_path: Path) -> None:
    """ONNX Runtime refuses its NaN; OpenVINO answers, and nobody would know."""
    with pytest.raises(
        ExportError, match=r"gives NaN for \d of 6 cases, .* of 6 images with a part of one grey"
    ) as told:
        exported(Contrast(0), tmp_path / "b")
    assert told.value.hint.startswith("clamp what it divides by")
    assert not (tmp_path / "b").exists()


def test_an_epsilon_is_kept_on_every_engine(tmp_path: Path) -> None:
    module = Contrast(1e-8)
    bundle = exported(module, tmp_path / "b")
    assert [parity.FLAT in str(bundle.proof(Target.parse(name))) for name in bundle.targets] == [True, True]
    pixels = phantoms(8, 5, Preprocessing(size=SIZE), silent).pixels
    for images in pixels.values():
        images[:, :, :, :20] = 0
    with torch.no_grad():
        parts = [module(torch.from_numpy(pixels[modality])).numpy() for modality in MODALITIES]
    for target in bundle.targets:
        with mpmmu_rt.load(bundle.path, target) as predictor:
            np.testing.assert_allclose(predictor.predict(pixels).embedding, np.concatenate(parts, 1), rtol=1e-4)


class Standard(nn.Module):
    """By the mean and the spread of each image: of a blank one 0 / 0, and no epsilon."""

    def __init__(self, last: Callable[[Tensor], Tensor], channels: int = 16) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, channels, 5, 3), last

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.float()
        x = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)
        found: Tensor = self.last(self.first(x)).mean((2, 3))
        return found


@pytest.mark.slow
def test_what_is_no_number_on_a_blank_image_is_none_on_any_target(tmp_path: Path) -> None:
    """OpenVINO's Relu makes 0 of NaN, and a probability came out that looked right."""
    alone = Wanted(())
    bundle = exported(Standard(torch.relu), tmp_path / "b", alone)
    pixels = phantoms(2, 5, Preprocessing(size=SIZE), silent).pixels
    pixels["ultrasound"][1] = 0
    with (
        mpmmu_rt.load(bundle.path, bundle.targets[0]) as predictor,
        pytest.raises(AnswerError, match="not finite for 1 of 2 cases"),
    ):
        predictor.predict(pixels)
    with pytest.raises(
        ParityError, match=rf"original on openvino:fp32: {parity.BLANK} is 4, expected at most 0"
    ) as told:
        exported(Standard(torch.relu), tmp_path / "c")
    assert told.value.hint.startswith("clamp what the modules divide by")
    assert told.value.hint.endswith("; or leave openvino:fp32 out")
    with pytest.raises(ParityError, match=rf"original on onnxruntime:fp32: {parity.BLANK} is 4, expected") as told:
        exported(Standard(lambda x: functional.max_pool2d(x, 3).relu(), 6), tmp_path / "d", alone, 6)
    assert "leave" not in told.value.hint, "no bundle is without that target"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def without_blank(begun: Draft) -> Draft:
    """As if the original had no number for the last of its cases with a blank image."""
    assert begun.flat
    flat = replace(begun.flat, unanswered=frozenset({3}))
    return replace(begun, flat=flat, wanted=Wanted(limits=WIDE), exact=set(), _floats={})


def test_no_kind_of_target_may_answer_that(begun: Draft, few: Data) -> None:
    draft, refused = without_blank(begun), rf"{parity.BLANK} is 1, expected at most 0"
    with pytest.raises(ParityError, match=refused):
        proofs.equal(draft, Target("openvino", "fp32"))
    with pytest.raises(ParityError, match=rf"onnxruntime-cuda:fp32 differs from the original: {refused}"):
        proofs.same_graph(
            replace(draft, wanted=Wanted(gate=few, limits=WIDE)),
            Target("onnxruntime-cuda", "fp32"),
            begun.graph("model"),
        )
    with begun.open(FIRST) as predictor, pytest.raises(ParityError, match=refused):
        proofs.require_flat(draft, FIRST, predictor)


@pytest.mark.slow
def test_nor_may_int8(begun: Draft, few: Data, tmp_path: Path) -> None:
    """It is judged by decisions on cases with texture, and was asked nothing else."""
    target, folder = Target("openvino", "int8"), Path(shutil.copytree(begun.folder, tmp_path / "b"))
    calibration = phantoms(4, 11, Preprocessing(size=few.pixels["ultrasound"].shape[-1]), silent)
    wanted = Wanted((target,), calibration=calibration, gate=few, limits=WIDE)
    made = replace(without_blank(begun), folder=folder, entry=copy.deepcopy(begun.entry), wanted=wanted, rankings={})
    made.exact.add(Target("openvino", "fp32"))  # as if that had no number either
    with pytest.raises(ParityError, match=rf"^openvino:int8 differs from the original: {parity.BLANK} is 1, expected"):
        targets.family("openvino").make(made, target)


def with_factor(begun: Draft, factor: float) -> Draft:
    """As if the original said so many times as much of flat images."""
    assert begun.flat
    flat = Flat(begun.flat.pixels, begun.flat.embedding * np.float32(factor))
    return replace(begun, flat=flat, wanted=Wanted(limits=WIDE), exact=set(), _floats={})


def test_a_target_that_differs_there_alone_is_not_proven(begun: Draft) -> None:
    target = Target("openvino", "fp32")
    with pytest.raises(ParityError, match=r"embedding of images with a part of one grey, relative is 0\.00") as told:
        proofs.equal(with_factor(begun, 1.002), target)
    assert told.value.hint.startswith("clamp what the modules divide by")
    assert proofs.equal(with_factor(begun, 1), target)["passed"]


def test_nor_is_one_that_rounds(begun: Draft) -> None:
    target = Target("openvino", "bf16")
    if problem := engines()["openvino"].problem("bf16"):
        pytest.skip(str(problem))
    with pytest.raises(ParityError, match=r"openvino:bf16 differs from the original: embedding of images with") as told:
        proofs.same_decisions(with_factor(begun, 2), target, FIRST)
    assert told.value.hint.endswith("or leave the target out")
    assert proofs.same_decisions(with_factor(begun, 1), target, FIRST)


def test_nor_is_the_graph_of_one_that_can_not_run_here(begun: Draft) -> None:
    target, model = Target("onnxruntime-cuda", "fp32"), begun.graph("model")
    with pytest.raises(ParityError, match=r"onnxruntime-cuda:fp32 differs from the original: embedding of images with"):
        proofs.same_graph(with_factor(begun, 1.002), target, model)
    assert proofs.same_graph(with_factor(begun, 1), target, model)["checks"]


def test_what_is_asked(few: Any) -> None:
    flat = flattened(few)
    for modality in MODALITIES:
        images, given = flat.pixels[modality], few.pixels[modality]
        assert images.shape == (6, *given.shape[1:])
        shares = [[float((image == grey).mean()) for grey in (0, 255, 128)] for image in images]
        assert [int(np.argmax(share)) for share in shares] == [0, 0, 1, 1, 2, 2]
        assert all(max(share) > 0.3 for share in shares)
        assert all(len(np.unique(image)) > 2 for image in images), "none is blank"
        middle = (..., slice(SIZE // 3, 2 * SIZE // 3), slice(SIZE // 3, 2 * SIZE // 3))
        np.testing.assert_array_equal(images[middle], given[:6][middle])
    one = flattened(few.rows([0], "one"))
    assert len(one.pixels["mammography"]) == 6


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0])
def test_another_answer_is_over_every_limit(value: float) -> None:
    want: Array = np.ones((6, 4), np.float32)
    got = want.copy()
    assert parity.flat_check(got, Flat({}, want), 1e-4).passed
    got[3, 2] = value
    assert not parity.flat_check(got, Flat({}, want), 0.4).passed
