"""Looks whether the sources of a mixture are there and hold what they should; nothing is downloaded."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.errors import CheckFailed, DataError
from roboalign.trainer.data.chat import ChatFile
from roboalign.trainer.data.mixture import Mixture, SourceSpec
from roboalign.trainer.data.pictures import read_picture

__all__ = ["SourceReport", "check_sources", "raise_if_failed", "sources_table"]

_WIDTH = 80
_DECODE_PX = 16
"""Size that pictures are brought to when it only matters whether they can be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceReport:
    """What was found of one source."""

    name: str
    """Its name in the mixture."""
    format: str
    """`lerobot` or `chat`."""
    path: Path
    """Where it was looked for."""
    share: float
    """Share of the mixture."""
    listed: int | None
    """Samples that the mixture says it has."""
    found: int | None
    """Samples that are there: frames with a picture, or answers; None when it cannot be read."""
    bad_pictures: tuple[str, ...]
    """What is wrong with pictures, one line each; empty unless they were decoded."""
    problem: str
    """Why it cannot be read; empty when it can."""
    download: str
    """What to fetch."""

    @property
    def state(self) -> str:
        """One of `ok`, `missing`, `broken`, `short` (fewer samples than listed), `pictures` (some do not decode)."""
        if self.found is None:
            return "broken" if self.path.exists() else "missing"
        if self.bad_pictures:
            return "pictures"
        return "short" if self.listed is not None and self.found < self.listed else "ok"


def check_sources(mixture: Mixture, *, decode: bool = False) -> list[SourceReport]:
    """Returns what was found of every source; `decode` also decodes every picture of the chat files."""
    return [_check(spec, mixture.shares[spec.name], decode=decode) for spec in mixture.sources]


def _check(spec: SourceSpec, share: float, *, decode: bool) -> SourceReport:
    found: int | None = None
    problem, bad = "", list[str]()
    try:
        if spec.format == "lerobot":
            found = len(LeRobotDataset(spec.path).frames_with_images())
        else:
            file = ChatFile(spec.path, turns=spec.turns)
            found, bad = len(file), _bad_pictures(spec, file) if decode else []
    except DataError as err:
        problem = str(err)
    return SourceReport(
        name=spec.name,
        format=spec.format,
        path=spec.path,
        share=share,
        listed=spec.rows,
        found=found,
        bad_pictures=tuple(bad),
        problem=problem,
        download=spec.download,
    )


def _bad_pictures(spec: SourceSpec, file: ChatFile) -> list[str]:
    problems: dict[int, str] = {}
    last = 0
    for found in map(file.at, range(len(file))):
        if found.image is None or found.row == last:
            continue
        last = found.row
        try:
            read_picture(found.image, spec.images or spec.path.parent, size_px=_DECODE_PX)
        except DataError as err:
            problems[found.row] = f"row {found.row}: {err}"
    return list(problems.values())


def sources_table(reports: Sequence[SourceReport]) -> str:
    """Returns a table of 80 columns, and under it what to do about each source that is not ok."""
    lines = [f"{'source':<24} {'format':<8} {'share':>7} {'listed':>10} {'found':>10}  state"]
    for report in reports:
        listed, found = (f"{count:,}" if count is not None else "-" for count in (report.listed, report.found))
        name = report.name if len(report.name) <= 24 else report.name[:23] + "~"
        lines.append(f"{name:<24} {report.format:<8} {report.share:>7.1%} {listed:>10} {found:>10}  {report.state}")
    advice = [_wrapped(f"{report.name}: {_advice(report)}") for report in reports if report.state != "ok"]
    return "\n".join([*lines, *([""] if advice else []), *(line for part in advice for line in part)])


def _advice(report: SourceReport) -> str:
    fetch = f"; get: {report.download}" if report.download else ""
    if report.state == "missing":
        return f"nothing at {report.path}{fetch}"
    if report.state == "broken":
        return report.problem
    if report.state == "pictures":
        return f"{len(report.bad_pictures)} pictures do not decode, e.g. {report.bad_pictures[0]}"
    return f"{report.found:,} samples of {report.listed:,} listed{fetch}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def raise_if_failed(reports: Sequence[SourceReport]) -> None:
    """Raises CheckFailed when a source that is wanted cannot be read or has bad pictures; being short is no failure."""
    wrong = [report.name for report in reports if report.share > 0 and report.state not in ("ok", "short")]
    if wrong:
        raise CheckFailed(f"{len(wrong)} of {len(reports)} sources cannot be used: {', '.join(wrong)}")
