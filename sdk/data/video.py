"""Pictures as video, and the one place that imports PyAV.

An episode is encoded on its own, from a key frame on, and episodes are joined into larger files by copying their
packets. So an episode's pixels depend on nothing but its pictures, and a recording that was cut goes on with the same
data. Colour is kept at full resolution: at 96 px the usual halved colour (yuv420p) costs 10 dB, which is more than the
encoder itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from roboalign.sdk.errors import DataError, missing_extra
from roboalign.sdk.types import ImageArray

__all__ = ["VideoJoiner", "count_frames", "decode_frames", "encode_video", "import_av", "open_video", "video_info"]

CODEC = "h264"
"""Read by every decoder that lerobot uses, and deterministic with one thread."""
PIXEL_FORMAT = "yuv444p"
QUALITY = 14
"""Constant rate factor: 38 dB in the worst and 43 dB in the mean picture of the simulator at 96 px."""
KEY_FRAME_EVERY = 2
"""As lerobot does: any frame is found by decoding at most two."""
_ENCODER_OPTIONS = {"crf": str(QUALITY), "preset": "medium", "g": str(KEY_FRAME_EVERY), "bf": "0", "threads": "1"}


def import_av() -> ModuleType:
    """Returns the module `av`.

    Raises:
        BackendError: PyAV is not installed.
    """
    try:
        return importlib.import_module("av")
    except ImportError as err:
        raise missing_extra("av", "data", "reading or writing videos") from err


def video_info(rate_hz: float) -> dict[str, object]:
    """Returns what `meta/info.json` says about our videos, in lerobot's words."""
    return {
        "video.codec": CODEC,
        "video.pix_fmt": PIXEL_FORMAT,
        "video.fps": int(rate_hz) if float(rate_hz).is_integer() else rate_hz,
        "video.channels": 3,
        "video.g": KEY_FRAME_EVERY,
        "video.crf": QUALITY,
        "has_audio": False,
        "is_depth_map": False,
    }


def encode_video(path: Path, pictures: Iterable[ImageArray], *, rate_hz: float) -> None:
    """Writes pictures `uint8[H, W, 3]`, all of one size, as an mp4 file.

    Raises:
        DataError: the pictures are of different sizes, or there is none.
        OSError: the file cannot be written.
    """
    av = import_av()
    shape: tuple[int, ...] | None = None
    with _os_errors(av, path), av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream(CODEC, rate=_rate(rate_hz), options=_ENCODER_OPTIONS)
        stream.pix_fmt = PIXEL_FORMAT
        for number, picture in enumerate(pictures):
            if shape is None:
                shape = picture.shape
                stream.height, stream.width = shape[:2]
            if picture.shape != shape:
                raise DataError(
                    f"{path}: picture {number} is {list(picture.shape)}, the first {list(shape)}; "
                    "all pictures of a video need one size"
                )
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            output.mux(stream.encode(frame))
        if shape is None:
            raise DataError(f"{path}: there is no picture to make a video of")
        output.mux(stream.encode())


class VideoJoiner:
    """Appends videos of one encoder to a file without encoding them again; close it, or nothing can be read."""

    def __init__(self, path: Path, *, rate_hz: float) -> None:
        self._av = import_av()
        self._path = path
        self._rate = _rate(rate_hz)
        self._output: Any = None
        self._stream: Any = None
        self.num_frames = 0
        self.num_bytes = 0

    def add(self, path: Path) -> tuple[float, float]:
        """Appends a video; returns the seconds at which it begins and ends in the joined one.

        Raises:
            DataError: the video is damaged.
            OSError: the joined one cannot be written.
        """
        first = self.num_frames
        with open_video(path) as (source, stream):
            packets = [packet for packet in source.demux(stream) if packet.dts is not None]
            if self._output is None:
                with _os_errors(self._av, self._path):
                    self._output = self._av.open(str(self._path), "w", format="mp4")
                self._stream = self._output.add_stream_from_template(stream)
            shift = round(Fraction(first) / self._rate / stream.time_base)
            for packet in packets:
                packet.pts += shift
                packet.dts += shift
                packet.stream = self._stream
                self.num_bytes += packet.size
                with _os_errors(self._av, self._path):
                    self._output.mux_one(packet)
        self.num_frames += len(packets)
        return float(first / self._rate), float(self.num_frames / self._rate)

    def close(self) -> None:
        """Completes the file; may be called again."""
        output, self._output = self._output, None
        if output is not None:
            with _os_errors(self._av, self._path):
                output.close()


def decode_frames(path: Path, numbers: Sequence[int], *, start_s: float, rate_hz: float) -> list[ImageArray]:
    """Returns pictures `uint8[H, W, 3]`, in the order asked for.

    Args:
        path: The video.
        numbers: Frames, counted from `start_s`.
        start_s: Time in the video at which the episode begins.
        rate_hz: Frames per second.

    Raises:
        DataError: the video is damaged, or shorter than asked for.
    """
    missing = {int(number) for number in numbers}
    found: dict[int, ImageArray] = {}
    first_s = start_s + (min(missing) - 0.5) / rate_hz
    with open_video(path) as (source, stream):
        if first_s > 0.0:
            source.seek(int(first_s / stream.time_base), stream=stream, backward=True)
        # Without this a damaged picture is made up from its neighbours.
        stream.codec_context.options = {"err_detect": "explode"}
        for frame in source.decode(stream):
            number = round((float(frame.time) - start_s) * rate_hz)
            if number in missing:
                missing.remove(number)
                found[number] = frame.to_ndarray(format="rgb24")
            if not missing:
                break
    if missing:
        number = min(missing)
        raise DataError(
            f"{path} has no picture at {start_s + number / rate_hz:.3f} s (frame {number} of the episode that begins "
            f"at {start_s:.3f} s); collect or copy the dataset again"
        )
    return [found[int(number)] for number in numbers]


def count_frames(path: Path) -> tuple[int, float]:
    """Returns how many pictures a video holds, and its frames per second; nothing is decoded.

    Raises:
        DataError: the video is damaged.
    """
    with open_video(path) as (source, stream):
        count = stream.frames or sum(packet.size > 0 for packet in source.demux(stream))
        return count, float(stream.average_rate or 0.0)


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Opens a video for reading and gives its container and stream; damage is a `DataError` wherever it shows."""
    av = import_av()
    try:
        with av.open(str(path)) as source:
            if not source.streams.video:
                raise DataError(f"{path} holds no video; collect or copy the dataset again")
            yield source, source.streams.video[0]
    except (av.FFmpegError, EOFError) as err:
        why = getattr(err, "strerror", None) or err
        raise DataError(f"{path} is not a complete video ({why}); collect or copy the dataset again") from err


@contextmanager
def _os_errors(av: ModuleType, path: Path) -> Iterator[None]:
    """Turns what PyAV raises while writing into the `OSError` that it is, with the name of the file."""
    try:
        yield
    except av.FFmpegError as err:
        raise OSError(getattr(err, "errno", 0), getattr(err, "strerror", None) or str(err), str(path)) from err


def _rate(rate_hz: float) -> Fraction:
    return Fraction(rate_hz).limit_denominator(1001)
