"""The observations that a bundle keeps: a few moments with pictures, state and sentence, on which it was compared.

They lie in `parity.safetensors`, with what PyTorch answered to them; the exporter's half of the file is read in
`roboalign.export.vectors`. Pictures are PNG, one behind the other under `png.CAMERA`; files of earlier versions hold
them as numbers under `image.CAMERA`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import BundleError, missing_extra
from roboalign.sdk.types import Observation

__all__ = ["METADATA_KEY", "PNG", "UNREADABLE", "VECTORS_NAME", "read_seen", "seen_observations"]

VECTORS_NAME = "parity.safetensors"
"""The file in the bundle."""

METADATA_KEY = "roboalign.parity"
"""Under which the file keeps what is text."""

PNG, _NUMBERS = "png.", "image."
"""How the names of pictures begin, now and in earlier versions."""

_MAX_PIXELS = 2**26
"""A larger picture is no camera's: little PNG can hold a lot of it."""

UNREADABLE = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)
"""What a file of other content leads to."""


def read_seen(path: Path) -> tuple[Observation, ...]:
    """Returns the observations in the file of a verified bundle; what is no such file is a BundleError."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as err:
        raise missing_extra("safetensors", "cpu", "a bundle's observations") from err
    try:
        with safe_open(path, "numpy") as file:
            text = json.loads((file.metadata() or {})[METADATA_KEY])
            names = [name for name in file.keys() if "." not in name or name.startswith((PNG, _NUMBERS))]  # noqa: SIM118 - not a mapping
            stored = {name: file.get_tensor(name) for name in names}
        return seen_observations(stored, text)
    except (*UNREADABLE, SafetensorError) as err:
        raise BundleError(f"{path} holds no observations ({err}); export the bundle again") from err


def seen_observations(stored: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[Observation, ...]:
    """Returns the observations among a file's tensors; raises one of `UNREADABLE` where they do not fit one another."""
    images: dict[str, Sequence[NDArray[np.uint8]]] = {
        name.removeprefix(_NUMBERS): value for name, value in stored.items() if name.startswith(_NUMBERS)
    }
    for name, sizes in text.get("png_bytes", {}).items():
        images[name] = _from_png(stored[f"{PNG}{name}"], sizes)
    return tuple(
        Observation(
            images={name: pictures[index] for name, pictures in images.items()},
            state=stored["state"][index],
            joint_pos_rad=stored["joint_pos_rad"][index],
            instruction=instruction,
            time_s=0.0,
            commanded=stored["commanded"][index] if "commanded" in stored else None,
        )
        for index, instruction in enumerate(text["instructions"])
    )


def _from_png(files: NDArray[np.uint8], sizes: Sequence[int]) -> list[NDArray[np.uint8]]:
    from PIL import Image

    if sum(sizes) != files.size:
        raise ValueError(f"pictures take {files.size} bytes, expected {sum(sizes)}")
    pictures = []
    for part in np.split(files, np.cumsum(sizes)[:-1]):
        try:
            with Image.open(io.BytesIO(part.tobytes()), formats=["PNG"]) as picture:
                if picture.width * picture.height > _MAX_PIXELS:
                    raise ValueError(f"a picture of {picture.size} is among them, at most {_MAX_PIXELS} pixels are")
                pictures.append(np.array(picture, np.uint8))
        except (SyntaxError, Image.DecompressionBombError) as err:
            raise ValueError(f"a picture cannot be read: {err}") from err
    return pictures
