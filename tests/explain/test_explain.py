"""explain: maps are where the model looks, gates are those that made the embedding, and pages hold them."""

from __future__ import annotations

import gc
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from typer.testing import CliRunner

from mpmmu_rt import Predictor, load
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.cases import Case, read_manifest
from mpmmu_rt.cli import app
from mpmmu_rt.cli.explain import KIND, _explained
from mpmmu_rt.errors import ImageError
from mpmmu_rt.explain import explain, overlays
from mpmmu_rt.explain.attention import gates
from mpmmu_rt.explain.occlusion import Box, occlusion, windows
from mpmmu_rt.explain.shapley import Sampling, patches, shapley
from mpmmu_rt.explain.study import peak
from mpmmu_rt.export import Wanted, export_bundle, export_checkpoint
from mpmmu_rt.folders import check_replaceable
from mpmmu_rt.grey import GreyImage
from mpmmu_rt.modality_check import SAYS
from mpmmu_rt.model import checkpoint as checkpoints
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.encoder import Encoder
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target
from mpmmu_rt.verify import portable_head
from tests.changed import unanswering
from tests.conftest import Traced
from tests.swapped import checking

SIZE = 64
PLACE = {"mammography": (slice(8, 20), slice(40, 52)), "ultrasound": (slice(36, 50), slice(10, 22))}


class Looks(nn.Module):
    """Sees one place of the image alone."""

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        self.rows, self.columns = PLACE[modality]
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, pixels: Tensor) -> Tensor:
        seen = pixels[:, :, self.rows, self.columns].float() / 255
        return self.scale * torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], 1)


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    """Bright at its place of the mammogram speaks for malignant, bright at that of the ultrasound image against it."""
    x = np.random.default_rng(0).uniform(0, 4, (200, 4)).astype(np.float32)
    head = LogisticRegression().fit(x, (x[:, 0] - x[:, 2] > 0).astype(int))
    bundle = export_bundle(
        tmp_path_factory.mktemp("looking") / "b",
        mammography=Looks("mammography"),
        ultrasound=Looks("ultrasound"),
        head=head,
        preprocessing=SIZE,
        wanted=Wanted((Target("onnxruntime", "fp32"),)),
    )
    with load(bundle.path) as predictor:
        yield predictor


def lit() -> dict[Modality, Array]:
    """Noise, brighter where the model looks."""
    rng = np.random.default_rng(1)
    pixels: dict[Modality, Array] = {}
    for modality in MODALITIES:
        pixels[modality] = rng.integers(20, 90, (1, 1, SIZE, SIZE), np.uint8)
        pixels[modality][(0, 0, *PLACE[modality])] += 120
    return pixels


@pytest.mark.parametrize(("modality", "sign"), [("mammography", 1), ("ultrasound", -1)])
def test_a_map_is_where_the_model_looks_and_has_its_sign(looking: Predictor, modality: Modality, sign: int) -> None:
    found = occlusion(looking, lit(), modality, Box(0, 0, SIZE, SIZE))
    rows, columns = PLACE[modality]
    y, x = peak(found, Box(0, 0, SIZE, SIZE))
    assert rows.start <= y * SIZE <= rows.stop
    assert columns.start <= x * SIZE <= columns.stop
    assert sign * found[int(y * SIZE), int(x * SIZE)] > 0.02
    far = np.ones((SIZE, SIZE), bool)
    far[max(0, rows.start - 9) : rows.stop + 9, max(0, columns.start - 9) : columns.stop + 9] = False
    assert np.abs(found[far]).max() == 0, "what it does not see changes nothing"


def test_shapley_values_are_where_the_model_looks_and_have_its_sign(looking: Predictor) -> None:
    box = Box(0, 0, SIZE, SIZE)
    found = shapley(looking, lit(), dict.fromkeys(MODALITIES, box), Sampling(4))
    for modality, sign in zip(MODALITIES, (1, -1), strict=True):
        rows, columns = PLACE[modality]
        seen = np.zeros((SIZE, SIZE), bool)
        for y, x in patches(SIZE, box):
            seen[y, x] = max(y.start, rows.start) < min(y.stop, rows.stop) and max(x.start, columns.start) < min(
                x.stop, columns.stop
            )
        assert sign * found.totals[modality] > 0.02
        assert (sign * found.maps[modality][seen]).max() > 0.01
        assert np.abs(found.maps[modality][~seen]).max() < 1e-6, "what it does not see adds nothing"


