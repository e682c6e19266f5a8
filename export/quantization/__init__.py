"""Static INT8 quantization of the two encoders, calibrated on images and proved in decisions.

    ranges = {modality: calibrate(graphs[modality], pixels[modality]) for modality in MODALITIES}
    quantized, report = search(graphs, ranges, pixels, gate_pixels, gate_labels, predict, threshold=0.5)

Head, attention pool and attention gates stay in float. The quantizer is our own: `benchmarks/NOTES.md` says how it
compares with onnxruntime.quantization, NNCF and Model Optimizer.
"""

from .gate import Gate, Limits, compare, require_disjoint
from .placement import Layer, Point, layers, points
from .ranges import Ranges, calibrate, hash_of_cases
from .rewrite import quantize
from .search import KeptLayer, Report, search
from .sensitivity import sensitivity

__all__ = [
    "Gate",
    "KeptLayer",
    "Layer",
    "Limits",
    "Point",
    "Ranges",
    "Report",
    "calibrate",
    "compare",
    "hash_of_cases",
    "layers",
    "points",
    "quantize",
    "require_disjoint",
    "search",
    "sensitivity",
]
