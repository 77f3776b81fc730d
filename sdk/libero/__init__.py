"""LIBERO and LIBERO-PRO, a benchmark that nobody here wrote, behind the same environment interface as our own suites.

The benchmark (MuJoCo 2.3.7, robosuite 1.4) lives in a Python environment of its own, made by `roboalign libero setup`,
and runs as a separate process. Scripted experts, demonstrations and their replay are here too.
"""

from roboalign.sdk.libero.env import LiberoEnv, libero_robot_spec, open_env
from roboalign.sdk.libero.expert import LiberoExpert
from roboalign.sdk.libero.suites import LIBERO_SPLITS, LIBERO_SUITES, task_ids
from roboalign.sdk.libero.truth import LiberoObject, LiberoTask, LiberoTruth

__all__ = [
    "LIBERO_SPLITS",
    "LIBERO_SUITES",
    "LiberoEnv",
    "LiberoExpert",
    "LiberoObject",
    "LiberoTask",
    "LiberoTruth",
    "libero_robot_spec",
    "open_env",
    "task_ids",
]
