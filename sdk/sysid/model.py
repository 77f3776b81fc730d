"""The reduced model of a joint: the randomisation's own actuator, then the simulated motor, and no arm around them.

A joint of the simulation is `ActuatorModel` (delay, dead band, top speed, play) before a motor that removes a share
of its position error in every physics step and knows the target's speed. As long as the motor's torque suffices, joints
do not feel each other and this model is exact; `roboalign.sdk.sysid.physics` measures what is left. Many variants of
all joints are simulated at once: arrays are `[..., J]` with any number of variants in front.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.sysid.recording import Recording

__all__ = ["PARAMETERS", "STEP_HZ", "JointModel", "command_grid"]

Float64Array = NDArray[np.float64]

STEP_HZ = 240.0
"""Steps a second: those of the simulated physics, by which a gain is defined."""

PARAMETERS = ("delay_ms", "gain", "speed_scale", "play_rad", "dead_band_rad")
"""What the model knows about a joint, in the order of its vectors."""

_EARLY_S = 4e-6  # a time this close to a step's beginning is meant to be there
_LEAD_STEPS = 2  # so that the first commands have something before them
_BLOCK_STEPS = 64  # whose commands are prepared at once
_STRETCHES, _LEAST_STRETCH = 8, 600
_EARLY_STEPS = 600  # after so many nobody can tell where in its play a joint began


def command_grid(recording: Recording) -> tuple[float, Float64Array]:
    """Returns the time before the first step, and float64[N, J]: what every motor was asked for, step by step."""
    start_s = recording.sent_s[0] - _LEAD_STEPS / STEP_HZ
    start_s = np.floor(start_s * STEP_HZ + 1e-3) / STEP_HZ
    count = int(np.ceil((max(recording.sent_s[-1], recording.read_s[-1]) - start_s) * STEP_HZ)) + 2
    ends_s = start_s + np.arange(1, count + 1) / STEP_HZ
    if recording.path == "linear":
        period_s = 1.0 / recording.rate_hz
        knots = np.append(recording.sent_s, recording.sent_s[-1] + period_s)
        values = np.concatenate([recording.start_rad[None], recording.target_rad])
        columns = [np.interp(ends_s, knots, values[:, joint]) for joint in range(values.shape[1])]
        return float(start_s), np.stack(columns, 1)
    return float(start_s), _setpoints(recording, ends_s)


def _setpoints(recording: Recording, ends_s: Float64Array) -> Float64Array:
    """A servo takes a goal in the step in which it comes, and lets its setpoint run there."""
    latest = np.searchsorted(recording.sent_s, ends_s - _EARLY_S, side="right") - 1
    goals = np.where(latest[:, None] < 0, recording.start_rad, recording.target_rad[np.maximum(latest, 0)])
    reach = np.asarray(recording.setpoint_speed_rad_s) / STEP_HZ
    setpoint, found = recording.start_rad.copy(), np.empty_like(goals)
    for step, goal in enumerate(goals):
        setpoint = setpoint + np.clip(goal - setpoint, -reach, reach)
        found[step] = setpoint
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class JointModel:
    """All joints of one recording, ready to be simulated with any parameters."""

    command_rad: Float64Array
    """float64[N, J], what the motors were asked for."""
    start_s: float
    """Time before the first step."""
    read_s: Float64Array
    """float64[K], when the joints were read."""
    is_stepped: bool
    """True when a reading is the state of the last whole step, as of a simulated arm; else it lies between two."""
    motor_gain: float
    """Share of its error that a motor of gain 1 removes in a step."""
    max_speed_rad_s: Float64Array
    """float64[J], what a speed scale of 1 means."""
    force_nm: Float64Array | None = None
    """float64[J], largest torque of each motor; None: as much as it takes."""
    ease: Float64Array | None = None
    """float64[N, J], how far one newton metre would turn each joint in a step."""
    load_nm: Float64Array | None = None
    """float64[N, J], what weight and the other joints' motion ask of each motor."""

    @classmethod
    def of(cls, recording: Recording, *, motor_gain: float, phase_s: float | None = 0.0) -> JointModel:
        """Returns the model of a recording; `phase_s` shifts its steps against the clock, None reads between them."""
        shift_s = phase_s or 0.0
        moved = recording.shifted(-shift_s) if shift_s else recording
        start_s, command = command_grid(moved)
        return cls(
            command_rad=command,
            start_s=start_s,
            read_s=moved.read_s,
            is_stepped=phase_s is not None,
            motor_gain=motor_gain,
            max_speed_rad_s=np.asarray(recording.max_speed_rad_s, np.float64),
        )

    def head(self, readings: int) -> JointModel:
        """Returns the model of the first readings."""
        read_s = self.read_s[:readings]
        steps = int(np.ceil((read_s[-1] - self.start_s) * STEP_HZ)) + 2
        return dataclasses.replace(
            self,
            command_rad=self.command_rad[:steps],
            read_s=read_s,
            ease=None if self.ease is None else self.ease[:steps],
            load_nm=None if self.load_nm is None else self.load_nm[:steps],
        )

    def simulate(self, values: Float64Array) -> Float64Array:
        """Returns float64[K, V, J], the joints as they are at every reading.

        Args:
            values: float64[V, P, J], parameters of V variants in the order of `PARAMETERS`; damping and dry friction
                may follow.
        """
        most = max(1, len(self.command_rad) // _LEAST_STRETCH)
        found = self._walk(values, None, min(_STRETCHES, most))
        return self._at_readings(lambda step: found[step % len(found), step // len(found)])

    def run(self, values: Float64Array) -> Float64Array:
        """Returns float64[N, V, J], the joints after every step."""
        return self._walk(values, None, 1)[:, 0]

    def run_both(self, values: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Returns float64[N, V, J] twice: the joints after every step, and what their motors were following."""
        followed = np.empty((len(self.command_rad), 1, len(values), values.shape[2]))
        return self._walk(values, followed, 1)[:, 0], followed[:, 0]

    def sample(self, states: Float64Array) -> Float64Array:
        """Returns the states at the readings."""
        return self._at_readings(lambda step: states[step])

    def _walk(self, values: Float64Array, followed: Float64Array | None, stretches: int) -> Float64Array:
        """Walks through all steps; what the motors follow is written to `followed`. In place, for speed alone.

        Several stretches of the recording are walked through at once, because small arrays are slow. Each begins early
        enough that nobody can tell any more where in its play and dead band a joint began. Returns float64[L, S, V, J],
        the steps of each stretch.
        """
        delay, gain, scale, play, band = (values[:, index].copy() for index in range(len(PARAMETERS)))
        reach = np.where(scale < 1.0, self.max_speed_rad_s * scale, np.inf) / STEP_HZ
        half, share = play / 2, self.motor_gain * gain
        least_reach = -reach
        length = -(-len(self.command_rad) // stretches)
        early = _EARLY_STEPS if stretches > 1 else 0
        begins = np.arange(stretches) * length - early
        torques = self._torques(values[:, len(PARAMETERS) :], begins, length + early)
        found = np.empty((length, stretches, *delay.shape))
        position, step = np.empty(0), -early
        for arrived in self._delayed(delay, begins, length + early):
            if step == -early:
                position = arrived[0].copy()
                held, turned, output, before = (position.copy() for _ in range(4))
                moved, low, high, place = np.zeros((4, *position.shape))
                is_far = np.zeros(position.shape, bool)
            for now in arrived:
                np.abs(np.subtract(now, held, out=low), out=low)
                np.copyto(held, now, where=np.greater(low, band, out=is_far))
                np.subtract(held, turned, out=low)
                turned += np.maximum(np.minimum(low, reach, out=low), least_reach, out=low)
                before, output = output, before
                np.maximum(before, np.subtract(turned, half, out=low), out=output)
                np.minimum(output, np.add(turned, half, out=high), out=output)
                # What the motor asks for, and what torque, load and damping leave of it.
                np.multiply(np.subtract(output, position, out=low), share, out=low)
                low += np.subtract(output, before, out=high)
                if torques is not None:
                    torques(step + early, low, moved, high)
                moved, low = low, moved
                position = np.add(position, moved, out=place if step < 0 else found[step])
                if followed is not None:
                    followed[step] = output
                step += 1
        return found

    def _torques(
        self, losses: Float64Array, begins: NDArray[np.int64], count: int
    ) -> Callable[[int, Float64Array, Float64Array, Float64Array], None] | None:
        """Returns what keeps a motion of one step within what torque can make of the last one; None: nothing does."""
        if self.force_nm is None or self.ease is None or self.load_nm is None:
            return None
        num_variants, _, num_joints = losses.shape
        damping, friction = losses.transpose(1, 0, 2) if losses.shape[1] else np.zeros((2, num_variants, num_joints))
        slowing, force = damping * STEP_HZ, np.maximum(self.force_nm - friction, 0.0)
        steps = np.clip(np.arange(count)[:, None] + begins, 0, len(self.ease) - 1)
        ease, pull = self.ease[steps][:, :, None], -(self.load_nm * self.ease)[steps][:, :, None]
        most = np.empty((len(begins), num_variants, num_joints))

        def limit(step: int, motion: Float64Array, last: Float64Array, free: Float64Array) -> None:
            np.subtract(1.0, np.multiply(slowing, ease[step], out=free), out=free)
            np.maximum(free, 0.0, out=free)
            free *= last
            free += pull[step]
            np.multiply(force, ease[step], out=most)
            np.maximum(motion, np.subtract(free, most, out=free), out=motion)
            free += most
            free += most
            np.minimum(motion, free, out=motion)

        return limit

    def _delayed(self, delay_ms: Float64Array, begins: NDArray[np.int64], count: int) -> Iterator[Float64Array]:
        """Yields float64[B, S, V, J], the commands as they arrive, some steps of all stretches at a time."""
        back = delay_ms * (STEP_HZ / 1000.0)
        whole = np.floor(back).astype(np.int64)
        part = back - whole
        lead = int(whole.max()) + 1 + max(0, -int(begins[0]))
        tail = max(0, int(begins[-1]) + count - len(self.command_rad))
        padded = np.concatenate(
            [np.repeat(self.command_rad[:1], lead, 0), self.command_rad, np.repeat(self.command_rad[-1:], tail, 0)]
        )
        older = np.diff(padded, axis=0, prepend=padded[:1])
        joints = self.command_rad.shape[1]
        steps = np.arange(_BLOCK_STEPS)[:, None] + begins + lead
        place = (steps[:, :, None, None] - whole) * joints + np.arange(joints)
        for begin in range(0, count, _BLOCK_STEPS):
            place = place[: count - begin]
            yield padded.take(place) - part * older.take(place)
            place += _BLOCK_STEPS * joints

    def _at_readings(self, states: Callable[[NDArray[np.int64]], Float64Array]) -> Float64Array:
        """Returns what is given for the steps of the readings."""
        place, last = (self.read_s - self.start_s) * STEP_HZ - 1.0, len(self.command_rad) - 1
        if self.is_stepped:
            return states(np.clip(np.floor(place + _EARLY_S * STEP_HZ).astype(np.int64), 0, last))
        index = np.clip(np.floor(place).astype(np.int64), 0, last - 1)
        one, other = states(index), states(index + 1)
        part = np.clip(place - index, 0.0, 1.0).reshape(-1, *(1,) * (one.ndim - 1))
        return np.asarray(one + (other - one) * part)
