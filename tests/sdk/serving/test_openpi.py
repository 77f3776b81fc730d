"""What openpi's users may send, what is refused and how, and that answers survive the wire."""

import numpy as np
import pytest
from evaluation_fakes import SPEC, WalkPolicy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from roboalign.sdk.bundle import policy_spec_from_json, read_bundle, shipped_bundle_path
from roboalign.sdk.errors import DataError
from roboalign.sdk.serving.observations import Needs, needs_of
from roboalign.sdk.serving.openpi import chunk_from_map, chunk_to_map, observation_to_map, read_request
from roboalign.sdk.serving.wire import pack, unpack_map
from roboalign.sdk.types import ActionChunk, Observation, ThoughtUse

NEEDS = Needs(camera_names=("front", "wrist"), image_size_px=6, has_images=True, rate_hz=10.0, spec=None)
PIXELS = np.arange(108, dtype=np.uint8).reshape(6, 6, 3)
STATE = np.arange(5, dtype=np.float32)
GOOD = {"image": PIXELS, "state": STATE, "prompt": "go"}


@given(
    actions=st_numpy.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(5)), elements=st.floats(-9, 9, width=32)),
    thought=st.none() | st.text(),
    tokens=st.lists(st.integers(0, 10**6)),
)
def test_an_answer_survives_the_wire(actions, thought, tokens):
    chunk = ActionChunk(
        actions=actions, rate_hz=10.0, source="flow", thought=thought, tokens=tuple(tokens), latency_s={"total": 0.5}
    )
    back = chunk_from_map(unpack_map(pack(chunk_to_map(chunk))))
    np.testing.assert_array_equal(back.actions, chunk.actions)
    assert (back.thought, back.tokens, back.latency_s) == (thought, chunk.tokens, {"total": 0.5})


@pytest.mark.parametrize(
    "use", [ThoughtUse(status="none"), ThoughtUse(status="held", id=3, age_s=0.5, image_age_s=1.0)]
)
def test_the_age_of_a_thought_survives_the_wire(use):
    chunk = ActionChunk(actions=np.zeros((1, 5)), rate_hz=10.0, source="flow", thought="x", thought_use=use)
    assert chunk_from_map(unpack_map(pack(chunk_to_map(chunk)))).thought_use == use


def test_a_hold_survives_the_wire():
    back = chunk_from_map(unpack_map(pack(chunk_to_map(ActionChunk.hold("no answer", rate_hz=5.0)))))
    assert (back.source, back.reason, back.rate_hz, back.actions.shape) == ("hold", "no answer", 5.0, (0, 5))


def test_an_observation_survives_the_wire_with_the_cameras_that_are_known():
    sent = Observation(
        images={"front": PIXELS, "overhead": PIXELS},
        state=STATE,
        joint_pos_rad=np.ones(7, np.float32),
        instruction="go",
        time_s=1.5,
    )
    request = read_request(unpack_map(pack(observation_to_map(sent, NEEDS.camera_names))), NEEDS)
    back = request.observation
    np.testing.assert_array_equal(back.images["front"], PIXELS)
    np.testing.assert_array_equal(back.joint_pos_rad, sent.joint_pos_rad)
    assert (list(back.images), back.instruction, back.time_s, request.takes_holds) == (["front"], "go", 1.5, True)


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        {f"observation/{name}": value for name, value in GOOD.items() if name != "prompt"} | {"prompt": "go"},
        {**GOOD, "image": PIXELS.transpose(2, 0, 1)},
        {"images": {"front": PIXELS}, "state": STATE.astype(np.float64), "prompt": "go"},
    ],
)
def test_the_ways_in_which_users_of_openpi_say_the_same(row):
    observation = read_request(row, NEEDS).observation
    np.testing.assert_array_equal(observation.images["front"], PIXELS)
    np.testing.assert_array_equal(observation.state, STATE)
    assert observation.instruction == "go"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation/wrist_image": PIXELS}, "fields wrist_image; known and each once are images"),
        ({"observation/state": STATE}, "each once"),
        ({"images": {"front": PIXELS}}, "send image for the first camera"),
        ({"image": None, "images": 3}, "images is int"),
        ({"image": PIXELS.astype(np.float32)}, r"image 'front' is float32\[6, 6, 3\], expected uint8\[6, 6, 3\]"),
        ({"image": PIXELS[:5]}, r"uint8\[5, 6, 3\].*resize it"),
        ({"image": PIXELS[..., :2]}, r"uint8\[6, 6, 2\]"),
        ({"image": PIXELS[0]}, r"uint8\[6, 3\]"),
        ({"image": [1, 2]}, "image 'front' is list"),
        ({"state": None}, "state is missing, expected a float32 or float64 array of 5 numbers: tool_x_m"),
        ({"state": STATE.astype(np.uint8)}, "state is uint8"),
        ({"state": STATE[:4]}, r"state has shape \[4\]"),
        ({"state": np.full(5, np.nan, np.float32)}, "state is not finite"),
        ({"state": np.full(5, 1e300)}, "state is not finite"),
        ({"joint_position": np.full(7, np.inf, np.float32)}, "joint_position is not finite"),
        ({"prompt": None}, "prompt is NoneType"),
        ({"prompt": b"go"}, "prompt is bytes"),
        ({"time_s": float("nan")}, "expected a finite number"),
        ({"holds": 1}, "holds is true or false"),
        ({"seed": 3}, "a seed comes with a reset"),
        ({"reset": True}, "reset is true and comes alone"),
    ],
)
def test_what_the_policy_cannot_take_is_explained(change, message):
    with pytest.raises(DataError, match=message):
        read_request({**GOOD, **change}, NEEDS)


