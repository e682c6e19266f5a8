"""A manifest at an address is copied, whole or not at all, and read as if it lay here."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mpmmu_rt.archive.address import copied, is_address, local_path, without_secrets
from mpmmu_rt.archive.plan import read_plan
from mpmmu_rt.archive.run import _check, _plan
from mpmmu_rt.cli import app
from mpmmu_rt.errors import ManifestError, MissingPackage, OutputError
from mpmmu_rt.run import Allowed

fsspec: Any = pytest.importorskip("fsspec")
ROWS = "case_id,mammography,ultrasound\na,/m/1.png,/u/1.png\nb,/m/2.png,\nc,/m/3.png,/u/3.png\n"


@pytest.fixture
def memory() -> Iterator[str]:
    """The address of a folder in this process's memory."""
    address = f"memory://{uuid.uuid4().hex}"
    yield address
    fsspec.filesystem("memory").rm(address, recursive=True)


def put(address: str, data: str) -> str:
    with fsspec.open(address, "w") as file:
        file.write(data)
    return address


def test_a_manifest_at_an_address_has_the_same_cases(tmp_path: Path, memory: str) -> None:
    address = put(f"{memory}/m.csv", ROWS)
    (tmp_path / "m.csv").write_text(ROWS)
    want = read_plan(tmp_path / "m.csv", 2)
    found = _plan(address, tmp_path / "p.partial", 2, lambda *_: None)
    assert (found.sha256, found.rows, len(found.shards)) == (want.sha256, 3, 2)
    put(address, ROWS.replace("/m/3", "/m/4"))  # changed there since: what was copied is what is read
    for mine, other in zip(found.shards, want.shards, strict=True):
        assert found.cases(mine) == want.cases(other)


def test_parquet_at_an_address(tmp_path: Path, memory: str) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    header, *rows = (line.split(",") for line in ROWS.splitlines())
    parquet.write_table(arrow.table(dict(zip(header, zip(*rows, strict=True), strict=True))), tmp_path / "m.parquet")
    address = f"{memory}/m.parquet"
    with fsspec.open(address, "wb") as file:
        file.write((tmp_path / "m.parquet").read_bytes())
    found = _plan(address, tmp_path / "p.partial", 2, lambda *_: None)
    here = _plan(tmp_path / "m.parquet", tmp_path / "q.partial", 2, lambda *_: None)
    assert found.sha256 == here.sha256
    assert [found.ids(shard) for shard in found.shards] == [["a", "b"], ["c"]]
    assert [path.name for path in (tmp_path / "p.partial").iterdir()] == ["manifest.csv"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (ROWS + "d,m/4.png,/u/4.png\n", r"^memory://\w+/m.csv:5 names the image m/4.png, relative to an address"),
        (ROWS + "d,s3://x/4.png,/u/4.png\n", "names the image s3://x/4.png"),
        (ROWS + "c,/4.png,/u/4.png\n", r"^memory://\w+/m.csv has the case_id `c` in two rows"),
        (ROWS + "d,/4.png\n", r"^memory://\w+/m.csv:5 has more or fewer cells"),
    ],
)
def test_what_is_no_manifest_is_named_by_its_address(tmp_path: Path, memory: str, text: str, match: str) -> None:
    with pytest.raises(ManifestError, match=match):
        _plan(put(f"{memory}/m.csv", text), tmp_path / "p.partial", 2, lambda *_: None)


@pytest.mark.parametrize("address", ["memory://nowhere/m.csv", "file:///nowhere/m.csv", "nosuch://m.csv"])
def test_what_can_not_be_read_leaves_nothing(tmp_path: Path, address: str) -> None:
    with pytest.raises(ManifestError, match=rf"manifest {address} can't be read: .*, expected") as caught:
        copied(address, tmp_path / "m.csv")
    assert "or copy it to a disk" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_what_breaks_off_is_no_manifest(tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = put(f"{memory}/m.csv", ROWS)
    file = type(fsspec.open(address, "rb").open())
    monkeypatch.setattr(file, "size", 10_000, raising=False)
    with pytest.raises(ManifestError, match=rf"ended after {len(ROWS)} of 10000 bytes"):
        copied(address, tmp_path / "m.csv")
    assert list(tmp_path.iterdir()) == []


def test_without_fsspec_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(MissingPackage, match="a manifest at an address needs the package `fsspec`") as caught:
        copied("memory://x/m.csv", tmp_path / "m.csv")
    assert caught.value.hint == "pip install 'mpmmu-rt[fsspec]'"


def test_an_output_that_is_the_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(ROWS)
    with pytest.raises(OutputError, match="is the manifest itself"):
        _check(f"file://{tmp_path}/m.csv", tmp_path / "m.csv", "csv", Allowed(overwrite=True))


@pytest.mark.parametrize(
    ("manifest", "options", "said"),
    [
        ("s3://b/m.csv", (), "the manifest s3://b/m.csv is an address and --ray is not given"),
        ("m.csv", ("-o", "s3://b/p.csv", "--ray", "local"), "is an address, expected a path"),
        ("m.csv", ("-o", "file:///tmp/p.csv"), "is an address, expected a path"),
    ],
)
def test_what_has_no_address(bundle_folder: Path, manifest: str, options: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(app, ["run", str(bundle_folder), manifest, *options])
    assert done.exit_code == 2
    assert said in str(done.exception) or said in done.output


def test_addresses() -> None:
    assert [is_address(one) for one in ("s3://b/m.csv", "m.csv", Path("s3://b/m.csv"))] == [True, False, False]
    assert local_path("file:///a/m.csv") == Path("/a/m.csv")
    assert local_path("s3://b/m.csv") is None
    assert without_secrets("https://me:word@host/m.csv?signature=1") == "https://host/m.csv"


@pytest.mark.skipif(importlib.util.find_spec("aiohttp") is None, reason="fsspec reads http:// with aiohttp")
def test_over_a_network(tmp_path: Path) -> None:
    """From a server of this machine."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served/m.csv").write_text(ROWS)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            place = f"http://127.0.0.1:{server.server_port}"
            copied(f"{place}/m.csv?secret=1", tmp_path / "copy.csv")
            assert (tmp_path / "copy.csv").read_text() == ROWS
            with pytest.raises(ManifestError, match=r"nothing\.csv can't be read") as caught:
                copied(f"{place}/nothing.csv?secret=1", tmp_path / "copy.csv")
            assert "secret" not in str(caught.value)
        finally:
            server.shutdown()
            thread.join()
