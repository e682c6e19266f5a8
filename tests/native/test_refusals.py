"""What `Bundle.open` refuses, the native library refuses: by the same reason and in the same words.

The faults are those of tests/test_bundle.py, each put to both.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpmmu_rt import bundle as bundles
from mpmmu_rt.bundle import Bundle, seal
from mpmmu_rt.errors import BundleError, DigestMismatch, UsageError
from mpmmu_rt.files import MAX_JSON_BYTES, sha256_file
from mpmmu_rt.image_figures import FIGURES
from mpmmu_rt.spec import MODALITIES, Target
from tests import test_bundle as faults
from tests import test_learnt_ranges as ranges
from tests import test_modality_check as checking

from .native import Library, NativeError, SelfTest

STORED = Path(__file__).parents[1] / "data" / "bundle_613dfc9"
ANSWERS = ("embedding", "probability")
# What is behind these words Python's own parser or types say, in words of their own.
LOOSE = ("is not valid JSON: ", "is malformed: ")
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED, tmp_path / "copy.bundle"))


def refusal(open_it: Callable[[], object]) -> tuple[str, str, str]:
    """The reason, the message and the hint; empty where nothing is refused."""
    try:
        open_it()
    except DigestMismatch as error:
        return "DIGEST_MISMATCH", str(error), error.hint
    except BundleError as error:
        return "BUNDLE_ERROR", str(error), error.hint
    except NativeError as error:
        return error.status, str(error), error.hint
    return "", "", ""


def problems(library: Library, folder: Path, what: object) -> list[str]:
    """How the two differ in what they say of `folder`; empty where both refuse it alike."""
    ours, theirs = refusal(lambda: library.check(folder)), refusal(lambda: Bundle.open(folder))
    if not ours[0] or not theirs[0]:
        return [f"{what}: native {ours}, Python {theirs}"]
    heads = [message.partition(loose)[0] for loose in LOOSE for message in (ours[1], theirs[1]) if loose in message]
    same_kind = (ours[0], ours[2]) == (theirs[0], theirs[2])
    alike = ours == theirs or (same_kind and len(heads) == 2 and len({*heads}) == 1)
    return [] if alike else [f"{what}: native {ours}, Python {theirs}"]


def restored(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(STORED, folder)


def parameters(test: Callable[..., object], index: int = 0) -> Any:
    """The cases of a parametrized test."""
    return [mark for mark in getattr(test, "pytestmark") if mark.name == "parametrize"][index].args[1]  # noqa: B009


def test_an_intact_bundle_is_not_refused(library: Library, bundle_folder: Path) -> None:
    library.check(STORED)
    library.check(bundle_folder)
    library.check(f"{bundle_folder}/")


def test_every_file_altered_in_every_way(library: Library, folder: Path) -> None:
    found = []
    for name in [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]:
        for alter in (*parameters(faults.test_no_altered_file_gets_as_far_as_an_engine, 1), Path.unlink):
            alter(folder / name)
            found += problems(library, folder, (name, alter.__name__))
            restored(folder)
    assert found == []


def sealed_changes() -> Iterator[tuple[object, Change]]:
    """Changes of bundle.json that are sealed again."""
    for key in ("schema", *parameters(faults.test_every_key_is_needed_and_has_its_kind, 1), "head", "precision"):
        yield key, faults.remove(key)
        for value in (None, 7, 7.5, True, "text", ["x", 1], {"text": 1}, []):
            if (key, value) not in (("name", "text"), ("trained", True), ("targets", [])) and value != {"text": 1}:
                yield (key, value), faults.put(value, key)
    for change, problem in parameters(faults.test_facts_that_make_no_sense_are_refused):
        if "nan" not in problem and "inf" not in problem and problem != "malformed":
            yield problem, change
    for value in (None, "text", [], -1):
        yield ("bytes", value), faults.put(value, "files", "onnx/head.onnx", "bytes")
    for value in (None, 7, "A" * 64, "a" * 63):
        yield ("sha256", value), faults.put(value, "files", "onnx/head.onnx", "sha256")
    yield "files", faults.put("text", "files", "onnx/head.onnx")
    yield "graphs", faults.put([], "graphs", "head")
    yield "embedding", faults.put(["N", 64, 1], "tensors", "embedding", "shape")
    yield "width", faults.put(["N", "D"], "tensors", "embedding", "shape")
    yield "size", faults.put(32.0, "preprocessing", "size")
    yield "size", faults.put(True, "preprocessing", "size")
    yield "size", faults.put(4097, "preprocessing", "size")
    yield "aspect", faults.put("shown", "preprocessing", "aspect")


def test_facts_that_make_no_sense(library: Library, folder: Path) -> None:
    found = []
    whole = (folder / "bundle.json").read_bytes()
    for what, change in sealed_changes():
        (folder / "bundle.json").write_bytes(whole)
        faults.edit(folder, change)
        found += problems(library, folder, what)
    assert found == []


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_has_not_are_no_json(library: Library, folder: Path, value: str) -> None:
    """Nothing that holds one is a bundle, though Python's JSON has three of them."""
    path = folder / "bundle.json"
    path.write_text(path.read_text().replace('"threshold": 0.4', f'"threshold": {value}'))
    assert refusal(lambda: library.check(folder))[0] == "DIGEST_MISMATCH"
    assert refusal(lambda: Bundle.open(folder))[0] == "DIGEST_MISMATCH"


