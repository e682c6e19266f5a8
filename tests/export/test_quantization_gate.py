"""The accuracy gate and the search for the layers that INT8 hurts, on the engine's own probabilities."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from mpmmu_rt.decisions import UNKNOWN
from mpmmu_rt.errors import EngineError, ExportError, ParityError, UsageError
from mpmmu_rt.export.quantization import (
    Limits,
    Ranges,
    calibrate,
    compare,
    hash_of_cases,
    layers,
    require_disjoint,
    search,
)
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.spec import MODALITIES, Array, Modality

# The model is untrained, its AUC and decisions mean nothing: here only the difference is held tight.
LOOSE = Limits(auc_loss=0.2, sensitivity_loss=0.5, flips=0.5, mean_difference=0.02)
THRESHOLD = 0.4
Pixels = Mapping[Modality, Array]


class Model:
    """Both encoders on ONNX Runtime, and a smooth head: the bundle's own forests see mostly rounding, untrained."""

    def __init__(self, folder: Path) -> None:
        self.graphs = {modality: onnx.load(folder / f"{modality}.onnx") for modality in MODALITIES}
        self.calls = 0

    def __call__(self, graphs: Mapping[Modality, onnx.ModelProto], pixels: Pixels) -> Array:
        self.calls += 1
        embeddings = [
            onnxruntime.InferenceSession(graphs[modality].SerializeToString())
            .run(["feature_map"], {"pixels": pixels[modality]})[0]
            .mean((2, 3))
            for modality in MODALITIES
        ]
        embedding = np.concatenate(embeddings, 1)
        weight = np.random.default_rng(0).normal(0, 1, embedding.shape[1])
        score: Array = embedding @ weight
        return 1 / (1 + np.exp(-score))


@pytest.fixture
def model(bundle_folder: Path) -> Model:
    return Model(bundle_folder / "onnx")


@pytest.fixture(scope="module")
def calibration() -> Pixels:
    return phantom_pixels(30, seed=3, preprocessing=Preprocessing(size=48))[0]


@pytest.fixture(scope="module")
def cases() -> tuple[Pixels, Array]:
    return phantom_pixels(60, seed=4, preprocessing=Preprocessing(size=48))


@pytest.fixture
def ranges(model: Model, calibration: Pixels) -> dict[Modality, Ranges]:
    return {modality: calibrate(model.graphs[modality], calibration[modality]) for modality in MODALITIES}


def sabotage(ranges: Mapping[Modality, Ranges], model: Model, layer: str) -> dict[Modality, Ranges]:
    """The range of what one layer of the ultrasound encoder reads is 1000 times too wide: it reads zeros."""
    found = ranges["ultrasound"]
    (tensor,) = (item.inputs[0] for item in layers(model.graphs["ultrasound"]) if item.name == layer)
    limit = dict(found.limit)
    limit[tensor] *= 1000
    return {**ranges, "ultrasound": replace(found, limit=limit)}


# ---------------------------------------------------------------- the gate


