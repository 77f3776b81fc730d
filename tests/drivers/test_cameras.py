"""Cameras: times and ages, crops and sizes, and what is said when one is busy, absent, frozen or unplugged."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from roboalign.drivers import camera_sources, cameras
from roboalign.drivers.arm.files import CameraFile
from roboalign.drivers.camera_sources import FileSource, OpenCvSource, PatternSource, SimSource, find_source
from roboalign.drivers.cameras import Camera, CameraSet, check_camera_names, list_cameras, prepare_image
from roboalign.sdk.control.pictures import PictureRing
from roboalign.sdk.errors import BackendError, ConfigError, RobotError, RobotTimeout


class ScriptedSource:
    """Gives a picture whenever the test lets it; `fail` makes the next read raise."""

    is_on_demand = False

    def __init__(self):
        self.pictures = threading.Semaphore(0)
        self.fail = False
        self.refuse = False
        self.opened = self.closed = 0
        self.time_s = 0.0

    def open(self):
        if self.refuse:
            raise RobotError("camera is in use by 12 (cheese)")
        self.opened += 1

    def read(self):
        self.pictures.acquire()
        if self.fail:
            raise RobotError("gave no picture")
        return np.full((4, 6, 3), 7, np.uint8), self.time_s

    def close(self):
        self.closed += 1
        self.pictures.release()


def config(**more):
    return CameraFile(**{"device": "pattern", "size_px": 4, **more})


def wait_until(is_true, timeout_s=5.0):
    end_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.002)


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(cameras, "_REOPEN_S", 0.005)
    source = ScriptedSource()
    clock = [100.0]
    camera = Camera("front", config(), source=source, clock=lambda: clock[0])
    source.time_s = 100.0
    source.pictures.release()
    camera.open()
    yield camera, source, clock
    for _ in range(3):
        source.pictures.release()
    camera.close()


def test_the_newest_picture_comes_with_its_own_time(scripted):
    camera, _, clock = scripted
    clock[0] = 100.2
    frame = camera.read_latest()
    assert (frame.time_s, frame.index) == (100.0, 0)
    assert camera.age_s == pytest.approx(0.2)


def test_a_picture_that_is_too_old_is_refused_with_its_age(scripted):
    camera, _, clock = scripted
    clock[0] = 101.0
    with pytest.raises(RobotTimeout, match=r"'front': its newest picture is 1\.00 s old"):
        camera.read_latest(max_age_s=0.5)


def test_an_unplugged_camera_is_opened_again_and_the_reason_is_told_meanwhile(scripted):
    camera, source, clock = scripted
    source.fail = source.refuse = True
    source.pictures.release()
    wait_until(lambda: camera.stats.failures >= 2)
    clock[0] = 103.0
    with pytest.raises(RobotTimeout, match=r"3\.00 s old: camera is in use by 12 \(cheese\)"):
        camera.read_latest()
    source.fail = source.refuse = False
    source.time_s = 103.0
    source.pictures.release()
    wait_until(lambda: camera.stats.frames >= 2)
    assert camera.read_latest().time_s == 103.0
    assert camera.stats.reopens == 1


def test_a_camera_that_never_gives_a_picture_does_not_open():
    source = ScriptedSource()
    camera = Camera("front", config(), source=source)
    with pytest.raises(RobotTimeout, match=r"'front': no picture within 0\.05 s"):
        camera.open(timeout_s=0.05)
    wait_until(lambda: source.opened == 1)
    source.pictures.release()


def test_a_crop_that_does_not_fit_is_refused_when_the_camera_opens():
    """It was found when the first picture was asked for, with an arm waiting for its first command."""
    camera = Camera("front", config(crop=(0, 0, 4000, 4000), width_px=4000, height_px=4000))
    with pytest.raises(ConfigError, match=r"crop is \[0, 0, 4000, 4000\]"):
        camera.open()
    assert "camera front" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(RobotError, match="is not open"):
        camera.read_latest()


def test_a_hanging_camera_counts_its_identical_pictures(scripted):
    camera, source, _ = scripted
    for _ in range(3):
        source.pictures.release()
    wait_until(lambda: camera.stats.frames == 4)
    assert camera.stats.identical_in_a_row == 3


def test_a_camera_that_hangs_in_its_driver_gets_no_second_reader(monkeypatch):
    """Closed and opened again, it had two threads in one device as soon as the driver woke up."""
    monkeypatch.setattr(cameras, "_JOIN_S", 0.02)
    hang = threading.Event()

    class HangingSource(ScriptedSource):
        def read(self):
            if self.pictures.acquire(blocking=False):
                return np.full((4, 6, 3), 7, np.uint8), 100.0
            hang.wait(10.0)
            raise RobotError("woke up")

        def close(self):
            self.closed += 1

    source = HangingSource()
    source.pictures.release()
    camera = Camera("hanging", config(), source=source, clock=lambda: 100.0)
    camera.open()
    camera.close()
    with pytest.raises(RobotError, match=r"its driver still hangs in a read; pull its plug"):
        camera.open()
    assert source.opened == 1
    hang.set()
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "camera hanging"])
    hang.clear()
    source.pictures.release()
    camera.open()
    assert [thread.name for thread in threading.enumerate()].count("camera hanging") == 1
    hang.set()
    camera.close()
    assert source.opened == 2


def test_closing_twice_and_reading_after_it(scripted):
    camera, source, _ = scripted
    source.pictures.release()
    camera.close()
    camera.close()
    wait_until(lambda: source.closed == 1)
    with pytest.raises(RobotError, match="is not open"):
        camera.read_latest()
    with pytest.raises(RobotError, match="is not open"):
        camera.read_raw()


def test_threads_and_descriptors_are_given_back():
    before = (threading.active_count(), len(list(Path("/proc/self/fd").iterdir())))
    for _ in range(20):
        with Camera("front", config(rate_hz=500.0)) as camera:
            camera.read_latest()
    assert (threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))) == before


def test_the_pattern_arrives_in_rgb_with_a_growing_index_and_time():
    with Camera("front", config(size_px=48, rate_hz=200.0)) as camera:
        first = camera.read_latest()
        wait_until(lambda: camera.read_latest().index > first.index)
        second = camera.read_latest()
    assert second.time_s > first.time_s
    row = first.image[24].astype(int)
    assert row[0, 0] > row[0, 2] + 100, "red is on the left"
    assert row[-1, 2] > row[-1, 0] + 100, "blue is on the right"
    assert not np.array_equal(first.image, second.image)


def test_a_file_is_a_camera(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    source = FileSource(tmp_path / "film.gif", rate_hz=1000.0)
    source.open()
    colours = [tuple(source.read()[0][0, 0]) for _ in range(3)]
    assert colours == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RobotError, match=r"camera file .*nowhere\.png cannot be read"):
        FileSource(tmp_path / "nowhere.png").open()


def test_without_a_crop_the_largest_square_in_the_middle_is_seen():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 2:6] = 255
    assert prepare_image(image, config()).min() == 255


def test_a_crop_is_cut_before_it_is_sized():
    image = np.zeros((10, 10, 3), np.uint8)
    image[2:8, 1:7] = 255
    assert prepare_image(image, config(crop=(1, 2, 6, 6))).min() == 255


def test_sizing_averages_what_becomes_one_pixel():
    checkers = np.zeros((8, 8, 3), np.uint8)
    checkers[::2] = 200
    assert np.unique(prepare_image(checkers, config())).tolist() == [100]


def test_a_crop_outside_the_picture_is_refused():
    with pytest.raises(ConfigError, match=r"crop is \[5, 0, 8, 8\], but the camera pattern gives 10 x 10"):
        prepare_image(np.zeros((10, 10, 3), np.uint8), config(crop=(5, 0, 8, 8)))


def test_all_cameras_open_or_none():
    good, bad = ScriptedSource(), ScriptedSource()
    good.pictures.release()
    bad.refuse = True
    both = CameraSet({"front": Camera("front", config(), source=good), "wrist": Camera("wrist", config(), source=bad)})
    with pytest.raises(RobotError, match="in use by 12"):
        both.open()
    good.pictures.release()
    wait_until(lambda: good.closed == 1)


def test_a_set_reads_every_camera():
    both = CameraSet({name: config(rate_hz=200.0) for name in ("front", "wrist")})
    both.open()
    try:
        images = both.read_images()
    finally:
        both.close()
    assert {name: image.shape for name, image in images.items()} == {"front": (4, 4, 3), "wrist": (4, 4, 3)}
    assert both.names == ("front", "wrist")


@pytest.fixture
def ring():
    ring = PictureRing("front", 4)
    yield ring
    ring.close()


def opened(source, ring, **more):
    """A camera of 6 x 4 pixels that was lent memory, and has taken its first picture."""
    source.time_s = time.monotonic()
    camera = Camera("front", config(**more), source=source)
    both = CameraSet({"front": camera})
    both.lend({"front": ring})
    source.pictures.release()
    camera.open()
    return camera


def test_a_camera_that_was_lent_memory_writes_where_the_policy_sees(ring):
    source = ScriptedSource()
    camera = opened(source, ring)
    seen = camera.read_latest().image
    assert (seen == 7).all()
    assert np.shares_memory(seen, ring.look(1)), "the thread wrote it, and nobody has copied it"
    assert ring.put(seen) == ring.newest == 1
    source.pictures.release()
    wait_until(lambda: camera.stats.frames == 2)
    assert ring.put(camera.read_latest().image) == ring.newest == 2
    source.pictures.release()
    camera.close()


def test_a_picture_that_has_to_be_sized_is_made_when_it_is_asked_for(ring):
    """Sizing in the camera's thread would keep the control process from its deadline."""
    source = ScriptedSource()
    camera = opened(source, ring, crop=(1, 0, 3, 3))
    assert ring.newest == 0
    assert ring.put(camera.read_latest().image) == 1
    source.pictures.release()
    camera.close()


