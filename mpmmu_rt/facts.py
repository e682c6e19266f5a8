"""What is known of versions and machines: each with the day on which it was found and where that is shown.

`doctor` prints those that apply where it runs. A fact that turns out otherwise is changed here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from .spec import Target


@dataclass(frozen=True)
class Fact:
    """says: in a sentence. found: ISO date. source: a report, the file that holds the figures, or the commit that gives
    them; "not measured" where there are none."""

    says: str
    found: str
    source: str


# Distribution: its releases whose results are wrong for our graphs. They are refused.
KNOWN_BAD: Mapping[str, Mapping[str, Fact]] = {
    "onnxruntime": {
        "1.26.0": Fact("random forests give wrong probabilities", "2026-11-23", "microsoft/onnxruntime#28557"),
    },
}

# Engine: where the stacking head runs faster than on it.
FASTER_HEAD: Mapping[str, tuple[Target, Fact]] = {
    "openvino": (
        Target("onnxruntime", "fp32"),
        Fact(
            "ONNX Runtime's tree operator beats what OpenVINO makes of the portable head, 5 times at batch 1",
            "2026-11-24",
            "benchmarks/results/head_epyc-2cores.md",
        ),
    ),
    "onnxruntime-cuda": (
        Target("onnxruntime", "fp32"),
        Fact(
            "where its embeddings come back to the host, the head costs what it costs there: 1.6 ms for 32 cases, "
            "beside an H200",
            "2026-11-26",
            "benchmarks/results/nvidia-h200/device_path_onnxruntime.md",
        ),
    ),
}

_TARGETS = "benchmarks/results/cpu_targets_epyc-avx2-2cores.md"

# Targets of processors by how fast their encoders are, the fastest first, the slowest last.
FASTER_ENCODERS: Mapping[Target, Fact] = {
    Target("openvino", "int8-bf16"): Fact(
        "1.04 to 1.08 times openvino:int8, with AVX-512 BF16",
        "2026-11-25",
        "benchmarks/results/quantizers_epyc-2cores.md",
    ),
    Target("openvino", "int8"): Fact("2.4 times onnxruntime:fp32, with AVX2 alone", "2026-11-25", _TARGETS),
    Target("openvino", "bf16"): Fact(
        "2.6 times onnxruntime:fp32, with AVX-512 BF16", "2026-11-24", "benchmarks/results/cpu_targets_epyc-2cores.md"
    ),
    Target("openvino", "fp32"): Fact("1.3 times onnxruntime:fp32, with AVX2 alone", "2026-11-25", _TARGETS),
    Target("onnxruntime", "fp32"): Fact("what the others are compared with", "2026-11-25", _TARGETS),
}

# With AMX, whose matrix units compute BF16 and INT8 alone: layers in FP32 are what is slow there.
AMX = "amx_tile"
_WITH_AMX = "benchmarks/results/cpu_fresh_xeon-amx-2cores.md"
FASTER_WITH_AMX: Mapping[Target, Fact] = {
    Target("openvino", "int8-bf16"): Fact("7.5 times onnxruntime:fp32, with AMX", "2026-11-27", _WITH_AMX),
    Target("openvino", "bf16"): Fact("5.8 times onnxruntime:fp32, with AMX", "2026-11-27", _WITH_AMX),
    Target("openvino", "int8"): Fact("2.7 times onnxruntime:fp32, with AMX", "2026-11-27", _WITH_AMX),
    Target("openvino", "fp32"): Fact("1.3 times onnxruntime:fp32, with AMX", "2026-11-27", _WITH_AMX),
    Target("onnxruntime", "fp32"): Fact("what the others are compared with", "2026-11-27", _WITH_AMX),
}


def faster_encoders(cpu_features: Collection[str]) -> Mapping[Target, Fact]:
    """Targets of processors, the fastest first, on one with such features (`mpmmu_rt.machine.describe`)."""
    return FASTER_WITH_AMX if AMX in cpu_features else FASTER_ENCODERS


# Targets of GPUs likewise. Two processor cores took 11.9 ms with the fastest of theirs; against more cores, and
# on other GPUs, nothing was measured.
_ON_GPU = "benchmarks/results/nvidia-h100/device_path_onnxruntime.md"
FASTER_ON_GPU: Mapping[Target, Fact] = {
    Target("onnxruntime-cuda", "fp16"): Fact("0.64 ms a pair at batch 32, on an H100", "2026-11-26", _ON_GPU),
    Target("onnxruntime-cuda", "fp32"): Fact("1.4 ms a pair at batch 32, on an H100", "2026-11-26", _ON_GPU),
}

# FP32 sums of some 10⁴ terms in another order differ by about 10⁻⁵ of the largest value; 10 times that.
RELATIVE_TOLERANCE = 1e-4
PROBABILITY_TOLERANCE = 1e-4

# A forest is a step function: an FP32 embedding that differs in its last bits may fall on the other side of a split, in
# any implementation. A few trees of some hundred. With exact gates (`export/sigmoid.py`) no engine crossed a split on
# 200 phantoms and 122 real pairs (tiny preset); with ONNX Runtime's own Sigmoid it was 8 of 200, by up to 0.033.
CROSSING_TOLERANCE = 2e-2
CROSSING_SHARE = 0.02  # of the cases; more would not be rounding


@dataclass(frozen=True)
class Tolerance:
    """How far a target may be from the FP32 original on single cases.

    relative: of feature maps and embedding, max |Δ| / max |want|. probability: max |Δp|. margin: a decision may flip
    if the original's probability is at most so far from the threshold. What a precision costs in decisions is judged
    at export, on many cases; this here catches a device that computes something else.
    """

    relative: float
    probability: float
    margin: float
    fact: Fact


# BF16 has 8 bits, and its error grows through some 50 layers; INT8 likewise. A forest turns that into steps of its own.
_INT8 = Tolerance(
    0.4,
    0.5,
    0.5,
    Fact(
        "8 bits, an error that grows through 50 layers, and a forest's steps",
        "2026-11-24",
        "commit c38cff9",
    ),
)
TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(
        RELATIVE_TOLERANCE,
        PROBABILITY_TOLERANCE,
        0.0,
        Fact("10 times what sums of 10⁴ terms differ by in another order", "2026-11-23", "commit 7ccc7d3"),
    ),
    "bf16": Tolerance(
        0.1,
        0.35,
        0.35,
        Fact(
            "8 bits, an error that grows through 50 layers, and a forest's steps",
            "2026-11-24",
            "commit c38cff9",
        ),
    ),
    "fp16": Tolerance(
        0.02,
        0.2,
        0.2,
        Fact(
            "11 bits, by graphs run on the CPU; on an H200 onnxruntime-cuda was 0.01 off in the embedding, 0.061 in "
            "probability",
            "2026-11-26",
            "benchmarks/results/nvidia-h200/device_path_onnxruntime.md",
        ),
    ),
    "int8": _INT8,
    "int8-bf16": _INT8,
}

# How far INT8 may be from what the same graphs said at export. They decide every code but those that lie next to a
# step: OpenVINO against ONNX Runtime, 4 cases at a time, is at most 0.07 of the embedding off and 0.25 in probability
# (tiny and reference model, signed and unsigned). Products that saturate were off by up to 0.47 and 0.74.
AS_PROVEN_RELATIVE = 0.1
AS_PROVEN_PROBABILITY = 0.3
AS_PROVEN = Fact(
    "INT8 is also held to what the same graphs said at export: 0.1 of the embedding, 0.3 in probability",
    "2026-11-25",
    "commit 3d1deda",
)

# x86 extensions, any of which adds 8-bit products in 32 bits; with `X86` and none of them they are added in 16.
X86 = "avx2"
VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
SATURATES = Fact(
    "this processor adds 8-bit products in 16 bits, which saturates: INT8 weights have 7 bits, so that two always fit",
    "2026-11-25",
    "benchmarks/results/weight_codes_epyc-avx2-2cores.md",
)