def test_an_unknown_camera_is_named_with_those_that_are_known():
    with pytest.raises(DataError, match="camera 'overhead' is unknown to this policy; its cameras are front, wrist"):
        read_request({"images": {"overhead": PIXELS}, "state": STATE, "prompt": "go"}, NEEDS)


@pytest.mark.parametrize("seed", [-1, "x", True, 2**63, 1.5])
def test_a_wrong_seed_is_refused(seed):
    with pytest.raises(DataError, match="seed of a reset"):
        read_request({"reset": True, "seed": seed}, NEEDS)


def test_an_episode_starts_with_or_without_a_seed():
    assert read_request({"reset": True, "seed": 5}, NEEDS).seed == 5
    assert read_request({"reset": True}, NEEDS).observation is None


@pytest.mark.parametrize(
    "change",
    [
        {"thought_use": 3},
        {"thought_use": {"status": "old"}},
        {"thought_use": {"status": "held", "id": "x"}},
        {"actions": None},
        {"tokens": 3},
        {"source": 3},
        {"rate_hz": "x"},
        {"latency_s": {"a": "b"}},
    ],
)
def test_an_answer_that_is_none_is_refused(change):
    row = chunk_to_map(ActionChunk(actions=np.zeros((1, 5)), rate_hz=1.0, source="flow"))
    with pytest.raises(DataError, match="not an answer of a policy"):
        chunk_from_map({**row, **change})


def test_a_policy_that_does_not_say_what_it_needs_gets_the_robots_cameras():
    needs = needs_of(WalkPolicy(), SPEC)
    assert (needs.camera_names, needs.image_size_px, needs.rate_hz, needs.spec) == (("front",), None, 10.0, None)
    wide = np.zeros((4, 9, 3), np.uint8)
    assert read_request({**GOOD, "image": wide}, needs).observation.images["front"].shape == (4, 9, 3)


def test_the_first_message_carries_the_whole_spec():
    spec = read_bundle(shipped_bundle_path()).manifest.policy
    policy = type("Model", (), {"spec": spec})()
    row = unpack_map(pack(needs_of(policy, SPEC).to_map()))
    assert policy_spec_from_json(row["spec"], "here") == spec


@pytest.mark.parametrize("commanded", [None, np.array([0.4, 0.1, 0.2, 0.3], np.float32)])
def test_where_the_tool_was_sent_survives_the_wire(commanded):
    sent = Observation(
        images={}, state=STATE, joint_pos_rad=np.zeros(0), instruction="go", time_s=0.0, commanded=commanded
    )
    back = read_request(unpack_map(pack(observation_to_map(sent, ()))), NEEDS).observation.commanded
    assert (back is None) == (commanded is None)
    if commanded is not None:
        np.testing.assert_array_equal(back, commanded)
