"""The bundle: whatever was altered, removed or smuggled in is refused before an engine sees it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mpmmu_rt import bundle as bundles
from mpmmu_rt import load
from mpmmu_rt.bundle import GOLDEN, GRAPHS, Bundle, own_graph, seal
from mpmmu_rt.errors import BundleError, DigestMismatch
from mpmmu_rt.files import MAX_JSON_BYTES, sha256_file

FILES = (
    *(f"onnx/{graph}.onnx" for graph in GRAPHS),
    *(f"onnx/{own_graph(graph, 'openvino')}.onnx" for graph in GRAPHS[:3]),
    "onnx/weights.bin",
    "onnx/attention_pool.npz",
    "golden/golden.npz",
    "MODEL_CARD.md",
    "bundle.json",
)


@pytest.fixture
def folder(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy.bundle"))


@pytest.fixture
def _no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reaches for the engine first gets MissingPackage instead of BundleError."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change bundle.json and seal it again, as someone would who wants it accepted. Digests of files are kept."""
    path = folder / "bundle.json"
    entry = json.loads(path.read_text())
    change(entry)
    entry["sha256"] = bundles._own_digest(entry)
    path.write_text(json.dumps(entry))


def test_a_bundle_opens_and_says_what_it_is(bundle_folder: Path) -> None:
    bundle = Bundle.open(bundle_folder)
    assert bundle.threshold == 0.4
    assert bundle.preprocessing.size == 48
    assert bundle.trained
    assert bundle.targets == ("onnxruntime:fp32", "openvino:fp32")
    assert bundle.digest == sha256_file(bundle_folder / "bundle.json")
    assert {bundle.graph(graph).name for graph in GRAPHS} == {f"{graph}.onnx" for graph in GRAPHS}
    assert str(bundle.tensors["ultrasound_pixels"]) == "ultrasound_pixels uint8[N, 1, 48, 48]"
    assert set(bundle.golden()) == GOLDEN


def test_every_file_is_listed_and_none_is_a_pickle(bundle_folder: Path) -> None:
    files = {path.relative_to(bundle_folder).as_posix() for path in bundle_folder.rglob("*") if path.is_file()}
    assert files == set(FILES)
    assert set(Bundle.open(bundle_folder).entry["files"]) == files - {"bundle.json"}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = data.index(b"0.4") + 2 if path.name == "bundle.json" else len(data) // 2
    data[middle] ^= 1
    path.write_bytes(data)


def flip_last(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.usefixtures("_no_engine")
@pytest.mark.parametrize("alter", [flip, flip_last, truncate, empty, extend, Path.unlink, link, folder_instead])
@pytest.mark.parametrize("name", FILES)
def test_no_altered_file_gets_as_far_as_an_engine(folder: Path, name: str, alter: Callable[[Path], None]) -> None:
    alter(folder / name)
    with pytest.raises(DigestMismatch) as caught:
        load(folder)
    assert name.rpartition("/")[2] in str(caught.value)
    assert "altered or damaged" in caught.value.hint or "elsewhere" in str(caught.value)
    assert caught.value.exit_code == 3


def test_an_intact_bundle_does_reach_the_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(Exception, match="needs the package `onnxruntime`"):
        load(folder)


def test_an_altered_file_has_the_exit_code_of_failed_verification(folder: Path) -> None:
    flip(folder / "onnx/weights.bin")
    with pytest.raises(DigestMismatch, match=r"weights.bin has \d+ bytes and another SHA-256") as caught:
        Bundle.open(folder)
    assert caught.value.exit_code == 3


@pytest.mark.slow
def test_a_bit_flipped_anywhere_in_bundle_json_is_refused(folder: Path) -> None:
    """No exception: no bit makes other white space of white space, and 1E-05 is not how 1e-05 was sealed."""
    path = folder / "bundle.json"
    data = path.read_bytes()
    stride = max(1, int(os.environ.get("MPMMU_BIT_STRIDE", "61")))  # 1: all
    for position in range(0, len(data) * 8, stride):
        byte, bit = divmod(position, 8)
        path.write_bytes(data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :])
        with pytest.raises(DigestMismatch):
            Bundle.open(folder)


