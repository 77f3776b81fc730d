"""Pictures of image-chat rows: from a path, from bytes, or from a `data:` address."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np

from roboalign.sdk.errors import DataError
from roboalign.sdk.types import ImageArray

__all__ = ["read_picture"]

_PADDING = (128, 128, 128)
"""Colour of the bars beside a picture that is not square."""


def read_picture(image: str | bytes, folder: Path, *, size_px: int) -> ImageArray:
    """Returns a picture as uint8[size, size, 3], made smaller or larger as a whole, with grey bars if it is not square.

    Raises:
        DataError: it is missing, or does not decode.
    """
    from PIL import Image, ImageOps

    if isinstance(image, str) and image.startswith("data:"):
        try:
            image = base64.b64decode(image.partition(",")[2], validate=True)
        except ValueError as err:
            raise DataError(f"the picture is no base64 ({err})") from err
    name = f"the picture {image}" if isinstance(image, str) else f"the picture of {len(image)} bytes"
    size = (size_px, size_px)
    try:
        with Image.open(folder / image if isinstance(image, str) else io.BytesIO(image)) as found:
            whole = found.convert("RGB")
        return np.array(ImageOps.pad(whole, size, color=_PADDING) if whole.size != size else whole, dtype=np.uint8)
    except FileNotFoundError as err:
        raise DataError(f"{name} is missing in {folder}") from err
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise DataError(f"{name} does not decode ({str(err).partition('<')[0].strip()})") from err
