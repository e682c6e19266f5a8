"""The model repository: its files, its configurations by Triton's own schema, and the code that it holds, without
Triton."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.cases import read_manifest
from mpmmu_rt.cli import app
from mpmmu_rt.errors import DigestMismatch, OutputError, UsageError
from mpmmu_rt.images import read_pixels
from mpmmu_rt.learnt_ranges import UNLIKE
from mpmmu_rt.modality_check import SAYS
from mpmmu_rt.options import delay_ms
from mpmmu_rt.predictor import Predictor, load
from mpmmu_rt.serving import native
from mpmmu_rt.serving.models import OUTPUTS
from mpmmu_rt.serving.repository import Served, write_beside, write_repository
from mpmmu_rt.serving.server import require_log
from mpmmu_rt.spec import MODALITIES, Array, Target
from tests.swapped import checking

from .serving import BUNDLE, Pixels, as_sent, encoded, levels, named, random_pixels, text

FP32 = Target("onnxruntime", "fp32")


def parsed(path: Path) -> Any:
    """Raises for what Triton does not know."""
    schema = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed: pip install 'tritonclient[grpc]'"
    )
    from google.protobuf import text_format

    return text_format.Parse(path.read_text(encoding="utf-8"), schema.ModelConfig())


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write(folder: Path, bundle: Path = BUNDLE, **asked: Any) -> Path:
    write_repository(Bundle.open(bundle), folder / "models", Served(**{"target": FP32, **asked}))
    return folder / "models"


@pytest.mark.parametrize(
    "data",
    [
        b"case_id,mammography,ultrasound\nI1128 12:00:00,a.png,b.png\n",
        b"\x89PNG\r\n\x1a\n" + bytes(500),
        b'{"schema": "of a report"}\n',
    ],
)
def test_a_servers_log_takes_the_place_of_no_other_file(data: bytes, tmp_path: Path) -> None:
    (log := tmp_path / "file").write_bytes(data)
    done = CliRunner().invoke(app, ["serve", str(BUNDLE), "--target", str(FP32), "--log", str(log)])
    assert done.exit_code == 1
    assert f"error: {log} exists and is no log of `serve`" in done.stderr
    assert log.read_bytes() == data


def test_an_earlier_log_and_a_free_place_are_taken_and_no_pipe(tmp_path: Path) -> None:
    require_log(log := tmp_path / "log")
    for said in (
        "",
        "mpmmu-rt serve 0.1.0, 2026-11-28T12:00:00+00:00\n",
        'alf"\nI1128 12:00:00.123456 7 server.cc:674] "',
    ):
        log.write_text(said)
        require_log(log)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match=r"pipe is a device or a pipe, expected a file$"):
        require_log(tmp_path / "pipe")


# ---------------------------------------------------------------- files and configurations


def test_the_command_writes_a_repository_with_the_bundle_in_it(tmp_path: Path) -> None:
    place = tmp_path / "models"
    options = ("--instances", 2, "--max-delay", "500us", "--name", "breast", "--version", 3, "--max-batch", 8)
    said = call("repository", BUNDLE, "-o", place, *options)
    assert said.exit_code == 0, said.stderr
    assert said.stdout == ""
    assert f"next: tritonserver --model-repository={place}" in said.stderr
    assert Bundle.open(place / "breast/3/bundle").digest == Bundle.open(BUNDLE).digest
    for name in ("breast", "breast_files"):
        config = parsed(place / name / "config.pbtxt")
        assert (config.name, config.backend, config.max_batch_size) == (name, "python", 8)
        assert config.dynamic_batching.max_queue_delay_microseconds == 500
        assert [(group.count, group.kind == group.KIND_CPU) for group in config.instance_group] == [(2, True)]
        assert config.version_policy.latest.num_versions == 1
        assert {one.name for one in config.output} == set(OUTPUTS)
        bundle = place / name / "3" / config.parameters["bundle"].string_value
        assert bundle.resolve() == (place / "breast/3/bundle").resolve()
    again = call("repository", BUNDLE, "-o", place)
    assert again.exit_code == 1
    assert "--overwrite" in again.stderr
    assert call("repository", BUNDLE, "-o", place, "--overwrite").exit_code == 0
    assert sorted(path.name for path in place.iterdir()) == [".mpmmu-repository", "mpmmu", "mpmmu_files"]
    (place / "theirs/1").mkdir(parents=True)  # Triton serves several models out of one folder
    (place / "theirs/config.pbtxt").touch()
    refused = call("repository", BUNDLE, "-o", place, "--overwrite")
    assert refused.exit_code == 1
    assert f"{place} holds theirs/config.pbtxt, which no earlier output has" in refused.stderr
    assert (place / "theirs/config.pbtxt").exists()


def test_a_server_that_starts_here_finds_a_bundle_of_any_name(tmp_path: Path) -> None:
    """Triton's Python takes the letters of paths for ASCII."""
    folder = Path(shutil.copytree(BUNDLE, tmp_path / "é ü.bundle"))
    (repository := tmp_path / "models").mkdir()
    write_beside(Bundle.open(folder), repository, Served(Target("onnxruntime", "fp32")))
    for name in ("mpmmu", "mpmmu_files"):
        text = (repository / name / "config.pbtxt").read_text(encoding="utf-8")
        (place,) = re.findall(r'key: "bundle" value: { string_value: "(.*?)" }', text)
        assert place.isascii()
        assert (repository / name / "1" / place).samefile(folder)
    shutil.rmtree(repository)  # as a server is stopped
    Bundle.open(folder)


