"""Where pictures come from: a V4L2 device through OpenCV, a file, a pattern, or the scene of a virtual arm.

A source blocks until its next picture is there; `roboalign.drivers.cameras` reads it in a thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from roboalign.sdk.errors import ConfigError, RobotError, missing_extra
from roboalign.sdk.types import ImageArray

if TYPE_CHECKING:
    from roboalign.drivers.virtual.control import ControlClient

__all__ = [
    "CameraSource",
    "FileSource",
    "FoundCamera",
    "OpenCvSource",
    "PatternSource",
    "SimSource",
    "find_source",
    "list_cameras",
    "port_owners",
]

_FRESH_S = 1.0  # a driver's timestamp that is older than this, or ahead, is on another clock
_PATTERN_PX = (48, 64)
_SIM_PREFIX, _FILE_PREFIX = "sim:", "file:"


class CameraSource(Protocol):
    """One place that pictures come from; used by one thread."""

    is_on_demand: bool
    """True when it makes a picture whenever it is read, so that no thread has to keep the newest one."""

    def open(self) -> None:
        """Opens it. Raises RobotError that says what is wrong and which cameras there are."""
        ...

    def read(self) -> tuple[ImageArray, float]:
        """Blocks until the next picture; returns uint8[H, W, 3] RGB and the monotonic time it was taken at."""
        ...

    def close(self) -> None:
        """Closes it. Idempotent."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundCamera:
    """A capture device of this machine."""

    device: str
    """Its present name, `/dev/video0`; changes with the order of plugging in."""
    label: str
    """What its driver calls it."""
    stable_names: tuple[str, ...]
    """Links that stay the same: by the USB socket (`by-path`), by the serial number (`by-id`)."""
    owners: tuple[str, ...]
    """Who has it open, e.g. `1234 (guvcview)`."""

    def __str__(self) -> str:
        owners = f", in use by {', '.join(self.owners)}" if self.owners else ""
        return f"{self.stable_names[0] if self.stable_names else self.device} ({self.label}{owners})"


def list_cameras(root: Path = Path("/")) -> tuple[FoundCamera, ...]:
    """Returns the capture devices; `root` is where `/dev`, `/sys` and `/proc` are looked for.

    A webcam has a second node for metadata, which cannot capture and is left out.
    """
    found = []
    for folder in sorted((root / "sys/class/video4linux").glob("video*"), key=lambda path: int(path.name[5:] or 0)):
        if _read(folder / "index", "0") != "0":
            continue
        device = root / "dev" / folder.name
        links = [link for kind in ("by-path", "by-id") for link in sorted((root / "dev/v4l" / kind).glob("*"))]
        found.append(
            FoundCamera(
                device=f"/dev/{folder.name}",
                label=_read(folder / "name", "unnamed"),
                stable_names=tuple(f"/{link.relative_to(root)}" for link in links if link.resolve() == device),
                owners=port_owners(device, root),
            )
        )
    return tuple(found)


