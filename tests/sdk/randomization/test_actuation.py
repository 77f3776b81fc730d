"""The servos' part: identity when off, and each effect exactly as large as it says."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.randomization import DomainSample, preset
from roboalign.sdk.randomization.actuation import ActuatorModel, DelayLine
from roboalign.sdk.randomization.values import DelayValues, GainValues, RateLimitValues

RATE_HZ = 240.0
PATHS = hnp.arrays(np.float64, st.tuples(st.integers(1, 40), st.just(2)), elements=st.floats(-3, 3))


def servo(**values: object) -> ActuatorModel:
    off = {"delay_ms": 0.0, "dead_band_rad": 0.0, "backlash_rad": 0.0, "max_speed_rad_s": np.inf}
    return ActuatorModel(rate_hz=RATE_HZ, **{**off, **values})  # type: ignore[arg-type]


def run(model: ActuatorModel, path: np.ndarray, start: object = None) -> np.ndarray:
    model.reset(np.zeros(path.shape[1]) if start is None else start)  # type: ignore[arg-type]
    return np.stack([model.step(target) for target in path])


@given(PATHS)
def test_off_passes_targets_through_bit_by_bit(path: np.ndarray) -> None:
    model = servo(position_gain_scale=(1.0, 1.0))
    assert run(model, path).tobytes() == path.tobytes()


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_a_whole_delay_shifts_a_step_by_exactly_so_much(steps: int) -> None:
    path = np.where(np.arange(30)[:, None] >= 5, 1.0, 0.0)
    followed = run(servo(delay_ms=1000.0 * steps / RATE_HZ), path)[:, 0]
    assert np.flatnonzero(followed)[0] == 5 + steps
    assert set(followed) == {0.0, 1.0}


@given(st.floats(0.0, 100.0))
def test_any_delay_shifts_a_ramp_by_exactly_so_much(delay_ms: float) -> None:
    times_s = np.arange(1, 81)[:, None] / RATE_HZ
    followed = run(servo(delay_ms=delay_ms), times_s)
    late = times_s - delay_ms / 1000.0
    has_arrived = late >= 1.5 / RATE_HZ
    assert np.allclose(followed[has_arrived], late[has_arrived], atol=1e-12)


def test_a_delay_belongs_to_its_joint() -> None:
    path = np.ones((10, 2))
    followed = run(servo(delay_ms=(0.0, 4 * 1000 / RATE_HZ)), path)
    assert followed[0].tolist() == [1.0, 0.0]
    assert followed[4].tolist() == [1.0, 1.0]


@given(st.floats(0.001, 0.1))
@settings(max_examples=15, deadline=None)
def test_reversing_loses_exactly_the_play(play: float) -> None:
    out = np.linspace(0.0, 1.0, 200)
    path = np.concatenate([out, out[::-1]])[:, None]
    followed = run(servo(backlash_rad=play), path)[:, 0]
    top = followed[199]
    lost = path[199, 0] - path[199:, 0][followed[199:] < top - 1e-12][0]
    assert top == pytest.approx(1.0 - play / 2)
    assert play <= lost + 1e-12 < play + 2 * (out[1] - out[0])
    assert followed[-1] == pytest.approx(play / 2)


@given(PATHS, st.floats(0.0, 0.5))
def test_play_never_lets_a_joint_further_off_than_half_of_it(path: np.ndarray, play: float) -> None:
    assert np.abs(run(servo(backlash_rad=(play, play)), path) - path).max() <= play / 2 + 1e-12


@given(PATHS, st.floats(0.0, 0.5))
def test_a_dead_band_never_lets_a_joint_further_off_than_itself(path: np.ndarray, width: float) -> None:
    followed = run(servo(dead_band_rad=(width, width)), path)
    assert np.abs(followed - path).max() <= width
    stood = np.diff(followed, axis=0, prepend=0.0) == 0.0
    assert np.array_equal(followed[~stood], path[~stood])


@given(PATHS, st.floats(0.1, 5.0))
def test_the_top_speed_is_never_passed_and_reached_when_needed(path: np.ndarray, speed: float) -> None:
    followed = run(servo(max_speed_rad_s=(speed, speed)), path)
    before = np.vstack([np.zeros(2), followed[:-1]])
    limit = speed / RATE_HZ
    assert np.abs(followed - before).max() <= limit + 1e-12
    wanted = np.abs(path - before)
    assert np.allclose(np.abs(followed - before), np.minimum(wanted, limit), atol=1e-12)


def test_the_effects_come_in_the_order_of_a_servo() -> None:
    """A delayed step is limited in speed after it arrives, and play comes last."""
    followed = run(servo(delay_ms=1000 / RATE_HZ, max_speed_rad_s=24.0, backlash_rad=0.1), np.ones((4, 1)))[:, 0]
    assert followed == pytest.approx([0.0, 0.05, 0.15, 0.25])


def test_follow_tells_the_speed_of_what_it_returns() -> None:
    model = servo(max_speed_rad_s=2.4)
    model.reset([0.0])
    followed, speed = model.follow([1.0])
    assert (followed[0], speed[0]) == pytest.approx((0.01, 2.4))


def test_what_is_on_the_way_is_what_the_motor_still_turns() -> None:
    late = servo(delay_ms=3000 / RATE_HZ, max_speed_rad_s=24.0, backlash_rad=0.1)
    run(late, np.ones((5, 1)))  # arrived after three steps, a tenth of a radian a step
    np.testing.assert_allclose(late.on_the_way_rad, [0.8], atol=1e-12)
    for _ in range(8):
        late.step([1.0])
    np.testing.assert_allclose(late.on_the_way_rad, [0.0], atol=1e-12)


def test_reset_forgets_what_was_under_way() -> None:
    model = servo(delay_ms=50.0)
    run(model, np.ones((5, 1)))
    model.reset([0.3])
    assert model.step([0.3])[0] == 0.3


@pytest.mark.parametrize("name", ["off", "camera-heldout", "lighting-heldout"])
def test_a_sample_that_leaves_the_servos_alone_needs_no_model(name: str) -> None:
    assert ActuatorModel.from_domain(preset(name).sample(1), rate_hz=RATE_HZ, max_speed_rad_s=(2.0,) * 7) is None


def test_joints_take_their_slots_of_the_sample() -> None:
    gain = GainValues(position_scale=tuple(range(1, 9)))
    delay = DelayValues(bus_ms=1000 / RATE_HZ, joint_ms=(0.0, 1000 / RATE_HZ, *(0.0,) * 6))
    domain = dataclasses.replace(DomainSample.off(), gain=gain, delay=delay)
    model = ActuatorModel.from_domain(domain, rate_hz=RATE_HZ, max_speed_rad_s=(2.0,) * 9)
    assert model is not None
    assert model.position_gain_scale.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 1]
    followed = run(model, np.ones((3, 9)))
    assert followed[1].tolist() == [1.0, 0.0, *[1.0] * 7]


def test_a_speed_scale_of_one_limits_nothing() -> None:
    slow = dataclasses.replace(DomainSample.off(), rate_limit=RateLimitValues(speed_scale=(0.5, *(1.0,) * 7)))
    model = ActuatorModel.from_domain(slow, rate_hz=RATE_HZ, max_speed_rad_s=(2.4, 2.4))
    assert model is not None
    assert run(model, np.ones((1, 2)))[0] == pytest.approx([0.005, 1.0])


@pytest.mark.parametrize("values", [{"delay_ms": -1.0}, {"backlash_rad": np.nan}, {"dead_band_rad": (0.1, 0.1, 0.1)}])
def test_impossible_values_are_named(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        servo(**{"position_gain_scale": (1.0,) * 4, **values})


def test_an_impossible_rate_or_delay_is_refused() -> None:
    with pytest.raises(ConfigError, match="rate_hz"):
        ActuatorModel(rate_hz=0.0, delay_ms=0, dead_band_rad=0, backlash_rad=0, max_speed_rad_s=1)
    with pytest.raises(ConfigError, match="delay"):
        DelayLine([np.inf])
