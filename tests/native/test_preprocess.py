"""Preprocessing in C++ is that of Python, to the bit."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import PIL
import pytest

from mpmmu_rt.errors import ImageError
from mpmmu_rt.grey import GreyImage, check_content
from mpmmu_rt.images import Aspect, Fit, Preprocessing, pixels_of
from mpmmu_rt.spec import Array

from .native import How, Library, NativeError, address

# Before 13, Pillow went across first whatever the shape: another last bit where an image is tall and narrow.
ROWS_FIRST = int(PIL.__version__.partition(".")[0]) >= 13


def read(grey: Array, how: Preprocessing, pixel_aspect: float) -> Array | ImageError:
    """Pixels; or what Python's readers say of an image without content."""
    try:
        check_content(grey)
        return pixels_of(GreyImage(grey, pixel_aspect), how)[0]
    except ImageError as error:
        return error


def both(library: Library, grey: Array, how: Preprocessing, pixel_aspect: float = 1.0) -> None:
    want = read(grey, how, pixel_aspect)
    if isinstance(want, ImageError):
        with pytest.raises(NativeError) as caught:
            library.preprocess(grey, how, pixel_aspect)
        assert (caught.value.status, str(caught.value)) == ("PIXELS_ERROR", f"`grey` {want}")
        assert caught.value.hint == want.hint
    elif ROWS_FIRST:
        np.testing.assert_array_equal(library.preprocess(grey, how, pixel_aspect), want, str((grey.shape, how)))
    else:
        assert np.abs(library.preprocess(grey, how, pixel_aspect).astype(int) - want).max() <= 1


def draw(drawn: np.random.Generator, most: int) -> int:
    """1 to `most`, small ones as often as large ones."""
    return math.ceil(math.exp(drawn.uniform(0, math.log(most))))


@pytest.mark.slow
def test_random_sizes(library: Library) -> None:
    drawn = np.random.default_rng(20)
    for _ in range(2000):
        grey = drawn.integers(0, 256, (draw(drawn, 900), draw(drawn, 900)), dtype=np.uint8)
        if drawn.random() < 0.3:
            grey = np.where(grey > 127, np.uint8(255), np.uint8(0))  # nothing between black and white: most is clipped
        fit: Fit = "pad" if drawn.random() < 0.7 else "stretch"
        aspect: Aspect = "physical" if drawn.random() < 0.5 else "stored"
        how = Preprocessing(draw(drawn, 400), fit, aspect)
        both(library, grey, how, math.exp(drawn.uniform(-2, 2)) if drawn.random() < 0.5 else 1.0)


@pytest.mark.parametrize("shape", [(3328, 2560), (4096, 1500), (224, 224), (1, 1), (1, 999), (999, 1), (48, 5000)])
@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_sizes_of_detectors_and_edges(library: Library, shape: tuple[int, int], fit: Fit) -> None:
    grey = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    both(library, grey, Preprocessing(224, fit))


@pytest.mark.parametrize("side", [1, 2, 4096])
def test_the_smallest_and_the_largest_square(library: Library, side: int) -> None:
    grey = np.random.default_rng(2).integers(0, 256, (37, 61), dtype=np.uint8)
    both(library, grey, Preprocessing(side))


def test_half_a_pixel_is_rounded_to_even(library: Library) -> None:
    """5 of 2 x 4 makes 2.5 pixels of 5, which Python calls 2."""
    grey = np.arange(8, dtype=np.uint8).reshape(2, 4) * 30
    both(library, grey, Preprocessing(5))
    assert (library.preprocess(grey, Preprocessing(5), 1.0)[0] > 0).any(1).sum() == 2


@pytest.mark.parametrize("how", [Preprocessing(32), Preprocessing(32, "stretch"), Preprocessing(1)])
@pytest.mark.parametrize("shape", [(90, 61), (61, 90), (64, 64), (32, 32), (1, 1), (16, 4000)])
@pytest.mark.parametrize("speck", [0, 1])
def test_an_image_without_content_is_refused_and_leaves_none(
    library: Library, shape: tuple[int, int], how: Preprocessing, speck: int
) -> None:
    """Beside its padding nobody would see it any more, and it would get a probability. Its last pixel is a speck that
    the model sees or not."""
    grey = np.full(shape, 128, np.uint8)
    grey[-1, -1] += speck
    both(library, grey, how)
    grey[-1, -1] = 128
    pixels = np.full((how.size, how.size), 77, np.uint8)  # of the patient before
    given = How(how.size, how.fit == "pad", how.aspect == "physical")
    status = library.c.mpmmu_preprocess(
        ctypes.byref(given), address(grey), *map(ctypes.c_size_t, shape), ctypes.c_double(1.0), address(pixels)
    )
    assert (status, pixels.max()) == (4, 0)


@pytest.mark.parametrize("aspect", [math.nan, math.inf, 0.0, -1.0, 0.1, 8.5])
def test_an_aspect_that_no_pixel_has(library: Library, aspect: float) -> None:
    with pytest.raises(NativeError, match=r"`pixel_aspect` is .*, expected a ratio from 1:8 to 8:1") as caught:
        library.preprocess(np.zeros((4, 4), np.uint8), Preprocessing(8), aspect)
    assert caught.value.status == "PIXELS_ERROR"


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (2**24 + 1, 1)])
def test_no_image(library: Library, shape: tuple[int, int]) -> None:
    with pytest.raises(NativeError, match=r"`grey` is .*expected uint8\[H, W\] with H, W from 1") as caught:
        library.preprocess(np.zeros(shape, np.uint8), Preprocessing(8), 1.0)
    assert caught.value.status == "PIXELS_ERROR"
