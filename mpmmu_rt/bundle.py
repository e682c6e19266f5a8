"""The bundle: the deployable folder, and the only thing that crosses from export to runtime.

    bundle.json          everything there is to know, and the SHA-256 and size of every other file
    onnx/*.onnx          `mammography`, `ultrasound` (pixels → feature_map), `attention_pool` (both feature maps →
                         embedding), `head` (embedding → probability, base_probability) and `model` (both pixels →
                         probability, base_probability, embedding); for ONNX Runtime's CPU provider the first four
                         again as `<name>_onnxruntime`, with gates that it computes exactly and with its own tree
                         operator; for OpenVINO the first three again as `<name>_openvino`; dynamic batch; else standard
                         operators; `head_mammography` and `head_ultrasound` (part of the embedding → probability,
                         base_probability) where the model has heads for one modality alone; they share
    onnx/weights.bin     the weights, each stored once
    onnx/attention_pool.npz  the weights of both attention pools, for the CUDA kernel: arrays float32 named
                         `<modality>.attention.<name>` as in torch's state_dict (`mpmmu_rt.kernels.weights`)
    engines/             for each target of GPUs: `mammography`, `ultrasound` (the feature map in its type),
                         for TensorRT `head` and `model`, the head in FP32; their weights, engines and sidecars, and
                         `profile.json`, the batches that engines take which a device builds itself
    MODEL_CARD.md        the card for people, written from bundle.json (`mpmmu_rt.card`)
    golden/golden.npz    a few inputs, the original's output of every stage, what each INT8 target said when it was
                         proven, `<target>.embedding` and `<target>.probability`, `training.embedding_mean`, and
                         what heads for one modality say, `single.<modality>.probability`

`bundle.json` is a JSON object with the keys

    schema         "mpmmu-bundle/1"
    name           what the model is called
    trained        false for the reference model: its probabilities mean nothing
    preprocessing  size, fit and aspect (`mpmmu_rt.images.Preprocessing`)
    threshold      a probability at or above it is called malignant
    classes        ["benign", "malignant"]
    tensors        name → {dtype, shape}; shape counts cases as "N"
    graphs         graph → path; `mammography.int8` and `ultrasound.int8` where the bundle was calibrated, for
                   openvino:int8-bf16 too unless there are `mammography.int8-bf16` and `ultrasound.int8-bf16`
    attention_pool {weights: path, kinds: {modality: "eca", "cbam" or "none"}}; null where only graphs can pool
    golden         path
    targets        the targets that the export has verified; `parity` and `precision` say how
    head           how the forests of `head` and `head_onnxruntime` are evaluated, the names of the base learners, and
                   notes for the user
    precision      target → what was measured of it in decisions, for every target but the first
    calibration    what INT8 was calibrated on: {kind: "manifest", manifest, sha256, listed, of_the_test_part, parts_by,
                   cases} or {kind: "phantoms", seed, cases}; null or absent where there is no INT8
    known_images   {part of the split: digests of the images that the model learnt from}, where the checkpoint has them
    modality_check {figures, weights, means, scales, intercept, margin, learnt}: `mpmmu_rt.modality_check`; null where
                   unknown. learnt {modality: {lowest, highest, margin}}: `mpmmu_rt.learnt_ranges`; likewise, or absent
    single_modality {modality: {columns, threshold}}: `mpmmu_rt.single_record`; null where there are no such heads
    model, card, provenance, parity: for people; `inspect` prints them; `mpmmu_rt.card` has the card's fields
    files          path → {sha256, bytes}, every file of the bundle but bundle.json
    sha256         of all the other keys: what a flipped bit in the threshold would otherwise slip past

A bundle is written to a temporary folder and renamed. Opening it checks the schema, and the size and digest of
every listed file, before anything is deserialised. Whatever is not as it was sealed gets one answer, `DigestMismatch`:
a file that is missing, cut, changed or linked, one that is not listed, and a `bundle.json` that is no JSON any more.
What was sealed and makes no sense is a `BundleError`. It never contains a pickle. Files that systems leave in folders
which are looked at (`.DS_Store`) are let be, unless a graph names them: its weights could lie there.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from .errors import BundleError, DigestMismatch, UsageError
from .files import MAX_JSON_BYTES, parse_json_object, read_bounded, sha256_file, stamp
from .folders import LEFT_BY_SYSTEMS, Kind
from .images import Preprocessing
from .known_images import KnownImages
from .modality_check import ModalityCheck
from .single_record import SingleHead
from .single_record import golden_of as of_single_head
from .single_record import read as read_single_heads
from .spec import IN_8_BITS, MODALITIES, Array, Modality, StrPath, Target, TensorSpec, in_8_bits

SCHEMA = "mpmmu-bundle/1"
MANIFEST = "bundle.json"
_FILES = ("MODEL_CARD.md", "onnx/*.onnx", "onnx/*.bin", "onnx/*.npz", "engines/**", "golden/golden.npz")
KIND = Kind(MANIFEST, _FILES)  # damaged ones too are replaced: the name alone tells
MAX_FILE_BYTES = 8 * 2**30
MAX_GOLDEN_BYTES = 2**28
ENGINES = "engines"
WEIGHTS = "weights.bin"  # in every folder of graphs
POOL_WEIGHTS = "onnx/attention_pool.npz"
MAX_POOL_BYTES = 2**28
MAX_WIDTH = 2**20  # of the embedding
CLASSES = ("benign", "malignant")
EMBEDDING_MEAN = "training.embedding_mean"
UNTRAINED = "UNTRAINED model: its probabilities mean nothing"
FROM_PHANTOMS = "phantoms"
TRIED_INT8 = "INT8 of this bundle was calibrated on generated phantoms, for trying it: not for images of people"

HeadGraph = Literal["head", "head_onnxruntime"]
Graph = Literal[
    "mammography",
    "ultrasound",
    "attention_pool",
    "mammography_onnxruntime",
    "ultrasound_onnxruntime",
    "attention_pool_onnxruntime",
    HeadGraph,
    "model",
]
GRAPHS: tuple[Graph, ...] = (
    *("mammography", "ultrasound", "attention_pool"),
    *("mammography_onnxruntime", "ultrasound_onnxruntime", "attention_pool_onnxruntime"),
    *("head", "head_onnxruntime", "model"),
)
_POOL_KINDS = ("eca", "cbam", "none")  # the kernel's (`mpmmu_rt.kernels.weights.AttentionKind`)
GOLDEN = frozenset({f"{m}.{part}" for m in MODALITIES for part in ("pixels", "feature_map")}) | {
    "embedding",
    "probability",
}
_HINT = "export the bundle again with `mpmmu-rt export`"
# What was written so shortly before it was hashed may be written again within the same tick of the file system's clock.
_TICKS_NS = 2_000_000_000
_ALTERED = "the bundle was altered or damaged: do not use it; copy or export it again"


def quantized_graph(graph: str, precision: str) -> str:
    """What the graph of an encoder in 8 bits is called."""
    return f"{graph}.{precision}"


def own_graph(graph: str, engine: str) -> str:
    """What a graph is called that was rewritten for one engine. Bundles of before have none for OpenVINO."""
    return f"{graph}_{engine}"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: checked facts and paths. Holds no engine and no file handle."""

    path: Path
    entry: Mapping[str, Any]
    digest: str  # SHA-256 of bundle.json, which holds the digests of all the rest
    tensors: Mapping[str, TensorSpec]
    preprocessing: Preprocessing
    threshold: float
    # Of every file what `_seen` said of it when it was hashed.
    _hashed: dict[str, tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)
    # Graphs are opened later too, when a service has long gone to another folder.
    root: Path = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(os.path.abspath(self.path)))

    @classmethod
    def open(cls, path: StrPath) -> Bundle:
        """Open and check a bundle.

        Raises `DigestMismatch` for one that is not as it was sealed, `BundleError` for what was sealed and makes no
        sense, is of another version, or is no bundle.
        """
        path = Path(path)
        manifest = path / MANIFEST
        entry, data = _read_manifest(path)
        try:
            os.path.abspath(path).encode()
        except UnicodeEncodeError as error:
            raise BundleError(
                f"{path} lies at a path of bytes that are no UTF-8, expected one that engines can be told",
                hint="rename it, or the folder that it lies in",
            ) from error
        if entry.get("schema") != SCHEMA:
            raise BundleError(
                f"{manifest} has the schema {entry.get('schema')!r}, this version reads `{SCHEMA}`",
                hint="export the bundle again with this version of mpmmu-rt",
            )
        try:
            _check_facts(entry)
            bundle = cls(
                path=path,
                entry=entry,
                digest=hashlib.sha256(data).hexdigest(),
                tensors=_tensors(entry),
                preprocessing=Preprocessing.from_json(_mapping(entry, "preprocessing")),
                threshold=_threshold(entry),
            )
            _check_pixels(bundle)
            _ = bundle.modality_check, bundle.single_heads
            bundle.check_files()
        except KeyError as error:
            missing = f"{manifest} lacks the key `{error.args[0]}`, expected all keys of {SCHEMA}"
            raise BundleError(missing, hint=_HINT) from error
        except (TypeError, ValueError, OverflowError, UsageError) as error:
            raise BundleError(f"{manifest} is malformed: {error}", hint=_HINT) from error
        return bundle

    @property
    def name(self) -> str:
        return str(self.entry["name"])

    @property
    def trained(self) -> bool:
        return self.entry["trained"] is True

    @property
    def warning(self) -> str | None:
        """What every output made with an untrained model says on its own, or with one whose INT8 saw no images."""
        return "; ".join(warnings_of(self.entry)) or None

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.entry["targets"])

    @cached_property
    def known_images(self) -> KnownImages:
        """What the model was trained on; nothing of an old bundle, or of modules of the user's own."""
        return KnownImages.from_json(self.entry.get("known_images"))

    @cached_property
    def modality_check(self) -> ModalityCheck | None:
        """Of images that look swapped, or unlike the training's; None where the model was not trained by us, or long
        ago."""
        return ModalityCheck.from_json(self.entry.get("modality_check"))

    @property
    def _width(self) -> int:
        return int(self.tensors["embedding"].shape[1])

    @cached_property
    def single_heads(self) -> Mapping[Modality, SingleHead]:
        """For one modality alone; {} where the model was trained without them."""
        return read_single_heads(self.entry, self._width)

    @cached_property
    def learners(self) -> tuple[str, ...] | None:
        """The names of the head's base learners, as `base_probability` has them; None where an old bundle has none."""
        names = self.entry["head"].get("head", {}).get("learners")
        return None if names is None else tuple(map(str, names))

    def proof(self, target: Target) -> Mapping[str, Any]:
        """What the export reported of a target: of the first one its parity; {} where it said nothing."""
        parity = self.entry["parity"]
        found: Mapping[str, Any] = parity if parity.get("target") == target.plain else {}
        return found or self.entry["precision"].get(target.plain, {})

    def require_proven(self, target: Target) -> None:
        """Raise `UsageError` for a target that the export did not prove, with its reason where it had one."""
        if str(target) not in self.targets:
            if reason := self.entry["precision"].get(target.plain, {}).get("reason"):
                raise UsageError(
                    f"{target} was left out of {self.path} when it was exported ({reason}), expected one of "
                    f"{', '.join(self.targets)}",
                    hint=f"--target {self.targets[0]}, or export it again after what the reason says is settled",
                )
            raise UsageError(
                f"{target} was not proven when {self.path} was exported, expected one of {', '.join(self.targets)}",
                hint=f"export it again with --target {target}; `mpmmu-rt inspect` says why a target was left out",
            )

    def graph(self, graph: Graph, precision: str = "fp32") -> Path:
        """The path of a graph; of an encoder also in 8 bits, where the bundle was calibrated. Raises `BundleError`.

        Other precisions run the FP32 graph: their engines round while they compute. Both precisions in 8 bits may share
        the graph of one.
        """
        graphs = self.entry["graphs"]
        if not in_8_bits(precision):
            return self.root / str(graphs[graph])
        names = [quantized_graph(graph, one) for one in (precision, *IN_8_BITS)]
        name = next((one for one in names if one in graphs), names[0])
        if name not in graphs:
            reasons = {key: found.get("reason") for key, found in self.entry["precision"].items()}
            if reason := next((why for key, why in reasons.items() if in_8_bits(key.partition(":")[2]) and why), None):
                raise BundleError(
                    f"{self.path} holds no INT8 graph, expected one: it was left out when the bundle was exported "
                    f"({reason})",
                    hint="export it again after what the reason says is settled, or use another target",
                )
            raise BundleError(
                f"{self.path} holds no INT8 graph `{name}`, expected a bundle that was calibrated",
                hint="export it again with --calibrate MANIFEST",
            )
        return self.root / str(graphs[name])

    def graph_for(self, engine: str, graph: Graph, precision: str = "fp32") -> Path:
        """The path of a graph as it was rewritten for `engine`, where it was; else what `graph` says, and raises."""
        own = self.entry["graphs"].get(own_graph(graph, engine))
        return self.graph(graph, precision) if own is None or in_8_bits(precision) else self.root / str(own)

    def target_graph(self, target: Target, name: str) -> Path:
        """A graph that was written for one target, in the types of its precision. Raises `BundleError` for none."""
        path = f"{target_folder(target.engine, target.precision)}/{name}.onnx"
        if path not in self.entry["files"]:
            raise BundleError(
                f"{self.path} holds no {path}, expected graphs for {target}",
                hint=f"export it again with --target {target}",
            )
        return self.root / path

    def golden(self) -> dict[str, Array]:
        """The golden vectors: `<modality>.pixels`, `<modality>.feature_map`, `embedding`, `probability`."""
        path = self.path / self.entry["golden"]
        found = self._golden_arrays()
        wanted = GOLDEN | {of_single_head(modality) for modality in self.single_heads}
        if missing := wanted.difference(found):
            raise BundleError(f"{path} lacks `{min(missing)}`, expected {', '.join(sorted(wanted))}", hint=_HINT)
        known = {name: array for name, array in found.items() if name in wanted or ":" in name}  # of a target
        _check_golden(path, known, self.preprocessing.size, self._width)
        return found

    def embedding_mean(self) -> Array | None:
        """float32 [D], the mean embedding of the rows that the model was trained on; None where it is not known."""
        mean = self._golden_arrays().get(EMBEDDING_MEAN)
        if mean is not None and (mean.shape != (self._width,) or mean.dtype.kind != "f" or not np.isfinite(mean).all()):
            raise BundleError(
                f"{self.path / self.entry['golden']} has {mean.dtype}{list(mean.shape)} as `{EMBEDDING_MEAN}`, "
                f"expected {self._width} finite floats",
                hint=_HINT,
            )
        return mean

    def _golden_arrays(self) -> dict[str, Array]:
        found = _read_arrays(self.root / self.entry["golden"], MAX_GOLDEN_BYTES)
        self.require_unchanged()
        return found

    def golden_of(self, target: Target, golden: Mapping[str, Array]) -> dict[str, Array]:
        """`embedding` and `probability` of an INT8 target when it was proven, out of `golden`. Raises `BundleError`."""
        names = {name: f"{target.plain}.{name}" for name in ("embedding", "probability")}
        if missing := [name for name in names.values() if name not in golden]:
            raise BundleError(
                f"{self.path / self.entry['golden']} lacks `{missing[0]}`, expected what {target.plain} said at export",
                hint=_HINT,
            )
        return {name: golden[stored] for name, stored in names.items()}

    @property
    def pool_kinds(self) -> Mapping[str, str] | None:
        """The attention of each modality's pool, "eca", "cbam" or "none"; None where only graphs can pool."""
        pool = self.entry.get("attention_pool")
        return None if pool is None else dict(pool["kinds"])

    def pool_arrays(self) -> dict[str, Array]:
        """What `PoolWeights.from_arrays` reads, with the prefix `<modality>.attention.`. Raises `BundleError`."""
        pool = self.entry.get("attention_pool")
        if pool is None:
            raise BundleError(
                f"{self.path} holds no weights of attention pools, expected a model that has them",
                hint="export it again; a module of your own has none, and its whole graph is what runs",
            )
        found = _read_arrays(self.root / pool["weights"], MAX_POOL_BYTES)
        self.require_unchanged()
        return found

    def check_files(self) -> None:
        """Hold every file to its digest again. Raises `DigestMismatch` for one that is altered, missing, or not listed,
        `BundleError` for a list that makes no sense."""
        files = _mapping(self.entry, "files")
        used = [*_mapping(self.entry, "graphs").values(), self.entry["golden"]]
        if pool := self.entry.get("attention_pool"):
            used.append(pool["weights"])
        absent = [name for name in used if name not in files]
        absent += [graph for graph in GRAPHS if graph not in self.entry["graphs"]]
        if absent:
            raise BundleError(f"{self.path / MANIFEST} does not list {absent[0]}, expected its digest", hint=_HINT)
        self._hashed.clear()
        for name, facts in files.items():
            seen, now = _seen(self.root / name), time.time_ns()  # before it is read
            _check_file(self.root, name, _count(facts["bytes"]), str(facts["sha256"]))
            if seen and max(seen[-2:]) < now - _TICKS_NS:
                self._hashed[name] = seen
        # An engine is code, and is looked for beside its graph; and what nobody listed, nobody has looked at.
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root).as_posix()
            if name in files or name == MANIFEST or (path.is_dir() and not path.is_symlink()):
                continue
            if not self._is_left_by_systems(path, name):
                raise DigestMismatch(
                    f"{self.path} holds {name}, which {MANIFEST} does not list, expected the files as they were "
                    "exported",
                    hint="remove it, if you put it there; else do not use the bundle: copy or export it again",
                )

    def _is_left_by_systems(self, path: Path, name: str) -> bool:
        """Whether a file that is not listed is nobody's doing, and nothing would read it: an engine reads weights from
        any file beside a graph that the graph names."""
        if path.name not in LEFT_BY_SYSTEMS or name.startswith(f"{ENGINES}/") or not _is_file(path):
            return False
        graphs = {one for one in self.entry["files"] if one.endswith(".onnx")} | set(self.entry["graphs"].values())
        return not any(_holds(self.root / graph, path.name.lower().encode()) for graph in graphs)

    def require_unchanged(self) -> None:
        """Of what is loaded from the bundle later than it was opened: raise `DigestMismatch`, or whatever `check_files`
        raises, where it is not what was opened any more, as one that was exported to the same place meanwhile.

        Asked after the file was read. Only files that were touched are hashed again.
        """
        if any(_seen(self.root / name) != self._hashed.get(name) for name in self.entry["files"]):
            self.check_files()


