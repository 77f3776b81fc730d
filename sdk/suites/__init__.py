"""The task suites: ten tasks each, their held-out splits, and frozen initial states with hashes.

Importing this package loads neither pybullet nor gymnasium; scenes are drawn and judged as plain values.
"""

from roboalign.sdk.suites.store import frozen_scene
from roboalign.sdk.suites.suite import Suite, find_suite, gym_id, suite_names, suite_tasks

__all__ = ["Suite", "find_suite", "frozen_scene", "gym_id", "suite_names", "suite_tasks"]
