"""The verdict beside the bundle: it counts for this bundle, machine, target and versions, and for nothing else."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner, Result

from mpmmu_rt import verified
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.cli import app
from mpmmu_rt.errors import ParityError
from mpmmu_rt.spec import Target

FIRST, SECOND = Target("onnxruntime", "fp32"), Target("openvino", "fp32")
CHECKS = [{"name": "x", "value": 0.0, "limit": 0.0, "passed": True}]
FAILED = [{"name": "x", "value": 1.0, "limit": 0.0, "passed": False}]


@pytest.fixture
def folder(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy of its own, beside which nothing lies."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy.bundle"))


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the last record, as time, another machine or a person does."""
    path = folder.with_name("copy.bundle.verified.json")
    entry = json.loads(path.read_text())
    change(entry["records"][-1])
    path.write_text(json.dumps(entry))


def test_nothing_is_known_of_what_was_not_verified(folder: Path) -> None:
    verdict = verified.look_up(Bundle.open(folder), FIRST)
    assert (verdict.passed, verdict.why) == (None, "there is no copy.bundle.verified.json")
    with pytest.raises(ParityError, match="is not verified on onnxruntime:fp32 on this machine: there is no") as caught:
        verified.require(verdict, Bundle.open(folder), FIRST)
    assert caught.value.hint == f"mpmmu-rt verify {folder} --target onnxruntime:fp32"
    assert caught.value.exit_code == 3


