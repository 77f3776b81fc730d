"""The head in numpy against the shipped graph, and what is given to it is what comes out."""

import json
from dataclasses import replace

import numpy as np
import pytest

from roboalign.sdk.backends.onnx import OnnxBackend
from roboalign.sdk.bundle import shipped_bundle_path
from roboalign.sdk.errors import BundleError, ConfigError, DataError
from roboalign.sdk.guided import Committed, GuidedHead
from roboalign.sdk.policy import Policy


@pytest.fixture(scope="module")
def shipped():
    with Policy(OnnxBackend.open(shipped_bundle_path()), think=False) as policy:
        yield policy


@pytest.fixture
def seen(observation):
    rng = np.random.default_rng(0)
    return replace(observation, images={"front": rng.integers(0, 256, (96, 96, 3), np.uint8)})


def committed(count: int, delay: int) -> Committed:
    rng = np.random.default_rng(1)
    return Committed(actions=rng.uniform(-0.02, 0.02, (count, 5)).astype(np.float32), delay=delay)


def act(policy: Policy, seen, given: Committed | None) -> np.ndarray:
    policy.reset()
    chunk = policy.act(seen, committed=given)
    assert chunk.source == "flow"
    return chunk.actions


def test_with_nothing_committed_it_is_the_graph(shipped, seen):
    expected, found = act(shipped, seen, None), act(shipped, seen, committed(0, 0))
    spread = np.array(shipped.spec.action_high) - np.array(shipped.spec.action_low)
    assert float((np.abs(found - expected) / spread).max()) < 1e-4
    assert expected.std(axis=0).max() > 1e-3


@pytest.mark.parametrize(("count", "delay"), [(1, 1), (4, 2), (6, 6), (8, 3), (20, 8)])
def test_what_is_applied_meanwhile_comes_out_as_it_is(shipped, seen, count, delay):
    given = committed(count, delay)
    found = act(shipped, seen, given)
    np.testing.assert_allclose(found[:delay], given.actions[:delay], atol=1e-6)


def test_what_follows_leans_on_what_is_given(shipped, seen):
    """Behind the committed actions the chunk is nearer to what was left of the old one than an unguided one is."""
    free = act(shipped, seen, None)
    given = Committed(actions=free[[0, 0, 0, 0, 0, 0]] + np.float32(0.01), delay=2)
    found = act(shipped, seen, given)
    far = np.abs(free[2:4, :3] - given.actions[2:4, :3]).mean()
    near = np.abs(found[2:4, :3] - given.actions[2:4, :3]).mean()
    assert near < 0.9 * far


def test_only_the_flow_head_is_guided(seen):
    with (
        Policy(OnnxBackend.open(shipped_bundle_path()), actions="fast", think=False) as policy,
        pytest.raises(ConfigError, match="only the flow head"),
    ):
        policy.act(seen, committed=committed(2, 1))


def test_committed_actions_are_checked():
    with pytest.raises(DataError, match=r"shape \(2, 4\)"):
        Committed(actions=np.zeros((2, 4), np.float32), delay=0)
    with pytest.raises(DataError, match="finite"):
        Committed(actions=np.full((2, 5), np.nan, np.float32), delay=0)
    with pytest.raises(ConfigError, match="delay is -1"):
        Committed(actions=np.zeros((2, 5), np.float32), delay=-1)


def test_a_folder_without_a_head_is_refused_and_a_damaged_one_named(tmp_path):
    with pytest.raises(ConfigError, match=r"has no head\.json"):
        GuidedHead.load(tmp_path)
    (tmp_path / "head.json").write_text(json.dumps({"num_layers": 1}))
    (tmp_path / "head.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError, match="damaged"):
        GuidedHead.load(tmp_path)