def test_names_types_and_shapes(tmp_path: Path, bundle_folder: Path) -> None:
    place = write(tmp_path, bundle_folder)
    pixels, files = (parsed(place / name / "config.pbtxt") for name in ("mpmmu", "mpmmu_files"))
    types = {
        value.name: value.number for value in pixels.input[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values
    }
    assert [(one.name, one.data_type, list(one.dims)) for one in pixels.input] == [
        (f"{modality}_pixels", types["TYPE_UINT8"], [1, 48, 48]) for modality in MODALITIES
    ]
    assert [(one.name, list(one.dims), one.allow_ragged_batch, one.optional) for one in files.input] == [
        *((modality, [-1], True, False) for modality in MODALITIES),
        ("frame", [1], False, True),
    ]
    learners = Bundle.open(bundle_folder).learners
    assert learners
    for config in (pixels, files):
        shapes = {one.name: (one.data_type, list(one.dims)) for one in config.output}
        assert shapes["probability"] == (types["TYPE_FP32"], [1])
        assert shapes["base_probability"] == (types["TYPE_FP32"], [len(learners)])
        assert shapes["decision"] == (types["TYPE_UINT8"], [1])
        assert shapes["bundle_digest"] == (types["TYPE_UINT8"], [32])
        assert config.parameters["learners"].string_value == ",".join(learners)


def test_a_gpu_target_gets_its_gpu_and_the_batches_of_its_engines(tmp_path: Path) -> None:
    place = write(tmp_path, target=Target("tensorrt", "fp16"), instances=2)
    config = parsed(place / "mpmmu/config.pbtxt")
    assert config.max_batch_size == 32
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 32]
    groups = [(group.count, group.kind == group.KIND_GPU, list(group.gpus)) for group in config.instance_group]
    assert groups == [(2, True, [0])], "engines take the first GPU, whichever Triton makes an instance for"
    (narrow := tmp_path / "narrow").mkdir()
    smaller = parsed(write(narrow, target=Target("tensorrt", "fp16"), most=16) / "mpmmu/config.pbtxt")
    assert (smaller.max_batch_size, list(smaller.dynamic_batching.preferred_batch_size)) == (16, [8])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--max-batch", 33], "batches of up to 33 are asked for, expected 1 to 32"),
        (["--name", "a/b"], "the model is to be called `a/b`"),
        (["--max-delay", "soon"], "`soon` is no delay"),
        (["--target", "openvino:bf16"], "openvino:bf16 was not proven"),
        (["--native", "--target", "openvino:fp32"], "--native is asked for on openvino:fp32"),
    ],
)
def test_what_can_not_be_served_is_refused_before_anything_is_written(
    tmp_path: Path, options: list[object], says: str
) -> None:
    said = call("repository", BUNDLE, "-o", tmp_path / "models", *options)
    assert said.exit_code == 2
    first, second = said.stderr.splitlines()
    assert says in first
    assert second.startswith("hint: ")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_was_altered_is_not_copied(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUNDLE, tmp_path / "b.bundle"))
    (folder / "onnx/weights.bin").write_bytes(b"x" + (folder / "onnx/weights.bin").read_bytes()[1:])
    said = call("repository", folder, "-o", tmp_path / "models")
    assert said.exit_code == 3
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(("given", "ms"), [("2ms", 2), ("2", 2), ("1500us", 1.5), ("0.002s", 2), ("0", 0)])
def test_delays(given: str, ms: float) -> None:
    assert delay_ms(given) == pytest.approx(ms)
    with pytest.raises(UsageError):
        delay_ms(f"{given}m")