def test_a_verdict_counts_for_its_target(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert verified.keep(bundle, FIRST, CHECKS) == folder.with_name("copy.bundle.verified.json")
    assert verified.look_up(bundle, FIRST).passed is True
    assert verified.look_up(bundle, SECOND).why == "there is no verdict for openvino:fp32"
    verified.keep(bundle, SECOND, FAILED)
    assert verified.look_up(bundle, FIRST).passed is True
    assert verified.look_up(bundle, SECOND).passed is False
    with pytest.raises(ParityError, match="failed its verification on openvino:fp32 on this machine: 1 checks failed"):
        verified.require(verified.look_up(bundle, SECOND), bundle, SECOND)
    verified.keep(bundle, SECOND, CHECKS)  # the last one counts
    assert verified.look_up(bundle, SECOND).passed is True
    assert len(json.loads(verified.place_of(bundle).read_text())["records"]) == 2


def test_it_holds_the_machine_the_versions_and_the_checks(folder: Path) -> None:
    bundle = Bundle.open(folder)
    entry = json.loads(verified.keep(bundle, FIRST, CHECKS, {"sha256": "0"}).read_text())
    (record,) = entry["records"]
    assert entry["schema"] == "mpmmu-verified/1"
    assert "no signature" in entry["says"]
    assert (record["bundle"], record["target"], record["passed"]) == (bundle.digest, "onnxruntime:fp32", True)
    assert (record["checks"], record["own_cases"]) == (CHECKS, {"sha256": "0"})
    assert {"cpu", "threads", "packages"} <= set(record["machine"])
    assert record["facts"]["onnxruntime"].startswith("1.")
    assert record["date"].endswith("+00:00")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda record: record["facts"].update(processor="abacus"), r"is for processor abacus, here "),
        (lambda record: record["facts"].update(threads="64"), r"is for threads 64, here "),
        (lambda record: record["facts"].update(onnxruntime="1.0"), r"is for onnxruntime 1\.0, here 1\."),
        (lambda record: record["facts"].update(numpy="1.0"), r"is for numpy 1\.0, here "),
        (lambda record: record["facts"].update(GPU="H200"), r"is for GPU H200, here none"),
        (lambda record: record["facts"].pop("extensions"), r"is for extensions none, here "),
        (lambda record: record.update(bundle="0" * 64), r"is for another bundle"),
        (lambda record: record.update(target="openvino:fp32"), r"no verdict for onnxruntime:fp32"),
        (lambda record: record.update(checks=[]), r"damaged or of another version"),
        (lambda record: record["checks"][0].update(passed="yes"), r"1 checks failed"),
        (lambda record: record.pop("facts"), r"damaged or of another version"),
        (lambda record: record.update(checks="all"), r"damaged or of another version"),
    ],
)
def test_what_differs_does_not_count_and_is_said(
    folder: Path, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    bundle = Bundle.open(folder)
    verified.keep(bundle, FIRST, CHECKS)
    edit(folder, change)
    verdict = verified.look_up(bundle, FIRST)
    assert not verdict.passed
    with pytest.raises(ParityError, match=why):
        verified.require(verdict, bundle, FIRST)


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "OV_CPU_MAX_ISA", "NVIDIA_TF32_OVERRIDE"])
def test_another_instruction_set_is_another_machine(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    bundle = Bundle.open(folder)
    monkeypatch.delenv(name, raising=False)
    verified.keep(bundle, FIRST, CHECKS)
    monkeypatch.setenv(name, "AVX2")
    assert verified.look_up(bundle, FIRST).why.endswith(f"is for {name} none, here AVX2")


def test_a_verdict_takes_the_place_of_one_that_knew_fewer_facts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an earlier version wrote it: it counts here, and must not stand before one that failed."""
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    bundle = Bundle.open(folder)
    verified.keep(bundle, FIRST, CHECKS)
    edit(folder, lambda record: record["facts"].pop("DNNL_MAX_CPU_ISA"))
    assert verified.look_up(bundle, FIRST).passed is True
    verified.keep(bundle, FIRST, FAILED, {"sha256": "0"})
    assert verified.look_up(bundle, FIRST).passed is False
    edit(folder, lambda record: record["facts"].pop("DNNL_MAX_CPU_ISA"))
    assert verified.failed_own_cases(bundle, FIRST) == {"sha256": "0"}


def test_the_verdict_of_an_earlier_bundle_goes_with_it(folder: Path) -> None:
    """Exported again to the same place, or the file copied beside another bundle."""
    verified.keep(Bundle.open(folder), FIRST, CHECKS)
    seal(folder, json.loads((folder / "bundle.json").read_text()) | {"threshold": 0.6})
    changed = Bundle.open(folder)
    assert "is for another bundle" in verified.look_up(changed, FIRST).why
    verified.keep(changed, SECOND, CHECKS)
    assert "no verdict for onnxruntime:fp32" in verified.look_up(changed, FIRST).why


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": "mpmmu-verified/2", "records": []}', '{"records": 7}', "\0"]
)
def test_a_damaged_file_is_no_verdict_and_is_replaced(folder: Path, text: str) -> None:
    bundle = Bundle.open(folder)
    verified.place_of(bundle).write_text(text)
    assert verified.look_up(bundle, FIRST).passed is None
    verified.keep(bundle, FIRST, CHECKS)
    assert verified.look_up(bundle, FIRST).passed is True


def test_it_lies_beside_the_bundle_that_a_link_means(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(folder)
    verified.keep(Bundle.open(tmp_path / "current"), FIRST, CHECKS)
    assert verified.look_up(Bundle.open(folder), FIRST).passed is True
    assert [path.name for path in tmp_path.glob("*.json")] == ["copy.bundle.verified.json"]


def test_run_says_whether_it_was_verified(folder: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    run = ("run", folder, phantom_manifest, "-o", tmp_path / "out.csv", "--overwrite", "--target", "onnxruntime:fp32")
    before = call(*run, "--json", "-")
    assert before.exit_code == 0
    assert (
        f"not verified on this machine: there is no copy.bundle.verified.json; `mpmmu-rt verify {folder}"
        in before.stderr
    )
    assert json.loads(before.stdout)["verified"]["passed"] is None
    (tmp_path / "out.csv").unlink()
    refused = call(*run, "--require-verified")
    assert (refused.exit_code, refused.stdout) == (3, "")
    error, hint = refused.stderr.splitlines()
    assert error.startswith(f"error: {folder} is not verified on onnxruntime:fp32 on this machine")
    assert not (tmp_path / "out.csv").exists()
    followed = call(*hint.removeprefix("hint: mpmmu-rt ").split())
    assert followed.exit_code == 0
    assert f"kept in {folder}.verified.json" in followed.stderr
    after = call(*run, "--require-verified", "--json", "-")
    assert after.exit_code == 0
    assert "onnxruntime:fp32 was verified on this machine on 20" in after.stderr
    assert json.loads(after.stdout)["verified"]["passed"] is True
    other = call(*run, "--require-verified", "--target", "openvino:fp32")
    assert other.exit_code == 3


def test_a_failed_verification_is_kept_too(folder: Path, phantom_manifest: Path, tmp_path: Path) -> None:
    graphs = [folder / f"onnx/{modality}_onnxruntime.onnx" for modality in ("mammography", "ultrasound")]
    shutil.copy(graphs[1], graphs[0])
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    assert call("verify", folder, "--target", "onnxruntime:fp32").exit_code == 3
    run = ("run", folder, phantom_manifest, "-o", tmp_path / "out.csv", "--target", "onnxruntime:fp32")
    assert "failed its verification" in call(*run, "--require-verified").stderr.splitlines()[0]
    assert "warning: onnxruntime:fp32 failed its verification on this machine" in call(*run).stderr


def test_no_record_leaves_none(folder: Path, tmp_path: Path) -> None:
    assert call("verify", folder, "--no-record").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def refused(*_: object, **__: object) -> NoReturn:
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("place", ["a folder in the way", "a name that is too long", "read-only", "refused"])
def test_a_place_that_can_not_be_written_is_a_line_and_no_failure(
    bundle_folder: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(bundle_folder, tmp_path / "sub" / ("b" * (245 if "long" in place else 1))))
    if place == "refused":  # what the system says of a read-only place, to root too
        monkeypatch.setattr(tempfile, "mkstemp", refused)
    if place == "a folder in the way":
        (folder.with_name("b.verified.json") / "x").mkdir(parents=True)
    if place == "read-only":
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        folder.parent.chmod(0o555)
    result = call("verify", folder)
    assert result.exit_code == 0, result.stderr
    assert "note: the verdict is not kept, for " in result.stderr
    assert "can't be written (" in result.stderr
    assert "kept in" not in result.stderr
    assert verified.look_up(Bundle.open(folder), FIRST).passed is None
    assert not list(folder.parent.glob(".*.partial"))
