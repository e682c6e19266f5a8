"""Work on finished ONNX graphs: clean them, join them, store their weights once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import compose, numpy_helper

from mpmmu_rt import __version__
from mpmmu_rt.bundle import WEIGHTS
from mpmmu_rt.errors import ExportError

# TensorRT 10.3 to 11, TensorRT-RTX, OpenVINO and ONNX Runtime from 1.20 on all read these.
OPSET = 18
ML_OPSET = 3
IR_VERSION = 10
# Smaller tensors (shapes, scalars) stay in the graph: engines fold them while they read it.
_EXTERNAL_BYTES = 1024
_PAGE = 4096  # memory-mapped by ONNX Runtime only at page boundaries
_MAX_GRAPH_BYTES = 2 * 2**30 - 1  # protobuf's limit
_OUTPUTS = ("probability", "base_probability", "embedding")  # of the whole model


SAID = "mpmmu_rt."  # how the keys begin under which `say` writes


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fix the IR version and drop what describes the exporting machine: traces, paths, doc strings."""
    model.ir_version = IR_VERSION
    model.doc_string = ""
    said = [item for item in model.metadata_props if item.key.startswith(SAID)]
    del model.metadata_props[:]
    model.metadata_props.extend(said)
    graph = model.graph
    for item in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        item.doc_string = ""
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]
    return model


def say(model: onnx.ModelProto, facts: Mapping[str, str]) -> None:
    """Write who made a graph, and `facts`, where tools that show graphs look for them."""
    model.producer_name, model.producer_version = "mpmmu-rt", __version__
    kept = {item.key: item.value for item in model.metadata_props} | dict(facts)
    onnx.helper.set_model_props(model, kept)


def join(
    mammography: onnx.ModelProto, ultrasound: onnx.ModelProto, pool: onnx.ModelProto, head: onnx.ModelProto
) -> onnx.ModelProto:
    """The whole model: `mammography_pixels` and `ultrasound_pixels` to `probability`, `base_probability` and
    `embedding`."""
    whole = compose.add_prefix(pool, "pool/", rename_inputs=False, rename_outputs=False)
    for modality, encoder in (("ultrasound", ultrasound), ("mammography", mammography)):
        name = f"{modality}_feature_map"
        prefixed = compose.add_prefix(encoder, f"{modality}_")
        whole = compose.merge_models(prefixed, whole, [(name, name)])
    whole = compose.merge_models(
        whole,
        compose.add_prefix(head, "head/", rename_inputs=False, rename_outputs=False),
        [("embedding", "embedding")],
        outputs=[*_OUTPUTS],
    )
    # The merge lists outputs by the part they come from; ours come first things first.
    outputs = {value.name: value for value in whole.graph.output}
    ordered = [onnx.ValueInfoProto.FromString(outputs[name].SerializeToString()) for name in _OUTPUTS]
    del whole.graph.output[:]
    whole.graph.output.extend(ordered)
    return clean(whole)


def save_sharing_weights(models: Mapping[str, onnx.ModelProto], folder: Path) -> None:
    """Write every model as `<name>.onnx` and all their weights, each once, to `weights.bin`.

    The models are left without their weights: they belong to the file from then on.
    """
    offsets: dict[str, int] = {}
    with (folder / WEIGHTS).open("wb") as file:
        for name, model in models.items():
            for tensor in model.graph.initializer:
                data = numpy_helper.to_array(tensor).tobytes()
                if len(data) >= _EXTERNAL_BYTES:
                    key = hashlib.sha256(data).hexdigest()
                    if key not in offsets:
                        file.seek(-(-file.tell() // _PAGE) * _PAGE)
                        offsets[key] = file.tell()
                        file.write(data)
                    _make_external(tensor, offsets[key], len(data))
            if model.ByteSize() > _MAX_GRAPH_BYTES:
                raise ExportError(
                    f"the graph `{name}` has {model.ByteSize()} bytes without its weights, expected less than 2 GiB",
                    hint="use fewer or shallower trees in the head",
                )
            (folder / f"{name}.onnx").write_bytes(model.SerializeToString())


def _make_external(tensor: Any, offset: int, length: int) -> None:
    for kind in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(kind)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


_OTHER_FLOATS = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


def other_floats(model: onnx.ModelProto) -> list[str]:
    """The types besides float32 that a graph of ours computes in because its module does, such as `float16`."""
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    kinds = {attribute.i for node in casts for attribute in node.attribute if attribute.name == "to"}
    kinds |= {tensor.data_type for tensor in model.graph.initializer}
    return sorted(onnx.TensorProto.DataType.Name(kind).lower() for kind in kinds.intersection(_OTHER_FLOATS))