def test_paths_that_lead_out(library: Library, folder: Path) -> None:
    (folder.parent / "outside.bin").write_bytes(b"x")
    facts = {"bytes": 1, "sha256": sha256_file(folder.parent / "outside.bin")}
    whole = (folder / "bundle.json").read_bytes()
    found = []
    for name in (*parameters(faults.test_no_path_leads_out_of_the_bundle), ".", "onnx", "a//../b", "./x", "x/", "a\0b"):
        (folder / "bundle.json").write_bytes(whole)

        def add(entry: dict[str, Any], name: str = name) -> None:
            entry["files"][name] = facts

        faults.edit(folder, add)
        ours, theirs = refusal(lambda: library.check(folder)), refusal(lambda: Bundle.open(folder))
        if ours[0] != theirs[0] or not ours[0] or ("\0" not in name and ours != theirs):
            found.append((name, ours, theirs))
    assert found == []


def test_graphs_that_are_not_listed(library: Library, folder: Path) -> None:
    shutil.copy(folder / "onnx/head.onnx", folder.parent / "evil.onnx")
    whole = (folder / "bundle.json").read_bytes()
    changes = [faults.put("../evil.onnx", "graphs", "head"), faults.put("../evil.onnx", "golden")]
    for change in changes:
        (folder / "bundle.json").write_bytes(whole)
        faults.edit(folder, change)
        assert problems(library, folder, "evil") == []


