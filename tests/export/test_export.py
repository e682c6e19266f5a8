"""The export against torch and scikit-learn, and what it must refuse."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor, nn

from mpmmu_rt import predictor as predictors
from mpmmu_rt.bundle import GRAPHS, WEIGHTS, Bundle, own_graph
from mpmmu_rt.card import INTENDED_USE
from mpmmu_rt.checks import Check
from mpmmu_rt.errors import ExportError, OutputError, ParityError, UnsupportedEstimator, UsageError
from mpmmu_rt.export import Data, Wanted, build, export_bundle, graphs, parity, reference
from mpmmu_rt.export import head as heads
from mpmmu_rt.export.encoders import Encoders, is_cut
from mpmmu_rt.images import Preprocessing
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.config import EncoderConfig
from mpmmu_rt.model.config import reference as reference_config
from mpmmu_rt.model.encoder import Encoder
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target


class Thumbnail(nn.Module):
    """A module of a user's: pixels to an embedding, by an 8 × 8 thumbnail and a linear map."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(64, width)

    def forward(self, pixels: Tensor) -> Tensor:
        small = nn.functional.avg_pool2d(pixels.float() / 255, 4)
        out: Tensor = torch.tanh(self.linear(small.flatten(1)))
        return out


class Fails(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        raise ValueError("pixels must be float")


class Integers(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1).sum(1)


def labelled(size: int, count: int = 60) -> tuple[dict[Any, Array], Array]:
    return phantom_pixels(count, seed=4, preprocessing=Preprocessing(size=size))


def custom() -> dict[str, Any]:
    """Arguments of `export_bundle` for a model that shares nothing with ours."""
    modules = {"mammography": Thumbnail(5, 0), "ultrasound": Thumbnail(3, 1)}
    pixels, label = labelled(32)
    with torch.inference_mode():
        parts = [modules[m](torch.from_numpy(pixels[m])).numpy() for m in MODALITIES]
    head = make_pipeline(StandardScaler(), CalibratedClassifierCV(SVC(random_state=0), cv=3, ensemble=False))
    head.fit(np.concatenate(parts, 1), label)
    return {**modules, "head": head, "preprocessing": Preprocessing(size=32)}


def test_every_batch_size_gives_the_originals_answer(small_model: Checkpoint, bundle_folder: Path) -> None:
    size = small_model.config.preprocessing.size
    pixels, _ = phantom_pixels(32, seed=77, preprocessing=Preprocessing(size=size))
    original = parity.run_original(Encoders(dict(small_model.encoders), size), small_model.head, pixels)
    with predictors.load(bundle_folder) as predictor:
        for count in (1, 2, 7, 32):
            few = {modality: pixels[modality][:count] for modality in MODALITIES}
            prediction = predictor.predict(few)
            np.testing.assert_allclose(prediction.probability, original.probability[:count], rtol=0, atol=1e-4)
            np.testing.assert_allclose(prediction.embedding, original.stages["embedding"][:count], rtol=1e-4, atol=1e-5)
            whole = predictor.run_whole_graph(few)
            np.testing.assert_allclose(whole["probability"], prediction.probability, rtol=0, atol=1e-5)
            np.testing.assert_allclose(whole["embedding"], prediction.embedding, rtol=1e-4, atol=1e-5)
    assert np.ptp(original.probability) > 0.05  # not a constant that anything would reproduce


def test_graphs_are_fixed_dynamic_and_anonymous(bundle_folder: Path) -> None:
    for name in GRAPHS:
        path = bundle_folder / "onnx" / f"{name}.onnx"
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(str(path))
        assert model.ir_version == graphs.IR_VERSION
        domains = {"", "ai.onnx.ml"} if name == "head_onnxruntime" else {""}  # what TensorRT and OpenVINO take
        assert {item.domain for item in model.opset_import} == domains
        assert next(item.version for item in model.opset_import if item.domain == "") == graphs.OPSET
        for value in (*model.graph.input, *model.graph.output):
            assert value.type.tensor_type.shape.dim[0].dim_param == "N", (name, value.name)
        text = path.read_bytes()
        for trace in (b"/mpmmu_rt", b"site-packages", b".py", str(Path.home()).encode()):
            assert trace not in text, f"{name} tells of the machine that made it: {trace!r}"
    names = {
        n: [i.name for i in onnx.load(bundle_folder / "onnx" / f"{n}.onnx", load_external_data=False).graph.output]
        for n in GRAPHS
    }
    assert names == {
        **{key: ["feature_map"] for key in ("mammography", "ultrasound")},
        **{key: ["feature_map"] for key in ("mammography_onnxruntime", "ultrasound_onnxruntime")},
        **{key: ["embedding"] for key in ("attention_pool", "attention_pool_onnxruntime")},
        "head": ["probability", "base_probability"],
        "head_onnxruntime": ["probability", "base_probability"],
        "model": ["probability", "base_probability", "embedding"],
    }


def test_onnxruntime_gets_gates_that_it_computes_exactly(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    for name in ("mammography", "ultrasound", "attention_pool"):
        operators = [
            {node.op_type for node in onnx.load(str(graph), load_external_data=False).graph.node}
            for graph in (bundle.path / f"onnx/{name}.onnx", bundle.path / f"onnx/{name}_onnxruntime.onnx")
        ]
        assert "Sigmoid" in operators[0]
        assert "Sigmoid" not in operators[1]
        assert operators[1] - operators[0] == {"Neg", "Exp", "Reciprocal"} - operators[0]


def test_weights_are_stored_once(bundle_folder: Path, small_model: Checkpoint) -> None:
    stored = (bundle_folder / "onnx" / WEIGHTS).stat().st_size
    tensors = [t for e in small_model.encoders.values() for k, t in e.state_dict().items() if not k.startswith("fc.")]
    pages = sum(-(-t.numel() * t.element_size() // 4096) * 4096 for t in tensors)
    assert stored <= pages  # the joined graph added nothing
    files = {path.name for path in (bundle_folder / "onnx").iterdir()}
    of_openvino = [own_graph(name, "openvino") for name in (*MODALITIES, "attention_pool")]
    assert files == {WEIGHTS, "attention_pool.npz", *(f"{name}.onnx" for name in (*GRAPHS, *of_openvino))}


def test_the_bundle_says_what_it_is(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    assert bundle.trained
    assert bundle.threshold == 0.4
    assert bundle.entry["card"]["intended_use"] == INTENDED_USE
    report = bundle.entry["parity"]
    assert report["passed"]
    assert report["cases"] == build.PARITY_CASES
    assert report["decisions_flipped"] == 0
    assert {check["name"] for check in report["checks"]} >= {
        "embedding, relative",
        "decisions flipped",
        "batch 32 in reverse order",
    }
    assert str(bundle.tensors["mammography_pixels"]) == "mammography_pixels uint8[N, 1, 48, 48]"


@pytest.mark.slow
def test_a_head_that_differs_leaves_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parity gate against a real defect: the graph of another head than the one it is checked against."""
    other = LogisticRegression(max_iter=1000)
    rng = np.random.default_rng(0)
    other.fit(rng.normal(size=(50, 8)), np.arange(50) % 2)
    original = heads.lower
    monkeypatch.setattr(heads, "lower", lambda estimator, *rest: original(other, *rest))
    with pytest.raises(ParityError, match=r"head on the same embedding, max .*; no bundle was written") as caught:
        export_bundle(tmp_path / "out.bundle", **custom())
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shift", [2e-4, 1e-3])
def test_crossings_are_few_and_small(shift: float) -> None:
    """A probability off by more than rounding passes for a split crossing in one case, not in many."""
    want = np.linspace(0.05, 0.95, 40)
    one, many = want.copy(), want.copy()
    one[3] += shift
    many[:20] += shift
    few_checks, crossings, flips = parity._decisions(one, want, 0.5)
    assert all(check.passed for check in few_checks)
    assert (crossings, flips) == (1, 0)
    many_checks, crossings, _ = parity._decisions(many, want, 0.5)
    assert crossings == 20
    assert [check.name for check in many_checks if not check.passed] == ["split crossings, share of cases"]


def test_a_flipped_decision_never_passes() -> None:
    want = np.array([0.499999, 0.7, 0.2])
    checks, _, flips = parity._decisions(want + np.array([2e-6, 0, 0]), want, 0.5)
    assert flips == 1
    assert [check.name for check in checks if not check.passed] == ["decisions flipped"]


def test_a_large_jump_is_no_crossing() -> None:
    want = np.linspace(0.1, 0.4, 100)
    got = want.copy()
    got[0] += 0.05
    checks, _, _ = parity._decisions(got, want, 0.5)
    assert "split crossings, max |Δp|" in [check.name for check in checks if not check.passed]


def test_nan_never_passes() -> None:
    want = np.linspace(0.1, 0.4, 100)
    got = want.copy()
    got[0] = np.nan
    checks, _, _ = parity._decisions(got, want, 0.5)
    assert not all(check.passed for check in checks)


@pytest.mark.parametrize(
    ("failed", "hint"),
    [
        ("mammography feature map, relative", "no module may ask whether it is being exported"),
        (parity.FLAT, "and ask for no order or place of values that may be equal"),
        (parity.BLANK, "clamp what the modules divide by"),
        ("split crossings, share of cases", "the head makes other probabilities of it: fit it on values that vary"),
    ],
)
def test_a_difference_says_on_which_target_and_what_to_do(failed: str, hint: str) -> None:
    report = parity.Parity((Check("embedding, relative", 0, 1e-4), Check(failed, 1, 0.5)), 32, 0, 0, None)
    for name, way_out in (("onnxruntime:fp32", ""), ("openvino:fp32", "; or leave openvino:fp32 out")):
        with pytest.raises(ParityError, match=f"the original on {name}: {failed} is 1, expected at most 0.5") as told:
            report.require(Target.parse(name))
        assert hint in told.value.hint
        assert told.value.hint.endswith(way_out)
        assert way_out or "leave" not in told.value.hint
    with pytest.raises(ParityError) as told:
        report.require(Target.parse("openvino:fp32"), Target.parse("openvino:int8"))
    assert told.value.hint.endswith("; or leave openvino:int8 out")


def one_of_three(data: Data) -> Data:
    return replace(data, labels=np.arange(len(data.pixels["ultrasound"])) % 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pixels, r"are a dict, expected a mpmmu_rt\.export\.Data"),
        (
            lambda data: data.rows([], "none"),
            r"mammography images are uint8\[0, 1, 32, 32\], expected .* at least one case",
        ),
        (
            lambda data: replace(data, pixels={"ultrasound": data.pixels["ultrasound"]}),
            "are ultrasound, expected mammog",
        ),
        (
            lambda data: replace(data, pixels=data.pixels | {"ultrasound": data.pixels["ultrasound"][:3]}),
            "there are 6 mammograms and 3 ultrasound images, expected one pair per case",
        ),
        (
            lambda data: replace(data, pixels=data.pixels | {"ultrasound": data.pixels["ultrasound"] / 255}),
            r"the ultrasound images are float64\[6, 1, 32, 32\], expected uint8\[N, 1, 32, 32\]",
        ),
        (lambda data: replace(data, pixels={m: data.pixels[m][..., :8] for m in MODALITIES}), r"uint8\[6, 1, 32, 8\]"),
        (
            lambda data: replace(data, pixels={m: torch.from_numpy(data.pixels[m]) for m in MODALITIES}),
            "mammography images are Tensor, expected",
        ),
        (
            lambda data: replace(data, labels=data.labels[:4]),
            r"the labels are int64\[4\] of .*, expected 0, 1 or -1 \[6\]",
        ),
        (one_of_three, r"are int64\[6\] of 0, 1, 2, expected 0, 1 or -1 \[6\]"),
        (lambda data: replace(data, labels=np.full(6, np.nan)), r"are float64\[6\] of nan, expected"),
        (lambda data: replace(data, labels=list(data.labels)), r"the labels are a list, expected an array \[6\]"),
        (
            lambda data: replace(data, labels=np.array([0, 1, None, 0, 1, 0])),
            r"are object\[6\] of 0, 1, None, expected",
        ),
        (lambda data: replace(data, ids=("a", "b")), "2 ids of 6 cases, expected one of each, or none"),
    ],
)
def test_what_are_no_cases_is_refused_before_any_work(change: Any, message: str, tmp_path: Path) -> None:
    """Of three classes no AUC was held, of labels in a list neither, and of others there was a traceback."""
    pixels, labels = labelled(32, 6)
    bad = change(Data(pixels, labels, "mine"))
    modules: dict[str, Any] = dict.fromkeys(MODALITIES, Thumbnail(5, 0))
    for use, given in (
        ("prove parity on", {"parity_cases": bad}),
        ("calibrate INT8 on", {"wanted": Wanted((), calibration=bad)}),
        ("judge what rounds on", {"wanted": Wanted((), gate=bad)}),
    ):
        with pytest.raises(UsageError, match=f"^the cases to {use}.*{message}") as told:
            export_bundle(tmp_path / "b", **modules, head=LogisticRegression(), preprocessing=32, **given)
        assert told.value.hint.startswith("Data(pixels, labels, source)")
    assert list(tmp_path.iterdir()) == []


def test_labels_of_every_kind_that_says_0_1_or_nothing() -> None:
    pixels, labels = labelled(32, 6)
    for good in (None, labels, labels == 1, labels.astype(np.float32), np.full(6, -1), labels.astype(np.int8)):
        Data(pixels, good, "mine").require_usable(32, "mine")


@pytest.mark.slow
def test_bring_your_own(tmp_path: Path) -> None:
    arguments = custom()
    bundle = export_bundle(tmp_path / "own.bundle", **arguments, name="thumbnails", threshold=0.3)
    assert bundle.name == "thumbnails"
    assert bundle.tensors["mammography_feature_map"].shape == ("N", 5)
    assert bundle.entry["attention_pool"] is None
    rounded = [report for name, report in bundle.entry["precision"].items() if name.endswith(":bf16")]
    assert [report["cases"] for report in rounded] == [build.GATE_CASES] * len(rounded), "more than parity needs"
    pixels, _ = labelled(32, 9)
    with predictors.load(tmp_path / "own.bundle") as predictor:
        got = predictor.predict(pixels)
    parts = [arguments[m](torch.from_numpy(pixels[m])).detach().numpy() for m in MODALITIES]
    embedding = np.concatenate(parts, 1)
    np.testing.assert_allclose(got.embedding, embedding, atol=1e-6)
    np.testing.assert_allclose(got.probability, arguments["head"].predict_proba(embedding)[:, 1], atol=1e-5)


@pytest.mark.slow
def test_your_modules_are_left_as_they_were(tmp_path: Path) -> None:
    arguments = custom()
    arguments["mammography"].train()
    cases = Data(labelled(32, 8)[0], None, "eight")
    bundle = export_bundle(tmp_path / "own.bundle", **arguments, parity_cases=cases, wanted=Wanted(()))
    assert arguments["mammography"].training
    assert bundle.entry["parity"]["auc_original"] is None
    assert bundle.entry["parity"]["source"] == "eight"


class Unit(Encoder):
    """A subclass with a `forward` of its own."""

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.normalize(super().forward(pixels), dim=1)


def encoder(kind: type[Encoder] = Encoder) -> Encoder:
    torch.manual_seed(3)
    return kind(EncoderConfig(arch="resnet18", width=4)).eval()


def hooked() -> Encoder:
    module = encoder()
    module.register_forward_pre_hook(lambda _, arguments: (255 - arguments[0],))
    return module


def overridden() -> Encoder:
    module = encoder()
    module.forward = lambda pixels: 2 * Encoder.forward(module, pixels)  # type: ignore[method-assign]
    return module


def hooked_within() -> Encoder:
    module = encoder()
    module.bn1.register_forward_hook(lambda _, arguments, out: 2 * out)  # `rewrite` folds it away
    return module


def replaced_within() -> Encoder:
    module = encoder()
    module.bn1 = nn.GroupNorm(1, 4)  # type: ignore[assignment]
    return module


def test_what_is_not_called_as_features_and_pool_is_not_cut() -> None:
    assert is_cut(encoder())
    changed = (encoder(Unit), hooked(), overridden(), hooked_within(), replaced_within(), Thumbnail(3, 0))
    assert [is_cut(module) for module in changed] == [False] * 6


@pytest.mark.slow
def test_an_encoder_of_ours_that_says_something_else_is_exported_as_it_is_called(tmp_path: Path) -> None:
    module, other = encoder(Unit), hooked()
    pixels, label = labelled(32)

    def embed(pixels: Mapping[Modality, Array]) -> Array:
        with torch.inference_mode():
            parts = [module(torch.from_numpy(pixels["mammography"])), other(torch.from_numpy(pixels["ultrasound"]))]
            return torch.cat(parts, 1).numpy()

    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(embed(pixels), label)
    bundle = export_bundle(
        tmp_path / "b",
        mammography=module,
        ultrasound=other,
        head=head,
        preprocessing=Preprocessing(size=32),
        wanted=Wanted(()),
    )
    assert bundle.entry["attention_pool"] is None
    new, _ = labelled(32, 20)
    with predictors.load(tmp_path / "b") as predictor:
        got = predictor.predict(new)
    np.testing.assert_allclose(got.embedding, embed(new), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.probability, head.predict_proba(embed(new))[:, 1], atol=1e-4)


class Masks(Thumbnail):
    """Blackens a corner, in place."""

    def forward(self, pixels: Tensor) -> Tensor:
        pixels[:, :, :8, :8] = 0
        return super().forward(pixels)


@pytest.mark.slow
def test_a_module_that_works_in_place_changes_no_image_of_the_users(tmp_path: Path) -> None:
    arguments = custom() | {"mammography": Masks(5, 0)}
    pixels, _ = labelled(32, 12)
    before = {modality: array.copy() for modality, array in pixels.items()}
    bundle = export_bundle(tmp_path / "b", **arguments, parity_cases=Data(pixels, None, "twelve"), wanted=Wanted(()))
    golden = bundle.golden()
    for modality in MODALITIES:
        np.testing.assert_array_equal(pixels[modality], before[modality])
        np.testing.assert_array_equal(golden[f"{modality}.pixels"], before[modality][:4])
    with predictors.load(tmp_path / "b") as predictor:
        got = predictor.predict(pixels).embedding
    want = Masks(5, 0)(torch.from_numpy(before["mammography"].copy())).detach().numpy()
    np.testing.assert_allclose(got[:, :5], want, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"mammography": Fails()},
            ExportError,
            r"the mammography module \(Fails\) fails on pixels uint8\[2, 1, 32, 32\]: pixels must be float",
        ),
        (
            {"ultrasound": Integers()},
            ExportError,
            r"the ultrasound module \(Integers\) gives int64\[2\] .*, expected float32",
        ),
        ({"mammography": Thumbnail(6, 0)}, UnsupportedEstimator, "fitted on 8 features and the encoders give 9"),
        (
            {"head": LogisticRegression().fit(np.eye(8)[:6], [0, 1, 2] * 2)},
            UnsupportedEstimator,
            r"classes \[0, 1, 2\], expected",
        ),
        ({"head": LogisticRegression()}, UnsupportedEstimator, "that is not fitted, expected a fitted"),
    ],
)
def test_what_can_not_be_exported(change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        export_bundle(tmp_path / "own.bundle", **(custom() | change))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_estimator_is_named(tmp_path: Path) -> None:
    class Mine(LogisticRegression):  # type: ignore[misc]
        pass

    arguments = custom()
    arguments["head"] = Mine().fit(np.random.default_rng(0).normal(size=(20, 8)), np.arange(20) % 2)
    with pytest.raises(UnsupportedEstimator, match=r"^head is a .*Mine, expected a supported classifier"):
        export_bundle(tmp_path / "own.bundle", **arguments)


def test_an_existing_folder_is_refused_before_any_work(checkpoint_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match=r"exists and holds no bundle\.json"):
        build.export_checkpoint(checkpoint_folder / "absent", tmp_path / "mine")


@pytest.mark.slow
@pytest.mark.usefixtures("traces_kept")
def test_parity_on_a_manifest(checkpoint_folder: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.bundle"
    bundle = build.export_checkpoint(checkpoint_folder, output, parity_manifest=phantom_manifest, wanted=Wanted(()))
    assert bundle.entry["parity"]["cases"] == 12
    assert bundle.entry["parity"]["source"].startswith("12 cases of manifest.csv, sha256 ")
    assert bundle.entry["parity"]["auc_original"] == pytest.approx(bundle.entry["parity"]["auc_exported"])


@pytest.mark.slow
def test_two_exports_are_the_same_but_for_nothing(checkpoint_folder: Path, bundle_folder: Path, tmp_path: Path) -> None:
    again = build.export_checkpoint(checkpoint_folder, tmp_path / "again.bundle", wanted=Wanted(()))
    first, second = (json.loads((p / "bundle.json").read_text())["files"] for p in (bundle_folder, again.path))
    first.pop("MODEL_CARD.md")  # names the targets, of which the second has fewer
    second.pop("MODEL_CARD.md")
    assert first == second


def test_golden_vectors_are_the_originals(small_model: Checkpoint, bundle_folder: Path) -> None:
    golden = Bundle.open(bundle_folder).golden()
    with torch.inference_mode():
        for modality in MODALITIES:
            features = small_model.encoders[modality].features(torch.from_numpy(golden[f"{modality}.pixels"]))
            np.testing.assert_allclose(golden[f"{modality}.feature_map"], features.numpy(), rtol=1e-5, atol=1e-6)
    want = small_model.head.predict_proba(golden["embedding"])[:, 1]
    np.testing.assert_allclose(golden["probability"], want, rtol=0, atol=1e-6)  # BLAS sums by batch size


def test_threshold_must_be_a_probability(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"threshold is 1.5, expected"):
        export_bundle(tmp_path / "own.bundle", **custom(), threshold=1.5)


@pytest.mark.slow
def test_a_reference_bundle_is_marked_untrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers and channels of the reference model, and so its rounding, on images of a twelfth of the pixels."""
    config = replace(reference_config(), preprocessing=Preprocessing(size=64))
    monkeypatch.setattr("mpmmu_rt.export.reference.reference_config", lambda: config)
    monkeypatch.setattr(reference, "PHANTOMS", 64)
    bundle = build.export_reference(tmp_path / "reference.bundle", wanted=Wanted(()))
    assert (bundle.trained, bundle.name, bundle.threshold) == (False, "reference", 0.5)
    assert "UNTRAINED" in bundle.entry["card"]["warning"]
    said = onnx.load(str(bundle.path / "onnx/head.onnx"), load_external_data=False).metadata_props
    assert any("UNTRAINED" in item.value for item in said)
    assert bundle.tensors["embedding"].shape == ("N", 4096)
    assert bundle.tensors["mammography_feature_map"].shape == ("N", 2048, 2, 2)
    assert bundle.entry["parity"]["decisions_flipped"] == 0


def test_the_reference_model_is_of_full_size() -> None:
    config = reference_config()
    pixels = torch.zeros(1, 1, config.preprocessing.size, config.preprocessing.size, dtype=torch.uint8, device="meta")
    for modality in MODALITIES:
        module = Encoder(config.encoder(modality)).to("meta")
        assert module.features(pixels).shape == (1, 2048, 7, 7)
        assert module(pixels).shape == (1, 2048)
