"""Where the camera and the lamp end up."""

import dataclasses

import numpy as np
import pytest

from roboalign.sdk.randomization import DomainSample, preset
from roboalign.sdk.randomization.values import CameraPoseValues, FieldOfViewValues, LightValues
from roboalign.sdk.randomization.viewpoint import Lamp, Viewpoint, move_camera, move_lamp

CAMERA = Viewpoint(eye_m=(1.2, 0.0, 0.85), aim_m=(0.515, 0.0, 0.045), up=(0.0, 0.0, 1.0), fov_deg=20.5)
LAMP = Lamp(direction=(1.5, 0.5, 2.0), ambient=0.6, diffuse=0.45)
BACK = np.subtract(CAMERA.eye_m, CAMERA.aim_m)


def moved(**pose: float) -> Viewpoint:
    return move_camera(CAMERA, dataclasses.replace(DomainSample.off(), camera_pose=CameraPoseValues(**pose)))


def place_in_picture(camera: Viewpoint, place: np.ndarray) -> np.ndarray:
    """Returns right and top in the picture, as tangents."""
    back = np.subtract(camera.eye_m, camera.aim_m)
    back /= np.linalg.norm(back)
    right = np.cross(camera.up, back)
    right /= np.linalg.norm(right)
    local = np.stack([right, np.cross(back, right), back]) @ (place - camera.eye_m)
    return local[:2] / -local[2]


def test_off_moves_nothing_bit_by_bit() -> None:
    assert move_camera(CAMERA, DomainSample.off()) == CAMERA
    assert move_lamp(LAMP, DomainSample.off()) == LAMP


@pytest.mark.parametrize("pose", [{"orbit_yaw_rad": 0.3}, {"orbit_pitch_rad": -0.2}])
def test_an_orbit_keeps_aim_and_distance(pose: dict[str, float]) -> None:
    made = moved(**pose)
    assert made.aim_m == pytest.approx(CAMERA.aim_m)
    back = np.subtract(made.eye_m, made.aim_m)
    assert np.linalg.norm(back) == pytest.approx(np.linalg.norm(BACK))
    turned = np.arccos(back @ BACK / (BACK @ BACK))
    assert 0.15 < turned <= 0.3


def test_an_orbit_upwards_raises_the_camera() -> None:
    assert moved(orbit_pitch_rad=0.1).eye_m[2] > CAMERA.eye_m[2]


def test_the_distance_scales() -> None:
    back = np.subtract(moved(distance_scale=1.1).eye_m, CAMERA.aim_m)
    assert np.linalg.norm(back) == pytest.approx(1.1 * np.linalg.norm(BACK))


def test_offsets_are_along_the_pictures_axes() -> None:
    """The camera faces the robot, so the picture's right is +y."""
    made = moved(offset_x_m=0.01, offset_z_m=0.02)
    shift = np.subtract(made.eye_m, CAMERA.eye_m)
    assert shift[1] == pytest.approx(0.01)
    assert shift @ BACK / np.linalg.norm(BACK) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("pose", "right", "top"), [({"pan_rad": 0.02}, 1, 0), ({"tilt_rad": 0.02}, 0, -1), ({"roll_rad": 0.3}, 0, 0)]
)
def test_pointing_errors_carry_the_aim_across_the_picture(pose: dict[str, float], right: int, top: int) -> None:
    """Panning to the left carries what was in the middle to the right; tilting upwards carries it down."""
    made = moved(**pose)
    assert made.eye_m == pytest.approx(CAMERA.eye_m)
    place = place_in_picture(made, np.array(CAMERA.aim_m))
    assert place == pytest.approx(np.array([right, top]) * np.tan(0.02), abs=1e-9)


def test_a_roll_turns_the_picture_about_its_middle() -> None:
    place = np.add(CAMERA.aim_m, (0, 0.1, 0))
    plain, turned = place_in_picture(CAMERA, place), place_in_picture(moved(roll_rad=0.3), place)
    assert np.hypot(*plain) == pytest.approx(np.hypot(*turned))
    angle = np.arctan2(turned[1], turned[0]) - np.arctan2(plain[1], plain[0])
    assert abs(angle) == pytest.approx(0.3)


def test_the_lens_scales_the_field_of_view() -> None:
    wide = dataclasses.replace(DomainSample.off(), field_of_view=FieldOfViewValues(scale=1.1))
    assert move_camera(CAMERA, wide) == dataclasses.replace(CAMERA, fov_deg=20.5 * 1.1)


def test_the_lamp_moves_and_keeps_its_distance() -> None:
    light = LightValues(azimuth_rad=1.0, elevation_rad=0.2, ambient_scale=0.5, diffuse_scale=2.0)
    made = move_lamp(LAMP, dataclasses.replace(DomainSample.off(), light=light))
    assert np.linalg.norm(made.direction) == pytest.approx(np.linalg.norm(LAMP.direction))
    assert np.arctan2(made.direction[1], made.direction[0]) == pytest.approx(np.arctan2(0.5, 1.5) + 1.0)
    assert made.direction[2] > LAMP.direction[2]
    assert (made.ambient, made.diffuse) == (0.3, 0.9)


@pytest.mark.parametrize("name", ["strong", "lighting-heldout"])
def test_the_lamp_stays_above_the_table(name: str) -> None:
    assert all(move_lamp(LAMP, preset(name).sample(seed)).direction[2] > 0.3 for seed in range(100))
