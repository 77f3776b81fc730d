"""From a recording to what explains it: search, lay the steps, settle, look at the whole arm; and again.

The reduced model gets its torques from a simulation of the whole arm at what was found so far, so the last passes
only make sure that nothing moves any more.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.sysid.fit import LOSSES, Target, descend, search
from roboalign.sdk.sysid.model import STEP_HZ, JointModel, command_grid
from roboalign.sdk.sysid.physics import WholeArm
from roboalign.sdk.sysid.posterior import CROWD, Crowd, gather, settle, settle_moving
from roboalign.sdk.sysid.recording import Recording

__all__ = ["JointFit", "Solution", "paced", "repeated_readings", "solve"]

Float64Array = NDArray[np.float64]

_PHASES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)  # of a step
_PACES = (1.0, 0.995, 0.99, 0.985, 0.975, 0.96)  # of a motor's top speed: a sagging supply slows its setpoint
_PLAIN_GAIN = 0.25  # what a gain of 1 means for an arm without a simulated body
_UNKNOWN_S = 2.5
_HUBER = 3.0
_MAX_LAG = 40
_LIKELY = 0.05  # above it a reading may well be the same as the last one by chance
_LEAST_STEP_RAD = 2e-6
_HEAD_HEATS = tuple(np.geomspace(300.0, 2.5, 30).tolist())
_PASSES = ((*np.geomspace(8.0, 1.0, 12).tolist(), 1.0), (*np.geomspace(4.0, 1.0, 5).tolist(), *[1.0] * 7))
_KEPT = (2, 7)  # crowds of each pass that count
_DOUBT, _DOUBT_OF_LOADS, _DOUBT_S = 1.3, 3.0, 60.0  # see `_doubts`


@dataclass(frozen=True, kw_only=True)
class JointFit:
    """What one set of parameters explains."""

    values: Float64Array
    """float64[P, J], in the order of `NAMES`."""
    residual_rad: Float64Array
    """float64[K, J], measured minus simulated, the bias taken off."""
    predicted_rad: Float64Array
    """float64[K, J], simulated with the bias."""
    std_rad: Float64Array
    """float64[J], of the residuals that count."""
    weight: Float64Array
    """float64[K, J], 1 for readings that count, 0 for those that were left out."""
    inflation: Float64Array
    """float64[J], by which correlated residuals widen the variance."""

    @classmethod
    def at(cls, target: Target, values: Float64Array) -> JointFit:
        """Returns what float64[P, J] leave unexplained."""
        residuals = target.residuals(values[None])
        weight, left = residuals.huber(residuals.scale_rad[0])[:, 0], residuals.left_rad[:, 0]
        near = np.clip(left, -_HUBER * residuals.scale_rad[0], _HUBER * residuals.scale_rad[0])
        std = np.sqrt((target.weight * near**2).sum(0) / target.weight.sum(0)) + 1e-6
        inflation = [_inflation(left[weight[:, joint] > 0, joint]) for joint in range(left.shape[1])]
        return cls(
            values=values,
            residual_rad=left,
            predicted_rad=target.measured_rad - left,
            std_rad=std,
            weight=target.weight,
            inflation=np.array(inflation),
        )


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What explains a recording."""

    fit: JointFit
    """At the middle of the crowd."""
    crowd: Crowd
    """What is possible."""
    before: Crowd
    """What was, before the whole arm was looked at for the last time."""
    target: Target
    """What was explained, by the last model."""
    num_lost: int
    """Readings that came again."""
    num_told: int
    """Readings of which it can be told."""
    defect_deg: tuple[float, ...]
    """What the reduced model lacks of the whole arm, a joint each; empty without physics."""


def solve(recording: Recording, say: Callable[[str], None]) -> Solution:
    """Returns what explains a recording."""
    body = None if recording.body is None else find_robot(recording.body)
    model = JointModel.of(recording, motor_gain=_PLAIN_GAIN if body is None else body.arm_position_gain)
    whole = None if body is None or importlib.util.find_spec("pybullet") is None else WholeArm(body)
    try:
        target, values, phase_s = _Search(recording, whole).found(model, say)
        return _settled(_Look(recording, whole, target, say), values, phase_s)
    finally:
        if whole is not None:
            whole.close()


