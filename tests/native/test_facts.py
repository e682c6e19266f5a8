"""What C++ must repeat of Python's facts and limits is Python's: each number is found in the sources and compared."""

from __future__ import annotations

import re

from mpmmu_rt import bundle, facts, files, image_figures, images, learnt_ranges, modality_check
from mpmmu_rt.engines import openvino
from mpmmu_rt.spec import MODALITIES, Target

from .native import SOURCES

TEXT = {path.name: path.read_text(encoding="utf-8") for path in (SOURCES / "src").iterdir()}


def value(name: str, file: str) -> str:
    """What a constant is set to, in C++'s words."""
    (found,) = re.findall(rf"\b{name}(?:\[\])? =\s+(.*?)(?:;|, kMax\w* = |, kProven\w* = )", TEXT[file], re.DOTALL)
    return str(found)


def texts(name: str, file: str) -> tuple[str, ...]:
    return tuple(re.findall(r'"(.*?)"', value(name, file)))


def number(name: str, file: str) -> int:
    """Of a size: `16u << 20`, `std::uint64_t{8} << 30`, or plain."""
    plain = re.sub(r"std::uint64_t\{(\d+)\}|(\d+)u\b", r"\1\2", value(name, file))
    base, _, shift = plain.partition(" << ")
    return int(base) << int(shift or 0)


def test_tolerances() -> None:
    (body,) = re.findall(r"Limits limits_of.*?\n}", TEXT["model.cpp"], re.DOTALL)
    said = {
        name: [float(one) for one in limits.split(", ")]
        for name, limits in re.findall(r'"(\w+)"\) return \{(.*?)\}', body)
    }
    (of_8_bits,) = re.findall(r"in_8_bits\(precision\)\) return \{(.*?)\}", body)
    said |= {name: [float(one) for one in of_8_bits.split(", ")] for name in ("int8", "int8-bf16")}
    said["fp32"] = [float(one) for one in re.findall(r"\n  return \{(.*?)\}", body)[0].split(", ")]
    assert set(said) == {"fp32", "bf16", "int8", "int8-bf16"}
    for precision, limits in said.items():
        tolerance = facts.TOLERANCES[precision]
        assert limits == [tolerance.relative, tolerance.probability, tolerance.margin], precision
    assert float(value("kBatchLimit", "model.cpp")) == facts.PROBABILITY_TOLERANCE
    proven = [float(value(name, "model.cpp")) for name in ("kProvenEmbedding", "kProvenProbability")]
    assert proven == [facts.AS_PROVEN_RELATIVE, facts.AS_PROVEN_PROBABILITY]


def test_targets_are_those_of_processors() -> None:
    assert {Target.parse(one) for one in texts("kTargets", "model.cpp")} == set(facts.FASTER_ENCODERS)
    assert texts("kWithoutBf16", "openvino.cpp") == tuple(openvino._WITHOUT_BF16)
    several = int(value("kCasesPerRequest", "openvino.cpp"))
    assert int(value("kLeastRequests", "openvino.cpp")) == openvino.LEAST_REQUESTS
    assert {"fp32": several, "bf16": several, "int8": 1, "int8-bf16": several} == openvino.CASES_PER_REQUEST
    assert facts.FASTER_HEAD["openvino"][0] == Target("onnxruntime", "fp32")


def test_releases_that_are_known_to_be_wrong() -> None:
    ((version, fact),) = facts.KNOWN_BAD["onnxruntime"].items()
    assert texts("kBad", "onnxruntime.cpp") == (version, f"{fact.says} ({fact.source})")
    assert f"but not {version}" in value("kInstall", "onnxruntime.cpp")


def test_limits_of_files() -> None:
    assert number("kMaxJsonBytes", "bundle.cpp") == files.MAX_JSON_BYTES
    assert number("kMaxGoldenBytes", "bundle.cpp") == bundle.MAX_GOLDEN_BYTES
    assert number("kMaxFileBytes", "bundle.cpp") == bundle.MAX_FILE_BYTES
    assert number("kMaxSide", "bundle.cpp") == images.MAX_SIZE
    assert number("kTicksSeconds", "bundle.cpp") * 10**9 == bundle._TICKS_NS


def test_names_in_a_bundle() -> None:
    assert texts("kSchema", "bundle.cpp") == (bundle.SCHEMA,)
    assert texts("kManifest", "bundle.cpp") == (bundle.MANIFEST,)
    assert texts("kGraphs", "bundle.cpp") == bundle.GRAPHS
    assert texts("kGolden", "bundle.cpp") == tuple(sorted(bundle.GOLDEN))
    assert texts("kFigures", "bundle.cpp") == image_figures.FIGURES
    assert texts("kSwapped", "image_check.cpp") == (modality_check.SAYS,)
    assert texts("kUnlike", "image_check.cpp") == (learnt_ranges.UNLIKE,)
    assert texts("kNames", "image_check.cpp") == tuple(learnt_ranges._NAMES.values())
    assert texts("kModalities", "bundle.h") == MODALITIES


def test_what_is_said_against_models() -> None:
    assert texts("kUntrained", "bundle.cpp") == (bundle.UNTRAINED,)
    assert texts("kTriedInt8", "bundle.cpp") == (bundle.TRIED_INT8,)
