"""A run as a recording of rerun (`--rerun`): pictures, thought, joints, tool, latencies and reasons on one timeline.

Needs rerun-sdk. The recorder's process alone writes it, under a temporary name until the run is over. Pictures are
JPEGs. What cannot be written any more is said, and costs the arm nothing.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.sdk.control.channels import Channels
from roboalign.sdk.control.records import LATENCIES, Reason, read_text
from roboalign.sdk.control.rings import Records
from roboalign.sdk.control.trace import PARTIAL
from roboalign.sdk.errors import ConfigError, missing_extra
from roboalign.sdk.types import STATE_NAMES

__all__ = ["RerunFile", "require_rerun"]

SUFFIX = ".rrd"
TIME, PERIOD = "run", "period"
"""Timelines: seconds since the first command, and the number of the control period."""
_BATCH = 64  # periods that are written at once: one at a time would take 30 times as long
_QUALITY = 90  # of a JPEG
_FLUSH_TIMEOUT_S = 3.0


def require_rerun(path: Path) -> None:
    """Refuses a recording that cannot be made, without loading rerun.

    Raises:
        BackendError: rerun-sdk is not installed.
        ConfigError: The file is not called `.rrd`, by which rerun's viewer knows what it is.
    """
    if find_spec("rerun") is None:
        raise missing_extra("rerun-sdk", "rerun", "--rerun")
    if path.suffix != SUFFIX:
        raise ConfigError(f"--rerun is {path}, expected a file that ends in {SUFFIX}")


class RerunFile:
    """One recording."""

    def __init__(self, path: Path, channels: Channels, about: Mapping[str, object]) -> None:
        """Opens the file; `about` has `instruction`, `policy` and `rate_hz`.

        Raises:
            BackendError: rerun-sdk is not installed.
            ConfigError: The file cannot be written.
        """
        require_rerun(path)
        self._rr: Any = import_module("rerun")
        self._path, self._partial = path, path.with_name(path.name + PARTIAL)
        self._channels = channels
        rings = {"observations": channels.observations, "chunks": channels.chunks}
        self._records = {name: np.zeros(1, ring.record) for name, ring in rings.items()}
        self._next = dict.fromkeys(rings, 1)
        self._pictures = {name: np.zeros(1, ring.record) for name, ring in channels.pictures.items()}
        self._shown = dict.fromkeys(channels.pictures, 0)
        self._begin_s = math.nan
        self._periods: list[Records] = []
        self.problem = ""
        """Why the recording is not complete; empty while it is."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._partial.write_bytes(b"")  # rerun opens it in another thread, where a refusal is easily missed
            self._stream: Any = self._rr.RecordingStream("roboalign", recording_id=uuid.uuid4())
            self._stream.save(str(self._partial))
        except (OSError, RuntimeError) as err:
            raise ConfigError(f"the rerun recording cannot be written: {err}") from err
        self._introduce(about)

    def _introduce(self, about: Mapping[str, object]) -> None:
        """Writes what stays the same: who does what, and what the curves are called."""
        rr, stream, spec = self._rr, self._stream, self._channels.spec
        stream.set_log_time_enabled(False)
        stream.set_log_tick_enabled(False)
        stream.send_recording_name(f"{about['policy']}: {about['instruction']}")
        stream.send_recording_start_time_nanos(time.time_ns())
        stream.send_property(
            "run", rr.AnyValues(**{name: about[name] for name in ("instruction", "policy", "rate_hz")})
        )
        for path, names in (
            ("joints/commanded_rad", spec.joint_names),
            ("joints/measured_rad", spec.joint_names),
            ("tool", STATE_NAMES),
        ):
            stream.log(path, rr.SeriesLines(names=list(names)), static=True)

    def follow(self) -> None:
        """Takes observations, with their pictures, and answers that are new, once the first period was taken."""
        if math.isnan(self._begin_s):
            return
        for name, ring, take in (
            ("observations", self._channels.observations, self._take_observation),
            ("chunks", self._channels.chunks, self._take_chunk),
        ):
            newest, record = ring.newest, self._records[name]
            while self._next[name] <= newest:
                if ring.copy(record, self._next[name]):
                    self._guarded(partial(take, record))
                self._next[name] += 1

    def take_tick(self, record: Records) -> None:
        """Takes a control period."""
        if math.isnan(self._begin_s):
            self._begin_s = float(record["time_s"][0])
        self._periods.append(record.copy())
        if len(self._periods) >= _BATCH:
            self._guarded(self._write_periods)

    def take_reason(self, record: Records, reason: Reason, note: str) -> None:
        """Takes why the arm does not move, or that it does, at the period in which that changed."""
        self._guarded(lambda: self._take_reason(record, reason, note))

    def close(self, stopped_by: str) -> None:
        """Ends the recording and gives the file its name, where it is complete."""
        self._guarded(self._write_periods)
        self._guarded(lambda: self._stream.send_property("end", self._rr.AnyValues(stopped_by=stopped_by)))
        self._guarded(lambda: self._stream.flush(timeout_sec=_FLUSH_TIMEOUT_S))
        self._guarded(self._stream.disconnect)
        self._guarded(lambda: self._partial.replace(self._path))

    def _guarded(self, write: Callable[[], object]) -> None:
        """Writes, unless that failed before."""
        if self.problem:
            return
        try:
            write()
        except (OSError, RuntimeError, ValueError) as err:  # what rerun raises when its file is gone or full
            self.problem = f"{self._partial}: {err}"

    def _take_observation(self, record: Records) -> None:
        row = record[0]
        self._at(row["time_s"])
        self._stream.log("tool", self._rr.Scalars(row["state"].astype(np.float64)))
        for position, (name, ring) in enumerate(self._channels.pictures.items()):
            number = int(row["pictures"][position])
            if number != self._shown[name] and ring.copy(self._pictures[name], number):
                self._shown[name] = number
                image = _jpeg(self._pictures[name]["picture"][0])
                self._stream.log(f"cameras/{name}", self._rr.EncodedImage(contents=image, media_type="image/jpeg"))

    def _take_chunk(self, record: Records) -> None:
        row = record[0]
        self._at(row["computed_s"])
        thought = read_text(record, "thought")
        if thought:
            self._stream.log("thought", self._rr.TextDocument(thought))
        parts = dict(zip(LATENCIES, row["latency_s"].tolist(), strict=True))
        parts["answer"] = float(row["computed_s"] - row["observed_s"])
        for name, seconds in parts.items():
            if math.isfinite(seconds):
                self._stream.log(f"latency_ms/{name}", self._rr.Scalars(1e3 * seconds))

    def _take_reason(self, record: Records, reason: Reason, note: str) -> None:
        level = self._rr.TextLogLevel.INFO if reason is Reason.MOVING else self._rr.TextLogLevel.WARN
        self._at(record["time_s"][0])
        self._stream.set_time(PERIOD, sequence=int(record["index"][0]))
        self._stream.log("reason", self._rr.TextLog(f"{reason.value}: {note}" if note else reason.value, level=level))
        self._stream.disable_timeline(PERIOD)

    def _write_periods(self) -> None:
        if not self._periods:
            return
        rows = np.concatenate(self._periods)
        self._periods = []
        rr = self._rr
        times = [
            rr.TimeColumn(TIME, duration=rows["time_s"] - self._begin_s),
            rr.TimeColumn(PERIOD, sequence=rows["index"]),
        ]
        columns = {
            "joints/commanded_rad": rows["targets"],
            "joints/measured_rad": rows["measured"],
            "latency_ms/late": 1e3 * rows["lateness_s"],
            "latency_ms/observation_age": 1e3 * rows["age_s"],
            "latency_ms/thought_age": 1e3 * rows["thought_age_s"],
        }
        for path, values in columns.items():
            self._stream.send_columns(
                path, indexes=times, columns=rr.Scalars.columns(scalars=values.astype(np.float64))
            )

    def _at(self, time_s: float) -> None:
        self._stream.set_time(TIME, duration=float(time_s) - self._begin_s)


def _jpeg(image: np.ndarray[Any, Any]) -> bytes:
    from PIL import Image

    data = BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=_QUALITY)
    return data.getvalue()
