"""`mpmmu-rt native`: the sources, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from mpmmu_rt.cli import app

from .native import SOURCES


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["native", *map(str, arguments)])


def test_it_writes_what_the_package_carries(tmp_path: Path) -> None:
    ran = call("-o", tmp_path / "sources")
    assert (ran.exit_code, ran.stdout) == (0, "")
    assert ran.stderr.startswith(f"wrote the C++ runtime: {tmp_path}/sources; ")
    for path in (one for one in SOURCES.rglob("*") if one.is_file()):
        assert (tmp_path / "sources" / path.relative_to(SOURCES)).read_bytes() == path.read_bytes()


def test_only_an_earlier_output_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/CMakeLists.txt").write_text("project(mine)")
    refused = call("-o", tmp_path / "own", "--overwrite")
    assert refused.exit_code == 1
    assert "own exists and holds no include/mpmmu.h, expected a free path or an earlier output" in refused.stderr
    assert call("-o", tmp_path / "sources").exit_code == 0
    assert "pass --overwrite" in call("-o", tmp_path / "sources").stderr
    (tmp_path / "sources/include/mpmmu.h").write_text("")
    assert call("-o", tmp_path / "sources", "--overwrite").exit_code == 0
    assert (tmp_path / "sources/include/mpmmu.h").read_bytes() == (SOURCES / "include/mpmmu.h").read_bytes()
    (tmp_path / "sources/build").mkdir()
    (tmp_path / "sources/build/libmpmmu.so").write_text("")
    refused = call("-o", tmp_path / "sources", "--overwrite")
    assert refused.exit_code == 1
    assert "sources holds build/libmpmmu.so, which no earlier output has" in refused.stderr
