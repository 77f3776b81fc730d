"""Starting a stage in several processes: configurations of `accelerate launch`, and the command that uses one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from roboalign.sdk.errors import ConfigError

__all__ = ["launch_command", "launch_file"]


def launch_file(*, is_gpu: bool) -> Path:
    """Returns the path of the configuration that comes with the package."""
    return Path(__file__).with_name("fsdp2-gpu.yaml" if is_gpu else "fsdp2-cpu.yaml")


def launch_command(program: Sequence[str], *, processes: int, is_gpu: bool) -> list[str]:
    """Returns the command that runs a Python program (`script.py ...` or `-m module ...`) in several processes."""
    if processes < 1:
        raise ConfigError(f"the number of processes is {processes}, expected at least 1")
    file = str(launch_file(is_gpu=is_gpu))
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file]
    return [*start, "--num_processes", str(processes), *program]
