"""Which layers suffer most from INT8."""

from __future__ import annotations

import numpy as np
import onnx

from mpmmu_rt.progress import Progress, silent
from mpmmu_rt.spec import Array

from .placement import layers
from .ranges import Ranges, session
from .rewrite import quantize

_BATCH = 16


def sensitivity(
    graph: onnx.ModelProto, ranges: Ranges, pixels: Array, *, unsigned: bool = False, progress: Progress = silent
) -> dict[str, float]:
    """Per layer, the noise that INT8 in this layer alone adds to the encoder's output, most harmful first.

    Noise is Σ (int8 - float)² / Σ float² over the output for pixels uint8 [N, 1, S, S], on ONNX Runtime. The noise of
    one layer is nearly independent of another's, so that taking the largest away takes most away: on the tiny preset
    the layers' shares add up to 1.2 and 1.3 times the noise of all together. Costs one session and one run per layer.
    """
    want = _output(graph, pixels)
    power = float(np.sum(want**2)) or 1.0
    names = [layer.name for layer in layers(graph)]
    noise = {}
    for done, name in enumerate(names):
        progress("looking for the layers that INT8 hurts", done, len(names), "layers")
        alone = quantize(graph, ranges, [other for other in names if other != name], unsigned=unsigned)
        noise[name] = float(np.sum((_output(alone, pixels) - want) ** 2)) / power
    progress("looking for the layers that INT8 hurts", len(names), len(names), "layers")
    return dict(sorted(noise.items(), key=lambda item: (-item[1], item[0])))


def _output(graph: onnx.ModelProto, pixels: Array) -> Array:
    """The first output of the graph, float64, on ONNX Runtime."""
    runner = session(graph)
    output, name = runner.get_outputs()[0].name, runner.get_inputs()[0].name
    parts = [runner.run([output], {name: pixels[at : at + _BATCH]})[0] for at in range(0, len(pixels), _BATCH)]
    return np.concatenate(parts).astype(np.float64)