class _Search:
    """Looks for a beginning, and for where a servo's steps lie against the clock: nobody tells when those begin."""

    def __init__(self, recording: Recording, whole: WholeArm | None) -> None:
        self._recording, self._whole = recording, whole

    def found(self, model: JointModel, say: Callable[[str], None]) -> tuple[Target, Float64Array, float]:
        """Returns the target with a model in phase, float64[S, P, J] to begin from, and the phase in seconds."""
        recording, joints = self._recording, len(self._recording.joint_names)
        # Where in its play and dead band a joint began is not known; after its first ways it no longer matters.
        is_begun = recording.read_s > recording.sent_s[0] + _UNKNOWN_S
        target = Target(
            model=self._with_torques(model),
            measured_rad=recording.position_rad,
            weight=np.repeat(is_begun[:, None].astype(np.float64), joints, 1),
            most_losses=np.zeros((len(LOSSES), joints)) if self._whole is None else self._whole.most_losses(),
        )
        values = search(target.head(), say)
        if recording.path != "setpoint":
            return target, values, 0.0
        best, least, phase = target, np.inf, 0.0
        for phase_s in (*(share / STEP_HZ for share in _PHASES), None):
            moved = JointModel.of(recording, motor_gain=model.motor_gain, phase_s=phase_s)
            tried = dataclasses.replace(target, model=self._with_torques(moved))
            scale = tried.head().residuals(descend(tried.head(), values[:1], 2, _say_nothing)).scale_rad
            if (cost := float(np.log(scale).sum())) < least - 1e-9:
                best, least, phase = (tried if phase_s != 0.0 else target), cost, phase_s or 0.0
        say("laid the servos' steps against the clock")
        if best is not target:
            values = search(best.head(), say)
        return best, values, phase

    def _with_torques(self, model: JointModel) -> JointModel:
        return model if self._whole is None else self._whole.with_torques(model)


class _Look:
    """Keeps what is to be explained up with what was found of the whole arm and of lost readings."""

    def __init__(
        self, recording: Recording, whole: WholeArm | None, target: Target, say: Callable[[str], None]
    ) -> None:
        self.recording, self.target, self.say = recording, target, say
        self.defect_deg: tuple[float, ...] = ()
        self.told, self.lost = np.zeros((2, len(recording.read_s)), bool)
        self._whole, self._begun = whole, target.weight

    def at(self, centre: Float64Array) -> JointFit:
        """Simulates the whole arm at float64[P, J], finds out which readings were lost, and returns what is left."""
        if self._whole is not None:
            self.say("simulating the whole arm")
            model, defect = self._whole.refine(self.target.model, centre)
            self.target = dataclasses.replace(self.target, model=model, defect=defect)
            self.defect_deg = tuple(np.degrees(defect.rms_rad).tolist())
        whole = dataclasses.replace(self.target, weight=self._begun)
        self.told, self.lost = repeated_readings(self.recording, JointFit.at(whole, centre))
        self.target = dataclasses.replace(whole, weight=self._begun * ~self.lost[:, None])
        return JointFit.at(self.target, centre)


def _settled(look: _Look, values: Float64Array, phase_s: float) -> Solution:
    """Returns the solution that float64[S, P, J] settle to."""
    rng = np.random.default_rng(0)
    fit = look.at(values[0])
    head = look.target.head()
    before = crowd = settle(head, gather(head, values, rng), np.outer(_HEAD_HEATS, fit.inflation), fit.std_rad, rng)[-1]
    for number, heats in enumerate(_PASSES):
        before = crowd
        fit = look.at(crowd.centre(look.target if number else head, fit.std_rad))
        doubt, begin = fit.inflation * _doubts(look.target.model), crowd.picked(_last(crowd)).values
        crowds = settle_moving(look.target, begin, np.outer(heats, doubt), fit.std_rad, rng, kept=_KEPT[number])
        crowd = Crowd.together(crowds[-_KEPT[number] :])
        if number == 0 and look.recording.path == "setpoint":
            look.target = paced(look.recording, look.target, crowds[-1], fit.std_rad, phase_s)
        look.say(f"pass {number + 1} of {len(_PASSES)}: residuals of {np.degrees(fit.std_rad.mean()):.3f} deg")
    return Solution(
        fit=JointFit.at(look.target, crowd.centre(look.target, fit.std_rad)),
        crowd=crowd,
        before=before,
        target=look.target,
        num_lost=int(look.lost.sum()),
        num_told=int(look.told.sum()),
        defect_deg=look.defect_deg,
    )


