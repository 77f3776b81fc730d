"""A picture is never blank without an error, and large ones are drawn by EGL where that works."""

import logging
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("pybullet")

from roboalign.sdk.errors import ConfigError, RobotError
from roboalign.sdk.sim.camera import Camera, front_camera
from roboalign.sdk.sim.renderer import EGL_SIZE_PX, has_egl, is_blank
from roboalign.sdk.sim.robot import SimRobot
from roboalign.sdk.sim.tasks import scene_for

SCENE = scene_for(1, "place")  # a cylinder, a block and a bowl


@pytest.fixture(scope="module")
def egl() -> Iterator[SimRobot]:
    robot = SimRobot(image_size_px=EGL_SIZE_PX, renderer="egl")
    try:
        robot.load_scene(SCENE)
    except RobotError as err:
        pytest.skip(str(err))
    yield robot
    robot.disconnect()


def is_drawn_by_egl(robot: SimRobot) -> bool:
    return has_egl(robot.world._api()[1])


def test_a_picture_of_one_colour_is_an_error() -> None:
    robot = SimRobot()
    robot.load_scene(SCENE)
    sky = Camera(eye_m=(1.0, 0.0, 1.0), aim_m=(2.0, 0.0, 2.0), fov_deg=20.0, size_px=32)
    with pytest.raises(RobotError, match="has one colour"):
        robot.world.render(sky)
    assert not is_blank(robot.world.render())
    robot.disconnect()


def test_an_unknown_renderer_is_refused() -> None:
    with pytest.raises(ConfigError, match="auto, tiny, egl"):
        SimRobot(renderer="vulkan").connect()


@pytest.mark.parametrize("size_px", [64, 96, 128, 224])
def test_small_pictures_are_drawn_by_the_software_renderer(size_px: int) -> None:
    robot = SimRobot(image_size_px=size_px)
    robot.connect()
    assert not is_drawn_by_egl(robot)
    robot.disconnect()


def test_egl_shows_every_object_in_many_colours(egl: SimRobot) -> None:
    image, masks = egl.world.render(), egl.world.render_mask()
    assert image.std() > 10
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 100
    assert all(masks[item.name].sum() > 300 for item in SCENE.objects)


def test_egl_survives_a_second_scene(egl: SimRobot) -> None:
    egl.load_scene(scene_for(2, "place"))
    assert not is_blank(egl.world.render())
    egl.load_scene(SCENE)


def test_egl_pictures_show_the_same_things_as_tiny_ones(egl: SimRobot) -> None:
    tiny = SimRobot(image_size_px=EGL_SIZE_PX, renderer="tiny")
    tiny.load_scene(SCENE)
    ours, theirs = tiny.world.render_mask(), egl.world.render_mask()
    for item in SCENE.objects:
        both = np.logical_and(ours[item.name], theirs[item.name]).sum()
        assert both > 0.85 * np.logical_or(ours[item.name], theirs[item.name]).sum()
    assert tiny.world.state_hash() == egl.world.state_hash()
    tiny.disconnect()


def test_a_second_egl_client_is_refused_and_the_first_goes_on(egl: SimRobot, caplog: pytest.LogCaptureFixture) -> None:
    """Two plugins in one process make both blank."""
    with pytest.raises(RobotError, match="another simulation"):
        SimRobot(image_size_px=EGL_SIZE_PX, renderer="egl").connect()
    second = SimRobot(image_size_px=EGL_SIZE_PX)
    with caplog.at_level(logging.WARNING):
        second.load_scene(SCENE)
    assert "software renderer" in caplog.text
    assert not is_blank(second.world.render())
    second.disconnect()
    assert not is_blank(egl.world.render())


def test_egl_prints_nothing_to_standard_output(egl: SimRobot, capfd: pytest.CaptureFixture[str]) -> None:
    egl.disconnect()
    egl.load_scene(SCENE)
    egl.world.render()
    assert capfd.readouterr().out == ""


def test_the_show_camera_of_a_small_world_is_drawn_by_the_software_renderer() -> None:
    robot = SimRobot()
    robot.load_scene(SCENE)
    assert robot.world.render(front_camera(EGL_SIZE_PX)).shape == (EGL_SIZE_PX, EGL_SIZE_PX, 3)
    assert not is_drawn_by_egl(robot)
    robot.disconnect()
