"""What a check of a dataset can say, and how it words many places in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from roboalign.sdk.errors import CheckFailed

__all__ = ["CheckReport", "Finding", "episodes_text", "frames_text"]

MAX_NAMED = 5
"""Episodes that one line names before it counts the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong with a dataset."""

    kind: str
    """What it is, in two words, e.g. `frozen camera`."""
    severity: str
    """`error`: a policy trained on it learns something untrue; `warning`: worth a look before training."""
    where: str
    """Episodes, frames and column."""
    found: str
    """What was found, against what was expected."""
    fix: str
    """What to do about it."""

    def __str__(self) -> str:
        return f"{self.severity}: {self.kind}: {self.where}\n    {self.found}\n    fix: {self.fix}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """The result of `check_dataset`."""

    path: str
    """The dataset."""
    num_episodes: int
    """Episodes looked at; 0 when it could not be opened."""
    num_frames: int
    """Frames looked at."""
    num_images: int
    """Pictures looked at, of all cameras."""
    checks: tuple[str, ...]
    """Kinds of findings that were looked for."""
    findings: tuple[Finding, ...]
    """What is wrong; empty when all is well."""

    def __str__(self) -> str:
        return "\n".join(str(finding) for finding in self.findings)

    def raise_if_failed(self) -> None:
        """Raises CheckFailed when there is any finding."""
        if self.findings:
            errors = sum(finding.severity == "error" for finding in self.findings)
            raise CheckFailed(
                f"{self.path}: {errors} errors and {len(self.findings) - errors} warnings were found; do what the fix "
                "lines say and check again"
            )


def episodes_text(episodes: Sequence[int]) -> str:
    """Returns e.g. `episode 3` or `episodes 1, 2, 5, 7, 8 and 12 more`."""
    named = ", ".join(str(episode) for episode in episodes[:MAX_NAMED])
    more = f" and {len(episodes) - MAX_NAMED} more" if len(episodes) > MAX_NAMED else ""
    return f"episode{'s' if len(episodes) > 1 else ''} {named}{more}"


def frames_text(places: Sequence[tuple[int, int]]) -> str:
    """Returns e.g. `episode 3 frame 7`, `episode 3 frame 7 and 4 more places` for (episode, frame) pairs."""
    (episode, frame), more = places[0], len(places) - 1
    return f"episode {episode} frame {frame}" + (f" and {more} more places" if more else "")
