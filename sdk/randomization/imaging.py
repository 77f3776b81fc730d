"""What a camera makes of a picture: lens, sensor, colour gains, compression, in the order in which light meets them.

Light is added in linear units, so the picture is taken out of its display curve first (a plain gamma of 2.2) and put
back before compression. What a sample leaves off is left out; a sample with all of it off returns the picture as it is.
Not modelled: rolling shutter, motion blur, lens distortion, vignetting, and a sensor's colour filter.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import DataError
from roboalign.sdk.randomization.domain import DomainSample
from roboalign.sdk.types import ImageArray

__all__ = ["changes_pictures", "develop"]

_GAMMA = 2.2
_REFERENCE_PX = 96
_BLUR_REACH = 3.0  # standard deviations; what lies further out is below one grey level


def changes_pictures(domain: DomainSample) -> bool:
    """True when `develop` changes pictures at all."""
    off = DomainSample.off()
    concerns = ("blur", "exposure", "noise", "white_balance", "jpeg")
    return any(getattr(domain, concern) != getattr(off, concern) for concern in concerns)


def develop(image: ImageArray, domain: DomainSample, rng: np.random.Generator) -> ImageArray:
    """Returns uint8[H, W, 3], the picture as a camera with these values would deliver it.

    Args:
        image: uint8[H, W, 3] as rendered; left as it is.
        domain: Where `blur`, `exposure`, `noise`, `white_balance` and `jpeg` are read.
        rng: Stream of this frame, `domain.stream("noise", "frame", index)`; read only when there is noise.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"the picture is {image.dtype}{list(image.shape)}, expected uint8[height, width, 3] RGB")
    if not changes_pictures(domain):
        return image
    off = DomainSample.off()
    developed = image
    if (domain.blur, domain.exposure, domain.noise, domain.white_balance) != (
        off.blur,
        off.exposure,
        off.noise,
        off.white_balance,
    ):
        light = _linear_curve()[image]
        light = _blurred(light, domain.blur.sigma_px * image.shape[1] / _REFERENCE_PX)
        light = light * np.float32(2.0**domain.exposure.stops)
        light = _noisy(light, domain, rng)
        light = light * np.array((domain.white_balance.red_gain, 1.0, domain.white_balance.blue_gain), np.float32)
        display = np.clip(light, 0.0, 1.0) ** np.float32(1.0 / _GAMMA)
        developed = np.rint(display * np.float32(255.0)).astype(np.uint8)
    return _compressed(developed, domain.jpeg.quality) if domain.jpeg.quality else developed


@cache
def _linear_curve() -> NDArray[np.float32]:
    """Returns float32[256]: linear light of every display value."""
    return ((np.arange(256) / 255.0) ** _GAMMA).astype(np.float32)


def _blurred(light: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Returns the picture behind a Gaussian lens; its edges are continued outwards."""
    if sigma_px <= 0.0:
        return light
    reach = max(1, int(np.ceil(_BLUR_REACH * sigma_px)))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        margin = [(reach, reach) if side == axis else (0, 0) for side in range(3)]
        padded = np.pad(light, margin, mode="edge")
        size = light.shape[axis]
        light = np.zeros_like(light)
        for shift, weight in enumerate(weights):
            light += weight * padded.take(range(shift, shift + size), axis)
    return light


def _noisy(light: NDArray[np.float32], domain: DomainSample, rng: np.random.Generator) -> NDArray[np.float32]:
    """Adds the noise of counted photons, which grows with the root of the light, and the noise of reading them out."""
    shot, read = domain.noise.shot_std, domain.noise.read_std
    if shot == 0.0 and read == 0.0:
        return light
    noise = rng.standard_normal((2, *light.shape), dtype=np.float32)
    noisy: NDArray[np.float32] = light + np.float32(shot) * np.sqrt(light) * noise[0] + np.float32(read) * noise[1]
    return noisy


def _compressed(image: ImageArray, quality: int) -> ImageArray:
    """Returns the picture after a JPEG encoder and decoder."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(file) as decoded:
        return np.array(decoded, np.uint8)
