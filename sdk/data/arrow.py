"""The one place that imports pyarrow and Pillow, and only when a dataset is really read or written."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import DataError, missing_extra
from roboalign.sdk.types import ImageArray

__all__ = ["decode_png", "encode_png", "import_pyarrow", "numeric_column", "open_parquet_error"]


def import_pyarrow() -> tuple[ModuleType, ModuleType]:
    """Returns the modules `pyarrow` and `pyarrow.parquet`.

    Raises:
        BackendError: pyarrow is not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as err:
        raise missing_extra("pyarrow", "data", "reading or writing a dataset") from err


def numeric_column(table: Any, key: str) -> NDArray[np.generic]:
    """Returns `[N, D]`: a column of numbers, or of lists of them, of an arrow table."""
    column = table.column(key).combine_chunks()
    while hasattr(column.type, "value_type"):
        column = column.flatten()
    values: NDArray[np.generic] = column.to_numpy(zero_copy_only=False)
    return values.reshape(table.num_rows, -1)


def encode_png(image: ImageArray) -> bytes:
    """Returns `uint8[H, W, 3]` as the bytes of a PNG file (lossless)."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"an image to record is {image.dtype}{list(image.shape)}, expected uint8[height, width, 3]")
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def decode_png(data: bytes) -> ImageArray:
    """Returns the picture of an image file as `uint8[H, W, 3]` RGB.

    Raises:
        DataError: the bytes are not a picture.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.array(picture.convert("RGB"), dtype=np.uint8)
    except (OSError, SyntaxError) as err:
        raise DataError(f"a recorded image cannot be decoded ({len(data)} bytes): {err}") from err


def open_parquet_error(path: Path, err: Exception) -> DataError:
    """Returns the error for a parquet file that is missing, truncated or otherwise unreadable."""
    first_line = (str(err).splitlines() or [type(err).__name__])[0].rstrip(".")
    return DataError(f"{path} is not a complete parquet file ({first_line}); collect or copy the dataset again")
