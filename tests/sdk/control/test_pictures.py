"""Pictures in shared memory: a lent one is never copied, a pinned one never changes, and one that is gone is missed."""

import dataclasses
import threading

import numpy as np
import pytest

from roboalign.sdk.control.channels import Channels
from roboalign.sdk.control.pictures import PictureRing
from roboalign.sdk.control.policy_process import _Desk
from roboalign.sdk.control.records import CHUNK, fields_of, read_text
from roboalign.sdk.control.session import _lent_pictures
from roboalign.sdk.control.sight import Sight
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.types import ActionChunk

SIZE = 16


def picture(value: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), value, np.uint8)


def written(ring: PictureRing, value: int) -> np.ndarray:
    """What a camera does."""
    ring.lend()[:] = value
    return ring.show()


@pytest.fixture
def ring():
    ring = PictureRing("front", SIZE)
    yield ring
    ring.close()


@pytest.fixture
def channels(spec):
    channels = Channels(dataclasses.replace(spec, camera_names=("front", "wrist")))
    yield channels
    channels.close()


def publish(channels, *images, moves: int = 0, time_s: float = 1.0) -> int:
    """What the control process does."""
    row = fields_of(channels.observations.begin())
    row["moves"][0], row["time_s"][0] = moves, time_s
    row["state"][:], row["joints"][:] = 0.5, 0.25
    row["pictures"][:] = [ring.put(image) for ring, image in zip(channels.pictures.values(), images, strict=True)]
    return channels.observations.commit()


def test_a_lent_picture_is_passed_on_without_a_copy(ring, monkeypatch):
    seen = written(ring, 7)
    monkeypatch.setattr(np, "copyto", lambda *args: pytest.fail("copied"))
    assert ring.put(seen) == 1
    assert np.shares_memory(ring.look(1), seen)
    assert (ring.look(1) == 7).all()


def test_a_picture_of_any_other_kind_is_copied(ring):
    mine = picture(7)
    number = ring.put(mine)
    mine[:] = 8
    assert (ring.look(number) == 7).all()


def test_what_is_shown_cannot_be_written(ring):
    for seen in (written(ring, 7), ring.look(1)):
        with pytest.raises(ValueError, match="read-only"):
            seen[0, 0, 0] = 1


def test_a_picture_is_not_seen_before_it_is_shown(ring):
    written(ring, 7)
    ring.lend()[:] = 8
    assert ring.newest == 1
    assert ring.look(2) is None


def test_a_picture_that_is_looked_at_stays_until_it_is_let_go(ring):
    written(ring, 1)
    seen = ring.look(1)
    for value in range(2, 100):
        written(ring, value)
    assert (seen == 1).all()
    assert ring.has(1)
    ring.unpin()
    for value in range(100, 120):
        written(ring, value)
    assert ring.look(1) is None


def test_one_that_is_being_overwritten_is_replaced_by_the_newest(ring):
    old = written(ring, 1)
    for value in range(2, 13):
        written(ring, value)
    assert ring.put(old) == 1
    ring.lend()
    assert ring.put(old) == ring.newest == 12


def test_one_thread_alone_writes(ring):
    other = PictureRing("front", SIZE)
    written(ring, 1)
    with pytest.raises(ConfigError, match="not the one which the camera wrote"):
        ring.put(picture(2))
    other.put(picture(1))
    with pytest.raises(ConfigError, match="cannot be lent too"):
        other.lend()
    other.close()


def test_the_policy_sees_the_pictures_where_the_cameras_wrote_them(channels):
    front, wrist = channels.pictures.values()
    images = written(front, 1), written(wrist, 2)
    publish(channels, *images, time_s=3.0)
    sight = Sight(channels, "push the cup")
    seen = sight.look()
    assert (sight.sequence, seen.time_s, seen.instruction) == (1, 3.0, "push the cup")
    assert list(seen.images) == ["front", "wrist"]
    assert all(np.shares_memory(seen.images[name], image) for name, image in zip(seen.images, images, strict=True))
    assert sight.was_whole()