def test_padding_is_no_part_of_an_image(looking: Predictor) -> None:
    box = Box(10, 0, 44, SIZE)
    found = occlusion(looking, lit(), "mammography", box)
    assert np.abs(found[:10]).max() == np.abs(found[54:]).max() == 0
    assert np.abs(found).max() > 0
    covered = np.zeros((SIZE, SIZE), int)
    for place in windows(SIZE, box):
        covered[place] += 1
    inside = np.zeros((SIZE, SIZE), bool)
    inside[box.slices] = True
    assert (covered[inside] > 0).all(), "every pixel is covered by some window"
    assert (covered[~inside] == 0).all()


@pytest.mark.parametrize("size", [1, 2, 5, 13, 48, 224])
def test_windows_of_any_size_cover_the_image(size: int) -> None:
    covered = np.zeros((size, size), int)
    for place in windows(size, Box(0, 0, size, size)):
        covered[place] += 1
    assert (covered > 0).all()


@pytest.mark.parametrize("target", ["onnxruntime:fp32", "openvino:fp32"])
def test_gates_are_those_that_made_the_embedding(bundle_folder: Path, phantom_manifest: Path, target: str) -> None:
    """The deployed feature map, weighed by them and averaged, is the deployed embedding."""
    pytest.importorskip(target.partition(":")[0], reason="the engine is not installed")
    rng = np.random.default_rng(2)
    with load(bundle_folder, target) as predictor:
        size = predictor.bundle.preprocessing.size
        pixels: dict[Modality, Array] = {
            modality: rng.integers(0, 256, (3, 1, size, size), np.uint8) for modality in MODALITIES
        }
        maps = predictor.feature_maps(pixels)
        found = gates(predictor.bundle, maps)
        embedding = predictor.predict(pixels).embedding
    assert [found[modality].kind for modality in MODALITIES] == ["cbam", "eca"]
    parts = []
    for modality in MODALITIES:
        weighed = maps[modality].astype(np.float64) * found[modality].channel[:, :, None, None]
        spatial = found[modality].spatial
        if spatial is not None:
            assert spatial.std() > 0
            weighed = weighed * spatial[:, None]
        parts.append(weighed.mean((2, 3)))
    np.testing.assert_allclose(np.concatenate(parts, 1), embedding, rtol=2e-4, atol=1e-5)


def test_own_modules_have_no_gates_that_are_known(looking: Predictor) -> None:
    assert gates(looking.bundle, looking.feature_maps(lit())) == {}


def test_each_modality_alone(bundle_folder: Path, phantom_manifest: Path) -> None:
    case = read_manifest(phantom_manifest).cases[1]
    with load(bundle_folder) as predictor, portable_head(predictor) as head:
        assert case.mammography is not None
        assert case.ultrasound is not None
        said = predictor.predict_files(case.mammography, case.ultrasound)
        itself = explain(predictor, case, head, mean=said.embedding[0])
        assert itself.alone is not None
        assert list(itself.alone.values()) == pytest.approx([float(said.probability[0])] * 2, abs=2e-6)
        other = explain(predictor, case, head, mean=np.zeros_like(said.embedding[0]))
        assert other.alone is not None
        assert len({round(one, 4) for one in (*other.alone.values(), other.probability)}) > 1
        another = read_manifest(phantom_manifest).cases[2]
        mixed = explain(
            predictor, Case("mixed", case.mammography, another.ultrasound), head, mean=np.zeros_like(said.embedding[0])
        )
        assert mixed.alone is not None
        assert mixed.alone["mammography"] == pytest.approx(other.alone["mammography"], abs=2e-6)
        assert abs(mixed.alone["ultrasound"] - other.alone["ultrasound"]) > 1e-3
        assert explain(predictor, case, head).alone is None, "this bundle does not know its training's mean"
        assert itself.decision == said.decision[0]
        assert list(itself.base_probability) == ["logistic_regression", "svm", "random_forest", "extra_trees"]


