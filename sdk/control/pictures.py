"""The pictures of one camera in shared memory: written where they are read, by who makes them or by control.

A camera asks for a place (`lend`), writes its picture there, and shows it (`show`): from then on the picture goes to
the policy as a number, and nobody copies it. Whatever else a robot sees is copied once (`put`). Readers see pictures
that cannot be written.
"""

from __future__ import annotations

import numpy as np

from roboalign.sdk.control.rings import Ring
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.types import ImageArray

__all__ = ["PictureRing"]

_SLOTS = 12  # at 60 pictures a second, a policy's process may come 0.15 s late and still find what it was asked about


class PictureRing(Ring):
    """Pictures uint8[S, S, 3] of one camera. One thread writes, the first that did: by `lend`, or by `put`."""

    def __init__(self, camera: str, size_px: int, fd: int | None = None) -> None:
        """Makes a ring, or opens the one behind `fd`."""
        super().__init__(np.dtype([("picture", "u1", (size_px, size_px, 3))]), _SLOTS, fd)
        self.camera = camera
        self._places: tuple[ImageArray, ...] = tuple(record["picture"][0] for record in self.records)
        self._views = tuple(place.view() for place in self._places)
        for view in self._views:
            view.flags.writeable = False
        self._slots = {id(view): slot for slot, view in enumerate(self._views)}
        self._is_lent = self._is_copied = False

    def lend(self) -> ImageArray:
        """Returns the place for the next picture; nobody sees it before `show`.

        Raises:
            ConfigError: Pictures of this camera are copied here.
        """
        if self._is_copied:
            raise ConfigError(
                f"pictures of camera {self.camera!r} are copied into shared memory; it cannot be lent too"
            )
        self._is_lent = True
        self.begin()
        return self._places[self._writing % self.slots]

    def show(self) -> ImageArray:
        """Shows what was written into the lent place, and returns it, read-only; it stays for the next ten pictures."""
        return self._views[self.commit() % self.slots]

    def put(self, image: ImageArray) -> int:
        """Returns the number of a picture: of one that `show` returned, or of a copy that is made now.

        Raises:
            ConfigError: The camera writes here, and the picture is none of its own.
        """
        slot = self._slots.get(id(image))
        if slot is not None:
            return self.sequence_in(slot) or self.newest  # being written again: a newer one is there
        if self._is_lent:
            raise ConfigError(
                f"the robot gave a picture of camera {self.camera!r} that is not the one which the camera wrote; a "
                "robot that changes or keeps pictures must not offer `lend_pictures`"
            )
        self._is_copied = True
        self.begin()
        np.copyto(self._places[self._writing % self.slots], image)
        return self.commit()

    def look(self, sequence: int) -> ImageArray | None:
        """Pins the picture with this number and returns it, read-only; None when it is gone."""
        found, _ = self.pin(sequence)
        return self._views[found % self.slots] if found else None