@pytest.mark.parametrize(
    "respell",
    [
        lambda text: re.sub(r"(\d)e-", r"\1E-", text, count=1),
        lambda text: text.replace('"threshold": 0.4,', '"threshold": 0.40,'),
        lambda text: text.replace('"threshold": 0.4,', '"threshold": 0.9, "threshold": 0.4,'),
        lambda text: "\ufeff" + text,
    ],
    ids=["exponent", "zero", "twice", "mark"],
)
def test_values_that_are_spelt_otherwise_are_not_what_was_sealed(folder: Path, respell: Callable[[str], str]) -> None:
    """The first reader of a key that is there twice may take the other value."""
    path = folder / "bundle.json"
    text = path.read_text()
    assert respell(text) != text
    path.write_text(respell(text), encoding="utf-8")
    with pytest.raises(DigestMismatch, match=r"bundle\.json"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "respace", [lambda text: text.replace("\n", "\r\n"), lambda text: json.dumps(json.loads(text))]
)
def test_white_space_means_nothing(folder: Path, respace: Callable[[str], str]) -> None:
    """A transfer that changes line ends changes no value."""
    path = folder / "bundle.json"
    path.write_bytes(respace(path.read_text()).encode())
    assert Bundle.open(folder).threshold == 0.4


def test_a_flipped_schema_is_damage_and_a_later_one_is_not(folder: Path) -> None:
    path = folder / "bundle.json"
    text = path.read_text()
    path.write_text(text.replace("mpmmu-bundle/1", "mpmmu-bundle/3"))
    with pytest.raises(DigestMismatch, match="own SHA-256 and has the schema 'mpmmu-bundle/3'"):
        Bundle.open(folder)
    path.write_text(text)
    edit(folder, put("mpmmu-bundle/3", "schema"))
    with pytest.raises(BundleError, match="has the schema 'mpmmu-bundle/3', this version reads") as caught:
        Bundle.open(folder)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    "name", ["../outside.bin", "onnx/../../outside.bin", "/etc/hostname", "..", "onnx\\..\\outside.bin", ""]
)
def test_no_path_leads_out_of_the_bundle(folder: Path, name: str) -> None:
    outside = folder.parent / "outside.bin"
    outside.write_bytes(b"x")
    facts = {"bytes": 1, "sha256": sha256_file(outside)}
    edit(folder, lambda entry: entry["files"].update({name: facts}))
    with pytest.raises(BundleError, match=r"expected one inside the bundle|is missing or a link"):
        Bundle.open(folder)


@pytest.mark.parametrize("key", ["graphs", "golden"])
def test_no_graph_is_used_that_is_not_listed(folder: Path, key: str) -> None:
    shutil.copy(folder / "onnx/head.onnx", folder.parent / "evil.onnx")

    def change(entry: dict[str, Any]) -> None:
        if key == "graphs":
            entry["graphs"]["head"] = "../evil.onnx"
        else:
            entry["golden"] = "../evil.onnx"

    edit(folder, change)
    with pytest.raises(BundleError, match=r"does not list \.\./evil\.onnx"):
        Bundle.open(folder)


def remove(*keys: str) -> Callable[[dict[str, Any]], object]:
    def change(entry: dict[str, Any]) -> None:
        for key in keys[:-1]:
            entry = entry[key]
        del entry[keys[-1]]

    return change


def put(value: object, *keys: str) -> Callable[[dict[str, Any]], object]:
    def change(entry: dict[str, Any]) -> None:
        for key in keys[:-1]:
            entry = entry[key]
        entry[keys[-1]] = value

    return change


KEYS = ("name", "trained", "preprocessing", "threshold", "classes", "tensors", "graphs", "golden", "targets")


