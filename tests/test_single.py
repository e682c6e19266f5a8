"""Heads for one modality alone: nothing falls back to them, and what rests on one image says so in its row."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from mpmmu_rt import bundle as bundles
from mpmmu_rt.archive.plan import read_plan
from mpmmu_rt.archive.run import _header, _job
from mpmmu_rt.archive.worker import Worker
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.cases import Manifest, read_manifest
from mpmmu_rt.checks import decide
from mpmmu_rt.engines import engines
from mpmmu_rt.errors import BundleError, CheckpointError, EngineError, OutputError, PixelsError, UsageError
from mpmmu_rt.export import Limits, Wanted, export_checkpoint
from mpmmu_rt.journal import Layout
from mpmmu_rt.machine import THREADS_VARIABLE
from mpmmu_rt.model import checkpoint as checkpoints
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.phantom import phantom_pixels
from mpmmu_rt.model.stacking import fit_head
from mpmmu_rt.model.stage_one import embed
from mpmmu_rt.predictor import Predictor, load
from mpmmu_rt.run import Asked, extra_columns, run
from mpmmu_rt.single import BOTH, COLUMN, SingleHeads
from mpmmu_rt.single_record import golden_of
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target
from mpmmu_rt.verify import replay, verify

from .conftest import Traced

BF16 = Target("openvino", "bf16")  # of what rounds, the one that needs no images to calibrate on
OTHER: dict[Modality, Modality] = {"mammography": "ultrasound", "ultrasound": "mammography"}


@pytest.fixture(scope="module")
def checkpoint(small_model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small_model` with a head for each modality."""

    config, path = small_model.config, tmp_path_factory.mktemp("single") / "checkpoint"
    pixels, label = phantom_pixels(80, seed=1, preprocessing=config.preprocessing)
    groups = [str(row) for row in range(80)]
    heads = {
        name: fit_head(embed(small_model.encoders[name], pixels[name]), label, groups, config.head, seed=2)
        for name in MODALITIES
    }
    checkpoints.save(replace(small_model, single_heads=heads), path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint: Path, traced_once: Traced, tmp_path_factory: pytest.TempPathFactory) -> Path:
    limits = Limits(auc_loss=1, sensitivity_loss=1, flips=1, mean_difference=1)
    rounding = () if engines()["openvino"].problem("bf16") else (BF16,)
    wanted = Wanted((Target("openvino", "fp32"), *rounding), limits=limits)
    with traced_once():
        return export_checkpoint(checkpoint, tmp_path_factory.mktemp("single") / "bundle", wanted=wanted).path


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Iterator[Predictor]:
    with load(folder) as predictor:
        yield predictor


@pytest.fixture(scope="module")
def pixels(small_model: Checkpoint) -> dict[Modality, Array]:
    return phantom_pixels(9, seed=3, preprocessing=small_model.config.preprocessing)[0]


@pytest.fixture
def some_missing(phantom_manifest: Path, tmp_path: Path) -> Manifest:
    """12 cases; of cases 1, 4, 7 and 10 there is no ultrasound image, of 2 and 8 no mammogram, of 5 neither."""
    with phantom_manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        for modality in MODALITIES:
            row[modality] = str(phantom_manifest.parent / row[modality])
        if number % 3 == 1:
            row["ultrasound"] = ""
        if number in (2, 5, 8):
            row["mammography"] = ""
    rows[5]["ultrasound"] = ""
    path = tmp_path / "some.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return read_manifest(path)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("target", ["onnxruntime:fp32", "openvino:fp32"])
@pytest.mark.parametrize("modality", MODALITIES)
def test_it_says_what_scikit_learn_says_of_that_image(
    checkpoint: Path, folder: Path, pixels: dict[Modality, Array], target: str, modality: Modality
) -> None:
    model = checkpoints.load(checkpoint)
    want = model.single_heads[modality].predict_proba(embed(model.encoders[modality], pixels[modality]))[:, 1]
    with load(folder, target) as predictor:
        got = predictor.predict_single(modality, pixels[modality])
        alone = [predictor.predict_single(modality, pixels[modality][row : row + 1]) for row in range(9)]
        fused = predictor.predict(pixels)
    assert np.ptp(want) > 0.05
    np.testing.assert_allclose(got.probability, want, atol=2e-5)
    np.testing.assert_allclose(got.probability, np.concatenate([one.probability for one in alone]), atol=2e-5)
    assert np.abs(got.probability - fused.probability).max() > 0.01
    assert got.threshold == 0.5 != fused.threshold
    assert got.malignant.tolist() == (got.probability >= 0.5).tolist()
    assert got.base_probability is not None
    assert got.base_probability.shape == (9, 4)
    assert got.stages_ms["head"] > 0