def test_what_is_not_listed(library: Library, folder: Path) -> None:
    found = []
    for name in (*parameters(faults.test_files_that_are_not_listed_are_refused), "engines/Thumbs.db", "z", "a b", "ä"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
        found += problems(library, folder, name)
        restored(folder)
    for to in (*parameters(faults.test_links_that_are_not_listed_are_refused), "/", "."):
        (folder / "more").symlink_to(folder / to)
        found += problems(library, folder, to)
        (folder / "more").unlink()
    os.mkfifo(folder / "pipe")
    found += problems(library, folder, "pipe")
    assert found == []


def test_folders_and_files_that_are_links(library: Library, folder: Path) -> None:
    (folder / "onnx").rename(folder.parent / "elsewhere")
    (folder / "onnx").symlink_to(folder.parent / "elsewhere")
    assert problems(library, folder, "onnx") == []
    restored_path = folder.parent / "linked.bundle"
    restored_path.symlink_to(STORED)  # the bundle itself may be a link, as Python has it
    library.check(restored_path)
    assert Bundle.open(restored_path).threshold == 0.4


def test_a_pipe_in_place_of_a_file_is_not_waited_for(library: Library, folder: Path) -> None:
    for name in ("onnx/head.onnx", "bundle.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert problems(library, folder, name) == []
        restored(folder)


def test_what_systems_leave_behind_is_let_be(library: Library, folder: Path) -> None:
    for name in parameters(faults.test_what_systems_leave_behind_is_let_be):
        (folder / name).write_bytes(b"x")
    (folder / "empty").mkdir()
    library.check(folder)


def test_what_systems_leave_behind_holds_no_weights_and_is_no_link(library: Library, folder: Path) -> None:
    for name in parameters(faults.test_what_systems_leave_behind_holds_no_weights, 1):
        faults.weigh(folder, "mammography_onnxruntime", name)
        for place in (folder / "onnx" / name, folder / name):
            place.write_bytes(b"x")
            assert problems(library, folder, place) == []
            place.unlink()
        library.check(folder)
        restored(folder)
        (folder / name).symlink_to(folder / "onnx")
        assert problems(library, folder, name) == []
        restored(folder)


def test_names_that_no_file_can_have(library: Library, folder: Path) -> None:
    whole = (folder / "bundle.json").read_bytes()
    for name in parameters(faults.test_a_name_that_no_file_can_have_is_missing):
        (folder / "bundle.json").write_bytes(whole)
        faults.edit(folder, faults.put({"bytes": 1, "sha256": "0" * 64}, "files", name))
        assert problems(library, folder, name[:9]) == []


def test_what_is_no_bundle(library: Library, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "golden").mkdir()
    for name in ("no.bundle", "file", "golden", "a/b/c", "file/x"):
        assert problems(library, tmp_path / name, name) == []
        assert refusal(lambda: library.check(tmp_path / name))[0] == "BUNDLE_ERROR"  # noqa: B023
    (tmp_path / "golden/golden.npz").write_bytes(b"x")
    assert problems(library, tmp_path, "golden.npz") == []
    assert refusal(lambda: library.check(tmp_path))[0] == "DIGEST_MISMATCH"


RESPELT: list[Callable[[str], str]] = [
    *parameters(faults.test_values_that_are_spelt_otherwise_are_not_what_was_sealed),
    lambda text: text.replace('"threshold": 0.4,', '"threshold": 4e-1,'),
    lambda text: text.replace('"opset": 18', '"opset": 18.0'),
    lambda text: text.replace('"opset": 18', '"opset": -0'),
    lambda text: text.replace("checkpoint", "\\u0063heckpoint", 1),
    lambda text: text.replace("checkpoint", "chéckpoint", 1),
    lambda text: text.replace("true", "false", 1),
    lambda text: text.replace('"trained"', '"Trained"', 1),
    lambda text: text + "x",
    lambda text: text.replace("{", "[", 1),
    lambda text: text[: len(text) // 2],
    lambda text: "",
    lambda text: "[]",
    lambda text: "7",
    lambda text: "null",
    lambda text: '"text"',
    lambda text: "[" * 5000,
    lambda text: '{"a":' * 5000,
    lambda text: '{"schema": "mpmmu-bundle/1"}',
    lambda text: '{"sha256": 7}',
]


@pytest.mark.parametrize("index", range(len(RESPELT)))
def test_values_that_are_spelt_otherwise(library: Library, folder: Path, index: int) -> None:
    path = folder / "bundle.json"
    text = path.read_text()
    assert RESPELT[index](text) != text
    path.write_text(RESPELT[index](text), encoding="utf-8")
    assert problems(library, folder, index) == []


@pytest.mark.parametrize("index", [0, 1])
def test_white_space_means_nothing(library: Library, folder: Path, index: int) -> None:
    path = folder / "bundle.json"
    path.write_bytes(parameters(faults.test_white_space_means_nothing)[index](path.read_text()).encode())
    library.check(folder)


def test_a_huge_bundle_json_is_not_read(library: Library, folder: Path) -> None:
    with (folder / "bundle.json").open("ab") as file:
        file.truncate(MAX_JSON_BYTES + 1)  # sparse
    assert problems(library, folder, "huge") == []


@pytest.mark.slow
def test_a_bit_flipped_anywhere_in_bundle_json(library: Library, folder: Path) -> None:
    path = folder / "bundle.json"
    data = path.read_bytes()
    stride = max(1, int(os.environ.get("MPMMU_BIT_STRIDE", "331")))  # 1: all
    for position in range(0, len(data) * 8, stride):
        byte, bit = divmod(position, 8)
        path.write_bytes(data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :])
        assert refusal(lambda: library.check(folder))[0] == "DIGEST_MISMATCH", (byte, bit)


@pytest.mark.slow
def test_numbers_are_spelt_as_python_spells_them(library: Library, folder: Path) -> None:
    """A bundle that holds any float that Python wrote opens: its digest is that of Python's spelling."""
    drawn = np.random.default_rng(3)
    bits = drawn.integers(0, 2**64, 20_000, dtype=np.uint64).view(np.float64)
    scaled = drawn.uniform(-1, 1, 20_000) * 10.0 ** drawn.integers(-30, 30, 20_000)
    edges = [
        0.0,
        -0.0,
        1.0,
        1e16,
        9999999999999998.0,
        1e15,
        1e-4,
        1e-5,
        0.0001234,
        5e-324,
        1.7e308,
        1e22,
    ]
    texts = ["ü", "\u2028", "\x7f", "\x00\x1f", "😀", '"\\/', "\b\f\n\r\t"]
    whole = [-1, 0, 2**63 - 1, -(2**63), 2**64 - 1]
    floats = [float(one) for one in (*bits[np.isfinite(bits)], *scaled, *edges, *-np.array(edges))]
    floats += [round(one, digits) for digits, one in enumerate(drawn.uniform(0, 1000, 17).tolist())]
    entry = json.loads((folder / "bundle.json").read_text())
    entry["card"] |= {"numbers": floats, "whole": whole, "texts": texts, **{text: text for text in texts}}
    seal(folder, entry)
    library.check(folder)
    assert Bundle.open(folder).entry["card"]["numbers"] == floats


def test_keys_are_sorted_as_python_sorts_them(library: Library, folder: Path) -> None:
    entry = json.loads((folder / "bundle.json").read_text())
    entry["card"] |= {name: 1 for name in ("Z", "a", "é", "\uffff", "\U00010000", "", "aa", "a0", "A")}
    seal(folder, entry)
    library.check(folder)


# ---------------------------------------------------------------- golden vectors, which the self-test reads


def resealed(folder: Path) -> None:
    seal(folder, json.loads((folder / "bundle.json").read_text()))


def other_shape(path: Path) -> None:
    with np.load(path) as stored:
        arrays: dict[str, Any] = {name: stored[name] for name in stored.files}
    arrays["embedding"] = arrays["embedding"][:, :-1]
    np.savez(path, **arrays)


def other_type(path: Path) -> None:
    with np.load(path) as stored:
        arrays: dict[str, Any] = {name: stored[name] for name in stored.files}
    arrays["embedding"] = arrays["embedding"].astype(">f4")
    np.savez(path, **arrays)


def in_columns(path: Path) -> None:
    with np.load(path) as stored:
        arrays: dict[str, Any] = {name: stored[name] for name in stored.files}
    arrays["embedding"] = np.asfortranarray(arrays["embedding"])
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        *parameters(faults.test_golden_vectors_that_were_sealed_broken),
        (other_shape, r"has float32\[4, 63\] as `embedding`, expected floats\[4, 64\]"),
        (other_type, "an array has the dtype `>f4`"),
        (in_columns, "an array's header is not as NumPy writes it"),
    ],
)
def test_golden_vectors_that_were_sealed_broken(
    library: Library, folder: Path, alter: Callable[[Path], None], said: str
) -> None:
    alter(folder / "golden/golden.npz")
    resealed(folder)
    with library.open(folder, threads=1) as model, pytest.raises(NativeError, match=said) as caught:
        model.self_test()
    assert caught.value.status == "BUNDLE_ERROR"