def paced(recording: Recording, target: Target, crowd: Crowd, scale_rad: Float64Array, phase_s: float) -> Target:
    """Returns the target with setpoints as fast as explains it best; a dead band makes much of a little of it."""
    best, least = target, np.inf
    for pace in _PACES:
        slower = tuple(pace * speed for speed in recording.setpoint_speed_rad_s)
        command = command_grid(dataclasses.replace(recording, setpoint_speed_rad_s=slower).shifted(-phase_s))[1]
        tried = dataclasses.replace(target, model=dataclasses.replace(target.model, command_rad=command))
        cost = float(Crowd.at(tried, crowd.values, scale_rad).cost.min(0).sum())
        if cost < least:
            best, least = tried, cost
    return best


def _doubts(model: JointModel) -> Float64Array:
    """Returns float64[J], by how much less a reading says than the noise alone would have it.

    The model errs where a motor has no torque left, more so the more load a joint bears. The constants are set such
    that intervals hold the truth of simulated arms that no benchmark uses, after `_DOUBT_S`. What the model errs by is
    the same however long it is looked at, so a longer recording narrows an interval by the fourth root of its length.
    """
    longer = max(1.0, math.sqrt(float(model.read_s[-1] - model.read_s[0]) / _DOUBT_S))
    if model.load_nm is None or model.force_nm is None:
        return np.full(model.command_rad.shape[1], longer * _DOUBT)
    return longer * np.asarray(_DOUBT + _DOUBT_OF_LOADS * np.sqrt((model.load_nm**2).mean(0)) / model.force_nm)


def _last(crowd: Crowd) -> NDArray[np.int64]:
    """Returns the numbers of the last round."""
    count, joints = crowd.cost.shape
    return np.repeat(np.arange(max(0, count - CROWD), count)[:, None], joints, 1)


def _say_nothing(_: str) -> None:
    pass


def repeated_readings(recording: Recording, fit: JointFit) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns in which periods chance hardly repeats a reading of all joints, and which readings repeat there."""
    change = np.diff(fit.residual_rad, axis=0)
    noise = 1.4826 / np.sqrt(2.0) * np.median(np.abs(change - np.median(change, 0)), 0)
    step = max(recording.resolution_rad, _LEAST_STEP_RAD)
    spread = np.sqrt(2 * noise**2 + step**2 / 6)  # of a difference of two readings, as if it were normal
    motion = np.diff(fit.predicted_rad, axis=0)
    chance = np.minimum(1.0, step / (np.sqrt(2 * np.pi) * spread) * np.exp(-0.5 * (motion / spread) ** 2))
    told, same = np.zeros((2, len(recording.read_s)), bool)
    told[1:] = chance.prod(1) < _LIKELY
    same[1:] = (recording.position_rad[1:] == recording.position_rad[:-1]).all(1)
    return told, same & told


def _inflation(residual: Float64Array) -> float:
    """Returns by how much the variance of a mean of these residuals exceeds that of independent ones."""
    centred = residual - residual.mean()
    power = float((centred**2).mean())
    if power <= 0:
        return 1.0
    total = 1.0
    for lag in range(1, min(_MAX_LAG, len(centred) // 4)):
        correlation = float((centred[lag:] * centred[:-lag]).mean()) / power
        if correlation < 0.02:
            break
        total += 2 * correlation
    return total