def test_pictures_that_went_by_before_the_policy_looked_are_not_replaced(channels):
    front, wrist = channels.pictures.values()
    publish(channels, written(front, 1), written(wrist, 2))
    for value in range(20):
        written(front, value)
    sight = Sight(channels, "push the cup")
    assert sight.look() is None
    assert sight.sequence == 1
    publish(channels, written(front, 3), written(wrist, 4))
    assert (sight.look().images["front"] == 3).all()


class Looker:
    """Answers, after something has happened while it looks."""

    def __init__(self, during) -> None:
        self.during, self.asked = during, 0

    def act(self, observation) -> ActionChunk:
        self.asked += 1
        self.during()
        return ActionChunk(actions=np.zeros((8, 5), np.float32), rate_hz=10.0, source="flow")


def answer(channels, policy) -> tuple[int, str, str]:
    """Steps, reason and number of the observation in the answer to a question about the newest observation."""
    channels.board["question"][0] = channels.observations.newest
    _Desk(channels, policy, "push the cup").answer()
    chunk = np.zeros(1, CHUNK)
    assert channels.chunks.copy(chunk)
    return int(chunk["steps"][0]), read_text(chunk, "reason"), int(chunk["observation"][0])


def test_what_was_asked_about_and_is_gone_is_answered_with_a_hold(channels):
    front, wrist = channels.pictures.values()
    publish(channels, written(front, 1), written(wrist, 2))
    for value in range(20):
        written(wrist, value)
    policy = Looker(lambda: None)
    assert answer(channels, policy) == (0, "what it was asked about was overwritten while it looked at it", 1)
    assert policy.asked == 0, "it sees nothing rather than half a picture"
    assert channels.board["answered"][0] == 1, "so that it is asked again"


@pytest.mark.parametrize("what", ["front", "wrist", "observation", None])
def test_an_answer_about_what_changed_meanwhile_is_a_hold(channels, what):
    """A writer that passes over no pin: what a machine whose memory is ordered otherwise might do."""
    publish(channels, *(written(ring, 1) for ring in channels.pictures.values()))
    ring = channels.observations if what == "observation" else channels.pictures.get(what)

    def overwrite():
        if ring is not None:
            ring.unpin()
            for _ in range(2 * ring.slots):
                ring.begin()
                ring.commit()

    steps, reason, number = answer(channels, Looker(overwrite))
    assert (steps == 0) is (what is not None)
    assert ("was overwritten" in reason) is (what is not None)
    assert number == 1


def test_cameras_that_never_pause_tear_no_picture(channels, often):
    """Two threads write as fast as they can while the policy looks; each picture it gets has one value."""
    is_over, looked = threading.Event(), 0

    def write(ring) -> None:
        value = 0
        while not is_over.is_set():
            value = (value + 1) % 256
            newest[ring.camera] = written(ring, value)

    newest = {ring.camera: written(ring, 0) for ring in channels.pictures.values()}
    threads = [threading.Thread(target=write, args=(ring,)) for ring in channels.pictures.values()]
    for thread in threads:
        thread.start()
    sight = Sight(channels, "push the cup")
    for _ in range(2000):
        publish(channels, *newest.values())
        seen = sight.look()
        if seen is not None:
            looked += 1
            assert all((image == image[0, 0, 0]).all() for image in seen.images.values())
            assert sight.was_whole()
        sight.close()
    alive = [thread.is_alive() for thread in threads]
    is_over.set()
    for thread in threads:
        thread.join()
    assert alive == [True, True]
    assert looked > 100


class Lender:
    """A robot whose cameras can write anywhere."""

    def __init__(self) -> None:
        self.lent = []

    def lend_pictures(self, rings) -> None:
        self.lent.append(dict(rings))


class Around:
    """Passes on what it does not know, as a robot does that keeps the pictures of a run."""

    def __init__(self, robot) -> None:
        self._robot = robot

    def __getattr__(self, name):
        return getattr(self._robot, name)


def test_a_robot_is_lent_memory_for_the_run_and_nothing_around_it_is(channels):
    robot = Lender()
    with _lent_pictures(robot, channels):
        assert robot.lent == [channels.pictures]
    assert robot.lent == [channels.pictures, {}]
    with _lent_pictures(Around(robot), channels):
        assert len(robot.lent) == 2
