"""What the policy looks at: the newest observation and its pictures, where they lie, pinned for as long as it looks.

The arrays of an observation lie in shared memory and change once the policy has answered; what it keeps, it copies.
"""

from __future__ import annotations

import math

from roboalign.sdk.control.channels import Channels
from roboalign.sdk.control.records import Fields, fields_of
from roboalign.sdk.types import ImageArray, Observation

__all__ = ["Sight"]

_TRIES = 4


class Sight:
    """The policy's end of observations and pictures."""

    def __init__(self, channels: Channels, instruction: str) -> None:
        """Names what lies in the rings once, because naming a field makes an array."""
        self._ring, self._pictures = channels.observations, tuple(channels.pictures.values())
        self._named = {id(record): fields_of(record) for record in channels.observations.records}
        self._numbers: list[int] = []
        self._instruction = instruction
        self.sequence = 0
        """Number of the observation; 0 before the first."""
        self.fields: Fields = {}
        """What is in it, see `observation_record`."""

    def look(self) -> Observation | None:
        """Pins the newest observation and returns it; None when there is none, or its pictures are gone already."""
        for _ in range(_TRIES):
            self.sequence, record = self._ring.pin()
            if record is None:
                return None
            self.fields = self._named[id(record)]
            images = self._look_at_pictures()
            if images is not None:
                return Observation(
                    images=images,
                    state=self.fields["state"],
                    joint_pos_rad=self.fields["joints"],
                    instruction=self._instruction,
                    time_s=float(self.fields["time_s"][0]),
                    commanded=None if math.isnan(self.fields["commanded"][0]) else self.fields["commanded"],
                )
        return None

    def _look_at_pictures(self) -> dict[str, ImageArray] | None:
        self._numbers = self.fields["pictures"].tolist() if self._pictures else []
        images = {}
        for ring, number in zip(self._pictures, self._numbers, strict=True):
            image = ring.look(number)
            if image is None:
                return None
            images[ring.camera] = image
        return images

    def was_whole(self) -> bool:
        """Whether what was looked at was there all the time: a pin that failed, on any machine, is not acted on."""
        rings = zip(self._pictures, self._numbers, strict=True)
        return self._ring.has(self.sequence) and all(ring.has(number) for ring, number in rings)

    def close(self) -> None:
        """Lets go of what is pinned."""
        self._ring.unpin()
        for ring in self._pictures:
            ring.unpin()
