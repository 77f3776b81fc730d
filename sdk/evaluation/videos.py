"""Videos of episodes: mp4 (H.264) where PyAV is installed, an animated gif elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from roboalign.sdk.errors import BackendError, ConfigError
from roboalign.sdk.evaluation.pictures import write_gif
from roboalign.sdk.types import ImageArray

__all__ = ["VIDEO_SUFFIXES", "write_video"]

VIDEO_SUFFIXES = (".mp4", ".gif")
"""What `write_video` can write."""
_QUALITY_CRF = "20"
_LAST_FRAME_S = 1.0
"""The end stays on screen for so long."""


def write_video(frames: Sequence[ImageArray], stem: Path, *, rate_hz: float) -> Path:
    """Writes uint8[H, W, 3] pictures as `stem.mp4`, or `stem.gif` where PyAV is missing; returns the path.

    Nothing half-written stays under that path.

    Raises:
        BackendError: The installed PyAV has no H.264 encoder, or it failed.
    """
    if not frames:
        raise ConfigError(f"there is no picture to write into {stem}")
    if not rate_hz > 0.0:
        raise ConfigError(f"rate_hz is {rate_hz}, expected more than 0")
    if find_spec("av") is None:
        return write_gif(frames, stem.with_name(stem.name + ".gif"), rate_hz=rate_hz)
    path = stem.with_name(stem.name + ".mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        _encode([*frames, *[frames[-1]] * round(_LAST_FRAME_S * rate_hz)], partial, rate_hz)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _encode(frames: Sequence[ImageArray], path: Path, rate_hz: float) -> None:
    import av
    from av.error import FFmpegError

    height, width = frames[0].shape[:2]
    try:
        with av.open(str(path), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=round(rate_hz), options={"crf": _QUALITY_CRF})
            # Four colours share one sample of chroma, so both sides must be even.
            stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
            for frame in frames:
                even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                for packet in stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
    except FFmpegError as err:
        raise BackendError(f"PyAV could not write {path} ({err}); leave --videos out, or install another PyAV") from err
