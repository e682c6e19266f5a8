"""A graph in ONNX Runtime on a CUDA stream of ours: what the device path runs where there is no TensorRT.

The session is made for the stream, so that what it enqueues is ordered by our events, and a run waits for nothing.
Inputs and outputs lie where the device path says. **Never to be captured**: ONNX Runtime ends the process when its
caller captures a run (microsoft/onnxruntime#32081).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpmmu_rt.engines.tensorrt.cuda import DEVICE, Stream
from mpmmu_rt.engines.tensorrt.interface import Tensor
from mpmmu_rt.engines.tensorrt.sidecar import Profile
from mpmmu_rt.errors import EngineError

from .onnxruntime_lanes import failed

NOT_CAPTURED = "ONNX Runtime's runs can't be captured by their caller"
_ELEMENTS = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}
_GRAPH_NUMBERS = itertools.count(1)
_RUNS_BEFORE_CAPTURE = 2  # ONNX Runtime captures a run when all that it takes was allocated in two before it


def on_stream(stream: Stream) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider, of a session whose work is for that stream."""
    return {"has_user_compute_stream": "1", "user_compute_stream": str(stream.address)}


class SessionEngine:
    """A `DeviceEngine`. The stream must outlive it."""

    def __init__(
        self,
        runtime: Any,
        session: Any,
        graph: Path,
        profile: Profile,
        stream: Stream,
        *,
        own_graphs: bool = False,
    ) -> None:
        """session: made with `on_stream(stream)`. Raises `EngineError` for inputs or outputs of a type or a shape that
        the device path has not.

        own_graphs: the session was made with `enable_cuda_graph`, and each batch size is captured by ONNX Runtime.
        """
        self.runtime, self.session, self.name, self.profile, self.stream = runtime, session, graph.name, profile, stream
        self.own_graphs = own_graphs
        found = [(one, True) for one in session.get_inputs()] + [(one, False) for one in session.get_outputs()]
        self.tensors = {one.name: self._tensor(one, is_input) for one, is_input in found}
        self.inputs = tuple(one.name for one in session.get_inputs())
        self.outputs = tuple(one.name for one in session.get_outputs())

    def _tensor(self, value: Any, is_input: bool) -> Tensor:
        shape = tuple(value.shape[1:])
        if value.type not in _ELEMENTS or not value.shape or not all(isinstance(length, int) for length in shape):
            reason = f"`{value.name}` is {value.type}{list(value.shape)}, expected a batch and fixed sizes"
            raise failed(self.name, ValueError(reason))
        return Tensor(value.name, _ELEMENTS[value.type], shape, is_input)

    def context(self, batch: int, addresses: Mapping[str, int]) -> SessionContext:
        return SessionContext(self, batch, addresses)

    def close(self) -> None:
        self.session = None


class SessionContext:
    """One batch size, bound for good."""

    def __init__(self, engine: SessionEngine, batch: int, addresses: Mapping[str, int]) -> None:
        self._engine = engine
        self._options = engine.runtime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._runs_first = 0
        if engine.own_graphs:
            self._options.add_run_config_entry("gpu_graph_id", str(next(_GRAPH_NUMBERS)))
            self._runs_first = _RUNS_BEFORE_CAPTURE
        self._binding = engine.session.io_binding()
        for name, tensor in engine.tensors.items():
            bind = self._binding.bind_input if tensor.is_input else self._binding.bind_output
            try:
                bind(name, "cuda", DEVICE, tensor.dtype.type, (batch, *tensor.shape), addresses[name])
            except Exception as error:
                raise failed(engine.name, error) from error

    def execute(self, stream: Stream) -> None:
        if stream != self._engine.stream:
            raise EngineError(
                f"{self._engine.name} was loaded for another stream than the one that it is to run on",
                hint="report this: what it computes would be read before it is there",
            )
        try:
            for _ in range(self._runs_first + 1):
                self._engine.session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            raise failed(self._engine.name, error) from error
        self._runs_first = 0

    def capturable(self, stream: Stream) -> bool:
        return False

    def settled(self) -> None:
        """Nothing is compiled here."""

    def close(self) -> None:
        self._binding = None