# ---------------------------------------------------------------- native


def test_a_bundle_that_changes_after_it_was_opened_leaves_no_native_repository(tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(BUNDLE, tmp_path / "b.bundle"))
    weights = bundle.path / "onnx/weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DigestMismatch):
        native.write_native(bundle, tmp_path / "models", Served(FP32))
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(("target", "gpu"), [("onnxruntime:fp32", False), ("onnxruntime-cuda:fp16", True)])
def test_native_configurations_fit_their_graphs_and_each_other(tmp_path: Path, target: str, gpu: bool) -> None:
    """As ONNX Runtime loads them; a real onnxruntime backend has never seen them."""
    import onnxruntime

    place = tmp_path / "models"
    said = call("repository", BUNDLE, "-o", place, "--native", "--target", target)
    assert said.exit_code == 0, said.stderr
    assert "nothing replays the golden vectors" in said.stderr
    whole = parsed(place / "mpmmu/config.pbtxt")
    assert (whole.platform, whole.parameters["threshold"].string_value) == ("ensemble", "0.4")
    kinds = {"tensor(uint8)": 2, "tensor(float)": 11}  # of DataType
    tensors = {one.name: (one.data_type, list(one.dims)) for one in whole.input}
    for step in whole.ensemble_scheduling.step:
        config = parsed(place / step.model_name / "config.pbtxt")
        assert (config.name, config.backend, config.max_batch_size) == (step.model_name, "onnxruntime", 32)
        groups = [(group.kind == group.KIND_GPU, list(group.gpus)) for group in config.instance_group]
        assert groups == [(gpu, [])], "Triton's own backend can use any GPU"
        graph = place / step.model_name / "1/model.onnx"
        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        for given, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            assert [(one.name, one.data_type) for one in given] == [(one.name, kinds[one.type]) for one in real]
            for one, value in zip(given, real, strict=True):
                assert value.shape[0] == "N"
                dims = list(one.reshape.shape) if one.HasField("reshape") else list(one.dims)
                assert dims == value.shape[1:]
        for one in config.input:
            assert tensors[step.input_map[one.name]] == (one.data_type, list(one.dims))
        tensors |= {step.output_map[one.name]: (one.data_type, list(one.dims)) for one in config.output}
    for one in whole.output:
        assert tensors[one.name] == (one.data_type, list(one.dims))


def test_the_native_steps_one_after_another_are_the_predictor(tmp_path: Path, predictor: Predictor) -> None:
    import onnxruntime

    place = tmp_path / "models"
    native.write_native(Bundle.open(BUNDLE), place, Served(FP32))
    native.write_native(Bundle.open(BUNDLE), place, Served(FP32), overwrite=True)  # it knows all of its own
    pixels = random_pixels(np.random.default_rng(4), 5)
    values: dict[str, Array] = named(pixels)
    for step in parsed(place / "mpmmu/config.pbtxt").ensemble_scheduling.step:
        session = onnxruntime.InferenceSession(str(place / step.model_name / "1/model.onnx"))
        feeds = {name: values[outer] for name, outer in step.input_map.items()}
        names = list(step.output_map)
        values |= dict(zip(map(step.output_map.get, names), session.run(names, feeds), strict=True))
    np.testing.assert_allclose(values["probability"], predictor.predict(pixels).probability, atol=1e-6)