@pytest.mark.parametrize("key", [*KEYS, "model", "card", "provenance", "parity", "files"])
@pytest.mark.parametrize("value", ["absent", None, 7, "text", ["x", 1]])
def test_every_key_is_needed_and_has_its_kind(folder: Path, key: str, value: object) -> None:
    if (key, value) == ("name", "text"):
        value = {"text": 1}  # any text is a name
    edit(folder, remove(key) if value == "absent" else put(value, key))
    with pytest.raises(BundleError, match=r"bundle\.json") as caught:
        Bundle.open(folder)
    assert caught.value.exit_code == 1
    assert caught.value.hint


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (put("mpmmu-bundle/2", "schema"), "has the schema 'mpmmu-bundle/2', this version reads `mpmmu-bundle/1`"),
        (remove("schema"), "has the schema None"),
        (put([], "targets"), "`targets` is"),
        (put(["onnxruntime:fp32"] * 2, "targets"), "`targets` is .*, expected at least one, and none twice"),
        (put(["onnxruntime:fp32", "fast"], "targets"), "target is `fast`, expected ENGINE:PRECISION"),
        (put(["onnxruntime:fp32@9"], "targets"), "target is `onnxruntime:fp32@9`"),
        (put([], "precision", "openvino:fp32"), "`openvino:fp32` is a list, expected an object"),
        (put({}, "precision", "openvino:fp32"), "lacks the key `passed`"),
        (put("yes", "parity", "passed"), "`parity` has passed 'yes', expected true, false or null"),
        (put(1, "parity", "passed"), "`parity` has passed 1, expected true, false or null"),
        (remove("parity", "passed"), "lacks the key `passed`"),
        (put([], "head", "head"), "`head` is a list, expected an object"),
        (put(4, "head", "head", "learners"), "`head` has the learners 4, expected texts"),
        (put([4], "head", "head", "learners"), r"`head` has the learners \[4\], expected texts"),
        (put(["malignant", "benign"], "classes"), "`classes` is"),
        (put(["benign", "malignant", "normal"], "classes"), "`classes` is"),
        (put(0.0, "threshold"), r"`threshold` is 0\.0"),
        (put(1.0, "threshold"), r"`threshold` is 1\.0"),
        (put(-0.4, "threshold"), r"`threshold` is -0\.4"),
        (put(True, "threshold"), "`threshold` is True"),
        (put("0.4", "threshold"), r"`threshold` is '0\.4'"),
        (put(49, "preprocessing", "size"), r"`tensors` has mammography_pixels uint8\[N, 1, 48, 48\]"),
        (put(0, "preprocessing", "size"), "malformed: preprocessing has the size 0"),
        (put("crop", "preprocessing", "fit"), "malformed: preprocessing has the fit 'crop'"),
        (put(1, "preprocessing", "zoom"), "exactly the keys size and fit"),
        (put("float32", "tensors", "ultrasound_pixels", "dtype"), "expected uint8"),
        (put([1, 1, 48, 48], "tensors", "ultrasound_pixels", "shape"), "expected uint8"),
        (remove("tensors", "mammography_pixels"), "lacks the key `mammography_pixels`"),
        (put(None, "tensors", "embedding"), "malformed"),
        (remove("graphs", "model"), "does not list model"),
        (put("onnx/no.onnx", "graphs", "head"), r"does not list onnx/no\.onnx"),
        (put([], "graphs", "head"), "malformed"),
        (put({"benign": 1, "malignant": 2}, "classes"), "`classes` is"),
        (put(["N", 0], "tensors", "embedding", "shape"), r"expected float32\[N, D\]"),
        (put(["N", -4], "tensors", "embedding", "shape"), r"expected float32\[N, D\]"),
        (put(["N", 2**21], "tensors", "embedding", "shape"), r"expected float32\[N, D\]"),
        (put([], "tensors", "embedding", "shape"), r"expected float32\[N, D\]"),
        (put([], "calibration"), "`calibration` is a list, expected an object"),
        (put("x", "calibration"), "`calibration` is a str, expected an object"),
        (put(3, "calibration"), "`calibration` is a int, expected an object"),
        (put("32602", "files", "onnx/head.onnx", "bytes"), "has '32602' bytes, expected an integer"),
        (put(32602.0, "files", "onnx/head.onnx", "bytes"), r"has 32602\.0 bytes, expected an integer"),
        (put(True, "files", "onnx/head.onnx", "bytes"), "has True bytes, expected an integer"),
        (put(7, "attention_pool"), "`attention_pool` is a int, expected an object"),
        (remove("attention_pool", "weights"), "lacks the key `weights`"),
        (remove("attention_pool", "kinds"), "lacks the key `kinds`"),
        (put(["cbam"], "attention_pool", "weights"), r"has the weights \['cbam'\], expected a path"),
        (put("../evil.npz", "attention_pool", "weights"), r"does not list \.\./evil\.npz"),
        (
            put("se", "attention_pool", "kinds", "mammography"),
            "one of eca, cbam, none",
        ),
        (put(["eca"], "attention_pool", "kinds", "mammography"), "one of eca, cbam, none"),
        (remove("attention_pool", "kinds", "ultrasound"), r"has the kinds \{'mammography': 'cbam'\}, expected for"),
        (put("eca", "attention_pool", "kinds", "mri"), "one of eca, cbam, none"),
        (put("a" * 64, "files", "onnx/head.onnx", "sha256"), "another SHA-256"),
        (put(None, "files", "onnx/head.onnx", "bytes"), "malformed"),
        (put("text", "files", "onnx/head.onnx"), "malformed"),
    ],
)
def test_facts_that_make_no_sense_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    edit(folder, change)
    with pytest.raises(BundleError, match=problem):
        Bundle.open(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "keys", [("threshold",), ("files", "onnx/head.onnx", "bytes"), ("card", "auc"), ("parity", "checks")]
)
def test_numbers_that_json_has_not_are_refused_wherever_they_are(
    folder: Path, keys: tuple[str, ...], value: float
) -> None:
    """A seal holds none, and `inspect --json` and `evaluate --update-card` could not write one again."""
    edit(folder, put(value, *keys))
    with pytest.raises(DigestMismatch, match=r"bundle\.json is not valid JSON: it holds -?(NaN|Infinity)$"):
        Bundle.open(folder)