def test_the_part_of_the_embedding_is_that_of_the_encoder(predictor: Predictor, pixels: dict[Modality, Array]) -> None:
    whole = predictor.predict(pixels).embedding
    parts = [predictor.predict_single(modality, pixels[modality]).embedding for modality in MODALITIES]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=1e-4, atol=1e-6)


def test_what_is_closed_loads_no_head_again(folder: Path, predictor: Predictor, pixels: dict[Modality, Array]) -> None:
    """Nobody would close it: as where a thread predicts while another closes."""
    part = predictor.predict_single("mammography", pixels["mammography"]).embedding
    heads = SingleHeads(Bundle.open(folder), Target("onnxruntime", "fp32"), 1)
    assert len(heads.run("mammography", part)["probability"]) == len(part)
    heads.close()
    with pytest.raises(EngineError, match="the session is closed, expected an open one"):
        heads.run("mammography", part)


def require_bf16() -> None:
    if problem := engines()["openvino"].problem("bf16"):
        pytest.skip(str(problem))


def test_what_rounds_is_refused(folder: Path, pixels: dict[Modality, Array]) -> None:
    require_bf16()
    with load(folder, str(BF16)) as rounding, pytest.raises(UsageError, match="in which they were proven"):
        rounding.predict_single("mammography", pixels["mammography"])


def test_what_can_not_be_is_refused(bundle_folder: Path, predictor: Predictor, pixels: dict[Modality, Array]) -> None:
    images = pixels["mammography"]
    with load(bundle_folder) as without, pytest.raises(UsageError, match="no heads for one modality alone"):
        without.predict_single("mammography", images)
    with pytest.raises(UsageError, match="modality is `mri`"):
        predictor.predict_single("mri", images)  # type: ignore[arg-type]
    for bad in (images[0], images.astype(np.float32), images[:0], images[..., :-1]):
        with pytest.raises(PixelsError):
            predictor.predict_single("mammography", bad)
    with pytest.raises(PixelsError):
        predictor.predict_single("mammography", pixels)  # type: ignore[arg-type]