def _is_file(path: Path) -> bool:
    """And no link; nor is a name that no file can have."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except ValueError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return False
        raise


def _holds(path: Path, text: bytes) -> bool:
    """Whether a file of any size holds `text` (small letters), in small letters or capitals: names of files may be
    alike then."""
    before = b""
    with path.open("rb") as file:
        while part := file.read(2**20):
            if text in (before + part).lower():
                return True
            before = (before + part)[-len(text) :]
    return False


def _seen(path: Path) -> tuple[int, ...] | None:
    """`stamp` of a file; None where there is none."""
    try:
        return stamp(os.lstat(path))
    except (OSError, ValueError):
        return None


def warnings_of(entry: Mapping[str, Any]) -> list[str]:
    """What `bundle.json` says against the use of its model, in sentences."""
    found = [] if entry["trained"] is True else [UNTRAINED]
    tried = (entry.get("calibration") or {}).get("kind") == FROM_PHANTOMS
    return [*found, *([TRIED_INT8] if tried else [])]


def _read_manifest(folder: Path) -> tuple[dict[str, Any], bytes]:
    """`bundle.json`, whole and as it was sealed, and its bytes; of any version."""
    path = folder / MANIFEST
    if path.is_symlink():
        raise DigestMismatch(f"{path} is a link, expected a file", hint=_ALTERED)
    if not path.is_file():
        if any((folder / part).exists() for part in ("onnx/head.onnx", "golden/golden.npz")):
            raise DigestMismatch(f"{path} is missing beside other parts of a bundle, expected it", hint=_ALTERED)
        state = "does not exist" if not folder.exists() else f"holds no {MANIFEST}" if folder.is_dir() else "is a file"
        raise BundleError(f"{folder} {state}, expected a bundle", hint="name a folder that `mpmmu-rt export` wrote")
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise DigestMismatch(f"{path} has {size} bytes, expected at most {MAX_JSON_BYTES}", hint=_ALTERED)
    data = read_bounded(path, MAX_JSON_BYTES, BundleError, "check its permissions and the disk")
    entry: dict[str, Any] = parse_json_object(path, data, DigestMismatch, _ALTERED, twice=True, finite=True)
    # Without white space, which tools and transfers change: what a value's digest can't see is how it was spelt (1e-05
    # and 1E-05), and a key that is there twice.
    as_sealed = json.dumps(entry).encode()
    if entry.get("sha256") != _own_digest(entry) or _bare(data) != _bare(as_sealed):
        schema = entry.get("schema")
        of = "" if schema == SCHEMA else f" and has the schema {schema!r}, where this version reads `{SCHEMA}`"
        raise DigestMismatch(
            f"{path} does not match its own SHA-256{of}, expected the file as it was exported", hint=_ALTERED
        )
    return entry, data


def _bare(text: bytes) -> bytes:
    return b"".join(text.split())


def target_folder(engine: str, precision: str) -> str:
    """Where in a bundle lies what is for one target alone: graphs, their weights, and engines built from them."""
    return f"{ENGINES}/{engine}-{precision}"


def _check_file(folder: Path, name: str, size: int, digest: str) -> None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name:
        raise BundleError(f"{folder / MANIFEST} lists the path `{name}`, expected one inside the bundle", hint=_HINT)
    path = folder / relative
    if not _is_file(path):
        raise DigestMismatch(f"{path} is missing or a link, expected a file of {size} bytes", hint=_ALTERED)
    got = path.stat().st_size
    if got != size or size > MAX_FILE_BYTES or sha256_file(path) != digest:
        raise DigestMismatch(
            f"{path} has {got} bytes and another SHA-256 than bundle.json says, expected {size} bytes",
            hint=_ALTERED,
        )


def _read_arrays(path: Path, limit: int) -> dict[str, Array]:
    """The arrays of an .npz file of at most `limit` bytes, unpacked too. Raises `BundleError`."""
    # Import slowly, and a prediction has no use for them.
    from lzma import LZMAError
    from tokenize import TokenError
    from zipfile import BadZipFile

    data = read_bounded(path, limit, BundleError, _HINT)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            if (size := sum(item.file_size for item in arrays.zip.infolist())) > limit:
                raise ValueError(f"it unpacks to {size} bytes, expected at most {limit}")
            found = {name: arrays[name] for name in arrays.files}
            if len(found) < len(arrays.zip.infolist()):  # which of the two counts?
                raise ValueError("it holds a name twice")
            if strange := [name for name, array in found.items() if not isinstance(array, np.ndarray)]:
                raise ValueError(f"`{strange[0]}` is no array")
            return found
    # TypeError: of a .npy file `np.load` gives an array, which is no context manager. MemoryError: of a header that
    # claims more than there can be. RuntimeError: of what is encrypted, or packed in a way that there is not here.
    except (
        *(ValueError, OSError, EOFError, TypeError, MemoryError, RuntimeError, SyntaxError, TokenError),
        *(zlib.error, LZMAError, BadZipFile),
    ) as error:
        raise BundleError(f"{path} is not a readable .npz file: {error}", hint=_HINT) from error


def _check_golden(path: Path, golden: Mapping[str, Array], size: int, width: int) -> None:
    """Raise `BundleError` for vectors that no answer could be held to. NaN is left to who compares: it equals nothing.

    size: of an image; width: of an embedding.
    """
    cases = golden["probability"].shape[:1] or (0,)
    if not cases[0]:
        raise BundleError(f"{path} holds no golden cases, expected some", hint=_HINT)
    for name, array in golden.items():
        *_, part = name.rpartition(".")
        shape: tuple[int, ...] | None = {
            "pixels": (*cases, 1, size, size),
            "embedding": (*cases, width),
            "probability": cases,
        }.get(part)
        if part == "feature_map":
            shape = (*cases, *array.shape[1:])
        fits = array.dtype == np.uint8 if part == "pixels" else array.dtype.kind == "f"
        if shape is not None and (array.shape != shape or not fits):
            got = f"{array.dtype}{list(array.shape)}"
            wanted = f"{'uint8' if part == 'pixels' else 'floats'}{list(shape)}"
            raise BundleError(f"{path} has {got} as `{name}`, expected {wanted}", hint=_HINT)


def _mapping(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = entry[key]
    if not isinstance(value, dict):
        raise TypeError(f"`{key}` is a {type(value).__name__}, expected an object")
    return value


def _count(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"`files` has {value!r} bytes, expected an integer")
    return value


def _tensors(entry: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {name: TensorSpec.from_json({"name": name} | spec) for name, spec in _mapping(entry, "tensors").items()}


def _threshold(entry: Mapping[str, Any]) -> float:
    threshold = entry["threshold"]
    if not isinstance(threshold, float) or not 0 < threshold < 1:
        raise ValueError(f"`threshold` is {threshold!r}, expected a number in 0..1")
    if entry["classes"] != list(CLASSES):
        raise ValueError(f"`classes` is {entry['classes']!r}, expected {list(CLASSES)}")
    return threshold


def _check_facts(entry: Mapping[str, Any]) -> None:
    for key, kind in {"name": str, "trained": bool, "targets": list, "golden": str}.items():
        if not isinstance(entry[key], kind):
            raise TypeError(f"`{key}` is a {type(entry[key]).__name__}, expected a {kind.__name__}")
    if not all(isinstance(target, str) for target in entry["targets"]):
        raise TypeError(f"`targets` is {entry['targets']!r}, expected texts")
    for name in entry["targets"]:
        Target.parse(name)
    if not 0 < len(entry["targets"]) == len(set(entry["targets"])):
        raise ValueError(f"`targets` is {entry['targets']!r}, expected at least one, and none twice")
    for key in ("model", "card", "provenance", "parity", "precision", "head"):
        _mapping(entry, key)
    if entry["parity"]:  # of a draft it is empty
        _check_report(entry, "parity")
    for name in entry["precision"]:
        _check_report(entry["precision"], name)
    for name in entry["head"]:
        learners = _mapping(entry["head"], name).get("learners")
        if learners is not None and not (isinstance(learners, list) and all(isinstance(one, str) for one in learners)):
            raise TypeError(f"`{name}` has the learners {learners!r}, expected texts")
    if entry.get("attention_pool") is not None:
        _check_pool(_mapping(entry, "attention_pool"))
    if entry.get("calibration") is not None:
        _mapping(entry, "calibration")


def _check_report(entry: Mapping[str, Any], name: str) -> None:
    """What the export says of a target."""
    passed = _mapping(entry, name)["passed"]
    if passed is not None and not isinstance(passed, bool):
        raise TypeError(f"`{name}` has passed {passed!r}, expected true, false or null")


def _check_pool(pool: Mapping[str, Any]) -> None:
    kinds = _mapping(pool, "kinds")
    if not isinstance(pool["weights"], str):
        raise TypeError(f"`attention_pool` has the weights {pool['weights']!r}, expected a path")
    if set(kinds) != set(MODALITIES) or any(kind not in _POOL_KINDS for kind in kinds.values()):
        raise ValueError(
            f"`attention_pool` has the kinds {dict(kinds)}, expected for {' and '.join(MODALITIES)} one of "
            f"{', '.join(_POOL_KINDS)}"
        )


def _check_pixels(bundle: Bundle) -> None:
    """The encoders must take what the preprocessing makes, and the embedding must have a known width."""
    size = bundle.preprocessing.size
    for modality in MODALITIES:
        spec = bundle.tensors[f"{modality}_pixels"]
        if (spec.dtype, spec.shape) != ("uint8", ("N", 1, size, size)):
            raise ValueError(f"`tensors` has {spec}, expected uint8[N, 1, {size}, {size}] as `preprocessing` makes")
    embedding = bundle.tensors["embedding"]
    kinds, width = [type(length) for length in embedding.shape], embedding.shape[-1:]
    if embedding.dtype != "float32" or kinds != [str, int] or not 1 <= int(width[0]) <= MAX_WIDTH:
        raise ValueError(f"`tensors` has {embedding}, expected float32[N, D]")


def _own_digest(entry: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in entry.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def seal(folder: Path, entry: Mapping[str, Any]) -> None:
    """Write `bundle.json` for the files that lie in `folder`: the last step of an export. May be called again."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    whole = {**entry, "schema": SCHEMA, "files": files}
    text = json.dumps({**whole, "sha256": _own_digest(whole)}, indent=2, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