def test_sizes_that_disagree_are_refused_even_if_the_digest_holds(folder: Path) -> None:
    edit(folder, put(5, "files", "onnx/head.onnx", "bytes"))
    with pytest.raises(DigestMismatch, match="expected 5 bytes"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "name", ["notes.txt", "onnx/head.onnx.bak", "onnx/.hidden", "new/bundle.json", "engines/x/.DS_Store", "a/b/c.pkl"]
)
def test_files_that_are_not_listed_are_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    with pytest.raises(DigestMismatch, match=rf"holds {re.escape(name)}, which bundle\.json does not list") as caught:
        Bundle.open(folder)
    assert caught.value.hint.startswith("remove it, if you put it there")
    (folder / name).unlink()  # the hint
    assert Bundle.open(folder).threshold == 0.4


@pytest.mark.parametrize("to", ["onnx", "golden/golden.npz", "nowhere"])
def test_links_that_are_not_listed_are_refused(folder: Path, to: str) -> None:
    """To a folder as well: what lies behind it could be anything."""
    (folder / "more").symlink_to(folder / to)
    with pytest.raises(DigestMismatch, match="holds more, which"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", [".DS_Store", "onnx/Thumbs.db", "golden/desktop.ini"])
def test_what_systems_leave_behind_is_let_be(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    (folder / "empty").mkdir()
    assert Bundle.open(folder).threshold == 0.4


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini"])
@pytest.mark.parametrize(
    ("target", "graph"),
    [("onnxruntime:fp32", "mammography_onnxruntime"), ("openvino:fp32", "mammography_openvino")],
)
def test_what_systems_leave_behind_holds_no_weights(folder: Path, target: str, graph: str, name: str) -> None:
    """A graph may name it, and nobody has looked at it: its digest is nowhere."""
    weigh(folder, graph, name)
    (folder / "onnx" / name).write_bytes((folder / "onnx/weights.bin").read_bytes())
    with pytest.raises(DigestMismatch, match=rf"holds onnx/{re.escape(name)}, which bundle\.json does not list"):
        load(folder, target)
    (folder / "onnx" / name).rename(folder / name)  # where no engine would look, and it is named all the same
    with pytest.raises(DigestMismatch, match=rf"holds {re.escape(name)}, which bundle\.json does not list"):
        load(folder, target)


def weigh(folder: Path, graph: str, name: str) -> None:
    """Seals the bundle with a graph whose weights lie in `name`."""
    path = folder / f"onnx/{graph}.onnx"
    model = onnx.load(str(path), load_external_data=False)
    places = [item for tensor in model.graph.initializer for item in tensor.external_data if item.key == "location"]
    assert places
    for item in places:
        item.value = name
    path.write_bytes(model.SerializeToString())
    seal(folder, json.loads((folder / "bundle.json").read_text()))


def test_what_systems_leave_behind_is_no_link(folder: Path) -> None:
    """To a folder in which all the files could lie: outside of the bundle, with digests that hold."""
    (folder / "onnx").rename(folder.parent / "elsewhere")
    (folder / ".DS_Store").symlink_to(folder.parent / "elsewhere")

    def change(entry: dict[str, Any]) -> None:
        for key, value in json.loads(json.dumps({k: entry[k] for k in ("files", "graphs", "attention_pool")})).items():
            entry[key] = json.loads(json.dumps(value).replace('"onnx/', '".DS_Store/'))

    edit(folder, change)
    with pytest.raises(DigestMismatch, match=r"holds \.DS_Store, which bundle\.json does not list"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["a" * 300, "onnx/" + "b" * 5000, "onnx/head.onnx/c"])
def test_a_name_that_no_file_can_have_is_missing(folder: Path, name: str) -> None:
    edit(folder, put({"bytes": 1, "sha256": "0" * 64}, "files", name))
    with pytest.raises(DigestMismatch, match="is missing or a link, expected a file of 1 bytes"):
        Bundle.open(folder)


def test_a_text_is_found_across_parts_of_a_file(tmp_path: Path) -> None:
    for before in (0, 7, 2**20 - 9, 2**20 - 3, 2**20, 2**21 - 1):
        (tmp_path / "file").write_bytes(b"x" * before + b"Thumbs.DB" + b"y" * 9)
        assert bundles._holds(tmp_path / "file", b"thumbs.db"), before
    (tmp_path / "file").write_bytes(b"thumbs" + b"x" * 2**20 + b".db")
    assert not bundles._holds(tmp_path / "file", b"thumbs.db")


def test_a_huge_bundle_json_is_not_parsed(folder: Path) -> None:
    path = folder / "bundle.json"
    with path.open("ab") as file:
        file.truncate(MAX_JSON_BYTES + 1)  # sparse
    with pytest.raises(DigestMismatch, match=f"has {MAX_JSON_BYTES + 1} bytes, expected at most {MAX_JSON_BYTES}"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("name", "problem"), [("no.bundle", "does not exist"), ("file", "is a file"), (".", r"holds no bundle\.json")]
)
def test_what_is_no_bundle_at_all(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match=f"{problem}, expected a bundle"):
        Bundle.open(tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_path_that_engines_can_not_be_told_is_refused(folder: Path, tmp_path: Path) -> None:
    """They said that they can't load a graph, with the hint to export the bundle again."""
    place = tmp_path / os.fsdecode(b"of \xff.bundle")
    folder.rename(place)
    with pytest.raises(BundleError, match="no UTF-8") as caught:
        Bundle.open(place)
    assert caught.value.hint.startswith("rename")


def test_sealing_again_gives_the_same_bytes(folder: Path) -> None:
    before = (folder / "bundle.json").read_bytes()
    seal(folder, json.loads(before))
    assert (folder / "bundle.json").read_bytes() == before


@pytest.mark.parametrize("change", [remove("attention_pool"), put(None, "attention_pool")])
def test_a_bundle_without_pool_weights_opens_and_says_so(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    """Absent: as bundles were before there was the kernel. Null: modules that have no attention pool."""
    edit(folder, change)
    bundle = Bundle.open(folder)
    assert bundle.pool_kinds is None
    with pytest.raises(BundleError, match="holds no weights of attention pools"):
        bundle.pool_arrays()


def pickled(path: Path) -> None:
    np.savez(path, embedding=np.array([{"a": 1}], dtype=object))


def plain_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def one_missing(path: Path) -> None:
    with np.load(path) as vectors:
        kept: dict[str, Any] = {name: vectors[name] for name in vectors.files if name != "embedding"}
    np.savez(path, **kept)


def again(name: str, array: Any) -> Callable[[Path], None]:
    """Golden vectors of which one is another."""

    def alter(path: Path) -> None:
        with np.load(path) as vectors:
            arrays: dict[str, Any] = {name: vectors[name] for name in vectors.files}
        np.savez(path, **arrays | {name: array(arrays[name]) if callable(array) else array})

    return alter


def twice(path: Path) -> None:
    """Two readers may take different ones."""
    with zipfile.ZipFile(path, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        file.writestr("probability.npy", file.read("embedding.npy"))


def packed_otherwise(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        for name, data in parts.items():
            file.writestr(name, data)
    damaged = bytearray(path.read_bytes())
    damaged[70:90] = bytes(20)
    path.write_bytes(damaged)


def stated(offset: int, value: int) -> Callable[[Path], None]:
    """A field of 16 bits of the last entry of the directory: 8 flags, of which 1 is encrypted; 10 how it is packed."""

    def alter(path: Path) -> None:
        data = bytearray(path.read_bytes())
        at = data.rindex(b"PK\1\2")
        begin = int.from_bytes(data[at + 42 : at + 46], "little")
        for place in (at + offset, begin + offset - 2):
            data[place : place + 2] = value.to_bytes(2, "little")
        path.write_bytes(data)

    return alter


# Each ended in an internal error, was compared with the wrong array, or with none.
STRANGE_GOLDEN: list[tuple[Callable[[Path], None], str]] = [
    (twice, "it holds a name twice"),
    (packed_otherwise, "not a readable .npz"),
    (stated(8, 1), "is encrypted"),
    (stated(10, 99), "compression method is not supported"),
    (again("probability", np.zeros(0)), "holds no golden cases, expected some"),
    (again("probability", np.float64(0.5)), "holds no golden cases, expected some"),
    (again("probability", lambda array: array.astype("U8")), r"has <U8\[\d+\] as `probability`, expected floats"),
    (again("probability", lambda array: array.astype(complex)), "has complex128.* as `probability`, expected floats"),
    (again("probability", lambda array: array > 0.5), "has bool.* as `probability`, expected floats"),
    (again("embedding", lambda array: array[:, 1:]), "as `embedding`, expected floats"),
    (again("embedding", lambda array: array[1:]), "as `embedding`, expected floats"),
    (again("ultrasound.pixels", lambda array: array[:1]), "as `ultrasound.pixels`, expected uint8"),
    (again("ultrasound.pixels", lambda array: array.astype(float)), "as `ultrasound.pixels`, expected uint8"),
    (again("mammography.feature_map", lambda array: array[:1]), "as `mammography.feature_map`, expected floats"),
    (again("openvino:int8.probability", np.array(["x"])), "as `openvino:int8.probability`, expected floats"),
]


@pytest.mark.parametrize(("alter", "problem"), STRANGE_GOLDEN)
def test_golden_vectors_that_no_answer_can_be_held_to(
    folder: Path, alter: Callable[[Path], None], problem: str
) -> None:
    alter(folder / "golden/golden.npz")
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    with pytest.raises(BundleError, match=problem) as caught:
        Bundle.open(folder).golden()
    assert caught.value.hint


@pytest.mark.parametrize("mean", [np.array(["x"]), np.zeros(3, np.float32), np.full(1024, np.nan)])
def test_a_mean_embedding_that_makes_no_sense(folder: Path, mean: Any) -> None:
    width = Bundle.open(folder).tensors["embedding"].shape[1]
    again(bundles.EMBEDDING_MEAN, np.resize(mean, width) if len(mean) > 3 else mean)(folder / "golden/golden.npz")
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    with pytest.raises(BundleError, match=rf"as `training\.embedding_mean`, expected {width} finite floats"):
        Bundle.open(folder).embedding_mean()


def test_arrays_of_a_bundle_that_was_exchanged_since_are_refused(folder: Path) -> None:
    """`explain` asks for the mean embedding, and the kernel for its weights, after the bundle was opened."""
    bundle = Bundle.open(folder)
    again("embedding", lambda array: array + 1)(folder / "golden/golden.npz")
    for ask in (bundle.golden, bundle.embedding_mean, bundle.pool_arrays):
        with pytest.raises(DigestMismatch, match=r"golden\.npz has \d+ bytes and another SHA-256"):
            ask()


@pytest.mark.parametrize(
    ("alter", "problem"),
    [
        (empty, "not a readable .npz"),
        (truncate, "not a readable .npz"),
        (flip, "not a readable .npz"),
        (pickled, "not a readable .npz"),
        (plain_array, "not a readable .npz"),
        (one_missing, "lacks `embedding`"),
    ],
)
def test_golden_vectors_that_were_sealed_broken(folder: Path, alter: Callable[[Path], None], problem: str) -> None:
    alter(folder / "golden/golden.npz")
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    with pytest.raises(BundleError, match=problem):
        Bundle.open(folder).golden()


def bomb(path: Path) -> None:
    """A small file that unpacks to a large one."""
    np.savez_compressed(path, zeros=np.zeros(bundles.MAX_POOL_BYTES + 1, np.uint8))
    assert path.stat().st_size < bundles.MAX_POOL_BYTES / 100


@pytest.mark.slow
@pytest.mark.parametrize("alter", [empty, truncate, pickled, plain_array, bomb])
def test_pool_weights_that_were_sealed_broken(folder: Path, alter: Callable[[Path], None]) -> None:
    alter(folder / "onnx/attention_pool.npz")
    seal(folder, json.loads((folder / "bundle.json").read_text()))
    with pytest.raises(BundleError, match=r"not a readable \.npz|unpacks to"):
        Bundle.open(folder).pool_arrays()


def test_an_engine_that_is_not_listed_is_refused(bundle_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle_folder, tmp_path / "b")
    planted = tmp_path / "b/engines/tensorrt-rtx-fp16/model.engine"
    planted.parent.mkdir(parents=True)
    planted.write_bytes(b"an engine of another origin")
    with pytest.raises(
        DigestMismatch, match=r"holds engines/tensorrt-rtx-fp16/model\.engine, which bundle\.json does not"
    ):
        Bundle.open(tmp_path / "b")