def test_the_gate_counts_by_hand() -> None:
    want = np.array([0.1, 0.45, 0.55, 0.9, 0.8])
    got = np.array([0.2, 0.55, 0.45, 0.9, 0.8], np.float32)
    labels = np.array([0, 0, 1, 1, 1])
    gate = compare(want, got, labels, 0.5, Limits(flips=0.5, mean_difference=0.1))
    assert gate.flips == 2
    assert gate.auc is not None
    assert gate.auc == pytest.approx((1.0, 5 / 6))
    assert gate.sensitivity == (1.0, 2 / 3)
    assert gate.max_difference == pytest.approx(0.1)
    assert gate.mean_difference == pytest.approx(0.06)
    passed = {check.name: check.passed for check in gate.checks}
    assert passed == {
        "decisions flipped, share of cases": True,
        "probability, mean |Δp|": True,
        "AUC loss": False,
        "sensitivity loss": True,  # one of three: fewer can't be seen
    }
    assert not gate.passed
    assert gate.basis == "5 labelled cases"


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (Limits(flips=0.01), "decisions flipped, share of cases"),
        (Limits(mean_difference=0.001), "probability, mean |Δp|"),
        (Limits(auc_loss=0.001), "AUC loss"),
        (Limits(sensitivity_loss=0.001), "sensitivity loss"),
    ],
)
def test_each_limit_refuses_alone(limits: Limits, name: str) -> None:
    """10 of 1000 malignant cases fall below every benign one; 20 benign ones rise above the threshold."""
    labels = np.repeat([0, 1], 1000)
    want = np.where(labels == 1, 0.6, 0.3)
    got = want.copy()
    got[:20], got[1000:1010] = 0.55, 0.2
    loose = {key: 1.0 for key in ("auc_loss", "sensitivity_loss", "flips", "mean_difference")}
    assert compare(want, got, labels, 0.5, Limits(**loose)).passed
    strict = {key: getattr(limits, key) for key in loose if getattr(limits, key) != getattr(Limits(), key)}
    gate = compare(want, got, labels, 0.5, Limits(**(loose | strict)))
    assert [check.name for check in gate.checks if not check.passed] == [name]


def test_without_labels_flips_and_differences_count() -> None:
    want = np.linspace(0, 1, 101)
    gate = compare(want, want, None, 0.5, Limits())
    assert gate.passed
    assert gate.auc is None
    assert gate.sensitivity is None
    assert gate.basis == "101 cases, no labels of both classes: no AUC; flips and |Δp| count"
    assert not compare(want, want[::-1], None, 0.5, Limits()).passed
    malignant = compare(want, want, np.ones(101, int), 0.5, Limits())
    assert malignant.auc is None
    assert malignant.sensitivity is not None
    assert not compare(want, np.minimum(want, 0.49), np.ones(101, int), 0.5, replace(LOOSE, mean_difference=1)).passed


def test_a_case_without_a_label_takes_no_limit_away() -> None:
    """One of 200 is not labelled: the AUC of the others is held to its limit all the same, and so is sensitivity."""
    labels = np.repeat([0, 1], 100)
    want = np.where(labels == 1, 0.6, 0.3)
    got = want.copy()
    got[100:104] = 0.2
    whole = compare(want, got, labels, 0.5, Limits())
    labels[7] = UNKNOWN
    gate = compare(want, got, labels, 0.5, Limits())
    for one in (whole, gate):
        assert [check.name for check in one.checks if not check.passed] == ["AUC loss", "sensitivity loss"]
    assert (gate.cases, gate.labelled, gate.malignant) == (200, 199, 100)
    assert gate.basis == "199 labelled cases of 200"
    assert gate.sensitivity == (1.0, 0.96)
    assert compare(want, want, np.full(200, UNKNOWN), 0.5, Limits()).auc is None


@pytest.mark.parametrize("got", [np.full(3, np.nan), np.full(3, 1.5), np.zeros(2), np.zeros((3, 1))])
def test_probabilities_that_are_none_are_refused(got: Array) -> None:
    with pytest.raises(EngineError, match="the INT8 engine gave probabilities"):
        compare(np.zeros(3), got, None, 0.5, Limits())


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_limits_are_shares(value: float) -> None:
    with pytest.raises(UsageError, match="INT8 limit flips"):
        Limits(flips=value)


def test_an_image_in_both_sets_is_refused(calibration: Pixels, cases: tuple[Pixels, Array]) -> None:
    pixels = dict(cases[0])
    require_disjoint(calibration, pixels)
    pixels["ultrasound"] = pixels["ultrasound"].copy()
    pixels["ultrasound"][7] = calibration["ultrasound"][2]
    with pytest.raises(UsageError, match=r"1 of the 60 ultrasound images .* number 8") as caught:
        require_disjoint(calibration, pixels)
    assert "patient" in caught.value.hint


# ---------------------------------------------------------------- the search


