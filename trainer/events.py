"""TensorBoard event files, for who asks for them; `metrics.jsonl` is written always."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roboalign.sdk.errors import missing_extra

__all__ = ["EventFiles", "scalars"]


class EventFiles:
    """Writes the numbers of a run as events; a resumed run adds a file whose steps replace those done again."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as err:
            raise missing_extra("tensorboard", "tensorboard", "--tensorboard") from err
        self._folder, self._open = folder, SummaryWriter
        self._writer: Any = None

    def write(self, values: Mapping[str, Any]) -> None:
        """Adds the numbers of one line of `metrics.jsonl`."""
        step = int(values["step"])
        if self._writer is None:
            self._writer = self._open(str(self._folder), purge_step=step)
        for name, value in scalars(values).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()


def scalars(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the numbers of a line by name, nested ones joined with `/`, without the step."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            found[prefix + name] = float(value)
    return found