# ---------------------------------------------------------------- model.py, without Triton


class Lent:
    """As Triton has it: what was given by DLPack, and can be asked for the same way."""

    def __init__(self, name: str, array: Array) -> None:
        self.name, self.array = name, array

    @classmethod
    def from_dlpack(cls, name: str, capsule: object) -> Lent:
        class Holder:
            def __dlpack__(self, **_: object) -> object:
                return capsule

            def __dlpack_device__(self) -> tuple[int, int]:
                return 1, 0

        return cls(name, np.from_dlpack(Holder()).copy())  # type: ignore[arg-type]

    def __dlpack__(self, **_: object) -> object:
        return self.array.copy().__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class TritonError:
    INVALID_ARG, INTERNAL = 3, 2

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


@dataclass
class Response:
    outputs: Any = ()
    error: Any = None


class Triton:
    """What `model.py` sees of Triton: a stand-in for its module."""

    Tensor, TritonError, InferenceResponse = Lent, TritonError, Response
    TritonModelException = RuntimeError

    @staticmethod
    def get_input_tensor_by_name(request: dict[str, Array], name: str) -> Lent | None:
        return Lent(name, request[name]) if name in request else None


def loaded(place: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model of a repository, initialised with its own configuration."""
    from google.protobuf.json_format import MessageToDict

    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", Triton)
    config = MessageToDict(parsed(place / name / "config.pbtxt"), preserving_proto_field_name=True)
    made = runpy.run_path(str(place / name / "1/model.py"))["TritonPythonModel"]()
    made.initialize({"model_config": json.dumps(config), "model_repository": str(place / name), "model_version": "1"})
    return made


def arrays(response: Response) -> dict[str, Array]:
    assert response.error is None, response.error.message
    return {one.name: one.array for one in response.outputs}


def test_the_pixels_model(tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(write(tmp_path), "mpmmu", monkeypatch)
    rng = np.random.default_rng(5)
    sent = [random_pixels(rng, 3), random_pixels(rng, 1, size=8), random_pixels(rng, 1)]
    first, second, third = model.execute([named(one) for one in sent])
    assert second.error.code == TritonError.INVALID_ARG
    assert second.error.message.startswith("error: `mammography_pixels` ")
    assert "\nhint: " in second.error.message
    for response, pixels in ((first, sent[0]), (third, sent[2])):
        got, want = arrays(response), predictor.predict(pixels)
        np.testing.assert_array_equal(got["probability"][:, 0], want.probability)
        np.testing.assert_array_equal(got["base_probability"], want.base_probability)
        np.testing.assert_array_equal(got["decision"][:, 0], want.malignant)
        assert got["bundle_digest"].shape == (len(want.probability), 32)
        assert got["bundle_digest"][0].tobytes().hex() == predictor.bundle.digest
        assert got["warnings"].shape == (len(want.probability), 0)
    sent[0]["ultrasound"][2] = 128
    blank, after = model.execute([named(sent[0]), named(sent[2])])
    assert blank.error.code == TritonError.INVALID_ARG
    assert "case 2 of the request (counted from 0): `ultrasound` is blank: grey value 128" in blank.error.message
    np.testing.assert_array_equal(arrays(after)["probability"], arrays(third)["probability"])
    missing, defect, beside = model.execute([{"mammography_pixels": sent[0]["mammography"]}, None, named(sent[2])])
    assert "no `ultrasound_pixels`" in missing.error.message
    assert defect.error.code == TritonError.INTERNAL
    assert defect.error.message.startswith("error: internal error: TypeError")
    np.testing.assert_array_equal(arrays(beside)["probability"], arrays(third)["probability"])
    model.finalize()


def test_a_bundle_that_was_exchanged_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration tells clients another digest and another threshold than would decide."""
    place = write(tmp_path)
    folder = place / "mpmmu/1/bundle"
    entry = json.loads((folder / "bundle.json").read_text())
    before, entry["threshold"] = Bundle.open(folder).digest, 0.25
    seal(folder, entry)
    with pytest.raises(RuntimeError) as refused:
        loaded(place, "mpmmu", monkeypatch)
    said = str(refused.value).splitlines()
    assert said[0].startswith(
        f"error: {folder} is the bundle {Bundle.open(folder).digest[:12]}, expected {before[:12]}"
    )
    assert said[1].startswith("hint: write it again with `mpmmu-rt repository`")
    with pytest.raises(RuntimeError, match="for which this repository was written"):
        loaded(place, "mpmmu_files", monkeypatch)


def test_an_untrained_model_says_so_in_every_answer(
    rooted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(write(tmp_path, rooted), "mpmmu", monkeypatch)
    fine, dark = model.execute([named(levels(250, 200)), named(levels(10))])
    assert arrays(fine)["warnings"].shape[0] == 2
    assert text(arrays(fine)["warnings"]).startswith("UNTRAINED")
    assert dark.error.code == TritonError.INTERNAL
    model.finalize()


def test_the_files_model(tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(write(tmp_path), "mpmmu_files", monkeypatch)
    rng = np.random.default_rng(6)
    files = [encoded(rng.integers(0, 256, (40, 60), np.uint8), kind) for kind in ("PNG", "JPEG", "BMP", "TIFF")]
    sent = [as_sent(*files[:2]), as_sent(files[0], b"nothing"), as_sent(*files[2:]), as_sent(files[0][:-8], files[1])]
    frame = {"frame": np.array([[-1]], np.int32)}
    two = {name: np.repeat(array, 2, axis=0) for name, array in sent[0].items()}
    responses = model.execute([*sent, sent[0] | frame, two, {"ultrasound": sent[0]["ultrasound"]}, None])
    says = {
        1: "`ultrasound` begins with",
        3: "`mammography` ",
        4: "`frame` is -1",
        5: "holds 2 cases",
        6: "`mammography` is empty",
    }
    for index, begins in says.items():
        assert begins in responses[index].error.message
        assert responses[index].error.code == TritonError.INVALID_ARG
    assert responses[7].error.code == TritonError.INTERNAL
    assert responses[7].error.message.startswith("error: internal error: TypeError")
    for index, names in ((0, files[:2]), (2, files[2:])):
        paths = [tmp_path / f"{number}" for number in range(2)]
        for path, data in zip(paths, names, strict=True):
            path.write_bytes(data)
        want = predictor.predict_files(*paths)
        np.testing.assert_array_equal(arrays(responses[index])["probability"][:, 0], want.probability)
    model.finalize()


def test_what_libraries_warn_of_is_not_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_dicom: Callable[..., Path]
) -> None:
    """pydicom prints what it takes for a UID, with all that a damaged byte makes part of it."""
    drawn = np.random.default_rng(7).integers(0, 256, (40, 30), np.uint8)
    data = save_dicom(drawn, PatientName="DOE^JANE", PatientID="1234").read_bytes()
    damaged = data.replace(b"\x02\0\x10\0UI", b"\x02\0\x10\0\x9fI")
    assert damaged != data
    with warnings.catch_warnings(record=True) as logged:
        warnings.simplefilter("always")
        model = loaded(write(tmp_path), "mpmmu_files", monkeypatch)
        (refused,) = model.execute([as_sent(damaged, encoded(drawn, "PNG"))])
        model.finalize()
    assert refused.error.code == TritonError.INVALID_ARG
    assert not [str(one.message) for one in logged]


def test_both_models_say_the_same_of_a_pair(
    bundle_folder: Path, phantom_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that looks swapped is warned of, in its own row; one image as both is its request's error."""
    bundle = checking(bundle_folder, tmp_path / "b.bundle")
    preprocessing = Bundle.open(bundle).preprocessing
    place = write(tmp_path, bundle)
    cases = [
        {name: path for name in MODALITIES if (path := one.image(name))}
        for one in read_manifest(phantom_manifest).cases[:3]
    ]
    right: list[Pixels] = [
        {name: read_pixels(path, preprocessing)[None] for name, path in one.items()} for one in cases
    ]
    turned: Pixels = {"mammography": right[1]["ultrasound"], "ultrasound": right[1]["mammography"]}
    same: Pixels = dict.fromkeys(MODALITIES, right[2]["mammography"])

    def together(*pairs: Pixels) -> dict[str, Array]:
        return named({name: np.concatenate([one[name] for one in pairs]) for name in MODALITIES})

    def said(response: Response) -> list[str]:
        return [row.tobytes().decode().rstrip(" ") for row in arrays(response)["warnings"]]

    model = loaded(place, "mpmmu", monkeypatch)
    none = {name: array[:0] for name, array in together(right[0]).items()}
    sent = [together(right[0], turned, right[2]), together(turned), together(same), together(right[0], same)]
    negative: Pixels = {**right[2], "mammography": 255 - right[2]["mammography"]}
    first, second, third, fourth, fifth, sixth = model.execute([*sent, none, together(right[0], negative)])
    assert said(first) == ["", SAYS, ""]
    fine, strange = said(sixth)
    assert not fine
    assert strange.startswith(f"mammography: {UNLIKE}: ")
    assert said(second) == [SAYS]
    assert "holds no case" in fifth.error.message
    model.finalize()
    model = loaded(place, "mpmmu_files", monkeypatch)
    files = [[path.read_bytes() for path in one.values()] for one in cases]
    pairs = [files[1][::-1], files[0], [files[2][0]] * 2]
    swapped, right_way, twice = model.execute([as_sent(*pair) for pair in pairs])
    model.finalize()
    assert (said(swapped), said(right_way)) == ([SAYS], [""])
    assert third.error.message == twice.error.message
    assert fourth.error.message == twice.error.message.replace(
        "error: ", "error: case 1 of the request (counted from 0): "
    )
    assert {one.error.code for one in (third, fourth, fifth, twice)} == {TritonError.INVALID_ARG}


def test_a_model_that_does_not_compute_its_golden_vectors_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(BUNDLE, tmp_path / "b.bundle"))
    with np.load(folder / "golden/golden.npz") as stored:
        golden = dict(stored)
    golden["probability"] = golden["probability"][::-1] * 0.5
    np.savez(folder / "golden/golden.npz", **golden)
    entry = json.loads((folder / "bundle.json").read_text())
    seal(folder, {key: value for key, value in entry.items() if key != "sha256"})
    place = write(tmp_path, folder)
    with pytest.raises(
        RuntimeError, match="error: onnxruntime:fp32 does not compute the bundle here: golden probability"
    ):
        loaded(place, "mpmmu", monkeypatch)


def test_a_bundle_that_was_altered_in_the_repository_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write(tmp_path)
    path = place / "mpmmu/1/bundle/onnx/head.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for name in ("mpmmu", "mpmmu_files"):
        with pytest.raises(RuntimeError, match=r"error: .*another SHA-256 .*\nhint: the bundle was altered"):
            loaded(place, name, monkeypatch)


def test_without_the_package_it_says_what_to_install(tmp_path: Path) -> None:
    place = write(tmp_path)
    code = (
        "import runpy, sys, types\n"
        "sys.modules['triton_python_backend_utils'] = types.ModuleType('t')\n"
        "sys.modules['mpmmu_rt'] = None\n"
        f"runpy.run_path({str(place / 'mpmmu/1/model.py')!r})\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "ImportError: error: mpmmu_rt can't be imported by Triton's Python" in ran.stderr
    assert "hint: pip install 'mpmmu-rt[cpu]' there" in ran.stderr


def test_instances_share_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with load(BUNDLE) as alone:
        model = loaded(write(tmp_path, instances=2), "mpmmu", monkeypatch)
        assert model.predictor.threads == max(1, alone.threads // 2)
    model.finalize()
