"""A proof on cases that the model was trained on is told from one on others, whatever they are called."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.cli import app
from mpmmu_rt.export import Limits, Wanted, export_checkpoint
from mpmmu_rt.export.cases import of_manifest
from mpmmu_rt.export.quantization import compare
from mpmmu_rt.known_images import KnownImages, digest, listing
from mpmmu_rt.model import checkpoint as checkpoints
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.progress import silent
from mpmmu_rt.spec import MODALITIES, Array, Modality


def drawn(seed: int, count: int = 6) -> dict[Modality, Array]:
    rng = np.random.default_rng(seed)
    return {modality: rng.integers(0, 256, (count, 1, 9, 9), np.uint8) for modality in MODALITIES}


def test_an_image_is_known_again_in_any_place_and_no_other() -> None:
    pixels, other = drawn(0), drawn(1)
    entry = {
        "train": listing([*pixels["mammography"][:2], pixels["ultrasound"][4]]),
        "test": listing(other["mammography"]),
    }
    known = KnownImages.from_json(json.loads(json.dumps(entry)))
    assert known.known
    assert known.learnt(pixels).tolist() == [True, True, False, False, True, False]
    assert not known.learnt(other).any(), "test rows were looked at, and not learnt from"
    turned: dict[Modality, Array] = {modality: array[::-1] for modality, array in pixels.items()}
    assert known.learnt(turned).tolist() == [False, True, False, False, True, True]


def test_validation_counts_as_learnt() -> None:
    pixels = drawn(2)
    known = KnownImages.from_json({"validation": listing(pixels["ultrasound"][3:4])})
    assert known.learnt(pixels).tolist() == [False, False, False, True, False, False]


@pytest.mark.parametrize("entry", [None, {}, [], "abc", {"train": None}, {"train": 3}, {"other": "0" * 12}])
def test_of_a_model_that_says_nothing_nothing_is_known(entry: object) -> None:
    known = KnownImages.from_json(entry)
    assert not known.known
    assert not known.learnt(drawn(0)).any()


def test_one_changed_pixel_is_another_image() -> None:
    image = drawn(3)["mammography"][0]
    changed = image.copy()
    changed[0, 4, 4] ^= 1
    assert digest(image) != digest(changed)
    assert digest(image) == digest(np.asfortranarray(image))


@pytest.fixture
def knowing(small_model: Checkpoint, phantom_manifest: Path, tmp_path: Path) -> Path:
    """A checkpoint that was trained on five of the phantoms of `phantom_manifest`."""
    data = of_manifest(phantom_manifest, small_model.config.preprocessing, silent)
    known = {"train": listing(data.pixels["mammography"][:3]), "validation": listing(data.pixels["ultrasound"][3:5])}
    folder = tmp_path / "checkpoint"
    trained = Checkpoint(small_model.config, small_model.encoders, small_model.head, 0.4, small_model.card, known)
    checkpoints.save(trained, folder)
    assert checkpoints.load(folder).known_images == known
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("traces_kept")
def test_export_and_verify_say_of_how_many(knowing: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.bundle"
    done = CliRunner().invoke(
        app,
        ["export", str(knowing), "-o", str(out), "--parity", str(phantom_manifest), "--target", "onnxruntime:fp32"],
    )
    assert done.exit_code == 0, done.stderr
    assert "warning: 5 of the 12 cases of the parity check were trained on" in done.stderr
    assert "warning: parity was shown on 12 cases alone" in done.stderr
    parity = Bundle.open(out).entry["parity"]
    assert (parity["learnt"], parity["judged_learnt"], parity["judged"]) == (5, 5, 12)
    said = CliRunner().invoke(app, ["verify", str(out), str(phantom_manifest), "--no-record"])
    assert said.exit_code == 0, said.stderr
    assert "5 of the 12 cases show images that the model was trained on" in said.stderr


def test_phantoms_that_nobody_learnt_from_need_no_warning(bundle_folder: Path) -> None:
    from mpmmu_rt.cli.export import thin_proofs

    bundle = Bundle.open(bundle_folder)
    assert bundle.entry["parity"]["learnt"] is None, "this checkpoint says nothing of its images"
    assert thin_proofs(bundle.entry) == []


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.repeat([0, 1], [100, 20]), []),
        (
            np.repeat([0, 1], [100, 4]),
            ["the sensitivity of openvino:int8 was held to FP32's on 4 malignant cases alone"],
        ),
        (
            np.zeros(100, int),
            ["openvino:int8 was held to no AUC, and may rank cases otherwise: 100 cases, no labels of"],
        ),
        (None, ["openvino:int8 was held to no AUC"]),
    ],
    ids=["enough", "few malignant", "benign alone", "no label"],
)
@pytest.mark.parametrize("place", ["gate", "graph", ""])
def test_a_gate_that_could_not_refuse_is_told(
    bundle_folder: Path, labels: Array | None, says: list[str], place: str
) -> None:
    from mpmmu_rt.cli.export import thin_proofs

    said = np.linspace(0, 1, 100 if labels is None else len(labels))
    gate = compare(said, said, labels, 0.5, Limits()).to_json()
    report = {"passed": True, **({place: gate} if place else gate)}
    found = thin_proofs(dict(Bundle.open(bundle_folder).entry) | {"precision": {"openvino:int8": report}})
    assert len(found) == len(says)
    assert all(text.startswith(start) for text, start in zip(found, says, strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures("traces_kept")
def test_too_few_cases_prove_no_rounding(checkpoint_folder: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    """BF16 on 12 cases of which none flips: up to a quarter of all decisions might."""
    pytest.importorskip("openvino", reason="openvino is not installed")
    left_out = export_checkpoint(
        checkpoint_folder, tmp_path / "a.bundle", parity_manifest=phantom_manifest, wanted=Wanted()
    )
    bf16 = left_out.entry["precision"].get("openvino:bf16")
    if bf16 is None:
        pytest.skip("this processor has no BF16")
    assert bf16 == {
        "passed": False,
        "reason": "openvino:bf16 would be judged on 12 cases, expected at least 60 to show that at most 0.05 of all "
        "decisions flip",
    }
    asked = CliRunner().invoke(
        app,
        [
            *("export", str(checkpoint_folder), "-o", str(tmp_path / "b.bundle"), "--parity", str(phantom_manifest)),
            *("--target", "openvino:bf16"),
        ],
    )
    assert asked.exit_code == 2
    assert "would be judged on 12 cases, expected at least 60" in asked.stderr
    assert not (tmp_path / "b.bundle").exists()
    run = CliRunner().invoke(
        app,
        ["run", str(left_out.path), str(phantom_manifest), "-o", str(tmp_path / "p.csv"), "--target", "openvino:bf16"],
    )
    assert run.exit_code == 2
    assert "was left out of" in run.stderr
    assert "would be judged on 12 cases" in run.stderr, "the reason of then, and no other"


@pytest.mark.slow
@pytest.mark.usefixtures("traces_kept", "no_search")
def test_what_is_required_and_left_out_is_exit_code_3(
    checkpoint_folder: Path, phantom_manifest: Path, tmp_path: Path
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    command = ["export", str(checkpoint_folder), "--calibrate", str(phantom_manifest), "--mean-difference", "0"]
    done = CliRunner().invoke(app, [*command, "--flips", "1", "-o", str(tmp_path / "a.bundle")])
    assert done.exit_code == 0, done.stderr
    assert "left out" in done.stdout
    assert f"warning: --calibrate was given, and there is NO INT8 in {tmp_path / 'a.bundle'}: " in done.stderr
    assert "no bundle was written" not in json.dumps(dict(Bundle.open(tmp_path / "a.bundle").entry))
    for other in (["run", str(phantom_manifest), "-o", str(tmp_path / "p.csv")], ["bench", "--seconds", "0.1"]):
        command_of, *rest = other
        said = CliRunner().invoke(app, [command_of, str(tmp_path / "a.bundle"), *rest, "--target", "openvino:int8"])
        assert said.exit_code in (1, 2)
        assert "when" in said.stderr
        assert "changes decisions more than allowed" in said.stderr, "the reason of then, and no other"
    required = CliRunner().invoke(
        app, [*command, "--flips", "1", "-o", str(tmp_path / "b.bundle"), "--require", "openvino:int8"]
    )
    assert required.exit_code == 3
    assert "openvino:int8 is not among the targets of" in required.stderr
    assert Bundle.open(tmp_path / "b.bundle").targets == Bundle.open(tmp_path / "a.bundle").targets
    shutil.rmtree(tmp_path / "b.bundle")
    assert len(read_manifest(phantom_manifest).cases) == 12
