from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpmmu_rt import doctor
from mpmmu_rt.cli import app
from mpmmu_rt.doctor import Finding, examine
from mpmmu_rt.engines.shared.blob_cache import BlobCache

ROOT = Path(__file__).parents[1]


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_what_works_here() -> None:
    import onnxruntime

    targets, abilities = examine()
    assert by_name(targets)["onnxruntime:fp32"] == Finding(
        "onnxruntime:fp32", True, f"onnxruntime {onnxruntime.__version__}"
    )
    found = by_name(abilities)
    assert found["PNG, JPEG, TIFF, BMP"].usable
    assert found["train and export"].usable
    assert "torch" in found["train and export"].detail


def test_the_document_is_json() -> None:
    entry = doctor.to_json(*examine())
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert set(entry) == {"schema", "targets", "abilities", "advisories", "machine"}
    assert set(entry["targets"][0]) == {"name", "usable", "detail", "hint"}
    assert set(entry["advisories"][0]) == {"about", "says", "found", "source"}


def test_what_is_known_of_what_is_here_has_its_day_and_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    works = [Finding(name, True, "") for name in ("onnxruntime:fp32", "openvino:int8")]
    monkeypatch.setattr(doctor, "describe", lambda: {"cpu_features": ["avx2"]})
    monkeypatch.setattr(doctor, "package_versions", lambda names: {"onnxruntime": "1.26.0"})
    found = doctor.advise([*works, Finding("openvino:bf16", False, "no BF16 here")])
    assert [advisory.about for advisory in found] == [
        *("onnxruntime 1.26.0", "openvino", "onnxruntime:fp32", "openvino:int8", "int8", "int8")
    ]
    assert found[0].says == "refused: random forests give wrong probabilities"
    assert "runs on onnxruntime:fp32" in found[1].says
    assert "saturates" in found[-1].says
    for advisory in found:
        assert date.fromisoformat(advisory.found) < date(2100, 1, 1)
        stands = "#" in advisory.source or advisory.source.startswith(("commit ", "not measured"))
        assert stands or (ROOT / advisory.source).is_file(), advisory.source
    monkeypatch.setattr(doctor, "package_versions", lambda names: {"onnxruntime": "1.32.0"})
    assert [advisory.about for advisory in doctor.advise(works[:1])] == ["onnxruntime:fp32"]
    for features in (["avx2", "avx_vnni"], []):  # and a processor of another kind, of which none is known
        monkeypatch.setattr(doctor, "describe", lambda features=features: {"cpu_features": features})
        assert not [advisory for advisory in doctor.advise(works) if "saturates" in advisory.says]


def test_what_is_missing_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "torch", "skops"):
        monkeypatch.setitem(sys.modules, name, None)
    targets, abilities = examine()
    target = by_name(targets)["onnxruntime:fp32"]
    assert not target.usable
    assert "needs the package `onnxruntime`" in target.detail
    assert target.hint == "pip install 'mpmmu-rt[cpu]'"
    export = by_name(abilities)["train and export"]
    assert (export.usable, export.detail) == (False, "missing: torch, skops")
    assert export.hint == "pip install 'mpmmu-rt[export]'"


def test_image_formats_of_a_bare_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No distribution is found: neither Pillow nor pydicom may be called usable."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    found = by_name(doctor._image_formats())
    assert {name: finding.usable for name, finding in found.items()} == {
        "PNG, JPEG, TIFF, BMP": False,
        "DICOM": False,
    }
    assert all(finding.hint.startswith("pip install") for finding in found.values())


@pytest.mark.parametrize("kind", ["ImportError", "RuntimeError"])
def test_a_package_that_can_not_be_imported_reads_nothing(tmp_path: Path, kind: str) -> None:
    """Its metadata alone says that it is there."""
    (tmp_path / "pydicom.py").write_text(f"raise {kind}('built for another Python')\n")
    given = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "mpmmu_rt", "doctor", "--json", "-"]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=True, timeout=120)
    found = {one["name"]: one for one in json.loads(done.stdout)["abilities"]}
    assert found["PNG, JPEG, TIFF, BMP"]["usable"]
    assert not found["DICOM"]["usable"]
    assert found["DICOM"]["detail"].endswith("is installed but can't be imported (built for another Python)")
    assert found["DICOM"]["hint"] == "pip install --force-reinstall pydicom"
    assert "DICOM in JPEG Lossless and JPEG-LS" not in found


def cache() -> Finding:
    return by_name(examine()[1])["compiled-model cache"]


def test_the_cache_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not cache().usable  # the tests run without one
    assert "MPMMU_RT_CACHE" in cache().detail
    monkeypatch.setenv("MPMMU_RT_CACHE", str(tmp_path / "cache"))
    BlobCache(tmp_path / "cache").store({"a": "b"}, bytes(2_000_000))
    assert cache().detail == f"1 models, 2 MB, in {tmp_path / 'cache'}"
    (tmp_path / "cache").chmod(0o777)
    assert "mode 777" in cache().detail
    monkeypatch.setitem(sys.modules, "platformdirs", None)
    monkeypatch.delenv("MPMMU_RT_CACHE")
    assert cache().hint == "pip install 'mpmmu-rt[openvino]'"


@pytest.mark.parametrize(
    ("required", "code", "said"),
    [
        (("onnxruntime:fp32",), 0, ""),
        (("onnxruntime:fp32", "tensorrt:fp16"), 1, "error: the target tensorrt needs"),
        (("onnxruntime:fp16",), 2, "error: target `onnxruntime:fp16` asks for fp16"),
        (("onnxruntime",), 2, "error: target is `onnxruntime`, expected"),
        (("tensorrt-rtx:fp16@89",), 2, "error: --require tensorrt-rtx:fp16@89 names compute capabilities, expected"),
    ],
)
def test_a_target_may_be_required(
    required: tuple[str, ...], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # on a machine that has it as well
    result = CliRunner().invoke(app, ["doctor", *(part for name in required for part in ("--require", name))])
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
