"""The camera's part: identity when off, each effect by itself, and noise that belongs to its frame."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roboalign.sdk.errors import DataError
from roboalign.sdk.randomization import DomainSample, preset
from roboalign.sdk.randomization.imaging import changes_pictures, develop
from roboalign.sdk.randomization.values import (
    BlurValues,
    Concern,
    ExposureValues,
    JpegValues,
    NoiseValues,
    WhiteBalanceValues,
)

GREY = np.full((96, 96, 3), 128, np.uint8)
PICTURE = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)


def seen(image: np.ndarray, seed: int = 0, **concerns: Concern) -> np.ndarray:
    """Develops with only these concerns on."""
    domain = dataclasses.replace(DomainSample.off(), **concerns)  # type: ignore[arg-type]
    return develop(image, domain, np.random.default_rng(seed))


def linear(image: np.ndarray) -> np.ndarray:
    return (image / 255.0) ** 2.2


def test_off_returns_the_picture_as_it_is() -> None:
    assert seen(PICTURE) is PICTURE
    assert not changes_pictures(DomainSample.off())


@given(st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_any_sample_gives_a_picture_and_leaves_its_input_alone(seed: int) -> None:
    image, domain = PICTURE.copy(), preset("strong").sample(seed)
    made = develop(image, domain, np.random.default_rng(seed))
    assert (made.dtype, made.shape) == (np.uint8, image.shape)
    assert np.array_equal(image, PICTURE)
    assert np.array_equal(made, develop(image, domain, np.random.default_rng(seed)))


@pytest.mark.parametrize("stops", [-1.0, -0.3, 0.5])
def test_exposure_scales_linear_light(stops: float) -> None:
    made = seen(GREY, exposure=ExposureValues(stops=stops))
    assert linear(made).mean() == pytest.approx(linear(GREY).mean() * 2**stops, rel=0.01)


def test_white_balance_leaves_green() -> None:
    made = seen(GREY, white_balance=WhiteBalanceValues(red_gain=1.1, blue_gain=0.9))
    red, green, blue = linear(made).mean((0, 1)) / linear(GREY).mean((0, 1))
    assert (red, green, blue) == (pytest.approx(1.1, rel=0.01), 1.0, pytest.approx(0.9, rel=0.01))


@pytest.mark.parametrize("level", [40, 128, 220])
def test_shot_noise_grows_with_the_root_of_the_light(level: int) -> None:
    flat = np.full((192, 192, 3), level, np.uint8)
    noise = (linear(seen(flat, noise=NoiseValues(shot_std=0.02))) - linear(flat)).std()
    assert noise == pytest.approx(0.02 * np.sqrt(linear(flat).mean()), rel=0.05)


def test_read_noise_is_the_same_everywhere() -> None:
    levels = [np.full((192, 192, 3), level, np.uint8) for level in (120, 200)]
    noises = [(linear(seen(flat, noise=NoiseValues(read_std=0.01))) - linear(flat)).std() for flat in levels]
    assert noises == pytest.approx([0.01, 0.01], rel=0.05)


def test_noise_is_that_of_its_generator() -> None:
    noise = NoiseValues(shot_std=0.05)
    assert np.array_equal(seen(GREY, 1, noise=noise), seen(GREY, 1, noise=noise))
    assert not np.array_equal(seen(GREY, 1, noise=noise), seen(GREY, 2, noise=noise))


@pytest.mark.parametrize("size_px", [96, 192])
def test_blur_has_its_width_whatever_the_size_of_the_picture(size_px: int) -> None:
    image = np.zeros((size_px, size_px, 3), np.uint8)
    image[size_px // 2, size_px // 2] = 255
    profile = linear(seen(image, blur=BlurValues(sigma_px=1.5)))[:, :, 0].sum(0)
    places = np.arange(size_px) - size_px // 2
    width_px = np.sqrt((profile * places**2).sum() / profile.sum()) * 96 / size_px
    assert width_px == pytest.approx(1.5, rel=0.1)


def test_blur_keeps_a_plain_picture() -> None:
    assert np.array_equal(seen(GREY, blur=BlurValues(sigma_px=2.0)), GREY)


def test_a_lower_jpeg_quality_loses_more() -> None:
    errors = [
        np.abs(seen(PICTURE, jpeg=JpegValues(quality=quality)).astype(int) - PICTURE).mean() for quality in (95, 60, 20)
    ]
    assert 0 < errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("image", [GREY.astype(np.float32), GREY[:, :, 0], GREY[:, :, :2]])
def test_something_else_than_a_picture_is_refused(image: np.ndarray) -> None:
    with pytest.raises(DataError, match="uint8"):
        develop(image, DomainSample.off(), np.random.default_rng(0))
