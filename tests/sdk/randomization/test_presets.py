"""The presets: nested, held out where they say so, and gentle enough that words and tasks keep their meaning."""

import colorsys
import dataclasses

import numpy as np
import pytest

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.randomization import CONCERNS, DomainSample, find_randomization, heldout_randomization, preset
from roboalign.sdk.randomization.bodies import object_colour, tinted_urdf
from roboalign.sdk.randomization.ranges import intervals, overlaps
from roboalign.sdk.randomization.values import ColourValues, parameters
from roboalign.sdk.sim.camera import front_camera
from roboalign.sdk.sim.layout import COLOURS
from roboalign.sdk.sim.tasks import scene_for


def test_off_is_off_and_the_training_presets_vary_everything() -> None:
    assert preset("off").is_off
    assert preset("mild").concerns == preset("strong").concerns == CONCERNS


@pytest.mark.parametrize("training", ["off", "mild", "strong"])
@pytest.mark.parametrize(
    ("name", "concern", "parameter"),
    [
        ("camera-heldout", "camera_pose", "orbit_yaw_rad"),
        ("lighting-heldout", "light", "azimuth_rad"),
        ("lighting-heldout", "light", "elevation_rad"),
        ("lighting-heldout", "light", "ambient_scale"),
        ("lighting-heldout", "light", "diffuse_scale"),
    ],
)
def test_a_heldout_range_never_meets_that_of_a_training_preset(
    name: str, concern: str, parameter: str, training: str
) -> None:
    held, seen = getattr(preset(name), concern), getattr(preset(training), concern)
    assert not overlaps(getattr(held, parameter), getattr(seen, parameter))


@pytest.mark.parametrize(("name", "concern"), [("camera-heldout", "camera_pose"), ("lighting-heldout", "light")])
def test_a_heldout_preset_moves_one_concern(name: str, concern: str) -> None:
    assert preset(name).concerns == (concern,)


@pytest.mark.parametrize("concern", CONCERNS)
def test_strong_covers_mild(concern: str) -> None:
    mild, strong = getattr(preset("mild"), concern), getattr(preset("strong"), concern)
    for item in parameters(mild.values):
        outer = intervals(getattr(strong, item.name))
        for low, high in intervals(getattr(mild, item.name)):
            assert any(a <= low and high <= b for a, b in outer) or item.name in ("steps",)


def test_an_object_is_repainted_by_its_slot() -> None:
    colours = ColourValues(object_hue_rad=(0.1, *(0.0,) * 7), object_brightness=(1.0, 0.5, *(1.0,) * 6))
    domain = dataclasses.replace(DomainSample.off(), colours=colours)
    plain = (0.8, 0.4, 0.2)
    hue, saturation, value = colorsys.rgb_to_hsv(*plain)
    turned = colorsys.rgb_to_hsv(*object_colour(plain, domain, 0))
    assert turned == pytest.approx((hue + 0.1 / (2 * np.pi), saturation, value))
    assert object_colour(plain, domain, 1) == pytest.approx((0.4, 0.2, 0.1))
    assert object_colour(plain, domain, 2) == plain
    assert object_colour(plain, domain, 8) == object_colour(plain, domain, 0)


def test_a_tinted_urdf_keeps_everything_but_its_colours() -> None:
    text = '<a rgba="0.5 0.5 0.5 1"/><b rpy="0 0 1"/><c rgba="1 0 0.2 0.5"/>'
    assert tinted_urdf(text, (1.0, 1.0, 1.0)) == text
    assert tinted_urdf(text, (0.5, 3.0, 1.0)) == text.replace("0.5 0.5 0.5 1", "0.25 1 0.5 1").replace(
        "1 0 0.2", "0.5 0 0.2"
    )


@pytest.mark.parametrize("name", ["mild", "strong"])
def test_a_repainted_object_keeps_its_colour_word(name: str) -> None:
    """The nearest hue among the plain colours is still its own."""
    hues = {word: colorsys.rgb_to_hsv(*rgb)[0] for word, rgb in COLOURS.items()}
    for seed in range(40):
        domain = preset(name).sample(seed)
        for slot, (word, rgb) in enumerate(COLOURS.items()):
            hue = colorsys.rgb_to_hsv(*object_colour(rgb, domain, slot))[0]
            assert min(hues, key=lambda other: abs((hue - hues[other] + 0.5) % 1 - 0.5)) == word


@pytest.mark.parametrize("name", ["mild", "strong", "camera-heldout"])
def test_every_object_stays_in_the_picture(name: str) -> None:
    camera, randomization = front_camera(), preset(name)
    for seed in range(60):
        viewpoint = camera.viewpoint(randomization.sample(seed))
        scene = scene_for(seed, "place", "train", "panda")
        places = np.array([(item.x_m, item.y_m, 0.02) for item in scene.objects])
        assert np.abs(projected(viewpoint, places)).max() < 1.05


def projected(viewpoint: object, places: np.ndarray) -> np.ndarray:
    """Returns float64[N, 2] in the picture, which reaches from -1 to 1."""
    eye, back = np.array(viewpoint.eye_m), np.array(viewpoint.eye_m) - np.array(viewpoint.aim_m)  # type: ignore[attr-defined]
    back /= np.linalg.norm(back)
    right = np.cross(viewpoint.up, back)  # type: ignore[attr-defined]
    right /= np.linalg.norm(right)
    local = (places - eye) @ np.stack([right, np.cross(back, right), back]).T
    return local[:, :2] / -local[:, 2:] / np.tan(np.radians(viewpoint.fov_deg) / 2)  # type: ignore[attr-defined]


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(ConfigError, match="strong"):
        find_randomization("stronk")


def test_changes_to_a_preset_show_in_its_name() -> None:
    assert preset("mild", {"jpeg": False}).name == "mild+"
    assert "jpeg" not in preset("mild", {"jpeg": False}).concerns


@pytest.mark.parametrize("split", ["train", "language", "object", "swap"])
def test_other_splits_leave_the_randomisation_as_it_is(split: str) -> None:
    assert heldout_randomization(split) == preset("off")
    assert heldout_randomization(split, "mild") == preset("mild")


def test_a_heldout_split_replaces_its_own_concern_only() -> None:
    assert heldout_randomization("camera") == preset("camera-heldout")
    both = heldout_randomization("lighting", "mild")
    assert both.name == "mild+lighting-heldout"
    drawn, plain = both.sample(2), preset("mild").sample(2)
    assert drawn.light == preset("lighting-heldout").sample(2).light
    assert all(getattr(drawn, concern) == getattr(plain, concern) for concern in CONCERNS if concern != "light")
    assert drawn.light != DomainSample.off().light
