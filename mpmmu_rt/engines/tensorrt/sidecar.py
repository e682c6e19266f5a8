"""What is known about a TensorRT engine without loading it: its sidecar, read first, and whether it fits here.

Where a bundle holds graphs and no engine, `profile.json` beside them says which batches are to be built for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mpmmu_rt.bundle import WEIGHTS
from mpmmu_rt.errors import EngineError, UsageError
from mpmmu_rt.files import MAX_JSON_BYTES, atomic_file, parse_json_object, read_bounded, sha256_file, write_json

Flavour = Literal["tensorrt_rtx", "tensorrt"]
SCHEMA = "mpmmu-engine/1"
LICENCE = (
    "Built with NVIDIA TensorRT under its own licence: not for life-critical use; the library may be redistributed "
    "only inside an application of material extra function."
)
PROFILE = "profile.json"
PROFILE_SCHEMA = "mpmmu-profile/1"
_MAX_PROFILE_BATCH = 65_536
_HINT = "export the bundle again, or leave the engine out: it is then built where it runs"


@dataclass(frozen=True)
class Profile:
    """The batches that an engine takes, and the one that it is tuned for. A static one: `Profile(8, 8, 8)`."""

    min: int = 1
    opt: int = 8
    max: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max <= _MAX_PROFILE_BATCH:
            raise UsageError(
                f"the profile is {self}, expected 1 ≤ min ≤ opt ≤ max ≤ {_MAX_PROFILE_BATCH}", hint="such as 1/8/32"
            )

    def __str__(self) -> str:
        return f"{self.min}/{self.opt}/{self.max}"

    @classmethod
    def parse(cls, text: str) -> Profile:
        """`MIN/OPT/MAX`, or one number for a static profile. Raises `UsageError`."""
        parts = text.split("/")
        if len(parts) not in (1, 3) or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
            raise UsageError(
                f"the profile is `{text}`, expected MIN/OPT/MAX or one number of cases", hint="such as 1/8/32, or 8"
            )
        sizes = [int(part) for part in parts]
        return cls(*(sizes if len(sizes) == 3 else 3 * sizes))

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Profile:
        return cls(*(int(entry[key]) for key in ("min", "opt", "max")))


@dataclass(frozen=True)
class Sidecar:
    """What is known about an engine without loading it.

    version: of the library that built it. capabilities: of the GPUs that it is for, 89 for 8.9; device: the name of
    the one GPU that it is for, None for TensorRT-RTX, whose engines are for a kind. precision: what was asked for.
    achieved: the share of multiply-accumulates in each precision, by the graph's types; empty where the engine was
    built anew, from a graph that the export had measured. graph_sha256: see `graph_digest`.
    """

    flavour: Flavour
    version: str
    capabilities: tuple[int, ...]
    device: str | None
    precision: str
    achieved: Mapping[str, float]
    profile: Profile
    graph_sha256: str
    engine_sha256: str
    engine_bytes: int
    licence: str = LICENCE

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self), "capabilities": list(self.capabilities)}

    def write(self, path: Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        """Raises `EngineError` for a file that is absent, too large, no JSON, of another schema or malformed."""
        entry: Any = parse_json_object(path, read_bounded(path, MAX_JSON_BYTES, EngineError, _HINT), EngineError, _HINT)
        if entry.get("schema") != SCHEMA:
            raise EngineError(
                f"{path} has the schema {entry.get('schema')!r}, this version reads `{SCHEMA}`", hint=_HINT
            )
        try:
            if entry["flavour"] not in get_args(Flavour):
                raise ValueError(f"the flavour is {entry['flavour']!r}")
            return cls(
                flavour=entry["flavour"],
                version=str(entry["version"]),
                capabilities=tuple(int(one) for one in entry["capabilities"]),
                device=None if entry["device"] is None else str(entry["device"]),
                precision=str(entry["precision"]),
                achieved={str(name): float(share) for name, share in entry["achieved"].items()},
                profile=Profile.from_json(entry["profile"]),
                graph_sha256=str(entry["graph_sha256"]),
                engine_sha256=str(entry["engine_sha256"]),
                engine_bytes=int(entry["engine_bytes"]),
                licence=str(entry["licence"]),
            )
        except KeyError as error:
            raise EngineError(
                f"{path} lacks the key `{error.args[0]}`, expected all of {SCHEMA}", hint=_HINT
            ) from error
        except (TypeError, ValueError, OverflowError, AttributeError, UsageError) as error:
            raise EngineError(f"{path} is malformed: {error}", hint=_HINT) from error


@dataclass(frozen=True)
class Built:
    engine: bytes
    sidecar: Sidecar

    def write(self, path: Path) -> None:
        """The engine to `path`, and its sidecar beside it (`sidecar_path`)."""
        with atomic_file(path) as partial:
            partial.write_bytes(self.engine)
        self.sidecar.write(sidecar_path(path))


def sidecar_path(engine: Path) -> Path:
    return engine.with_name(engine.name + ".json")


def write_profile(folder: Path, profile: Profile) -> None:
    """Say in `folder`, which holds graphs, which batches engines are to be built for where they run."""
    with atomic_file(folder / PROFILE) as partial:
        partial.write_text(json.dumps({"schema": PROFILE_SCHEMA, **asdict(profile)}) + "\n", encoding="utf-8")


def read_profile(folder: Path) -> Profile:
    """What `write_profile` has said, or `Profile()` where it has said nothing. Raises `EngineError` for other files."""
    path = folder / PROFILE
    if not path.is_file():
        return Profile()
    entry: Any = parse_json_object(path, read_bounded(path, MAX_JSON_BYTES, EngineError, _HINT), EngineError, _HINT)
    try:
        if entry["schema"] != PROFILE_SCHEMA:
            raise ValueError(f"the schema is {entry['schema']!r}, this version reads `{PROFILE_SCHEMA}`")
        return Profile.from_json(entry)
    except KeyError as error:
        raise EngineError(
            f"{path} lacks the key `{error.args[0]}`, expected all of {PROFILE_SCHEMA}", hint=_HINT
        ) from error
    except (TypeError, ValueError, OverflowError, UsageError) as error:
        raise EngineError(f"{path} is malformed: {error}", hint=_HINT) from error


def graph_digest(graph: Path | bytes) -> str:
    """SHA-256, in hexadecimal, of a graph and, where one lies beside it, of `weights.bin`.

    Raises `EngineError` if they can't be read.
    """
    if isinstance(graph, bytes):
        return hashlib.sha256(graph).hexdigest()
    weights = graph.with_name(WEIGHTS)
    try:
        if not weights.is_file():
            return sha256_file(graph)
        return hashlib.sha256((sha256_file(graph) + sha256_file(weights)).encode()).hexdigest()
    except OSError as error:
        raise EngineError(
            f"{error.filename or graph} can't be read ({error.strerror}), expected the graph of an engine",
            hint="export the bundle again, or copy it again, whole",
        ) from error


@dataclass(frozen=True)
class Here:
    """What an engine would meet here: the library, the GPU, the graph and the engine as they lie on disk.

    precision, batches: what is asked for; the smallest and the largest batch, or None for whatever the engine takes.
    """

    flavour: Flavour
    version: str
    device: str
    capability: int
    precision: str
    graph_sha256: str
    engine_sha256: str
    engine_bytes: int
    batches: tuple[int, int] | None = None


def explain(sidecar: Sidecar, here: Here) -> str | None:
    """One sentence on why the engine of `sidecar` can't be loaded here, or None if it can."""
    built, name = sidecar.capabilities, sidecar.flavour
    if name != here.flavour:
        return f"the engine is for {name}, and this is {here.flavour}"
    if sidecar.version != here.version:  # neither flavour loads another release's engine
        return f"the engine was built by {name} {sidecar.version}, and this is {here.version}"
    if here.capability not in built:
        return (
            f"the engine was built for compute capability {', '.join(map(str, built)) or 'unknown'}, "
            f"and this GPU has {here.capability}"
        )
    if sidecar.device not in (None, here.device):
        return f"the engine was built for {sidecar.device}, and this GPU is {here.device}"
    if sidecar.precision != here.precision:
        return f"the engine computes in {sidecar.precision}, and {here.precision} was asked for"
    if (sidecar.engine_bytes, sidecar.engine_sha256) != (here.engine_bytes, here.engine_sha256):
        return "the engine is not the file that its sidecar describes: its size or SHA-256 is another"
    if sidecar.graph_sha256 != here.graph_sha256:
        return "the engine was built from another graph than the one beside it: the graph's SHA-256 is another"
    if here.batches is not None:
        smallest, largest = here.batches
        if not sidecar.profile.min <= smallest <= largest <= sidecar.profile.max:
            return (
                f"the engine takes {sidecar.profile.min} to {sidecar.profile.max} cases at once, "
                f"and {smallest} to {largest} were asked for"
            )
    return None