def test_a_crop_that_does_not_fit_is_refused_with_lent_memory_too(ring):
    with pytest.raises(ConfigError, match=r"crop is \[0, 0, 40, 40\]"):
        opened(ScriptedSource(), ring, crop=(0, 0, 40, 40), width_px=40, height_px=40)


def test_memory_is_lent_before_a_camera_is_open_and_given_back_at_any_time(ring):
    source = ScriptedSource()
    camera = opened(source, ring)
    with pytest.raises(RobotError, match="'front' is open; lend it memory before"):
        camera.lend(ring)
    camera.lend(None)
    source.pictures.release()
    wait_until(lambda: camera.stats.frames == 2)
    assert ring.newest == 1
    assert camera.read_latest().image.flags.writeable
    source.pictures.release()
    camera.close()


def test_the_policys_cameras_are_accepted_and_others_refused():
    check_camera_names(("front",), ("front",))
    with pytest.raises(ConfigError, match=r"sees the cameras front; .* lacks front and nano does not know wrist"):
        check_camera_names(("front",), ("wrist",), "nano")
    with pytest.raises(ConfigError, match="does not know overhead, wrist"):
        check_camera_names(("front",), ("wrist", "front", "overhead"))


@pytest.mark.parametrize(
    ("text", "kind"),
    [("pattern", PatternSource), ("file:a.png", FileSource), ("sim:/tmp/arm", SimSource), ("0", OpenCvSource)],
)
def test_sources_by_name(text, kind):
    assert isinstance(find_source(text), kind)


