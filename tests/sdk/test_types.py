import dataclasses

import numpy as np
import pytest

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.types import COMMANDED_STATE_NAMES, STATE_NAMES, ActionChunk, Applied, Observation, RobotSpec

IMAGE = np.zeros((4, 6, 3), np.uint8)


def spec(**changes: object) -> RobotSpec:
    settings: dict[str, object] = {
        "name": "arm",
        "joint_names": ("shoulder", "elbow"),
        "joint_lower_rad": (-1.0, -2.0),
        "joint_upper_rad": (1.0, 2.0),
        "joint_max_speed_rad_s": (1.0, 1.0),
        "home_joint_pos_rad": (0.0, 0.0),
        "park_joint_pos_rad": (0.0, 0.0),
        "gripper_max_width_m": 0.08,
        "workspace_lower_m": (0.3, -0.2, 0.0),
        "workspace_upper_m": (0.7, 0.2, 0.3),
        "max_step_m": 0.04,
        "max_step_rad": 0.2,
        "control_rate_hz": 10.0,
        "camera_names": ("front",),
        "image_size_px": 96,
    }
    return RobotSpec(**(settings | changes))


def observe(**changes: object) -> Observation:
    settings: dict[str, object] = {
        "images": {"front": IMAGE},
        "state": np.zeros(5, np.float32),
        "joint_pos_rad": np.zeros(7, np.float32),
        "instruction": "go",
        "time_s": 0.0,
    }
    return Observation(**(settings | changes))


def chunk(actions: object, **changes: object) -> ActionChunk:
    return ActionChunk(**({"actions": actions, "rate_hz": 10.0, "source": "flow"} | changes))


def test_a_robot_has_as_many_joints_as_names() -> None:
    assert spec().num_joints == 2


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(RobotSpec) if "joint_" in f.name][1:])
def test_a_joint_field_of_another_length_is_named(field) -> None:
    with pytest.raises(ConfigError, match=rf"RobotSpec\.{field} has 3 entries, expected one for each of the 2 joints"):
        spec(**{field: (0.0, 0.0, 0.0)})


@pytest.mark.parametrize("upper", [-2.0, -3.0, float("nan")])
def test_a_joint_without_room_to_move_is_named(upper) -> None:
    with pytest.raises(ConfigError, match="joint elbow"):
        spec(joint_upper_rad=(1.0, upper))


def test_an_observation_takes_a_list_as_state_and_keeps_float32() -> None:
    assert observe(state=[0.5, 0.0, 0.1, 0.0, 0.08]).state.dtype == np.float32


def test_an_observation_may_come_without_a_picture() -> None:
    assert observe(images={}).images == {}


@pytest.mark.parametrize("shape", [(4,), (6,), (1, 5), ()])
def test_a_state_of_another_shape_is_refused_with_the_fields_it_should_have(shape) -> None:
    with pytest.raises(DataError, match=", ".join(STATE_NAMES)):
        observe(state=np.zeros(shape, np.float32))


@pytest.mark.parametrize("index", range(len(STATE_NAMES)))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_state_field_that_is_not_finite_is_named(index, value) -> None:
    state = np.zeros(5, np.float32)
    state[index] = value
    with pytest.raises(DataError, match=f"not finite in {STATE_NAMES[index]};"):
        observe(state=state)


@pytest.mark.parametrize("joints", [np.zeros((2, 2)), [0.0, np.nan], [np.inf], 0.0])
def test_joints_that_are_no_finite_vector_are_refused(joints) -> None:
    with pytest.raises(DataError, match="joint_pos_rad must be a finite vector"):
        observe(joint_pos_rad=joints)


@pytest.mark.parametrize("image", [IMAGE.astype(np.float32), IMAGE[:, :, 0], IMAGE[:, :, :2], IMAGE[None]])
def test_a_picture_that_is_not_rgb_bytes_is_named(image) -> None:
    with pytest.raises(DataError, match="image 'wrist' is"):
        observe(images={"front": IMAGE, "wrist": image})


def test_the_pictures_of_an_observation_cannot_be_replaced() -> None:
    given = {"front": IMAGE}
    observation = observe(images=given)
    given["wrist"] = IMAGE
    assert list(observation.images) == ["front"]
    with pytest.raises(TypeError):
        observation.images["front"] = IMAGE  # type: ignore[index]


def test_a_chunk_keeps_float32() -> None:
    assert chunk([[0.0, 0.0, 0.0, 0.0, 1.0]]).actions.dtype == np.float32


@pytest.mark.parametrize("shape", [(5,), (2, 4), (1, 2, 5), (0,)])
def test_actions_of_another_shape_are_refused(shape) -> None:
    with pytest.raises(DataError, match=r"expected \(steps, 5\)"):
        chunk(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_actions_that_are_not_finite_are_refused(value) -> None:
    with pytest.raises(DataError, match="not finite; a policy must answer 'hold'"):
        chunk(np.full((2, 5), value))


def test_no_actions_from_anyone_but_a_hold_are_refused() -> None:
    with pytest.raises(DataError, match="source is 'flow' but there are 0 actions"):
        chunk(np.zeros((0, 5)))


def test_a_hold_with_actions_is_refused() -> None:
    with pytest.raises(DataError, match="source is 'hold' but there are 2 actions"):
        chunk(np.zeros((2, 5)), source="hold", reason="lost")


@pytest.mark.parametrize("reason", [None, ""])
def test_a_hold_without_a_reason_is_refused(reason) -> None:
    with pytest.raises(DataError, match="a hold needs a reason"):
        chunk(np.zeros((0, 5)), source="hold", reason=reason)


def test_a_hold_says_why_and_what_was_thought() -> None:
    held = ActionChunk.hold("no end of the thought", rate_hz=10.0, thought="hm", tokens=(3, 4))
    assert (held.source, held.reason, held.thought, held.tokens) == ("hold", "no end of the thought", "hm", (3, 4))
    assert held.actions.shape == (0, 5)


@pytest.mark.parametrize(("reasons", "is_changed"), [((), False), (("dz_m: below the workspace",), True)])
def test_a_command_is_changed_when_there_is_a_reason(reasons, is_changed) -> None:
    sent = np.zeros(5, np.float32)
    assert Applied(requested=sent, sent=sent, joint_target_rad=sent, reasons=reasons).is_changed is is_changed


def test_a_policy_may_act_from_where_the_tool_was_sent() -> None:
    seen = observe(state=[0.5, 0.0, 0.1, 0.2, 0.08], commanded=[0.6, 0.1, 0.2, 0.3])
    assert seen.state_of(STATE_NAMES) is seen.state
    np.testing.assert_allclose(seen.state_of(COMMANDED_STATE_NAMES), [0.6, 0.1, 0.2, 0.3, 0.08])  # width as measured


def test_where_the_tool_was_sent_is_not_guessed() -> None:
    with pytest.raises(DataError, match="does not say where"):
        observe().state_of(COMMANDED_STATE_NAMES)
    with pytest.raises(DataError, match="the state a, b is unknown, expected one of measured, commanded"):
        observe().state_of(("a", "b"))


@pytest.mark.parametrize("commanded", [np.zeros(5), np.zeros(3), [0.0, np.nan, 0.0, 0.0]])
def test_a_place_that_is_none_is_refused(commanded) -> None:
    with pytest.raises(DataError, match="expected 4 finite numbers"):
        observe(commanded=commanded)
