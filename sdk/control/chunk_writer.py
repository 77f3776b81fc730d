"""How an answer of the policy gets into its ring."""

from __future__ import annotations

import math
import time

import numpy as np

from roboalign.sdk.control.records import LATENCIES, SOURCES, Fields, fields_of, put_text
from roboalign.sdk.control.rings import Records, Ring
from roboalign.sdk.types import ActionChunk

__all__ = ["ChunkWriter"]


class ChunkWriter:
    """Fills in one record whose fields were named once, and copies it into the ring of chunks."""

    def __init__(self, ring: Ring) -> None:
        """Stores where chunks go."""
        self._ring = ring
        record: Records = np.zeros(1, ring.record)
        self._fields, self._bytes = fields_of(record), record.view(np.uint8)

    def put(self, chunk: ActionChunk, sequence: int, seen: Records | Fields, begun_s: float = math.nan) -> None:
        """Shows an answer that was begun at `begun_s`, with the age of what it and its thought are about.

        Args:
            chunk: The answer.
            sequence: Number of the observation.
            seen: The observation.
            begun_s: When the policy was asked.
        """
        row = self._fields
        row["observation"][0] = sequence
        row["moves"][0], row["observed_s"][0] = seen["moves"][0], seen["time_s"][0]
        use = getattr(chunk, "thought_use", None)  # of a policy that thinks beside its actions
        age_s = None if use is None else use.image_age_s
        if age_s is not None:
            row["thought_s"][0] = begun_s - age_s
        else:
            row["thought_s"][0] = seen["time_s"][0] if chunk.thought else math.nan
        row["rate_hz"][0] = chunk.rate_hz
        row["steps"][0] = len(chunk.actions)
        row["source"][0] = SOURCES.index(chunk.source if chunk.source in SOURCES else "other")
        for index, part in enumerate(LATENCIES):
            row["latency_s"][index] = chunk.latency_s.get(part, math.nan)
        row["actions"][: len(chunk.actions)] = chunk.actions
        put_text(row, "reason", chunk.reason)
        put_text(row, "thought", chunk.thought)
        row["computed_s"][0] = time.monotonic()
        self._ring.write(self._bytes, is_checked=True)
