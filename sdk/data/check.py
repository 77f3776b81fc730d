"""Looks for what is wrong with a dataset before a policy learns it: `roboalign data check`."""

from __future__ import annotations

from pathlib import Path

from roboalign.sdk.data.detect_pictures import PICTURE_CHECKS, PictureScan
from roboalign.sdk.data.detect_rows import ROW_DETECTORS
from roboalign.sdk.data.findings import CheckReport, Finding
from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.data.progress import RecordingProgress
from roboalign.sdk.errors import DataError

__all__ = ["check_dataset"]


def check_dataset(path: Path | str, *, show_progress: bool = False) -> CheckReport:
    """Reads a whole dataset and returns what is wrong with it; nothing is changed.

    A dataset that cannot be opened, or not read to its end, is a finding of its own (`unreadable`).

    Args:
        path: The dataset.
        show_progress: Draws a progress bar on stderr.

    Raises:
        DataError: there is no such folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"there is no dataset folder {path}")
    checks = ("unreadable", *ROW_DETECTORS, *PICTURE_CHECKS)
    try:
        dataset = LeRobotDataset(path)
    except DataError as err:
        return CheckReport(
            path=str(path), num_episodes=0, num_frames=0, num_images=0, checks=checks, findings=(_unreadable(err),)
        )
    findings: list[Finding] = []
    num_images = 0
    try:
        for detect in ROW_DETECTORS.values():
            findings += detect(dataset)
        scan = PictureScan(dataset)
        with RecordingProgress(title="look at", total=dataset.num_episodes, is_shown=show_progress) as progress:
            for episode in range(dataset.num_episodes):
                scan.look(episode)
                progress.step()
        findings += scan.findings()
        num_images = scan.num_images
    except DataError as err:
        findings.append(_unreadable(err))
    return CheckReport(
        path=str(path),
        num_episodes=dataset.num_episodes,
        num_frames=dataset.num_frames,
        num_images=num_images,
        checks=checks,
        findings=tuple(sorted(findings, key=lambda finding: finding.severity)),
    )


def _unreadable(err: DataError) -> Finding:
    return Finding(
        kind="unreadable",
        severity="error",
        where="the files of the dataset",
        found=str(err),
        fix="copy the dataset again from where it was recorded, or record again what was not complete",
    )