def test_int8_passes_and_is_reported(
    model: Model, ranges: Mapping[Modality, Ranges], calibration: Pixels, cases: tuple[Pixels, Array]
) -> None:
    found, report = search(
        model.graphs, ranges, calibration, *cases, model, threshold=THRESHOLD, limits=LOOSE, unsigned=True
    )
    assert model.calls == 2
    assert report.layers == 32
    assert report.kept_float == ()
    assert report.gate.passed
    assert report.calibration_sha256 == hash_of_cases(calibration)
    want, got = model(model.graphs, cases[0]), model(found, cases[0])
    assert report.gate.max_difference == pytest.approx(np.abs(want - got).max())
    assert 0 < report.gate.mean_difference < LOOSE.mean_difference
    entry: dict[str, Any] = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert entry["calibration"] == {"cases": 30, "sha256": report.calibration_sha256}
    assert entry["unsigned_activations"] is True
    assert entry["gate"]["cases"] == 60
    assert entry["gate"]["auc_delta"] == entry["gate"]["auc_int8"] - entry["gate"]["auc_float"]
    assert entry["limits"]["flips"] == 0.5
    kinds = {tensor.data_type for graph in found.values() for tensor in graph.graph.initializer}
    assert onnx.TensorProto.UINT8 in kinds


@pytest.mark.slow
def test_the_search_keeps_the_sabotaged_layer_in_float(
    model: Model, ranges: Mapping[Modality, Ranges], calibration: Pixels, cases: tuple[Pixels, Array]
) -> None:
    victim = "module.layer2.0.conv2.weight"
    broken = sabotage(ranges, model, victim)
    limits = replace(LOOSE, mean_difference=0.01)
    found, report = search(model.graphs, broken, calibration, *cases, model, threshold=THRESHOLD, limits=limits)
    (kept,) = report.kept_float
    assert (kept.modality, kept.layer) == ("ultrasound", victim)
    assert [count for count, _ in report.attempts] == [0, 1]
    (_, first), (_, last) = report.attempts
    assert first.mean_difference > limits.mean_difference > last.mean_difference
    assert model.calls == 3
    assert victim in {tensor.name for tensor in found["ultrasound"].graph.initializer}
    (entry,) = report.to_json()["kept_float"]
    assert entry["reason"].startswith("INT8 here alone adds ")


@pytest.mark.slow
def test_limits_that_cannot_be_kept_are_refused_with_the_numbers(
    model: Model, ranges: Mapping[Modality, Ranges], calibration: Pixels, cases: tuple[Pixels, Array]
) -> None:
    limits = replace(LOOSE, mean_difference=1e-9, float_share=0.25)
    with pytest.raises(
        ParityError, match=r"8 most harmful of 32 layers in float: probability, mean \|Δp\| is"
    ) as error:
        search(model.graphs, ranges, calibration, *cases, model, threshold=THRESHOLD, limits=limits)
    assert "at most 1e-09 (60 labelled cases)" in str(error.value)
    assert model.calls == 6  # float, then 0, 1, 2, 4 and 8 layers in float


def test_sets_that_do_not_fit_are_refused(
    model: Model, ranges: Mapping[Modality, Ranges], calibration: Pixels, cases: tuple[Pixels, Array]
) -> None:
    def run(calibration: Pixels, pixels: Pixels, labels: Array | None) -> None:
        search(model.graphs, ranges, calibration, pixels, labels, model, threshold=THRESHOLD)

    with pytest.raises(UsageError, match="30 of the 30 mammography images"):
        run(calibration, calibration, None)
    with pytest.raises(ExportError, match="measured on other images"):
        run(cases[0], calibration, None)
    with pytest.raises(UsageError, match="60 mammograms, 60 ultrasound images and 59 labels"):
        run(calibration, cases[0], cases[1][1:])
    with pytest.raises(UsageError, match="0 mammograms"):
        run(calibration, {modality: array[:0] for modality, array in cases[0].items()}, None)
    assert model.calls == 0