def port_owners(device: Path, root: Path = Path("/")) -> tuple[str, ...]:
    """Returns the processes that have a device open, as `pid (name)`; those of other users only root can see."""
    target = device.resolve()
    owners = []
    for process in sorted((root / "proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            if any(link.resolve() == target for link in (process / "fd").iterdir()):
                owners.append(f"{process.name} ({_read(process / 'comm', 'unknown')})")
        except OSError:  # gone, or not ours to see
            continue
    return tuple(owners)


def find_source(
    source: str,
    *,
    width_px: int = 640,
    height_px: int = 480,
    rate_hz: float = 30.0,
    name: str = "front",
    size_px: int = 96,
) -> CameraSource:
    """Returns the source that a text names; nothing is opened yet.

    `pattern`; `file:PATH` (a picture or an animated one); `sim:LINK` (the camera `name` of a virtual arm), or
    `sim:LINK#VIEW` (its camera VIEW, `front` or `show`, under another name); a device such as
    `/dev/v4l/by-path/...`, or its number.

    Raises:
        ConfigError: The text names nothing of that kind.
    """
    if source == "pattern":
        return PatternSource(rate_hz)
    if source.startswith(_FILE_PREFIX):
        return FileSource(Path(source.removeprefix(_FILE_PREFIX)), rate_hz)
    if source.startswith(_SIM_PREFIX):
        link, _, view = source.removeprefix(_SIM_PREFIX).partition("#")
        return SimSource(Path(link), view or name, size_px)
    if source.isdigit():
        return OpenCvSource(f"/dev/video{source}", width_px=width_px, height_px=height_px, rate_hz=rate_hz)
    if source.startswith("/"):
        return OpenCvSource(source, width_px=width_px, height_px=height_px, rate_hz=rate_hz)
    raise ConfigError(
        f"camera source is {source!r}; expected a device such as /dev/v4l/by-path/..., file:PATH, sim:LINK or pattern"
    )


class PatternSource:
    """Red, green and blue from left to right, and a white line that moves down; without any device."""

    is_on_demand = False

    def __init__(self, rate_hz: float = 30.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pace = _Pace(rate_hz, clock)
        self._count = 0

    def open(self) -> None:
        """Starts at the first line."""
        self._count = 0

    def read(self) -> tuple[ImageArray, float]:
        """Waits for the next picture."""
        time_s = self._pace.wait()
        height, width = _PATTERN_PX
        image = np.zeros((height, width, 3), np.uint8)
        for channel in range(3):
            image[:, channel * width // 3 : (channel + 1) * width // 3, channel] = 200
        image[self._count % height] = 255
        self._count += 1
        return image, time_s

    def close(self) -> None:
        """Nothing to close."""


class FileSource:
    """The frames of a picture file, again and again: png, jpeg, gif, webp."""

    is_on_demand = False

    def __init__(self, path: Path, rate_hz: float = 30.0, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._pace = _Pace(rate_hz, clock)
        self._frames: Sequence[ImageArray] = ()
        self._count = 0

    def open(self) -> None:
        """Reads the file."""
        from PIL import Image, ImageSequence, UnidentifiedImageError

        try:
            with Image.open(self._path) as file:
                self._frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)]
        except (OSError, UnidentifiedImageError) as err:
            raise RobotError(f"the camera file {self._path} cannot be read: {err}") from err
        self._count = 0

    def read(self) -> tuple[ImageArray, float]:
        """Waits for the next frame."""
        time_s = self._pace.wait()
        image = self._frames[self._count % len(self._frames)]
        self._count += 1
        return image, time_s

    def close(self) -> None:
        """Forgets the frames."""
        self._frames = ()


class OpenCvSource:
    """A V4L2 device. Time is the driver's timestamp where that is on the monotonic clock, else the moment of arrival.

    Asks for MJPG, because two uncompressed 640 x 480 streams do not fit one USB 2 hub, and for one buffer, so that the
    next picture is not an old one. Not checked against real devices here: which of them keep to that.
    """

    is_on_demand = False

    def __init__(
        self,
        device: str,
        *,
        width_px: int = 640,
        height_px: int = 480,
        rate_hz: float = 30.0,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        cv2: Any = None,
    ) -> None:
        """Stores the arguments; `root` and `cv2` are for tests."""
        self._device, self._root, self._clock, self._cv2 = device, root, clock, cv2
        self._settings = (width_px, height_px, rate_hz)
        self._capture: Any = None

    def open(self) -> None:
        """Opens the device and takes one picture, because a device that is busy says so only then."""
        cv2 = self._cv2 if self._cv2 is not None else _import_cv2()
        path = self._root / self._device.lstrip("/")
        if not path.exists():
            raise RobotError(f"there is no camera {self._device}; {self._choices()}")
        width, height, rate_hz = self._settings
        capture = cv2.VideoCapture(str(path.resolve()), cv2.CAP_V4L2)
        try:
            if capture.isOpened():
                capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*"MJPG"))
                capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
                capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
                capture.set(cv2.CAP_PROP_FPS, rate_hz)
                capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            if not capture.isOpened() or not capture.grab():
                raise RobotError(self._refusal(path))
        except BaseException:
            capture.release()
            raise
        self._cv2, self._capture = cv2, capture

    def read(self) -> tuple[ImageArray, float]:
        """Waits for the next picture."""
        if self._capture is None:
            raise RobotError(f"camera {self._device} is not open")
        is_grabbed = self._capture.grab()
        now_s = self._clock()
        is_ok, image = self._capture.retrieve() if is_grabbed else (False, None)
        if not is_ok or image is None or image.ndim != 3:
            raise RobotError(f"camera {self._device} gave no picture; is it still plugged in?")
        stamp_s = float(self._capture.get(self._cv2.CAP_PROP_POS_MSEC)) / 1000.0
        is_monotonic = math.isfinite(stamp_s) and now_s - _FRESH_S <= stamp_s <= now_s
        return np.ascontiguousarray(image[:, :, ::-1]), stamp_s if is_monotonic else now_s

    def close(self) -> None:
        """Gives the device back."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()

    def _refusal(self, path: Path) -> str:
        owners = port_owners(path, self._root)
        if owners:
            return f"camera {self._device} is in use by {', '.join(owners)}; close that program"
        return (
            f"camera {self._device} opens but gives no picture: another user's program may hold it, it may be the "
            f"metadata node of a webcam, or the USB hub is out of bandwidth; {self._choices()}"
        )

    def _choices(self) -> str:
        found = list_cameras(self._root)
        return f"cameras here: {', '.join(map(str, found))}" if found else "no camera is plugged in (lsusb shows none?)"


class SimSource:
    """What a virtual arm's camera sees, drawn when it is asked for: a picture of this very moment, in lockstep too."""

    is_on_demand = True

    def __init__(
        self, link: Path, name: str, size_px: int = 96, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._link, self._name, self._size_px, self._clock = link, name, size_px, clock
        self._client: ControlClient | None = None

    def open(self) -> None:
        """Connects to the control channel of `roboalign sim-bus`."""
        from roboalign.drivers.virtual.control import ControlClient

        self._client = ControlClient(self._link).open()

    def read(self) -> tuple[ImageArray, float]:
        """Asks for a picture and waits for it."""
        if self._client is None:
            raise RobotError(f"the camera of the virtual arm at {self._link} is not open")
        time_s = self._clock()
        return self._client.frame(self._name, self._size_px), time_s

    def close(self) -> None:
        """Closes the channel."""
        client, self._client = self._client, None
        if client is not None:
            client.close()


class _Pace:
    """Absolute deadlines, one a period; time that was lost is not caught up."""

    def __init__(self, rate_hz: float, clock: Callable[[], float]) -> None:
        self._period_s, self._clock = 1.0 / rate_hz, clock
        self._due_s = -math.inf

    def wait(self) -> float:
        now_s = self._clock()
        if self._due_s > now_s:
            time.sleep(self._due_s - now_s)
            now_s = self._clock()
        self._due_s = max(self._due_s + self._period_s, now_s)
        return now_s


def _import_cv2() -> Any:
    try:
        return import_module("cv2")
    except ImportError as err:
        raise missing_extra("opencv-python-headless", "camera", "a camera") from err


def _read(path: Path, default: str) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return default