def test_rows_say_what_they_rest_on(predictor: Predictor, some_missing: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    summary = run(predictor, some_missing, out, batch=4, allow_single=True, columns=["base", "files"])
    rows = read(out)
    expected = [
        "" if number == 5 else "mammography" if number % 3 == 1 else "ultrasound" if number in (2, 8) else BOTH
        for number in range(12)
    ]
    assert [row[COLUMN] for row in rows] == expected
    assert (summary.single, summary.failed, summary.warned, summary.predicted) == (6, 1, 6, 11)
    for row, basis in zip(rows, expected, strict=True):
        assert ("predicted from the" in row["warnings"]) == (basis in MODALITIES)
        if basis:
            threshold = predictor.bundle.threshold if basis == BOTH else 0.5
            assert (row["decision"] == "malignant") == bool(
                decide(np.asarray(np.float32(row["probability"])), threshold)
            )
    assert "no mammography image is given" in rows[5]["error"]
    assert rows[1]["mammography_sha256"]
    assert not rows[1]["ultrasound_sha256"]
    # The pairs are predicted as if the others were not there, and these as alone.
    pairs = tmp_path / "pairs.csv"
    run(predictor, some_missing, pairs, batch=4)
    for with_one, without in zip(rows, read(pairs), strict=True):
        if with_one[COLUMN] == BOTH:
            assert with_one["probability"] == without["probability"]
        else:
            assert "expected both" in without["error"]


def test_one_image_that_can_not_be_read_is_no_case_of_the_other(
    predictor: Predictor, phantom_manifest: Path, tmp_path: Path
) -> None:
    good = (phantom_manifest.parent / read(phantom_manifest)[0]["mammography"]).resolve()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n")
    manifest = tmp_path / "broken.csv"
    manifest.write_text(f"case_id,mammography,ultrasound\na,{good},{broken}\nb,{good},missing.png\nc,{good},{good}\n")
    run(predictor, read_manifest(manifest), tmp_path / "out.csv", allow_single=True)
    rows = read(tmp_path / "out.csv")
    assert all(row["error"] and not row["probability"] and not row[COLUMN] for row in rows)


def test_a_run_goes_on_with_the_same_permission_alone(
    predictor: Predictor, some_missing: Manifest, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    run(predictor, some_missing, whole, batch=4, allow_single=True)

    def stop(stage: str, done: int, total: int, *more: str) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(predictor, some_missing, out, batch=4, allow_single=True, progress=stop)
    with pytest.raises(OutputError, match="other columns"):
        run(predictor, some_missing, out, batch=4, resume=True)
    assert run(predictor, some_missing, out, batch=4, allow_single=True, resume=True).resumed == 8
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("change", [("mammography", "both"), ("mammography", ""), ("both", "mri")])
def test_a_journal_whose_basis_no_run_wrote_is_refused(
    predictor: Predictor, some_missing: Manifest, tmp_path: Path, change: tuple[str, str]
) -> None:
    """`mammography` decides at 0.5 and `both` at 0.4: a decision between them gives a changed one away."""
    out = tmp_path / "out.csv"

    def stop(stage: str, done: int, total: int, *more: str) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(predictor, some_missing, out, batch=4, allow_single=True, progress=stop)
    journal = out.with_name("out.csv.partial")
    first, *lines = journal.read_text().split("\n")
    cells = list(csv.reader(line for line in lines if line))
    row = next(row for row in cells if row[5] == change[0])
    row[1:3], row[5] = ["0.45", "benign" if change[0] == "mammography" else "malignant"], change[1]
    text = "\n".join(",".join(f'"{cell}"' for cell in one) for one in cells)
    journal.write_text(f"{first}\n{text}\n\n")
    with pytest.raises(OutputError, match="damaged"):
        run(predictor, some_missing, out, batch=4, allow_single=True, resume=True)


@pytest.mark.parametrize("target", ["onnxruntime:fp32", "openvino:fp32", "openvino:bf16"])
def test_verify_holds_them_to_the_original(folder: Path, target: str) -> None:
    if target.endswith("bf16"):
        require_bf16()
    with load(folder, target) as predictor:
        for checks in (verify(predictor), replay(predictor)):
            names = [check.name for check in checks if "alone" in check.name]
            assert len(names) == (4 if target.endswith("fp32") else 0)
            assert all(check.passed for check in checks)


def test_the_export_has_proven_them(folder: Path) -> None:
    found = {check["name"]: check for check in Bundle.open(folder).entry["parity"]["checks"]}
    for modality in MODALITIES:
        check = found[f"head for {modality} alone, max |Δp|"]
        assert check["passed"]
        assert check["value"] <= 1e-5


def test_verify_finds_heads_that_were_exchanged(folder: Path, tmp_path: Path) -> None:
    """Sealed with the one's graph in the other's place: both take as many columns."""
    copy = Path(shutil.copytree(folder, tmp_path / "b"))
    entry = json.loads((copy / "bundle.json").read_text())
    graphs = entry["graphs"]
    graphs["head_mammography"], graphs["head_ultrasound"] = graphs["head_ultrasound"], graphs["head_mammography"]
    bundles.seal(copy, {key: value for key, value in entry.items() if key not in ("files", "sha256")})
    with load(copy) as predictor:
        failed = {check.name for check in verify(predictor) if not check.passed}
    assert any("mammography alone" in name for name in failed)
    assert any("ultrasound alone" in name for name in failed)


@pytest.mark.parametrize(
    "what",
    [
        {"mammography": {"columns": [0, 8], "threshold": 0.5}},
        {"columns": [0, 8], "threshold": 0.5},
        {name: {"columns": [0, 10**6], "threshold": 0.5} for name in MODALITIES},
        {name: {"columns": [3, 3], "threshold": 0.5} for name in MODALITIES},
        {name: {"columns": [0, 3], "threshold": 1.5} for name in MODALITIES},
        {name: {"columns": [0, 3], "threshold": "0.5"} for name in MODALITIES},
        {name: {"columns": 3, "threshold": 0.5} for name in MODALITIES},
        {name: {"threshold": 0.5} for name in MODALITIES},
        [],
    ],
)
def test_a_record_that_makes_no_sense_is_refused(folder: Path, tmp_path: Path, what: object) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "b"))
    entry = json.loads((copy / "bundle.json").read_text()) | {"single_modality": what}
    bundles.seal(copy, {key: value for key, value in entry.items() if key not in ("files", "sha256")})
    with pytest.raises(BundleError):
        Bundle.open(copy)


