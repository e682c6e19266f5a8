"""Engines that had to be built on this device, kept in the user's cache (`blob_cache`): the next start builds nothing.

TensorRT times kernels while it builds, and each build may choose others: engines that are kept are also the same ones
from start to start, so that what runs is what `mpmmu-rt verify` has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from mpmmu_rt import __version__
from mpmmu_rt.engines.shared.blob_cache import user_cache
from mpmmu_rt.engines.shared.gpu import Gpu
from mpmmu_rt.errors import EngineError

from .run import EngineRefused
from .sidecar import Built, Flavour, Profile, graph_digest

ANEW = "built anew"
BEFORE = "built here before, and kept"
_Loaded = TypeVar("_Loaded")


def facts(
    graph: Path, *, flavour: Flavour, version: str, here: Gpu, precision: str, profile: Profile
) -> dict[str, str]:
    """All that an engine built here depends on; the graph by its bytes, its weights included. version: the library's.

    Raises `EngineError` if the graph can't be read.
    """
    return {
        "engine": flavour,
        "version": version,
        "graph": graph_digest(graph),
        "gpu": here.name,
        "capability": str(here.capability),
        "driver": here.driver,
        "precision": precision,
        "profile": str(profile),
        "mpmmu-rt": __version__,
    }


def kept_or_built(
    known: Mapping[str, str],
    build: Callable[[], Built],
    load: Callable[[bytes, str], _Loaded],
    warn: Callable[[str], None],
) -> _Loaded:
    """What `load` makes of the engine that is kept under the facts `known`, or else of one that is built, and kept.

    load: is given the engine and how it came about, `ANEW` or `BEFORE`, and raises `EngineRefused` for bytes that are
    no engine here; such an entry is removed, with a `CacheWarning`, and the engine built. warn: is told how, before a
    build and after a load. Raises what `build` and `load` do, and `EngineError` if the graph is replaced meanwhile.
    """
    cache = user_cache()
    kept = cache.load(known) if cache else None
    if cache and kept is not None:
        try:
            loaded = load(kept.tobytes(), BEFORE)
        except EngineRefused as error:
            cache.drop(known, str(error))
        else:
            warn(BEFORE)
            return loaded
    warn(ANEW)
    built = build()
    if built.sidecar.graph_sha256 != known["graph"]:
        raise EngineError(
            "the graph was replaced while an engine was built from it, expected the one that was there before",
            hint="load it again",
        )
    if cache:
        cache.store(known, built.engine)
    return load(built.engine, ANEW)
