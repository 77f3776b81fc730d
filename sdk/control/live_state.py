"""What the live page shows, kept up to date from the rings."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from io import BytesIO

import numpy as np

from roboalign.sdk.control.channels import Channels
from roboalign.sdk.control.records import LATENCIES, SOURCES, Reason, read_text
from roboalign.sdk.control.rings import Records

__all__ = ["LiveState"]

_WINDOW = 200
_SILENT_S = 1.0


class LiveState:
    """Numbers and words of this moment; read from any thread."""

    def __init__(self, channels: Channels, instruction: str, policy: str) -> None:
        """Stores where pictures come from and what stays the same."""
        self._channels, self._instruction, self._policy = channels, instruction, policy
        self._lock = threading.Lock()
        self._lateness_s: deque[float] = deque(maxlen=_WINDOW)
        self._times_s: deque[float] = deque(maxlen=_WINDOW)
        self._reasons: Counter[str] = Counter()
        self._tick: dict[str, object] = {"reason": Reason.WARMING.value, "note": "the first period has not begun"}
        self._chunk: dict[str, object] = {"thought": "", "source": "", "latency_s": {}}
        self._writing = ""

    def take_tick(self, record: Records) -> None:
        """Takes a control period."""
        row = record[0]
        reason = Reason.of(int(row["reason"]))
        with self._lock:
            self._lateness_s.append(float(row["lateness_s"]))
            self._times_s.append(float(row["time_s"]))
            if reason is not Reason.MOVING:
                self._reasons[reason.value] += 1
            self._tick = {
                "tick": int(row["index"]),
                "reason": reason.value,
                "note": read_text(record, "note"),
                "step": int(row["step"]),
                "age_s": _number(row["age_s"]),
                "thought_age_s": _number(row["thought_age_s"]),
                "targets": [round(float(value), 4) for value in row["targets"]],
                "measured": [round(float(value), 4) for value in row["measured"]],
                "time_s": float(row["time_s"]),
            }

    def take_chunk(self, record: Records) -> None:
        """Takes an answer of the policy."""
        row = record[0]
        latency_s = {name: _number(value) for name, value in zip(LATENCIES, row["latency_s"], strict=True)}
        with self._lock:
            self._chunk = {
                "thought": read_text(record, "thought") or self._chunk["thought"],
                "source": SOURCES[min(int(row["source"]), len(SOURCES) - 1)],
                "answer_s": _number(row["computed_s"] - row["observed_s"]),
                "latency_s": {name: value for name, value in latency_s.items() if value is not None},
            }

    def take_words(self, record: Records) -> None:
        """Takes a thought as far as it is written."""
        with self._lock:
            self._writing = read_text(record, "thought")

    def snapshot(self) -> dict[str, object]:
        """Returns everything, ready for JSON."""
        board = self._channels.board
        with self._lock:
            late_s = sorted(self._lateness_s)
            span_s = self._times_s[-1] - self._times_s[0] if len(self._times_s) > 1 else 0.0
            beat_s = float(board["control_beat_s"][0])
            return {
                "instruction": self._instruction,
                "policy": self._policy,
                "joints": self._channels.spec.joint_names,
                "cameras": self._channels.spec.camera_names,
                "rate_hz": round((len(self._times_s) - 1) / span_s, 2) if span_s > 0 else None,
                "late_p50_ms": round(1e3 * late_s[len(late_s) // 2], 3) if late_s else None,
                "late_p99_ms": round(1e3 * late_s[int(0.99 * (len(late_s) - 1))], 3) if late_s else None,
                "reasons": dict(self._reasons),
                "is_stopped": bool(board["stop"][0]),
                "is_over": bool(board["is_over"][0]),
                "is_silent": beat_s > 0 and time.monotonic() - beat_s > _SILENT_S,
                "trace_lost": int(board["trace_lost"][0]),
                "has_trace_failed": bool(board["trace_failed"][0]),
                **self._tick,
                **self._chunk,
                "writing": "" if self._writing == self._chunk["thought"] else self._writing,
            }

    def picture(self, name: str) -> bytes | None:
        """Returns the newest picture of a camera as a JPEG; None when there is no such camera, or none yet."""
        ring = self._channels.pictures.get(name)
        if ring is None:
            return None
        record = np.zeros(1, ring.record)
        if not ring.copy(record):
            return None
        image = record["picture"][0]
        from PIL import Image

        data = BytesIO()
        Image.fromarray(image).save(data, "JPEG", quality=85)
        return data.getvalue()

    def stop(self) -> None:
        """Stops the arm: it holds until the run ends."""
        self._channels.board["stop"][0] = 1


def _number(value: float) -> float | None:
    return None if not math.isfinite(value) else round(float(value), 4)
