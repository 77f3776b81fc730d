"""Writes into a bundle how its robot's pictures look in the data, so that `roboalign doctor` can tell what is wrong.

Without data there is none: what the simulator draws would call every real desk wrong, so the user is told how to make
one on the robot.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.errors import DataError
from roboalign.sdk.manifest import Manifest
from roboalign.sdk.views.dataset import dataset_reference
from roboalign.sdk.views.reference import REFERENCE_NAME, write_reference

__all__ = ["reference_advice", "write_data_reference"]


def write_data_reference(folder: Path, data: Path | None, manifest: Manifest, say: Callable[[str], None]) -> bool:
    """Writes the reference beside a bundle's files, where the data tell, and returns whether they do.

    The manifest does not list it, so that it can be replaced by one of the robot.
    """
    if data is None:
        return False
    try:
        dataset = LeRobotDataset(data)
        robot = (manifest.robot.name if manifest.robot is not None else "") or dataset.info.robot_type or ""
        found = dataset_reference(dataset, manifest.policy.camera_names, robot=robot, say=say)
    except DataError as err:
        say(f"no reference of {data}: {err}")
        return False
    if found is None:
        return False
    write_reference(folder / REFERENCE_NAME, found)
    say(f"{REFERENCE_NAME}, how the cameras {', '.join(found.views)} look to 'roboalign doctor': {found.source}")
    return True


def reference_advice(bundle: Path) -> tuple[str, ...]:
    """Returns how to get a reference for a bundle that has none, as lines for a person."""
    return (
        "without a reference, doctor cannot tell swapped, turned or miscoloured cameras; on the day when it works:",
        f"  roboalign doctor {bundle} --robot robot.toml --make-reference {bundle / REFERENCE_NAME}",
    )
