"""What is written down about one control period, in memory that was named once; the recorder follows."""

from __future__ import annotations

import math

import numpy as np

from roboalign.sdk.control.records import Fields, Reason, fields_of, put_text
from roboalign.sdk.control.rings import Records, Ring
from roboalign.sdk.types import Applied, FloatArray

__all__ = ["PeriodWriter"]


class PeriodWriter:
    """Fills in one record and copies it into the ring: naming the fields of every slot would take megabytes."""

    def __init__(self, ring: Ring) -> None:
        """Stores where periods go."""
        self._ring = ring
        record: Records = np.zeros(1, ring.record)
        self._bytes = record.view(np.uint8)
        self.fields: Fields = fields_of(record)
        """Numbers of the period that are the caller's to fill in, see `tick_record`."""
        self._requested, self._sent, self._targets = (self.fields[name] for name in ("requested", "sent", "targets"))
        self._measured, self._stages_s = self.fields["measured"], self.fields["stages_s"]

    def put(self, applied: Applied, measured: FloatArray, stages_s: tuple[float, ...], note: str) -> None:
        """Fills in what was sent, the joints, the times of the stages, and why it was what it was; shows the period."""
        np.copyto(self._requested, applied.requested)
        np.copyto(self._sent, applied.sent)
        np.copyto(self._targets, applied.joint_target_rad)
        np.copyto(self._measured, measured)
        for position, seconds in enumerate(stages_s):
            self._stages_s[position] = seconds
        put_text(self.fields, "note", note)
        self._ring.write(self._bytes)

    def put_error(self, index: int, time_s: float, text: str) -> None:
        """Writes down that the robot is not there any more."""
        self._bytes[:] = 0
        self.fields["index"][0], self.fields["time_s"][0], self.fields["step"][0] = index, time_s, -1
        self.fields["reason"][0], self.fields["measured_s"][0] = Reason.DISCONNECTED.code, math.nan
        put_text(self.fields, "note", text)
        self._ring.write(self._bytes)