def test_a_view_of_a_virtual_arm_may_have_another_name():
    assert find_source("sim:/tmp/arm", name="desk")._name == "desk"
    source = find_source("sim:/tmp/arm#show", name="desk")
    assert (source._name, str(source._link)) == ("show", "/tmp/arm")


def test_a_source_of_no_kind_lists_the_kinds():
    with pytest.raises(ConfigError, match=r"'webcam'; expected a device such as .*file:PATH, sim:LINK or pattern"):
        find_source("webcam")


@pytest.fixture
def machine(tmp_path):
    """A machine with one webcam, its metadata node, and its link by path."""
    for number, (label, index) in enumerate((("C920", "0"), ("C920", "1"))):
        folder = tmp_path / f"sys/class/video4linux/video{number}"
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{label}\n")
        (folder / "index").write_text(f"{index}\n")
    (tmp_path / "dev/v4l/by-path").mkdir(parents=True)
    (tmp_path / "dev/video0").touch()
    (tmp_path / "dev/v4l/by-path/usb-1-video-index0").symlink_to("../../video0")
    return tmp_path


def hold_open(machine, device="dev/video0"):
    (machine / "proc/77/fd").mkdir(parents=True)
    (machine / "proc/77/comm").write_text("guvcview\n")
    (machine / "proc/77/fd/3").symlink_to(machine / device)


def test_cameras_are_listed_by_names_that_stay(machine):
    hold_open(machine)
    (found,) = list_cameras(machine)
    assert found.device == "/dev/video0"
    assert found.stable_names == ("/dev/v4l/by-path/usb-1-video-index0",)
    assert str(found) == "/dev/v4l/by-path/usb-1-video-index0 (C920, in use by 77 (guvcview))"


def test_a_machine_without_cameras_lists_none(tmp_path):
    assert list_cameras(tmp_path) == ()


class FakeCv2:
    """The part of cv2 that is used, after its documentation; `gives` are the pictures in BGR."""

    CAP_V4L2, CAP_PROP_FOURCC, CAP_PROP_FRAME_WIDTH, CAP_PROP_FRAME_HEIGHT = 200, 6, 3, 4
    CAP_PROP_FPS, CAP_PROP_BUFFERSIZE, CAP_PROP_POS_MSEC = 5, 38, 0

    def __init__(self, *, is_open=True, gives=(), stamp_ms=0.0):
        self.is_open, self.gives, self.stamp_ms = is_open, list(gives), stamp_ms
        self.settings, self.released, self.path = {}, 0, ""

    def VideoCapture(self, path, backend):  # noqa: N802 - cv2's own name
        assert backend == self.CAP_V4L2
        self.path = path
        return self

    @staticmethod
    def VideoWriter_fourcc(*letters):  # noqa: N802
        return "".join(letters)

    def isOpened(self):  # noqa: N802
        return self.is_open

    def set(self, name, value):
        self.settings[name] = value
        return True

    def get(self, name):
        assert name == self.CAP_PROP_POS_MSEC
        return self.stamp_ms

    def grab(self):
        return bool(self.gives)

    def retrieve(self):
        return True, self.gives[0]

    def release(self):
        self.released += 1


