"""Compiled models that are kept: the same answer to the bit, and nothing damaged, foreign or stale is loaded."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from mpmmu_rt import load
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines.openvino import ENGINE
from mpmmu_rt.engines.shared import blob_cache
from mpmmu_rt.engines.shared.blob_cache import BlobCache, CacheWarning
from mpmmu_rt.errors import BundleError
from mpmmu_rt.predictor import Prediction, Predictor
from mpmmu_rt.spec import MODALITIES, Array, Modality

INT8 = "openvino:int8"
STORED = Path(__file__).parent / "data" / "bundle_613dfc9"
FACTS = {"bundle": "a", "engine": "1.0"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlobCache:
    monkeypatch.setenv(blob_cache.VARIABLE, str(tmp_path / "cache"))
    found = BlobCache.default()
    assert found is not None
    return found


def only(cache: BlobCache) -> Path:
    (path,) = cache.entries()
    return path


def test_what_was_stored_comes_back_and_only_to_the_same_facts(cache: BlobCache) -> None:
    blob = os.urandom(10_000)
    assert cache.load(FACTS) is None
    cache.store(FACTS, blob)
    assert cache.holds(FACTS)
    found = cache.load(dict(reversed(FACTS.items())))
    assert found is not None
    assert found.tobytes() == blob
    assert found.ctypes.data % 4096 == 0
    assert cache.load(FACTS | {"engine": "1.1"}) is None
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "SHA-256 is another"),
        (lambda data: data[:-1], "header is another's"),
        (lambda data: data[:100], "can't be used"),
        (lambda data: b"", "can't be used"),
        (lambda data: data.replace(b'"engine": "1.0"', b'"engine": "1.1"'), "header is another's"),
        (lambda data: b"[]".ljust(4096) + data[4096:], "can't be used"),
        (lambda data: b"[" * 4096 + data[4096:], "can't be used"),
    ],
)
def test_a_damaged_entry_is_removed_and_not_handed_out(cache: BlobCache, damage: object, reason: str) -> None:
    cache.store(FACTS, os.urandom(5000))
    path = only(cache)
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(CacheWarning, match=reason):
        assert cache.load(FACTS) is None
    assert cache.entries() == {}


def test_what_was_not_used_for_longest_goes_first(cache: BlobCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_cache, "MAX_BYTES", 3 * (4096 + 1000))
    names = [FACTS | {"bundle": name} for name in "abcd"]
    for age, facts in enumerate(names[:3]):
        cache.store(facts, bytes(1000))
        os.utime(next(reversed(cache.entries())), (age, age))
    assert cache.load(names[0]) is not None  # now it was used last
    cache.store(names[3], bytes(1000))
    assert [cache.holds(facts) for facts in names] == [True, False, True, True]
    cache.store(FACTS | {"bundle": "e"}, bytes(20_000))  # more than all may have
    assert not cache.holds(FACTS | {"bundle": "e"})


def test_off_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(blob_cache.VARIABLE, "off")
    assert BlobCache.default() is None


def test_the_default_is_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(blob_cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = BlobCache.default()
    assert found is not None
    assert found.folder == tmp_path / "mpmmu-rt"
    assert not found.folder.exists()


@pytest.mark.parametrize("kind", ["open to all", "a file"])
def test_a_folder_that_others_may_write_to_is_not_used(cache: BlobCache, kind: str) -> None:
    if kind == "a file":
        cache.folder.write_bytes(b"")
    else:
        cache.folder.mkdir()
        cache.folder.chmod(0o777)
    with pytest.warns(CacheWarning, match=r"no folder|mode 777"):
        assert BlobCache.default() is None


@pytest.mark.parametrize("what", ["the folder", "the entry"])
def test_what_others_may_write_to_later_is_not_read(cache: BlobCache, what: str) -> None:
    cache.store(FACTS, b"blob")
    path = only(cache)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (cache.folder if what == "the folder" else path).chmod(0o777)
    with pytest.warns(CacheWarning, match="mode 777"):
        assert cache.load(FACTS) is None


def test_a_cache_that_can_only_be_read_serves(cache: BlobCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError

    cache.store(FACTS, b"blob")
    monkeypatch.setattr(os, "utime", refuse)
    found = cache.load(FACTS)
    assert found is not None
    assert found.tobytes() == b"blob"


def test_models_that_are_tried_once_are_not_kept(cache: BlobCache) -> None:
    with blob_cache.suspended():
        assert BlobCache.default() is None
    assert BlobCache.default() == cache


def test_a_folder_that_can_t_be_written_is_said_and_survived(cache: BlobCache) -> None:
    cache.folder.parent.joinpath("file").write_bytes(b"")
    with pytest.warns(CacheWarning, match="can't be written"):
        BlobCache(cache.folder.parent / "file" / "below").store(FACTS, b"blob")


@pytest.mark.parametrize("kind", ["a user without a name", "links that lead to each other"])
def test_where_there_is_no_folder_nothing_is_kept_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As in a container with a user of its own and no HOME: the model runs all the same."""
    if kind == "links that lead to each other":
        (tmp_path / "a").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "a")
        monkeypatch.setenv(blob_cache.VARIABLE, str(tmp_path / "a"))
    else:
        import pwd

        def unknown(user: int) -> NoReturn:
            raise KeyError(user)

        for name in (blob_cache.VARIABLE, "HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(pwd, "getpwuid", unknown)
        monkeypatch.chdir(tmp_path)
    said = r"(there is no folder for the cache: |can't be read).*set MPMMU_RT_CACHE to another"
    with pytest.warns(CacheWarning, match=said):
        assert BlobCache.default() is None
    assert not (tmp_path / "~").exists()


def test_a_folder_that_can_not_be_searched_holds_nothing() -> None:
    assert not BlobCache(Path("/" + "x/" * 2020)).holds(FACTS), "with the entry's name it is too long"


@pytest.mark.skipif(not Path("/proc/self/fdinfo").is_dir(), reason="this system has no such folder")
def test_a_folder_that_goes_meanwhile_is_a_warning() -> None:
    """The system answers as it does where another process has just removed it."""
    with pytest.warns(CacheWarning, match="can't be written"):
        BlobCache(Path("/proc/self")).store(FACTS, b"blob")


def test_what_a_killed_process_left_is_removed_a_day_later(cache: BlobCache) -> None:
    cache.store(FACTS, b"blob")
    left = [cache.folder / f".{only(cache).name}.{name}.partial" for name in ("aaaaaaaa", "bbbbbbbb")]
    for path, age in zip(left, (2 * 24 * 3600, 3600), strict=True):
        path.write_bytes(b"half of one")
        os.utime(path, (time.time() - age,) * 2)
    cache.store(FACTS | {"engine": "2.0"}, b"another")
    assert [path.exists() for path in left] == [False, True], "the other may still be written"
    assert len(cache.entries()) == 2


def needs_int8() -> None:
    if problem := ENGINE.problem("int8"):
        pytest.skip(str(problem))


def pixels(folder: Path) -> dict[Modality, Array]:
    golden = Bundle.open(folder).golden()
    return {modality: golden[f"{modality}.pixels"] for modality in MODALITIES}


def compiled_anew(predictor: Predictor) -> bool:
    pipeline = predictor._pipeline
    return pipeline.embedder._model is not None  # type: ignore[attr-defined]


def answer(folder: Path, threads: int = 1) -> tuple[Prediction, bool]:
    with load(folder, INT8, threads=threads) as predictor:
        return predictor.predict(pixels(folder)), compiled_anew(predictor)


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_says_the_same_to_the_bit(
    int8_folder: Path, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_int8()
    with monkeypatch.context() as patch:
        patch.setenv(blob_cache.VARIABLE, "off")
        want, anew = answer(int8_folder)
    assert anew
    assert cache.entries() == {}
    cold, anew = answer(int8_folder)
    assert anew
    assert len(cache.entries()) == 1
    warm, anew = answer(int8_folder)
    assert not anew
    for got in (cold, warm):
        np.testing.assert_array_equal(got.embedding, want.embedding)
        np.testing.assert_array_equal(got.probability, want.probability)
    answer(int8_folder, threads=2)  # streams and threads are other facts
    assert len(cache.entries()) == 2


def test_a_release_that_exports_and_imports_bytes(cache: BlobCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenVINO 2025.0 does, and 2025.1 to 2025.3 in part."""
    needs_int8()
    import openvino

    want, _ = answer(STORED)
    only(cache).unlink()
    export_model, import_model = openvino.CompiledModel.export_model, openvino.Core.import_model

    def imported(core: openvino.Core, model: object, *rest: object) -> object:
        if not isinstance(model, bytes):
            raise TypeError("`model_stream` must be an io.BytesIO object or bytes")
        return import_model(core, model, *rest)

    monkeypatch.setattr(openvino.CompiledModel, "export_model", lambda model: export_model(model).getvalue())
    monkeypatch.setattr(openvino.Core, "import_model", imported)
    for compiled in (True, False):
        got, anew = answer(STORED)
        assert anew == compiled
        np.testing.assert_array_equal(got.embedding, want.embedding)


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "OV_CPU_MAX_ISA"])
def test_what_kernels_are_held_to_is_another_entry(
    cache: BlobCache, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    needs_int8()
    monkeypatch.delenv(name, raising=False)
    answer(STORED)
    monkeypatch.setenv(name, "AVX2")
    assert answer(STORED)[1], "compiled for the whole processor"
    assert len(cache.entries()) == 2


@pytest.mark.slow
def test_a_damaged_model_is_compiled_again(int8_folder: Path, cache: BlobCache) -> None:
    needs_int8()
    want, _ = answer(int8_folder)
    path = only(cache)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.warns(CacheWarning, match="SHA-256"):
        got, anew = answer(int8_folder)
    assert anew
    np.testing.assert_array_equal(got.embedding, want.embedding)


@pytest.mark.slow
def test_a_whole_entry_that_is_no_int8_model_is_not_run(int8_folder: Path, cache: BlobCache) -> None:
    """Whatever wrote it: the digest is right, and the model is one of FP32."""
    needs_int8()
    import openvino

    want, _ = answer(int8_folder)
    header = json.loads(only(cache).read_bytes()[:4096])
    graph, hint = str(Bundle.open(int8_folder).graph("ultrasound")), {"INFERENCE_PRECISION_HINT": "f32"}
    float_model = openvino.Core().compile_model(graph, "CPU", hint)
    for blob, reason in ((float_model.export_model().getvalue(), "no layer"), (b"not a model", "can't be used")):
        cache.store(header["facts"], blob)
        with pytest.warns(CacheWarning, match=reason):
            got, anew = answer(int8_folder)
        assert anew
        np.testing.assert_array_equal(got.embedding, want.embedding)


@pytest.mark.slow
def test_a_bundle_that_is_replaced_meanwhile_is_not_mixed_with_the_old_one(
    int8_folder: Path, bundle_folder: Path, cache: BlobCache, tmp_path: Path
) -> None:
    """A predictor that has read one size of batch from the cache meets another bundle when it compiles the next."""
    needs_int8()
    folder = tmp_path / "served.bundle"
    shutil.copytree(int8_folder, folder)
    answer(folder)
    cases = pixels(folder)
    one = {modality: array[:1] for modality, array in cases.items()}
    with load(folder, INT8, threads=2) as predictor:
        predictor.predict(one)
    with load(folder, INT8, threads=2) as predictor:
        want = predictor.predict(one).probability
        assert not compiled_anew(predictor)
        folder.rename(tmp_path / "old.bundle")
        shutil.copytree(bundle_folder, folder)
        for modality in MODALITIES:  # graphs of the same names that compute something else
            shutil.copy(folder / "onnx/ultrasound.onnx", folder / f"onnx/{modality}.int8.onnx")
        with pytest.raises(BundleError):
            predictor.predict(cases)
        np.testing.assert_array_equal(predictor.predict(one).probability, want)
    assert len(cache.entries()) == 3  # of `answer`, and both halves, of one case on two threads


def test_a_folder_that_takes_nothing_more_is_a_warning(cache: BlobCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a cache of mode 0500: the model was compiled, and is not lost."""

    def refused(*_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    cache.store(FACTS, b"kept")
    monkeypatch.setattr(tempfile, "mkstemp", refused)
    with pytest.warns(CacheWarning, match=r"can't be written: Permission denied"):
        cache.store(FACTS | {"engine": "2.0"}, b"lost")
    found = cache.load(FACTS)
    assert found is not None
    assert found.tobytes() == b"kept"