@pytest.mark.parametrize("name", ["ultrasound.feature_map", "openvino:int8.embedding", "openvino:int8.probability"])
@pytest.mark.parametrize("change", [lambda array: array[:3], lambda array: array[:0], lambda array: np.float32(1)])
def test_golden_vectors_that_are_not_compared_make_sense(
    library: Library, folder: Path, name: str, change: Callable[[Any], Any]
) -> None:
    """Those of other targets, and of stages."""
    with_golden(folder, lambda arrays: arrays.update({name: change(arrays[name])}))
    with pytest.raises(BundleError, match=f"as `{name}`, expected floats") as theirs:
        Bundle.open(folder).golden()
    with library.open(folder, threads=1) as model, pytest.raises(NativeError) as ours:
        model.self_test()
    assert (ours.value.status, str(ours.value)) == ("BUNDLE_ERROR", str(theirs.value))


@pytest.mark.slow
def test_a_small_file_that_unpacks_to_a_large_one(library: Library, folder: Path) -> None:
    zeros = np.zeros(bundles.MAX_GOLDEN_BYTES + 1, np.uint8)
    np.savez_compressed(folder / "golden/golden.npz", zeros=zeros)
    resealed(folder)
    with (
        library.open(folder, threads=1) as model,
        pytest.raises(NativeError, match=r"unpacks to \d+ bytes"),
    ):
        model.self_test()