BLUE_BGR = np.full((4, 4, 3), (255, 0, 0), np.uint8)


def open_device(machine, cv2, now_s=50.0):
    source = OpenCvSource("/dev/v4l/by-path/usb-1-video-index0", root=machine, cv2=cv2, clock=lambda: now_s)
    source.open()
    return source


def test_opencv_pictures_become_rgb_and_the_device_is_asked_for_mjpg(machine):
    cv2 = FakeCv2(gives=[BLUE_BGR])
    image, _ = open_device(machine, cv2).read()
    assert tuple(image[0, 0]) == (0, 0, 255)
    assert cv2.path.endswith("/dev/video0")
    assert cv2.settings == {6: "MJPG", 3: 640, 4: 480, 5: 30.0, 38: 1}


@pytest.mark.parametrize(("stamp_ms", "time_s"), [(49_900.0, 49.9), (0.0, 50.0), (1.7e12, 50.0), (51_000.0, 50.0)])
def test_the_drivers_time_is_taken_when_it_is_on_our_clock(machine, stamp_ms, time_s):
    source = open_device(machine, FakeCv2(gives=[BLUE_BGR], stamp_ms=stamp_ms))
    assert source.read()[1] == pytest.approx(time_s)


def test_a_busy_device_names_who_holds_it(machine):
    hold_open(machine)
    cv2 = FakeCv2()
    with pytest.raises(RobotError, match=r"in use by 77 \(guvcview\); close that program"):
        open_device(machine, cv2)
    assert cv2.released == 1


def test_a_device_without_a_picture_says_what_may_be_wrong(machine):
    with pytest.raises(RobotError, match=r"gives no picture: another user's program .* cameras here: /dev/v4l/by-path"):
        open_device(machine, FakeCv2(is_open=False))


def test_an_absent_device_lists_those_that_are_there(machine):
    with pytest.raises(RobotError, match=r"there is no camera /dev/video7; cameras here: .*C920"):
        OpenCvSource("/dev/video7", root=machine, cv2=FakeCv2()).open()


def test_a_device_that_stops_says_so_and_is_given_back_once(machine):
    cv2 = FakeCv2(gives=[BLUE_BGR])
    source = open_device(machine, cv2)
    cv2.gives.clear()
    with pytest.raises(RobotError, match="gave no picture; is it still plugged in"):
        source.read()
    source.close()
    source.close()
    assert cv2.released == 1
    with pytest.raises(RobotError, match="is not open"):
        source.read()


def test_without_opencv_the_extra_is_named(machine, monkeypatch):
    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(camera_sources, "import_module", refuse)
    with pytest.raises(BackendError, match=r"pip install 'roboalign\[camera\]'"):
        open_device(machine, None)


def test_the_names_that_we_use_are_those_of_opencv():
    cv2 = pytest.importorskip("cv2")
    used = [name for name in vars(FakeCv2) if name.startswith("CAP_")]
    assert {name: getattr(cv2, name) for name in used} == {name: getattr(FakeCv2, name) for name in used}
    capture = cv2.VideoCapture()
    assert all(hasattr(capture, name) for name in ("isOpened", "set", "get", "grab", "retrieve", "release"))
    assert cv2.VideoWriter_fourcc(*"MJPG") == int.from_bytes(b"MJPG", "little")


class DrawingSource(ScriptedSource):
    """Makes a picture whenever it is asked."""

    is_on_demand = True

    def read(self):
        return np.full((4, 4, 3), self.opened, np.uint8), self.time_s


def test_a_source_on_demand_needs_no_thread_and_is_always_new():
    source = DrawingSource()
    camera = Camera("front", config(), source=source, clock=lambda: source.time_s)
    before = threading.active_count()
    camera.open()
    assert threading.active_count() == before
    source.time_s = 5.0
    assert [camera.read_latest().index for _ in range(3)] == [1, 2, 3], "opening took the first"
    assert camera.read_latest().time_s == 5.0
    camera.close()
    assert source.closed == 1
    with pytest.raises(RobotError, match="is not open"):
        camera.read_latest()
