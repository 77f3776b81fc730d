"""How a servo follows commands: late, not at all for small errors, at a limited speed, and with play in its gears.

The model stands between the commanded joint targets and the simulated motors and runs at the rate of the physics. Every
part is exact when it is off: the targets pass through bit by bit. A servo's gain is not here but in the motor itself
(`position_gain_scale`), because the simulated motor closes the loop.

Departures from real servos: dead band and play act on the target, not on the measured error; friction and torque
limits are the physics engine's; nothing warms up or wears.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.randomization.domain import DomainSample

__all__ = ["ActuatorModel", "DelayLine"]

Float64Array = NDArray[np.float64]

_WHOLE = 1e-9  # a delay this close to a whole number of steps is meant to be one; milliseconds are not exact


class DelayLine:
    """Repeats vectors a fixed time later; a delay between two steps is interpolated."""

    def __init__(self, delay_steps: ArrayLike) -> None:
        """Keeps as many vectors as the longest delay needs.

        Args:
            delay_steps: float[J], delay of each element in steps, at least 0.
        """
        delay = np.atleast_1d(np.asarray(delay_steps, np.float64))
        if not np.isfinite(delay).all() or (delay < 0).any():
            raise ConfigError(f"the delay is {delay} steps, expected finite numbers of at least 0")
        nearest = np.rint(delay)
        delay = np.where(np.abs(delay - nearest) < _WHOLE, nearest, delay)
        self._whole = np.floor(delay).astype(np.int64)
        self._part = delay - self._whole
        self._columns = np.arange(len(delay))
        self._kept = np.zeros((int(self._whole.max(initial=0)) + 2, len(delay)))
        self._next = 0

    def reset(self, value: ArrayLike) -> None:
        """Fills the line with one vector, as if it had been sent for ever."""
        self._kept[:] = np.asarray(value, np.float64)
        self._next = 0

    def place(self, index: int, value: float) -> None:
        """Fills the line of one element, as `reset` does that of all."""
        self._kept[:, index] = value

    @property
    def newest(self) -> Float64Array:
        """float64[J]: the vector that was taken last."""
        newest: Float64Array = self._kept[self._next - 1].copy()
        return newest

    def step(self, value: ArrayLike) -> Float64Array:
        """Takes the vector of this step and returns the one that arrives in it."""
        size = len(self._kept)
        self._kept[self._next] = value
        newer = self._kept[(self._next - self._whole) % size, self._columns]
        older = self._kept[(self._next - self._whole - 1) % size, self._columns]
        self._next = (self._next + 1) % size
        return np.where(self._part == 0.0, newer, newer + (older - newer) * self._part)


class ActuatorModel:
    """Turns the targets that are sent into those that the motors follow. `reset` comes first, then `step`s in order.

    In the order of a servo: the bus delays, the firmware ignores errors inside the dead band, the motor has a top
    speed, and the gears have play. All vectors are float64[J].
    """

    def __init__(
        self,
        *,
        rate_hz: float,
        delay_ms: ArrayLike,
        dead_band_rad: ArrayLike,
        backlash_rad: ArrayLike,
        max_speed_rad_s: ArrayLike,
        position_gain_scale: ArrayLike = 1.0,
    ) -> None:
        """Stores one value a joint; a single number counts for every joint.

        Args:
            rate_hz: How often `step` is called.
            delay_ms: Time until a target arrives.
            dead_band_rad: A joint stands until its target is further away than this, then goes all the way.
            backlash_rad: Motion that is lost on reversing.
            max_speed_rad_s: Largest speed of the result; infinity limits nothing.
            position_gain_scale: Kept for whoever drives the motors.

        Raises:
            ConfigError: A value is negative or NaN, or the lengths differ.
        """
        if not (math.isfinite(rate_hz) and rate_hz > 0):
            raise ConfigError(f"ActuatorModel rate_hz is {rate_hz}, expected a positive number")
        given = {
            "delay_ms": delay_ms,
            "dead_band_rad": dead_band_rad,
            "backlash_rad": backlash_rad,
            "max_speed_rad_s": max_speed_rad_s,
            "position_gain_scale": position_gain_scale,
        }
        arrays = {name: np.atleast_1d(np.asarray(value, np.float64)) for name, value in given.items()}
        num_joints = max(len(value) for value in arrays.values())
        for name, value in arrays.items():
            if value.shape not in ((1,), (num_joints,)) or not (value >= 0).all():
                raise ConfigError(f"ActuatorModel {name} is {value}, expected {num_joints} numbers of at least 0")
            arrays[name] = np.broadcast_to(value, (num_joints,)).copy()
        self.position_gain_scale = arrays["position_gain_scale"]
        self._delay = DelayLine(arrays["delay_ms"] * rate_hz / 1000.0)
        self._dead_band = arrays["dead_band_rad"]
        self._half_play = arrays["backlash_rad"] / 2
        self._max_step = arrays["max_speed_rad_s"] / rate_hz
        self._rate_hz = rate_hz
        self._held = np.zeros(num_joints)
        self._turned = np.zeros(num_joints)
        self._output = np.zeros(num_joints)

    @classmethod
    def from_domain(cls, domain: DomainSample, *, rate_hz: float, max_speed_rad_s: ArrayLike) -> ActuatorModel | None:
        """Returns the model of an arm with these top speeds, or None when the sample changes nothing about it."""
        off = DomainSample.off()
        concerns = ("gain", "delay", "dead_band", "backlash", "rate_limit")
        if all(getattr(domain, concern) == getattr(off, concern) for concern in concerns):
            return None
        speed = np.asarray(max_speed_rad_s, np.float64)
        slots = np.arange(len(speed)) % len(domain.gain.position_scale)
        speed_scale = np.array(domain.rate_limit.speed_scale)[slots]
        return cls(
            rate_hz=rate_hz,
            delay_ms=domain.delay.bus_ms + np.array(domain.delay.joint_ms)[slots],
            dead_band_rad=np.array(domain.dead_band.width_rad)[slots],
            backlash_rad=np.array(domain.backlash.play_rad)[slots],
            max_speed_rad_s=np.where(speed_scale < 1.0, speed * speed_scale, np.inf),
            position_gain_scale=np.array(domain.gain.position_scale)[slots],
        )

    def reset(self, joint_pos_rad: ArrayLike) -> None:
        """Starts at rest at these joints, in the middle of the play."""
        self._held = np.array(joint_pos_rad, np.float64)
        self._turned, self._output = self._held.copy(), self._held.copy()
        self._delay.reset(self._held)

    def place(self, joint: int, position_rad: float) -> None:
        """Starts one joint again, at rest at this position: its motor was off, and something else moved it."""
        self._held[joint] = self._turned[joint] = self._output[joint] = position_rad
        self._delay.place(joint, position_rad)

    def step(self, target_rad: ArrayLike) -> Float64Array:
        """Takes the targets of this step and returns those that the joints follow."""
        arrived = self._delay.step(target_rad)
        is_far = (np.abs(arrived - self._held) > self._dead_band) | (self._dead_band == 0.0)
        self._held = np.where(is_far, arrived, self._held)
        error = self._held - self._turned
        is_within = np.abs(error) <= self._max_step
        limited = self._turned + np.clip(error, -self._max_step, self._max_step)
        self._turned = np.where(is_within, self._held, limited)
        play = self._half_play
        pushed = np.clip(self._output, self._turned - play, self._turned + play)
        self._output = np.where(play == 0.0, self._turned, pushed)
        return self._output.copy()

    @property
    def on_the_way_rad(self) -> Float64Array:
        """float64[J]: how much of what was sent is still to come, because it is late or faster than the motor."""
        return self._delay.newest - self._turned

    def follow(self, target_rad: ArrayLike) -> tuple[Float64Array, Float64Array]:
        """Like `step`, with the speed at which the result moves in this step."""
        before = self._output
        after = self.step(target_rad)
        return after, (after - before) * self._rate_hz
