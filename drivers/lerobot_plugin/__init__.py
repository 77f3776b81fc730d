"""Our robots for LeRobot's own commands; this package imports lerobot, so nothing of ours loads it.

    lerobot-record --robot.discover_packages_path=roboalign.drivers.lerobot_plugin \
        --robot.type=roboalign --robot.file=robot.toml ...

Without `--robot.file` the simulated SO-101 moves.
"""

from roboalign.drivers.lerobot_plugin.config import Roboalign, RoboalignConfig

__all__ = ["Roboalign", "RoboalignConfig"]