@pytest.mark.slow
def test_other_weights_give_another_map(bundle_folder: Path, small_model: Checkpoint, tmp_path: Path) -> None:
    """The sanity check of Adebayo et al. 2018 (arXiv 1810.03292): a map that doesn't depend on the weights shows the
    image, and nothing of the model."""
    encoders: dict[Modality, Encoder] = {}
    for modality in MODALITIES:
        torch.manual_seed(99)
        encoders[modality] = Encoder(small_model.config.encoder(modality)).eval()
    other = Checkpoint(small_model.config, encoders, small_model.head, small_model.threshold, small_model.card)
    checkpoints.save(other, tmp_path / "other")
    export_checkpoint(tmp_path / "other", tmp_path / "b", wanted=Wanted((Target("onnxruntime", "fp32"),)))
    rng = np.random.default_rng(3)
    maps: dict[str, list[Array]] = {"occlusion": [], "shapley": []}
    for folder in (bundle_folder, tmp_path / "b"):
        with load(folder) as predictor:
            size = predictor.bundle.preprocessing.size
            pixels: dict[Modality, Array] = {
                modality: np.kron(rng.integers(0, 256, (1, 1, 6, 6)), np.ones((8, 8))).astype(np.uint8)
                for modality in MODALITIES
            }
            rng = np.random.default_rng(3)
            box = Box(0, 0, size, size)
            maps["occlusion"].append(occlusion(predictor, pixels, "mammography", box).ravel())
            added = shapley(predictor, pixels, dict.fromkeys(MODALITIES, box), Sampling(16))
            maps["shapley"].append(np.array([added.maps["mammography"][place][0, 0] for place in patches(size, box)]))
    for first, second in maps.values():
        ranks = [one.argsort().argsort() for one in (first, second)]
        assert abs(np.corrcoef(ranks[0], ranks[1])[0][1]) < 0.7
        assert first.std() > 0


@pytest.mark.parametrize(
    ("shape", "aspect", "want"), [((100, 50), 1.0, (420, 210)), ((50, 50), 2.0, (420, 210)), ((7, 700), 1.0, (4, 420))]
)
def test_pictures_keep_the_images_own_aspect_ratio(
    shape: tuple[int, int], aspect: float, want: tuple[int, int]
) -> None:
    image = GreyImage(np.tile(np.arange(shape[1], dtype=np.uint8), (shape[0], 1)), aspect)
    with Image.open(io.BytesIO(overlays.plain(image))) as picture:
        assert (picture.height, picture.width) == want


def test_colours_lie_where_the_map_is_not_zero() -> None:
    image = GreyImage(np.full((60, 40), 100, np.uint8))
    found = np.zeros((30, 30), np.float32)
    found[2:8, 7:13], found[20:28, 15:23] = 0.3, -0.15
    with Image.open(io.BytesIO(overlays.signed(image, Box(0, 5, 30, 20), found, 0.3))) as picture:
        drawn = np.asarray(picture).astype(int)
    scale = 420 / 30
    red, blue = drawn[int(5 * scale), int(5 * scale)], drawn[int(24 * scale), int(14 * scale)]
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 20
    assert (drawn[int(14 * scale), int(2 * scale)] == 100).all()