@pytest.mark.parametrize("lost", ["graph", "golden"])
def test_what_the_record_tells_of_must_be_there(folder: Path, tmp_path: Path, lost: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "b"))
    entry = json.loads((copy / "bundle.json").read_text())
    if lost == "graph":
        del entry["graphs"]["head_ultrasound"]
    else:
        kept = {name: array for name, array in Bundle.open(folder).golden().items() if name != golden_of("ultrasound")}
        np.savez(copy / "golden" / "golden.npz", **kept)  # type: ignore[arg-type]
    bundles.seal(copy, {key: value for key, value in entry.items() if key not in ("files", "sha256")})
    with pytest.raises(BundleError, match="ultrasound"):
        Bundle.open(copy).golden()


def test_a_checkpoint_has_both_or_none(checkpoint: Path, checkpoint_folder: Path, tmp_path: Path) -> None:
    assert set(checkpoints.load(checkpoint).single_heads) == set(MODALITIES)
    assert checkpoints.load(checkpoint_folder).single_heads == {}
    copy = Path(shutil.copytree(checkpoint, tmp_path / "c"))
    (copy / "head_ultrasound.skops").write_bytes((checkpoint / "head_mammography.skops").read_bytes())
    with pytest.raises(CheckpointError, match="SHA-256"):
        checkpoints.load(copy)
    (copy / "head_ultrasound.skops").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        checkpoints.load(copy)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mpmmu_rt", *map(str, arguments)], capture_output=True, text=True)


def test_a_worker_of_a_cluster_makes_the_same_rows(
    predictor: Predictor, some_missing: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ray calls it."""
    monkeypatch.setenv(THREADS_VARIABLE, "1")  # which a worker sets
    out, work = tmp_path / "out.csv", tmp_path / "work"
    run(predictor, some_missing, out, batch=4, allow_single=True)
    bundle, plan = predictor.bundle, read_plan(some_missing.path, 12)
    asked = Asked(bundle, predictor.target, batch=4, alone=True)
    extra = extra_columns(bundle, (), alone=True)
    layout = Layout(_header(asked, plan, predictor.head_target, "csv", extra, 1), bundle, frozenset(), extra)
    job = _job(asked, plan, layout, work, 1)
    job.parts().clear()
    (shard,) = plan.shards
    assert Worker(job)(asdict(shard))["error"] == ""
    ids = [case.case_id for case in some_missing.cases]
    made = job.parts().read(0, ids, replace(layout, case_ids=frozenset(ids)))
    assert made == [tuple(row.values()) for row in read(out)]


@pytest.mark.slow
def test_on_the_command_line(folder: Path, bundle_folder: Path, some_missing: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    done = command("run", folder, some_missing.path, "-o", out, "--allow-single", "--json", tmp_path / "said.json")
    assert done.returncode == 1  # of case 5 there is no image
    assert "6 of 12 rows rest on one image alone" in done.stderr
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["from_one_image"] == 6
    assert said["single_modality"]["ultrasound"]["threshold"] == 0.5 != said["threshold"]
    assert {row[COLUMN] for row in read(out)} == {"", BOTH, *MODALITIES}
    done = command("run", bundle_folder, some_missing.path, "-o", tmp_path / "b.csv", "--allow-single")
    assert done.returncode == 2
    assert "hint: train with --single-modality" in done.stderr
    done = command("run", folder, some_missing.path, "-o", tmp_path / "c.csv", "--columns", COLUMN)
    assert done.returncode == 2
    done = command("run", folder, some_missing.path, "-o", tmp_path / "d.csv")
    assert done.returncode == 1
    assert "--allow-single" in done.stderr
    assert "heads for one image alone" in command("inspect", folder).stdout
