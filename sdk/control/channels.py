"""The shared memory of a run: observations and pictures to the policy, chunks and words back, periods, a board."""

from __future__ import annotations

import os
from collections.abc import Mapping

from roboalign.sdk.control.pictures import PictureRing
from roboalign.sdk.control.records import BOARD, CHUNK, WORDS, observation_record, tick_record
from roboalign.sdk.control.rings import Ring, share, shared_memory
from roboalign.sdk.types import RobotSpec

__all__ = ["Channels"]

_PICTURES = "pictures:"
_OBSERVATIONS, _CHUNKS, _WORDS, _TICKS = 6, 64, 8, 2048


class Channels:
    """Rings and board of one robot. The process that makes them hands `fds` to the others."""

    def __init__(self, spec: RobotSpec, fds: Mapping[str, int] | None = None) -> None:
        """Makes the memory, or opens the one behind `fds`."""
        given = dict(fds or {})
        self.spec = spec
        self.observations = Ring(observation_record(spec), _OBSERVATIONS, given.get("observations"))
        """Control writes; the policy pins."""
        self.pictures = {
            name: PictureRing(name, spec.image_size_px, given.get(_PICTURES + name)) for name in spec.camera_names
        }
        """By camera. Who makes them writes, or control; the policy pins."""
        self.chunks = Ring(CHUNK, _CHUNKS, given.get("chunks"))
        """The policy writes."""
        self.words = Ring(WORDS, _WORDS, given.get("words"))
        """The policy writes a thought while it grows; the page reads the newest, whatever it missed."""
        self.ticks = Ring(tick_record(spec), _TICKS, given.get("ticks"))
        """Control writes; the recorder follows."""
        self._board_fd = given["board"] if "board" in given else share(BOARD.itemsize)
        self.board = shared_memory(self._board_fd, BOARD)
        """One record of `BOARD`."""

    @property
    def fds(self) -> dict[str, int]:
        """File descriptors by name."""
        return {
            "observations": self.observations.fd,
            "chunks": self.chunks.fd,
            "words": self.words.fd,
            "ticks": self.ticks.fd,
            "board": self._board_fd,
            **{_PICTURES + name: ring.fd for name, ring in self.pictures.items()},
        }

    def close(self) -> None:
        """Closes the descriptors; the memory goes with the last process that maps it. Idempotent."""
        for ring in (self.observations, self.chunks, self.words, self.ticks, *self.pictures.values()):
            ring.close()
        if self._board_fd >= 0:
            os.close(self._board_fd)
            self._board_fd = -1
