"""What TensorRT-RTX compiles for the GPU when an engine first runs a batch size: kept, as it takes seconds.

An `IRuntimeCache` holds it. There is one for each loaded engine, for all its contexts, filled from the user's cache
(`blob_cache`) and stored there when it has grown. TensorRT-RTX itself refuses what another release, GPU or driver has
compiled; such an entry is removed, with a `CacheWarning`. Made from documentation; **not run on any GPU yet**.
"""

from __future__ import annotations

import hashlib
from typing import Any

from mpmmu_rt.engines.shared.blob_cache import user_cache
from mpmmu_rt.engines.shared.gpu import UNKNOWN, gpu


class CompiledKernels:
    """The runtime cache of one engine. `config` holds on to it in C++ only: this must live as long as its contexts."""

    def __init__(self, trt: Any, engine: bytes, config: Any) -> None:
        """config: an `IRuntimeConfig` of TensorRT-RTX. A CUDA context must be current."""
        here, self._store = gpu(), user_cache()
        self._facts = {
            "engine": f"what {trt.__name__} compiled for an engine",
            "version": str(trt.__version__),
            "engine_sha256": hashlib.sha256(engine).hexdigest(),
            "gpu": here.name if here else UNKNOWN,
            "capability": str(here.capability) if here else UNKNOWN,
            "driver": here.driver if here else UNKNOWN,
        }
        self._cache = config.create_runtime_cache()
        kept = self._store.load(self._facts) if self._store else None
        self._kept = b"" if kept is None else kept.tobytes()
        if self._store and self._kept and not self._cache.deserialize(self._kept):
            self._store.drop(self._facts, f"{trt.__name__} does not take it")
            self._kept = b""
        config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Store what was compiled, if that is more than was loaded or stored before."""
        if self._store is None:
            return
        compiled = bytes(self._cache.serialize() or b"")  # None where it fails: the answers are there all the same
        if len(compiled) > len(self._kept):
            self._store.store(self._facts, compiled)
            self._kept = compiled
