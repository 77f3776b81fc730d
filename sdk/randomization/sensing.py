"""What a robot is told about itself and its camera: noisy, late, and sometimes not at all.

Both buffers are filled once a control step, whether or not anybody looks, and may be read any number of times. Noise
and losses of step k come from a stream of their own, so what is read at step k does not depend on what was read before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import RobotError
from roboalign.sdk.randomization.domain import DomainSample
from roboalign.sdk.randomization.imaging import changes_pictures, develop
from roboalign.sdk.types import ImageArray

__all__ = ["FrameBuffer", "JointSensor"]

Float64Array = NDArray[np.float64]


class FrameBuffer:
    """Delivers pictures late, repeats those that got lost, and develops each as the camera would.

    With neither age nor losses nothing is kept, and a picture is rendered only when it is asked for. Otherwise every
    picture may be needed later, so each is rendered in its own step.
    """

    def __init__(self, domain: DomainSample) -> None:
        self._domain = domain
        self._age = domain.frame_age.steps
        self._share = domain.dropouts.frame_share
        self._frames: deque[tuple[int, ImageArray]] = deque(maxlen=self._age + 1)
        self._step = -1

    @property
    def is_passive(self) -> bool:
        """True when nothing has to be kept from step to step."""
        return self._age == 0 and self._share == 0.0

    def advance(self, render: Callable[[], ImageArray]) -> None:
        """Begins a control step; `render` gives the picture of now, and is called only if it may be needed later."""
        self._step += 1
        if self.is_passive:
            return
        is_lost = self._step > 0 and self._domain.stream("dropouts", "frame", self._step).random() < self._share
        self._frames.append(self._frames[-1] if is_lost else (self._step, render()))

    def read(self, render: Callable[[], ImageArray]) -> ImageArray:
        """Returns the picture that arrives in this step."""
        if self._step < 0:
            raise RobotError("no control step has begun; call advance() first")
        index, image = (self._step, render()) if self.is_passive else self._frames[0]
        if not changes_pictures(self._domain):
            return image.copy()
        return develop(image, self._domain, self._domain.stream("noise", "frame", index))


class JointSensor:
    """Reads joints and gripper with an error of the zero, noise, and losses."""

    def __init__(self, domain: DomainSample) -> None:
        self._domain = domain
        self._noise = domain.observation_noise
        off = DomainSample.off()
        self.is_exact = self._noise == off.observation_noise and domain.dropouts.state_share == 0.0
        self._step = -1
        self._reading: tuple[Float64Array, float] | None = None

    def advance(self, joint_pos_rad: Float64Array, gripper_width_m: float) -> bool:
        """Takes what is true at the beginning of a control step; true when that reading is lost."""
        self._step += 1
        share = self._domain.dropouts.state_share
        may_lose = self._reading is not None and share > 0.0
        if may_lose and self._domain.stream("dropouts", "state", self._step).random() < share:
            return True
        self._reading = self._read(np.asarray(joint_pos_rad, np.float64), gripper_width_m)
        return False

    def read(self) -> tuple[Float64Array, float]:
        """Returns float64[J] joints and the gripper's width as they are told in this step."""
        if self._reading is None:
            raise RobotError("no control step has begun; call advance() first")
        joints, width = self._reading
        return joints.copy(), width

    def _read(self, joints: Float64Array, width_m: float) -> tuple[Float64Array, float]:
        if self.is_exact:
            return joints.copy(), width_m
        rng = self._domain.stream("observation_noise", "step", self._step)
        slots = np.arange(len(joints)) % len(self._noise.joint_bias_rad)
        width_m = max(0.0, width_m + self._noise.gripper_std_m * float(rng.standard_normal()))
        noise = self._noise.joint_std_rad * rng.standard_normal(len(joints))
        return joints + np.array(self._noise.joint_bias_rad)[slots] + noise, width_m
