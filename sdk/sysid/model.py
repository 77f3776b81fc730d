"""The reduced model of a joint: the randomisation's own actuator, then the simulated motor, and no arm around them.

A joint of the simulation is `ActuatorModel` (delay, dead band, top speed, play) before a motor that removes a share
of its position error in every physics step and knows the target's speed. As long as the motor's torque suffices, joints
do not feel each other and this model is exact; `roboalign.sdk.sysid.physics` measures what is left. Many variants of
all joints are simulated at once: arrays are `[..., J]` with any number of variants in front.
"""

from __future__ import annotations

import dataclasses
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
    inertia_kg_m2: Float64Array | None = None
    """float64[J], what a motor has to turn."""
    weight_nm: Float64Array | None = None
    """float64[J], what weight asks of it."""

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
        return dataclasses.replace(self, command_rad=self.command_rad[:steps], read_s=read_s)

    def simulate(self, values: Float64Array) -> Float64Array:
        """Returns float64[K, V, J], the joints as they are at every reading.

        Args:
            values: float64[V, P, J], parameters of V variants in the order of `PARAMETERS`; damping and dry friction
                may follow.
        """
        return self.sample(self.run(values))

    def run(self, values: Float64Array) -> Float64Array:
        """Returns float64[N, V, J], the joints after every step."""
        return self.run_both(values)[0]

    def run_both(self, values: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Returns float64[N, V, J] twice: the joints after every step, and what their motors were following."""
        delay, gain, scale, play, band = (values[:, index] for index in range(len(PARAMETERS)))
        keep, most, pull = self._torques(values[:, len(PARAMETERS) :])
        arrived = self._delayed(delay)
        reach = np.where(scale < 1.0, self.max_speed_rad_s * scale, np.inf) / STEP_HZ
        half, share = play / 2, self.motor_gain * gain
        held = turned = output = position = arrived[0]
        moved = np.zeros_like(position)
        found, followed = np.empty_like(arrived), np.empty_like(arrived)
        for step, now in enumerate(arrived):
            held = np.where(np.abs(now - held) > band, now, held)
            turned = turned + np.minimum(np.maximum(held - turned, -reach), reach)
            before, output = output, np.minimum(np.maximum(output, turned - half), turned + half)
            wanted, free = share * (output - position) + (output - before), moved * keep + pull
            moved = np.minimum(np.maximum(wanted, free - most), free + most)
            position = position + moved
            found[step], followed[step] = position, output
        return found, followed

    def _torques(self, losses: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Returns what damping leaves of a motion, what torque can change of it, and what weight does, in a step."""
        if self.inertia_kg_m2 is None or self.force_nm is None or self.weight_nm is None:
            return np.array(1.0), np.array(np.inf), np.array(0.0)
        per_step = 1.0 / (self.inertia_kg_m2 * STEP_HZ**2)
        damping, friction = (losses[:, 0], losses[:, 1]) if losses.shape[1] else (0.0, 0.0)
        keep = np.maximum(0.0, 1.0 - damping * per_step * STEP_HZ)
        return keep, (self.force_nm - friction) * per_step, -self.weight_nm * per_step

    def _delayed(self, delay_ms: Float64Array) -> Float64Array:
        """Returns float64[N, V, J], the commands as they arrive."""
        steps = np.arange(len(self.command_rad))
        back = delay_ms * (STEP_HZ / 1000.0)
        whole = np.floor(back).astype(np.int64)
        part = back - whole
        newer = np.maximum(steps[:, None, None] - whole, 0)
        older = np.maximum(newer - 1, 0)
        joints = np.arange(self.command_rad.shape[1])
        fresh, stale = self.command_rad[newer, joints], self.command_rad[older, joints]
        return np.asarray(fresh + (stale - fresh) * part)

    def sample(self, states: Float64Array) -> Float64Array:
        """Returns the states at the readings."""
        place = (self.read_s - self.start_s) * STEP_HZ - 1.0
        if self.is_stepped:
            index = np.floor(place + _EARLY_S * STEP_HZ).astype(np.int64)
            return states[np.clip(index, 0, len(states) - 1)]
        index = np.clip(np.floor(place).astype(np.int64), 0, len(states) - 2)
        part = np.clip(place - index, 0.0, 1.0).reshape(-1, *(1,) * (states.ndim - 1))
        return np.asarray(states[index] + (states[index + 1] - states[index]) * part)
