"""The full-size reference bundle that travels to a borrowed GPU: its larger weights are `drawn`, and not stored.

Besides what an export writes, it holds the FP16 graphs of `tensorrt` and `onnxruntime-cuda`, which no export proves
here: rounding each value of a model of this size on the processor takes longer than all the rest. What runs them is
held to the processor's FP32.
"""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.gpu.drawn import drawn
from mpmmu_rt import bundle as bundles
from mpmmu_rt.bundle import Bundle
from mpmmu_rt.engines.onnxruntime_cuda import ENGINE as ONNXRUNTIME_CUDA
from mpmmu_rt.engines.tensorrt import TENSORRT
from mpmmu_rt.export import Wanted, build, reference, tensorrt
from mpmmu_rt.export import head as heads
from mpmmu_rt.export.draft import BATCH, Draft
from mpmmu_rt.export.targets import onnxruntime_cuda
from mpmmu_rt.folders import atomic_folder
from mpmmu_rt.model.checkpoint import Checkpoint
from mpmmu_rt.model.encoder import Encoder
from mpmmu_rt.progress import Progress
from mpmmu_rt.spec import Modality

LEAST = 4096  # elements: what is smaller travels as it is
NAME = "reference, weights drawn for a borrowed GPU"


def shapes(modality: Modality, encoder: Encoder) -> dict[str, tuple[int, ...]]:
    """Of what is drawn, by the name that it is drawn from."""
    return {
        f"{modality}.{name}": tuple(value.shape)
        for name, value in encoder.named_parameters()
        if value.ndim > 1 and value.numel() >= LEAST
    }


def redraw(modality: Modality, encoder: Encoder) -> None:
    with torch.no_grad():
        for name, shape in shapes(modality, encoder).items():
            encoder.get_parameter(name.removeprefix(f"{modality}.")).copy_(torch.from_numpy(drawn(name, shape)))


def make(output: Path, checkpoint: Checkpoint, progress: Progress) -> Bundle:
    """Export `checkpoint`, whose encoders were redrawn, to `output`, with the graphs that GPUs run in FP16."""
    model = build.model_of(checkpoint, NAME, trained=False)
    with atomic_folder(output, bundles.KIND, overwrite=True) as folder:
        draft = build.begin(folder, model, None, Wanted(()), progress)
        add_half(draft)
        build.finish(draft)
    return Bundle.open(output)


def add_half(draft: Draft) -> None:
    """Write the FP16 graphs of both targets."""
    pixels, encoders = draft.cases.first(BATCH), draft.encoders()
    onnxruntime_cuda.write(draft.folder / ONNXRUNTIME_CUDA.folder("fp16"), onnxruntime_cuda.typed(encoders, pixels))
    width = int(draft.entry["tensors"]["embedding"]["shape"][1])
    parts = tensorrt.Parts(
        encoders, draft.graph("attention_pool"), heads.lower(draft.head, width, products="convolution")
    )
    typed = tensorrt.typed(parts, "fp16", pixels)
    tensorrt.write(draft.folder / TENSORRT.folder("fp16"), typed, flavour="tensorrt", precision="fp16")
    draft.seal()


def full_size(output: Path, progress: Progress) -> Bundle:
    return make(output, reference.build(progress, redraw), progress)