def with_golden(folder: Path, change: Change) -> None:
    """Changes the golden vectors, and seals the bundle again."""
    path = folder / "golden/golden.npz"
    with np.load(path) as stored:
        arrays: dict[str, Any] = {name: stored[name] for name in stored.files}
    change(arrays)
    np.savez(path, **arrays)
    resealed(folder)


def test_other_golden_answers_are_no_parity(library: Library, folder: Path) -> None:
    with_golden(folder, lambda arrays: arrays.update({name: np.roll(arrays[name], 1, 0) for name in ANSWERS}))
    with (
        library.open(folder, threads=1) as model,
        pytest.raises(NativeError, match="differs from the") as caught,
    ):
        model.self_test()
    assert caught.value.status == "PARITY_ERROR"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("prefix", ["", "openvino:int8."])
@pytest.mark.parametrize("name", ANSWERS)
def test_golden_answers_that_are_no_numbers_are_no_parity(
    library: Library, folder: Path, name: str, prefix: str, value: float
) -> None:
    """One of them, the last: whoever takes a maximum over it sees the others."""
    if prefix and "openvino" not in library.engines:
        pytest.skip("openvino is not installed: pip install 'mpmmu-rt[openvino]'")

    def change(arrays: dict[str, Any]) -> None:
        arrays[prefix + name] = arrays[prefix + name].copy()
        arrays[prefix + name][..., -1] = value

    with_golden(folder, change)
    with library.open(folder, prefix[:-1] or None, threads=1) as model:
        result = SelfTest(ctypes.sizeof(SelfTest))
        with pytest.raises(NativeError, match="differs from the golden vectors") as caught:
            model.self_test(result)
    assert caught.value.status == "PARITY_ERROR"
    assert getattr(result, f"proven_{name}" if prefix else name) == np.inf


def test_golden_vectors_that_were_exchanged_since_the_bundle_was_opened(library: Library, folder: Path) -> None:
    """A self-test may come days later."""
    path = folder / "golden/golden.npz"
    with library.open(folder, threads=1) as model:
        with np.load(path) as stored:
            arrays: dict[str, Any] = {name: stored[name] for name in stored.files}
        np.savez(path, **arrays)
        with pytest.raises(
            NativeError, match=r"golden.npz has \d+ bytes and another SHA-256 than bundle.json"
        ) as caught:
            model.self_test()
    assert caught.value.status == "DIGEST_MISMATCH"


# ---------------------------------------------------------------- what is newer than the stored bundle


def with_check(folder: Path) -> dict[str, Any]:
    """bundle.json of the stored bundle, and a check of modalities, and what the golden vectors have beside them."""
    with_golden(folder, lambda arrays: arrays.update({bundles.EMBEDDING_MEAN: np.zeros(64, np.float32)}))
    entry: dict[str, Any] = json.loads((folder / "bundle.json").read_text())
    seal(folder, entry | {"modality_check": CHECK})
    return entry


CHECK = {
    "figures": list(FIGURES),
    "weights": [1.5, -2, 0.0, 1e-9, 3.25, 1, 2, 3],
    "means": [-0.0, *range(7)],
    "scales": [1e-05] * 8,
    "intercept": 0.25,
    "margin": 2,
}


SINGLE: dict[str, Any] = {
    name: {"columns": [32 * row, 32 * row + 32], "threshold": 0.5} for row, name in enumerate(MODALITIES)
}


def with_single(folder: Path, record: object) -> None:
    """bundle.json of the stored bundle with a record of heads for one modality, whose graphs are the head's."""
    entry = json.loads((folder / "bundle.json").read_text())
    graphs = entry["graphs"] | {f"head_{name}": entry["graphs"]["head"] for name in MODALITIES}
    seal(folder, entry | {"single_modality": record, "graphs": graphs})


