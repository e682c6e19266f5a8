from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpmmu_rt.errors import PixelsError, UsageError
from mpmmu_rt.spec import MODALITIES, Target, TensorSpec

SPEC = TensorSpec("mammography_pixels", "uint8", ("N", 1, 3, 5))


def test_an_array_that_fits_comes_back_itself() -> None:
    for count in (1, 2, 33):
        array = np.zeros((count, 1, 3, 5), np.uint8)
        assert SPEC.check(array) is array


def test_a_view_is_not_converted() -> None:
    view = np.zeros((4, 1, 5, 3), np.uint8).transpose(0, 1, 3, 2)[::2]
    assert SPEC.check(view) is view


@pytest.mark.parametrize(
    ("array", "got"),
    [
        ([[1]], "is a list"),
        (None, "is a NoneType"),
        (np.zeros((2, 1, 5, 3), np.uint8), r"is uint8\[2, 1, 5, 3\]"),
        (np.zeros((1, 3, 5), np.uint8), r"is uint8\[1, 3, 5\]"),
        (np.zeros((2, 3, 3, 5), np.uint8), r"is uint8\[2, 3, 3, 5\]"),
        (np.zeros((2, 1, 1, 3, 5), np.uint8), r"is uint8\[2, 1, 1, 3, 5\]"),
        (np.zeros((2, 1, 3, 5), np.int8), r"is int8\["),
        (np.zeros((2, 1, 3, 5), np.float32), r"is float32\["),
        (np.zeros((2, 1, 3, 5), np.bool_), r"is bool\["),
        (np.zeros((2, 1, 3, 5), object), r"is object\["),
        (np.zeros((), np.uint8), r"is uint8\[\]"),
        (np.zeros((0, 1, 3, 5), np.uint8), "holds no case"),
    ],
)
def test_anything_else_is_refused_with_both_sides_named(array: Any, got: str) -> None:
    with pytest.raises(PixelsError, match=f"`mammography_pixels` {got}.*expected ") as caught:
        SPEC.check(array)
    assert caught.value.hint


def test_dtype_includes_the_byte_order() -> None:
    spec = TensorSpec("embedding", "float32", ("N", 2))
    assert spec.check(np.zeros((1, 2), "<f4")).dtype == np.float32
    with pytest.raises(PixelsError, match="is >f4"):
        spec.check(np.zeros((1, 2), ">f4"))


def test_spec_as_text_and_json() -> None:
    assert str(SPEC) == "mammography_pixels uint8[N, 1, 3, 5]"
    assert TensorSpec.from_json(SPEC.to_json()) == SPEC


def test_the_order_of_the_modalities_is_that_of_the_embedding() -> None:
    assert MODALITIES == ("mammography", "ultrasound")


@pytest.mark.parametrize(
    "text", ["onnxruntime:fp32", "tensorrt-rtx:fp16", "openvino:bf16", "openvino:int8", "openvino:int8-bf16"]
)
def test_target_round_trip(text: str) -> None:
    target = Target.parse(text)
    assert str(target) == text
    assert f"{target.engine}:{target.precision}" == text


def test_what_is_in_8_bits() -> None:
    said = {text: Target.parse(f"x:{text}").in_8_bits for text in ("int8", "int8-bf16", "fp32", "bf16", "fp8", "int88")}
    assert [text for text, of in said.items() if of] == ["int8", "int8-bf16"]


def test_a_target_may_name_compute_capabilities() -> None:
    target = Target.parse("tensorrt-rtx:fp16@86,89,120")
    assert target == Target("tensorrt-rtx", "fp16", (86, 89, 120))
    assert str(target) == "tensorrt-rtx:fp16@86,89,120"


@pytest.mark.parametrize(
    "text",
    [
        "tensorrt-rtx:fp16@",
        "tensorrt-rtx:fp16@86,",
        "tensorrt-rtx:fp16@8",
        "tensorrt-rtx:fp16@sm86",
        "",
        ":",
        "onnxruntime",
        "onnxruntime:",
        ":fp32",
        "ONNXRUNTIME:fp32",
        "onnxruntime:fp",
        "onnxruntime:fp32\n",
        "onnxruntime:fp32:0",
        " onnxruntime:fp32",
        "onnxruntime fp32",
        "onnxruntime:32",
        "openvino:int8-",
        "openvino:int8-bf",
        "openvino:int8-bf16-fp32",
        "../x:fp32",
        "1a:fp32",
    ],
)
def test_what_is_no_target_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="expected ENGINE:PRECISION") as caught:
        Target.parse(text)
    assert caught.value.exit_code == 2
