"""Cameras: a thread reads each one, and `read_latest` answers at once with the newest picture and its age.

A picture carries the monotonic time it was taken at, so that a policy's observation can be as old as it is, and not
look newer. A camera that is unplugged is opened again by its name once a second; meanwhile `read_latest` refuses what
is too old. Pictures are cut and sized when they are asked for, to what the policy was trained on. One that only has to
be cut is written by the thread into the memory that was lent (`Camera.lend`), where nobody has to copy it any more;
sizing keeps other threads waiting, so it is left until somebody asks.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np

from roboalign.drivers.arm.files import CameraFile
from roboalign.drivers.camera_sources import CameraSource, FoundCamera, find_source, list_cameras
from roboalign.sdk.control.pictures import PictureRing
from roboalign.sdk.errors import CameraTimeout, ConfigError, RobotError
from roboalign.sdk.types import ImageArray

__all__ = [
    "Camera",
    "CameraSet",
    "CameraStats",
    "FoundCamera",
    "Frame",
    "check_camera_names",
    "list_cameras",
    "prepare_image",
]

_REOPEN_S = 1.0
_JOIN_S = 2.0
_SAMPLE = 8  # every so many pixels are compared to see whether a picture changed


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One picture."""

    image: ImageArray
    """uint8[H, W, 3] RGB."""
    time_s: float
    """Monotonic time at which it was taken."""
    index: int
    """Number of the picture since the camera was opened; the same number is the same picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CameraStats:
    """Counts since the camera was opened."""

    frames: int = 0
    """Pictures read."""
    failures: int = 0
    """Reads that failed."""
    reopens: int = 0
    """Times it was opened again."""
    identical_in_a_row: int = 0
    """Pictures up to the latest that do not differ: a camera that hangs, or a still file."""
    rate_hz: float = 0.0
    """Pictures a second, over all."""


class Camera:
    """One camera. Nothing is opened before `open`; `read_latest` may be called from any thread."""

    def __init__(
        self,
        name: str,
        config: CameraFile,
        *,
        source: CameraSource | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Stores the arguments; a given `source` is read instead of the one that `config.device` names."""
        self.name, self.config = name, config
        self._clock = clock
        self._source = source if source is not None else _source_of(name, config)
        self._changed = threading.Condition()
        self._stop = threading.Event()  # of the thread, which has one of its own
        self._thread: threading.Thread | None = None
        self._is_open = False
        self._frame: Frame | None = None
        self._prepared: Frame | None = None
        self._ring: PictureRing | None = None
        self._problem: str | None = None
        self._stats = CameraStats()
        self._opened_s = 0.0

    def open(self, timeout_s: float = 5.0) -> None:
        """Opens the camera, waits for its first picture and makes it ready. Does nothing when it is open.

        A thread that hangs in the driver's read after `close` still has the device; opening it a second time gave it
        two readers, once the driver woke up.

        Raises:
            RobotError: It is absent, busy, hangs, or gives no picture; the message names what there is.
            ConfigError: It gives a smaller picture than its crop needs.
        """
        if self._is_open:
            return
        if self._thread is not None and self._thread.is_alive():
            raise RobotError(
                f"camera {self.name!r}: its driver still hangs in a read; pull its plug, then open it again"
            )
        self._source.open()
        self._is_open = True
        self._stop = threading.Event()
        self._frame = self._prepared = self._problem = None
        self._stats, self._opened_s = CameraStats(), self._clock()
        try:
            if not self._source.is_on_demand:
                self._start_reading(timeout_s)
            self.read_latest(math.inf)  # what makes pictures ready loads and fails here, not while an arm waits
        except BaseException:
            self.close()
            raise

    def lend(self, ring: PictureRing | None) -> None:
        """Lets the camera write its pictures where the policy sees them; None gives the memory back.

        A picture of `read_latest` may lie there then: it cannot be written, and changes after the next ten.

        Raises:
            RobotError: The camera is open already.
        """
        if ring is not None and self._is_open:
            raise RobotError(f"camera {self.name!r} is open; lend it memory before")
        self._ring = ring

    def _start_reading(self, timeout_s: float) -> None:
        """Starts the thread and waits for its first picture."""
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name=f"camera {self.name}", daemon=True)
        self._thread.start()
        with self._changed:
            has_first = self._changed.wait_for(lambda: self._frame is not None or self._problem is not None, timeout_s)
            problem = self._problem if self._frame is None else None
        if not has_first or problem is not None:
            raise CameraTimeout(f"camera {self.name!r}: {problem or f'no picture within {timeout_s:g} s'}")

    def read_latest(self, max_age_s: float = 0.5) -> Frame:
        """Returns the newest picture, cut and sized, without waiting; a source on demand makes it now.

        Raises:
            CameraTimeout: The newest is older than `max_age_s`; the message says how old and why.
            RobotError: The camera is not open.
        """
        if self._is_open and self._source.is_on_demand:
            self._take(*self._source.read())
        with self._changed:
            frame, problem, prepared = self._frame, self._problem, self._prepared
        if not self._is_open or frame is None:
            raise RobotError(f"camera {self.name!r} is not open")
        age_s = self._clock() - frame.time_s
        if age_s > max_age_s:
            why = f": {problem}" if problem else ""
            raise CameraTimeout(f"camera {self.name!r}: its newest picture is {age_s:.2f} s old{why}")
        if prepared is None or prepared.index != frame.index:
            prepared = replace(frame, image=prepare_image(frame.image, self.config))
            self._prepared = prepared
        return prepared

    def read_raw(self) -> Frame:
        """Returns the newest picture as the camera gave it, whatever its age.

        Raises:
            RobotError: The camera is not open.
        """
        with self._changed:
            if not self._is_open or self._frame is None:
                raise RobotError(f"camera {self.name!r} is not open")
            return self._frame

    @property
    def is_on_demand(self) -> bool:
        """Whether it makes a picture when it is asked for one, and none otherwise."""
        return self._source.is_on_demand

    @property
    def age_s(self) -> float:
        """Seconds since the newest picture was taken; infinite when there is none."""
        with self._changed:
            return self._clock() - self._frame.time_s if self._frame is not None else float("inf")

    @property
    def stats(self) -> CameraStats:
        """Counts since it was opened."""
        with self._changed:
            duration_s = self._clock() - self._opened_s
            return replace(self._stats, rate_hz=self._stats.frames / duration_s if duration_s > 0 else 0.0)

    def close(self) -> None:
        """Stops reading and gives the device back. Idempotent."""
        was_open, self._is_open = self._is_open, False
        self._stop.set()
        if not was_open:
            return
        if self._thread is None:
            self._source.close()
            return
        self._thread.join(
            _JOIN_S
        )  # a driver that hangs in a read keeps its thread, which closes it at last; never ours
        if not self._thread.is_alive():
            self._thread = None

    def __enter__(self) -> Camera:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, stop: threading.Event) -> None:
        try:
            self._read_all(stop)
        finally:
            self._source.close()

    def _read_all(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                image, time_s = self._source.read()
            except Exception as err:  # noqa: BLE001 - whatever a device's driver raises, its thread goes on
                self._note(f"{err}")
                self._reopen(stop)
                continue
            self._take(image, time_s)

    def _take(self, image: ImageArray, time_s: float) -> None:
        ready = self._written(image)
        with self._changed:
            last, stats = self._frame, self._stats
            same = stats.identical_in_a_row + 1 if last is not None and _is_same(last.image, image) else 0
            self._frame = Frame(image=image, time_s=time_s, index=stats.frames)
            if ready is not None:
                self._prepared = replace(self._frame, image=ready)
            self._stats = replace(stats, frames=stats.frames + 1, identical_in_a_row=same)
            self._problem = None
            self._changed.notify_all()

    def _written(self, image: ImageArray) -> ImageArray | None:
        """Returns the picture where the policy sees it; None when that is not for this thread to do."""
        ring = self._ring
        if ring is None:
            return None
        with suppress(ConfigError):  # a crop that does not fit: `read_latest` says so where the user is
            cut = _cut(image, self.config)
            if cut.shape[:2] == (self.config.size_px, self.config.size_px):
                np.copyto(ring.lend(), cut)
                return ring.show()
        return None

    def _reopen(self, stop: threading.Event) -> None:
        self._source.close()
        while not stop.wait(_REOPEN_S):
            try:
                self._source.open()
            except Exception as err:  # noqa: BLE001 - as above
                self._note(f"{err}")
                continue
            with self._changed:
                self._stats = replace(self._stats, reopens=self._stats.reopens + 1)
            return

    def _note(self, problem: str) -> None:
        with self._changed:
            self._problem = problem
            self._stats = replace(self._stats, failures=self._stats.failures + 1)
            self._changed.notify_all()


class CameraSet:
    """The cameras of a robot, opened and read together."""

    def __init__(self, cameras: Mapping[str, CameraFile | Camera], max_age_s: float = 0.5) -> None:
        """Stores the cameras by name; a picture older than `max_age_s` is refused."""
        self._max_age_s = max_age_s
        self._cameras = {
            name: camera if isinstance(camera, Camera) else Camera(name, camera) for name, camera in cameras.items()
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the cameras."""
        return tuple(self._cameras)

    def open(self) -> None:
        """Opens all, or none.

        Raises:
            RobotError: One of them cannot be opened.
        """
        with ExitStack() as opened:
            for camera in self._cameras.values():
                camera.open()
                opened.callback(camera.close)
            opened.pop_all()

    def lend(self, rings: Mapping[str, PictureRing]) -> None:
        """Lets the cameras write where the policy sees; those that are not named give the memory back."""
        for name, camera in self._cameras.items():
            camera.lend(rings.get(name))

    def read_latest(self) -> dict[str, Frame]:
        """Returns the newest picture of each. Raises CameraTimeout when one is too old."""
        return {name: camera.read_latest(self._max_age_s) for name, camera in self._cameras.items()}

    def read_images(self) -> dict[str, ImageArray]:
        """Returns the newest pictures without their times, as an observation wants them."""
        return {name: frame.image for name, frame in self.read_latest().items()}

    @property
    def age_s(self) -> float:
        """Age of the oldest of the newest pictures; what makes its pictures when it is asked is never old."""
        return max((camera.age_s for camera in self._cameras.values() if not camera.is_on_demand), default=0.0)

    def stats(self) -> dict[str, CameraStats]:
        """Returns counts by name."""
        return {name: camera.stats for name, camera in self._cameras.items()}

    def close(self) -> None:
        """Closes all. Idempotent."""
        for camera in self._cameras.values():
            camera.close()


def prepare_image(image: ImageArray, config: CameraFile) -> ImageArray:
    """Returns the part of a camera's picture that the policy sees, uint8[S, S, 3]; pixels that become one are averaged.

    Raises:
        ConfigError: The camera gives a smaller picture than the crop needs.
    """
    from PIL import Image

    cut = np.ascontiguousarray(_cut(image, config))
    size = (config.size_px, config.size_px)
    if cut.shape[:2] == size:
        return cut
    return np.asarray(Image.fromarray(cut).resize(size, Image.Resampling.BOX), dtype=np.uint8)


def _cut(image: ImageArray, config: CameraFile) -> ImageArray:
    height, width = image.shape[:2]
    side = min(height, width)
    left, top, crop_width, crop_height = config.crop or ((width - side) // 2, (height - side) // 2, side, side)
    if left + crop_width > width or top + crop_height > height:
        raise ConfigError(
            f"crop is {list(config.crop or ())}, but the camera {config.device} gives {width} x {height} pixels; set "
            "width_px and height_px to what it gives, and the crop inside them"
        )
    return image[top : top + crop_height, left : left + crop_width]


def check_camera_names(wanted: Sequence[str], present: Collection[str], policy: str = "the policy") -> None:
    """Refuses a robot whose cameras are not those of the policy: pictures under a wrong name are silently wrong.

    Raises:
        ConfigError: One is missing, or one is there that the policy does not name.
    """
    missing = [name for name in wanted if name not in present]
    foreign = [name for name in present if name not in wanted]
    if missing or foreign:
        parts = [f"it lacks {', '.join(missing)}"] if missing else []
        parts += [f"{policy} does not know {', '.join(sorted(foreign))}"] if foreign else []
        raise ConfigError(
            f"{policy} sees the cameras {', '.join(wanted) or 'none'}; of the robot's, {' and '.join(parts)}; "
            "rename or remove [cameras.NAME] in robot.toml"
        )


def _source_of(name: str, config: CameraFile) -> CameraSource:
    return find_source(
        config.device,
        width_px=config.width_px,
        height_px=config.height_px,
        rate_hz=config.rate_hz,
        name=name,
        size_px=config.size_px,
    )


def _is_same(one: ImageArray, other: ImageArray) -> bool:
    return one.shape == other.shape and bool(np.array_equal(one[::_SAMPLE, ::_SAMPLE], other[::_SAMPLE, ::_SAMPLE]))
