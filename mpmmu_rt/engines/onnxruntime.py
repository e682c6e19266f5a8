"""ONNX Runtime on the CPU, FP32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mpmmu_rt._optional import require
from mpmmu_rt.bundle import Bundle, Graph, HeadGraph
from mpmmu_rt.errors import EngineError, MpmmuError
from mpmmu_rt.facts import KNOWN_BAD
from mpmmu_rt.machine import package_versions
from mpmmu_rt.onnx_wire import with_outputs
from mpmmu_rt.spec import MODALITIES, Array, Modality, Target

from . import Traits
from .shared.host_head import HostHead
from .shared.onnxruntime_lanes import BoundEmbedder, failed, first_line
from .shared.words import closed, in_part

PROVIDER = "CPUExecutionProvider"
_PURPOSE = "the target onnxruntime:fp32"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


class OnnxRuntimeSession:
    """A graph in ONNX Runtime. What `run` returns is allocated by ONNX Runtime and handed over."""

    def __init__(self, session: Any, graph: Path) -> None:
        self._session = session
        self._graph = graph
        self.inputs = tuple(item.name for item in session.get_inputs())
        self.outputs = tuple(item.name for item in session.get_outputs())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if (session := self._session) is None:
            raise closed()
        try:
            for name, array in feeds.items():
                if not array.dtype.isnative:  # ONNX Runtime reads it as if it were, and answers
                    raise ValueError(f"`{name}` is {array.dtype}, expected this machine's order of bytes")
            values = session.run(self.outputs, dict(feeds))
        except Exception as error:
            raise failed(self._graph.name, error) from error
        return dict(zip(self.outputs, values, strict=True))

    def close(self) -> None:
        self._session = None


def installation_problem(purpose: str) -> MpmmuError | None:
    """Why the installed onnxruntime, of whatever distribution, must not be used for `purpose`, or None."""
    installed = package_versions(("onnxruntime", "onnxruntime-gpu"))
    anew = "pip uninstall -y onnxruntime onnxruntime-gpu, then install the one you want"
    if len(installed) == 2:
        return EngineError(
            f"onnxruntime {installed['onnxruntime']} and onnxruntime-gpu {installed['onnxruntime-gpu']} are both "
            "installed and overwrite each other's files, expected one of them",
            hint=anew,
        )
    try:
        # The module's own word: builds for other devices are distributed under other names.
        version = getattr(require("onnxruntime", purpose), "__version__", None)
    except MpmmuError as error:
        return error
    if version is None:  # of two that shared their files, one was uninstalled
        return in_part("onnxruntime", anew)
    if bad := KNOWN_BAD["onnxruntime"].get(version):
        return EngineError(
            f"onnxruntime {version} is known to be wrong: {bad.says} ({bad.source})",
            hint=f"pip install -U {next(iter(installed), 'onnxruntime')}",
        )
    return None


def session_options(runtime: Any, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin for more work take the cores from whatever runs next: another session, or another engine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


# The forms without its own Sigmoid, which is wrong by 17 % at -15 and zero below -18 (`export/sigmoid.py`); by its
# source, that of the CUDA provider is no better.
EXACT_GRAPHS: Mapping[str, Graph] = {
    "mammography": "mammography_onnxruntime",
    "ultrasound": "ultrasound_onnxruntime",
    "attention_pool": "attention_pool_onnxruntime",
}


class OnnxRuntime:
    """`onnxruntime`: the CPU provider, which onnxruntime-gpu has as well."""

    name = "onnxruntime"
    precisions: tuple[str, ...] = ("fp32",)
    head: HeadGraph = "head_onnxruntime"
    traits = Traits()

    def problem(self, precision: str = "fp32") -> MpmmuError | None:
        return installation_problem(_PURPOSE)

    def version(self) -> str:
        return str(require("onnxruntime", _PURPOSE).__version__)

    def load(self, graph: Path, precision: str, threads: int) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(self._open(graph, threads), graph)

    def load_showing(self, graph: Path, tensors: Sequence[str], precision: str, threads: int) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(self._open(graph, threads, tensors), graph)

    def pipeline(self, bundle: Bundle, precision: str, threads: int) -> HostHead:
        return HostHead.load(
            bundle, Target(self.name, precision), threads, lambda: self._embedder(bundle, precision, threads)
        )

    def graph(self, bundle: Bundle, modality: Modality, precision: str) -> Path:
        return bundle.graph(EXACT_GRAPHS[modality])

    def _embedder(self, bundle: Bundle, precision: str, threads: int) -> BoundEmbedder:
        graphs = {name: bundle.graph(graph) for name, graph in EXACT_GRAPHS.items()}
        # Optimising a graph takes one thread, whatever the session may use afterwards.
        with ThreadPoolExecutor(len(MODALITIES)) as beside:
            each = beside.map if threads > 1 else map
            sessions = each(lambda path: self._open(path, threads), graphs.values())
            return BoundEmbedder(dict(zip(graphs, sessions, strict=True)), graphs)

    def _open(self, graph: Path, threads: int, tensors: Sequence[str] = ()) -> Any:
        """tensors: of the graph's own, to give beside its outputs."""
        runtime = require("onnxruntime", _PURPOSE)
        options = session_options(runtime, threads)
        model: str | bytes = str(graph)
        if tensors:  # what is read from memory has to be told where its weights are
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(graph.parent))
            model = with_outputs(graph.read_bytes(), tensors)
        try:
            # Its fallback would try the same again, and say so on stdout.
            session = runtime.InferenceSession(model, options, providers=[PROVIDER], enable_fallback=0)
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime can't load {graph.name}: {first_line(error)}",
                hint="export the bundle again, or update onnxruntime",
            ) from error
        if session.get_providers() != [PROVIDER]:
            raise EngineError(
                f"{graph.name} was asked to run on {PROVIDER} and got {session.get_providers()}",
                hint="report this: nothing may run on a provider that was not asked for",
            )
        return session


ENGINE = OnnxRuntime()