@pytest.fixture(scope="module")
def knowing(small_model: Checkpoint, traced_once: Traced, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a checkpoint that knows the mean embedding of its training."""
    folder = tmp_path_factory.mktemp("knowing")
    width = sum(encoder.channels for encoder in small_model.encoders.values())
    mean = np.linspace(0.1, 0.4, width, dtype=np.float32)
    known = Checkpoint(small_model.config, small_model.encoders, small_model.head, 0.4, small_model.card, {}, mean)
    checkpoints.save(known, folder / "c")
    again = checkpoints.load(folder / "c").embedding_mean
    assert again is not None
    assert np.array_equal(again, mean)
    with traced_once():
        bundle = export_checkpoint(folder / "c", folder / "b", wanted=Wanted((Target("onnxruntime", "fp32"),)))
    stored = bundle.embedding_mean()
    assert stored is not None
    assert np.array_equal(stored, mean)
    return folder / "b"


@pytest.mark.slow
def test_the_command(knowing: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    cases = read_manifest(phantom_manifest).cases
    rows = [f"{one.case_id},{one.mammography},{one.ultrasound},{one.label}" for one in cases[:2]]
    listed = tmp_path / "m.csv"
    listed.write_text("\n".join(["case_id,mammography,ultrasound,label", *rows, '"<b>odd</b>",no.png,no.png,']) + "\n")
    out = tmp_path / "out"
    command = ["explain", str(knowing), str(listed), "-o", str(out)]
    done = CliRunner().invoke(app, [*command, "--json", str(tmp_path / "j")])
    assert done.exit_code == 1
    assert "1 of 3 cases could not be explained" in done.stderr
    entry: dict[str, Any] = json.loads((out / "explanations.json").read_text())
    assert entry == json.loads((tmp_path / "j").read_text())
    assert (entry["schema"], entry["bundle"]["digest"]) == ("mpmmu-explanation/1", Bundle.open(knowing).digest)
    assert [one["case_id"] for one in entry["cases"]] == [one.case_id for one in cases[:2]]
    assert entry["failed"][0]["case_id"] == "<b>odd</b>"
    first = entry["cases"][0]["modalities"]
    assert first["mammography"]["attention"]["kind"] == "cbam"
    assert first["mammography"]["attention"]["spatial"]["highest"] <= 1
    assert first["ultrasound"]["attention"]["spatial"] is None
    assert 0 <= first["ultrasound"]["probability_alone"] <= 1
    files = sorted(path.name for path in out.iterdir())
    assert len(files) == 2 + 2 * (5 + 4)
    assert {"0001_mammography_attention.png", "0002_mammography_layer4.png"} <= set(files)
    assert [one["block"] for one in first["ultrasound"]["blocks"]["gates"]][::7] == ["layer1.0", "layer4.1"]
    assert first["mammography"]["blocks"]["feature_map_difference"] <= 1e-4
    page = (out / "explanation.html").read_text()
    assert "<b>odd</b>" not in page
    assert page.count("data:image/png;base64,") == 2 * (5 + 4)
    assert not re.search(r"(src|href)=\"(?!data:)", page), "nothing is loaded from elsewhere"
    again = CliRunner().invoke(app, command)
    assert "exists already" in again.stderr
    check_replaceable(out, KIND, overwrite=True)
    (out / "left_mammography_view.png").touch()
    assert list(KIND.strangers(out)) == ["left_mammography_view.png"]


@pytest.mark.slow
def test_the_command_with_shapley_values(knowing: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    case = read_manifest(phantom_manifest).cases[1]
    command = ["explain", str(knowing), str(phantom_manifest), "--case", case.case_id, "--method", "shapley"]
    found = []
    for name, options in (("a", []), ("b", []), ("c", ["--seed", "1", "--orders", "6"])):
        done = CliRunner().invoke(app, [*command, "--orders", "4", *options, "-o", str(tmp_path / name)])
        assert done.exit_code == 0, done.stderr
        entry: dict[str, Any] = json.loads((tmp_path / name / "explanations.json").read_text())
        assert entry["method"] == "shapley"
        found.append(entry["cases"][0])
    one = found[0]
    assert found[1] == one
    assert found[2]["modalities"] != one["modalities"]
    assert (found[2]["shapley"]["orders"], found[2]["shapley"]["seed"]) == (6, 1)
    totals = [one["modalities"][modality]["shapley"]["total"] for modality in MODALITIES]
    assert one["shapley"]["probability_covered"] + sum(totals) == pytest.approx(one["probability"], abs=3e-6)
    assert abs(one["shapley"]["completeness_error"]) < 3e-6
    assert one["modalities"]["mammography"]["occlusion"] is None
    assert (tmp_path / "a" / "0001_ultrasound_shapley.png").is_file()
    page = (tmp_path / "a" / "explanation.html").read_text()
    assert f"{totals[0]:+.3f}" in page
    assert "both images covered" in page


@pytest.mark.slow
def test_what_speaks_against_the_images_is_carried(
    bundle_folder: Path, phantom_manifest: Path, save_dicom: Callable[..., Path], tmp_path: Path
) -> None:
    """As `run` says it: of headers, and of a pair that looks swapped; one image as both is refused."""
    bundle = checking(bundle_folder, tmp_path / "b.bundle")
    cases = read_manifest(phantom_manifest).cases
    shutil.copy(str(cases[2].mammography), tmp_path / "copy.png")
    with Image.open(str(cases[3].mammography)) as image:
        dicom = save_dicom(np.asarray(image.convert("L")), BurnedInAnnotation="YES")
    rows = [
        f"fine,{cases[0].mammography},{cases[0].ultrasound}",
        f"swapped,{cases[1].ultrasound},{cases[1].mammography}",
        f"same,{cases[2].mammography},copy.png",
        f"header,{dicom},{cases[3].ultrasound}",
    ]
    listed = tmp_path / "m.csv"
    listed.write_text("\n".join(["case_id,mammography,ultrasound", *rows]) + "\n")
    done = CliRunner().invoke(app, ["explain", str(bundle), str(listed), "-o", str(tmp_path / "o")])
    assert done.exit_code == 1
    entry: dict[str, Any] = json.loads((tmp_path / "o/explanations.json").read_text())
    header = "mammography: it has burned-in annotation: text is part of the picture"
    said = {one["case_id"]: one["warnings"] for one in entry["cases"]}
    assert said == {"fine": [], "swapped": [SAYS], "header": [header]}
    assert [one["case_id"] for one in entry["failed"]] == ["same"]
    assert "are the same, pixel by pixel, expected an image of each" in entry["failed"][0]["error"]
    page = (tmp_path / "o/explanation.html").read_text()
    assert page.count('class="banner"') == 2
    assert "Its images look swapped" in page
    assert header[1:] in page
    words = " ".join(done.stderr.split())
    assert f"warning: 2 of 3 cases of {tmp_path / 'o'} have warnings; the first is `swapped`: {SAYS}" in words
    with load(bundle) as predictor, pytest.raises(ImageError, match="are the same") as caught:
        explain(predictor, Case("same", cases[2].mammography, tmp_path / "copy.png"))
    assert caught.value.hint == "name the patient's two images"


def test_a_model_that_takes_pixels_as_if_they_were_square_says_so(
    bundle_folder: Path, phantom_manifest: Path, save_dicom: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "b.bundle"))
    entry = json.loads((folder / "bundle.json").read_text())
    del entry["preprocessing"]["aspect"]
    seal(folder, entry)
    case = read_manifest(phantom_manifest).cases[3]
    with Image.open(str(case.mammography)) as image:
        dicom = save_dicom(np.asarray(image.convert("L")), PixelSpacing=[0.2, 0.1])
    with load(folder) as predictor:
        found = explain(predictor, Case("a", dicom, case.ultrasound))
    assert "its pixels are not square (2:1), and this model takes them as if they were" in found.warnings[-1]
    assert found.warnings[-1].startswith("mammography: ")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--orders", "8"], "--orders is given with --method occlusion"),
        (["--seed", "8"], "--seed is given with --method occlusion"),
        (["--method", "shapley", "--orders", "2"], "--orders is 2, expected an even number from 4 on"),
        (["--method", "shapley", "--orders", "7"], "--orders is 7, expected an even number from 4 on"),
    ],
)
def test_how_shapley_values_are_drawn(bundle_folder: Path, tmp_path: Path, options: list[str], says: str) -> None:
    done = CliRunner().invoke(app, ["explain", str(bundle_folder), "m.csv", *options, "-o", str(tmp_path / "o")])
    assert done.exit_code == 2
    assert says in " ".join(done.stderr.split())


@pytest.mark.slow
def test_images_are_let_go_case_by_case(knowing: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    alive: list[int] = []

    def watch(description: str, done: int, total: int, unit: str = "", detail: str = "") -> None:
        if description == "explaining":
            alive.append(sum(type(one) is GreyImage for one in gc.get_objects()))

    cases = list(read_manifest(phantom_manifest).cases[:4])
    gc.collect()
    with load(knowing) as predictor:
        found, drawn, failed = _explained(predictor, cases, (None, None), tmp_path, watch)
    assert (len(found), len(drawn), failed) == (4, 4, [])
    assert len(alive) == 5
    assert max(alive) - alive[0] <= 2, "no more than the two of one case"


def test_a_case_without_an_answer_costs_its_own(phantom_manifest: Path, tmp_path: Path) -> None:
    """It ended the command, and what was found of all others was lost."""
    bundle = unanswering(tmp_path / "b.bundle", grey=20)
    cases = read_manifest(phantom_manifest).cases[:3]
    lines = ["case_id,mammography,ultrasound"]
    for row, case in enumerate(cases):
        assert case.mammography is not None
        with Image.open(case.mammography) as image:
            grey = np.asarray(image.convert("L"))
        Image.fromarray(grey // 8 if row == 1 else grey).save(tmp_path / f"{row}.png")
        lines.append(f"{case.case_id},{row}.png,{case.ultrasound}")
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["explain", str(bundle), str(tmp_path / "m.csv"), "-o", str(out)])
    assert done.exit_code == 1
    error, hint = done.stderr.splitlines()[-2:]
    said = "onnxruntime:fp32 gave embeddings that are not finite for 1 of 1 cases; `mpmmu-rt verify BUNDLE` tells "
    assert error.startswith(
        f"error: 1 of 3 cases could not be explained, expected none; the first is `{cases[1].case_id}`: {said}"
    )
    assert hint == f"hint: {out}/explanations.json says why for each"
    entry = json.loads((out / "explanations.json").read_text())
    assert [one["case_id"] for one in entry["cases"]] == [cases[0].case_id, cases[2].case_id]
    assert [one["case_id"] for one in entry["failed"]] == [cases[1].case_id]
    assert entry["failed"][0]["error"].startswith(said)
    assert all((out / f"{number:04d}_mammography_occlusion.png").is_file() for number in (1, 2))


@pytest.mark.slow
def test_one_pair_and_chosen_cases(knowing: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    case = read_manifest(phantom_manifest).cases[3]
    pair = ["--mammography", str(case.mammography), "--ultrasound", str(case.ultrasound)]
    for name, options in (("a", pair), ("b", [str(phantom_manifest), "--case", case.case_id])):
        done = CliRunner().invoke(app, ["explain", str(knowing), *options, "-o", str(tmp_path / name)])
        assert done.exit_code == 0, done.stderr
        assert "neither that the answer is right" in " ".join(done.stdout.split())
    found = [json.loads((tmp_path / name / "explanations.json").read_text())["cases"][0] for name in "ab"]
    assert found[0]["modalities"] == found[1]["modalities"]


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--mammography", "a.png"],
        ["m.csv", "--mammography", "a.png", "--ultrasound", "b.png"],
        ["--mammography", "a.png", "--ultrasound", "b.png", "--case", "x"],
    ],
)
def test_what_to_explain_is_one_thing(bundle_folder: Path, tmp_path: Path, options: list[str]) -> None:
    done = CliRunner().invoke(app, ["explain", str(bundle_folder), *options, "-o", str(tmp_path / "o")])
    assert done.exit_code == 2
    assert "expected a MANIFEST, or --mammography with --ultrasound" in done.stderr


def test_a_case_that_there_is_not(bundle_folder: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    command = ["explain", str(bundle_folder), str(phantom_manifest), "--case", "nobody", "-o", str(tmp_path / "o")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "has no case `nobody`, expected one of its 12" in done.stderr


def test_a_case_without_an_image(bundle_folder: Path) -> None:
    with load(bundle_folder) as predictor, pytest.raises(ImageError, match="case `a` has no ultrasound image"):
        explain(predictor, Case("a", Path("x.png"), None))
