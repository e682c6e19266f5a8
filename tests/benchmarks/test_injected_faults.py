"""Every fault that is put into a bundle is caught, and by what the table says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.injected_faults import Caught, Fault, bits, catch, faults, main, runnable, stale_verdict, write
from mpmmu_rt.bundle import Bundle

BITS = 2  # of each file; the script takes more


@pytest.fixture(scope="module")
def caught(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Caught]:
    place = tmp_path_factory.mktemp("faults")
    return [catch(fault, bundle_folder, place) for fault in faults(None, runnable(Bundle.open(bundle_folder)))]


@pytest.mark.slow
def test_all_are_caught(caught: list[Caught]) -> None:
    assert [one.fault for one in caught if not one.by] == []
    kinds = {"rows mixed", "zeros", "other numbers", "swapped modality", "other precision"} | {
        "stale golden file",
        "altered file",
    }
    assert {one.fault.kind for one in caught} == kinds


@pytest.mark.slow
def test_what_golden_vectors_can_not_see_is_caught_by_batches(caught: list[Caught]) -> None:
    """Rows that are mixed in large batches alone: no golden vector differs."""
    found = [one for one in caught if one.fault.kind == "rows mixed" and "batches > " in one.fault.says]
    assert len(found) == 4
    for one in found:
        assert not any(name.startswith("golden") for name in one.by)
        assert "batch 32 against batch 1" in one.by
        assert one.stage.endswith("in some batches")


@pytest.mark.slow
def test_whatever_is_not_as_it_was_sealed_has_one_answer(caught: list[Caught]) -> None:
    found = [one for one in caught if one.fault.kind == "altered file"]
    assert len(found) == 7
    assert all(one.by[0].startswith("DigestMismatch: ") for one in found)


@pytest.mark.slow
def test_the_stage_is_named(caught: list[Caught]) -> None:
    found = [one for one in caught if "0.1 % too much" in one.fault.says]
    assert [one.stage for one in found] == [
        *(f"the {modality} encoder" for modality in ("mammography", "ultrasound")),
        "the attention pool",
        "the stacking head",
    ]


@pytest.mark.slow
def test_a_bit_of_any_file_is_caught(bundle_folder: Path, tmp_path: Path) -> None:
    found = [catch(fault, bundle_folder, tmp_path) for fault in bits(bundle_folder, BITS)]
    files = [path for path in bundle_folder.rglob("*") if path.is_file()]
    assert len(found) == BITS * len(files)
    assert all(one.by[0].startswith("DigestMismatch") for one in found)
    assert stale_verdict(bundle_folder, tmp_path).by == ("`run --require-verified`: for another bundle",)
    write(tmp_path, bundle_folder, found[:1], found)
    text = (tmp_path / "injected_faults.md").read_text()
    assert f"{len(found) + 1} faults, {len(found) + 1} caught" in text
    assert text.count(f"| {BITS} | {BITS} | DigestMismatch") == len(files)


@pytest.mark.slow
def test_what_is_not_caught_is_said(bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fault that is none: the golden vectors, packed otherwise."""

    def repack(folder: Path) -> None:
        with np.load(folder / "golden/golden.npz") as stored:
            arrays = {name: stored[name] for name in stored.files}
        np.savez(folder / "golden/golden.npz", **arrays)

    assert main(bundle_folder, [Fault("none", "packed otherwise", repack)], 0, tmp_path) == 1
    assert "not caught: none, packed otherwise on onnxruntime:fp32" in capsys.readouterr().err
    assert "**NOT CAUGHT**" in (tmp_path / "injected_faults.md").read_text()