def test_a_bundle_with_heads_for_one_modality(library: Library, folder: Path) -> None:
    with_single(folder, SINGLE)
    assert Bundle.open(folder).single_heads["ultrasound"].columns == (32, 64)
    with pytest.raises(BundleError) as theirs:
        Bundle.open(folder).golden()
    with library.open(folder, threads=1) as model, pytest.raises(NativeError, match=r"lacks `single\.mam") as ours:
        model.self_test()
    assert str(ours.value) == str(theirs.value)
    said = {f"single.{name}.probability": np.full(4, 0.5) for name in MODALITIES}
    with_golden(folder, lambda arrays: arrays.update(said))
    with library.open(folder, threads=1) as model:
        assert model.self_test().flipped == 0


def test_a_record_of_such_heads_that_makes_no_sense(library: Library, folder: Path) -> None:
    wrong: list[object] = [3, [], {}, "x", True, {**SINGLE, "mri": SINGLE["ultrasound"]}]
    wrong += [{"mammography": SINGLE["mammography"]}, *(dict.fromkeys(MODALITIES, one) for one in (3, "columns"))]
    odd: dict[str, list[object]] = {
        "columns": [3, None, "ab", [], [1], [0, 1, 2], [0, 65], [3, 3], [4, 3], [-1, 3], [0.0, 3.0], [False, True], {}],
        "threshold": [0, 1, 0.0, 1.0, -0.5, 1.5, "0.5", None, True, [0.5]],
    }
    for key, values in odd.items():
        wrong += [{**SINGLE, "ultrasound": {**SINGLE["ultrasound"], key: value}} for value in values]
        wrong.append({**SINGLE, "mammography": {k: v for k, v in SINGLE["mammography"].items() if k != key}})
    found = []
    for record in wrong:
        with_single(folder, record)
        found += problems(library, folder, record)
    entry = json.loads((folder / "bundle.json").read_text())
    seal(
        folder,
        entry | {"single_modality": SINGLE, "graphs": json.loads((STORED / "bundle.json").read_text())["graphs"]},
    )
    assert [*found, *problems(library, folder, "no graphs")] == []


def test_a_bundle_that_knows_its_modalities(library: Library, folder: Path) -> None:
    with_check(folder)
    assert Bundle.open(folder).modality_check is not None
    with library.open(folder, threads=1) as model:
        assert model.self_test().flipped == 0


def wrong_checks() -> list[object]:
    """Those of tests/test_modality_check.py, and more."""
    wrong = parameters(checking.test_a_check_that_makes_no_sense_is_refused)
    wrong = [*wrong, {"intercept": []}, {"means": None}, {"weights": {}}, {"scales": [-1.0] * 8}, {"figures": None}]
    wrong += [{"figures": list(FIGURES[::-1])}, {"means": [[0.0] * 8]}, {"weights": [None] * 8}, {"scales": [1.0] * 9}]
    whole = [CHECK | one if isinstance(one, dict) and one else one for one in wrong]
    return [*whole, *({key: CHECK[key] for key in CHECK if key != absent} for absent in CHECK), "text", [], True]


def test_a_check_of_modalities_that_makes_no_sense(library: Library, folder: Path) -> None:
    entry, found = with_check(folder), []
    for wrong in wrong_checks():
        seal(folder, entry | {"modality_check": wrong})
        assert refusal(lambda: library.check(folder))[0] == "BUNDLE_ERROR", wrong
        found += problems(library, folder, wrong)
    seal(folder, entry | {"modality_check": None})
    library.check(folder)
    assert found == []


RANGE = {"lowest": [0.0, -1, *[0.25] * 6], "highest": [0, 1.5, *[0.25] * 6], "margin": [1e-3, 2, *[0.5] * 6]}
LEARNT: dict[str, Any] = dict.fromkeys(MODALITIES, RANGE)


def test_what_was_learnt_of_images_that_makes_no_sense(library: Library, folder: Path) -> None:
    """The wrong ones of tests/test_learnt_ranges.py, but for numbers that no export writes; and more."""
    entry, found = with_check(folder), []
    wrong = [change(LEARNT) for name, change in ranges.WRONG.items() if name not in ("no number", "no bound")]
    wrong += [[], "x", True, {**LEARNT, "ultrasound": None}, {**LEARNT, "ultrasound": "x"}]
    odd: list[object] = [None, 3, {}, [[0.0] * 8]]
    wrong += [{**LEARNT, "ultrasound": {**RANGE, name: one}} for name in RANGE for one in odd]
    wrong.append({**LEARNT, "ultrasound": {**RANGE, "lowest": [2**64 - 1] * 8, "highest": [-1] * 8}})
    for learnt in wrong:
        seal(folder, entry | {"modality_check": CHECK | {"learnt": learnt}})
        found += problems(library, folder, learnt)
    for learnt in (None, LEARNT):
        seal(folder, entry | {"modality_check": CHECK | {"learnt": learnt}})
        library.check(folder)
        assert Bundle.open(folder).modality_check is not None
    assert found == []


def test_more_keys_than_any_bundle_has(library: Library, folder: Path) -> None:
    """Each key of an object is looked for among those before it: a million would take for ever."""
    entry = json.loads((folder / "bundle.json").read_text())
    entry["card"] |= {f"key {i}": i for i in range(15_000)}
    seal(folder, entry)
    library.check(folder)
    entry["card"] |= {f"key {i}": i for i in range(20_000)}
    seal(folder, entry)
    with pytest.raises(NativeError, match="is not valid JSON: it holds more than 20000 keys") as caught:
        library.check(folder)
    assert caught.value.status == "DIGEST_MISMATCH"


@pytest.mark.parametrize("said", [{"reason": "it flips 3 of 40 decisions"}, {"reason": ""}, {"reason": None}, {}])
def test_a_target_that_was_left_out_says_why(library: Library, folder: Path, said: dict[str, object]) -> None:
    entry = json.loads((folder / "bundle.json").read_text())
    entry["precision"] |= {"openvino:bf16": {"passed": False, **said}}
    seal(folder, entry)
    with pytest.raises(UsageError) as theirs:
        Bundle.open(folder).require_proven(Target("openvino", "bf16"))
    with pytest.raises(NativeError) as ours:
        library.open(folder, "openvino:bf16")
    assert (ours.value.status, str(ours.value)) == ("USAGE_ERROR", str(theirs.value))
    assert ours.value.hint == re.sub("^--target", "use", theirs.value.hint)


def test_what_is_not_listed_is_found_wherever_the_folder_is_named_from(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for named in ("", ".", "./", str(folder)):
        library.check(named)
    (folder / "onnx/own.bin").write_bytes(b"x")
    for named in ("", ".", "./", str(folder)):
        assert refusal(lambda named=named: library.check(named))[0] == "DIGEST_MISMATCH"  # type: ignore[misc]


@pytest.mark.parametrize("target", ["onnxruntime:fp32", "openvino:fp32"])
@pytest.mark.parametrize("renamed", [True, False])
def test_weights_that_are_written_over_in_use_end_the_answers(
    library: Library, folder: Path, target: str, renamed: bool
) -> None:
    """As `tests/test_exchanged.py` holds Python to it."""
    if target.partition(":")[0] not in library.engines:
        pytest.skip("openvino is not installed")
    pixels = {name: Bundle.open(folder).golden()[f"{name}.pixels"] for name in MODALITIES}
    model = library.open(folder, target)
    want = model.predict(pixels).probability
    weights = folder / "onnx/weights.bin"
    noise = np.random.default_rng(0).normal(0, 0.05, weights.stat().st_size // 4).astype("<f4").tobytes()
    (folder.parent / "noise").write_bytes(noise)
    if renamed:
        (folder.parent / "noise").replace(weights)
        np.testing.assert_array_equal(model.predict(pixels).probability, want)
    else:
        times = weights.stat()
        os.utime(weights)  # touched, and the same
        np.testing.assert_array_equal(model.predict(pixels).probability, want)
        shutil.copyfile(folder.parent / "noise", weights)
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # as `cp -p` may
        with pytest.raises(NativeError, match=r"weights\.bin was written to while it was in use") as caught:
            model.predict(pixels)
        assert caught.value.status == "DIGEST_MISMATCH"
