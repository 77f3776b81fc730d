"""Environments of their own, as a robot has them, and the Pythons to make them with."""

import os
import shutil
import subprocess
from pathlib import Path

LIST_MODULES = (
    "import importlib, pkgutil, sys\n"
    "def modules(room):\n"
    "    package = importlib.import_module(room)\n"
    "    found = [module.name for module in pkgutil.walk_packages(package.__path__, room + '.')]\n"
    "    # Of gymnasium, of numba, and of lerobot.\n"
    "    wrappers = {'sdk.sim.env', 'sdk.backends.step_kernels', 'drivers.lerobot_plugin'}\n"
    "    return [room, *(name for name in found if name.removeprefix('roboalign.') not in wrappers)]\n"
)

ACT = (
    "import sys, numpy as np\n"
    "from roboalign import sdk\n"
    "with sdk.Policy.load() as policy:\n"
    "    size = policy.spec.image_size_px\n"
    "    images = {name: np.full((size, size, 3), 128, np.uint8) for name in policy.spec.camera_names}\n"
    "    state = np.array([0.5, 0.0, 0.2, 0.0, 0.08], np.float32)\n"
    "    chunk = policy.act(sdk.Observation(images=images, state=state, joint_pos_rad=np.zeros(7, np.float32),\n"
    "        instruction='put the red block in the blue bowl', time_s=0.0))\n"
    "print(chunk.source, 'torch' in sys.modules)"
)
"""The shipped bundle acts; prints who did, and whether torch was loaded."""


class CleanEnvironment:
    """A new virtual environment, used from a folder that holds nothing of the project."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        self._run([python, "-m", "venv", str(folder / "venv")])

    @property
    def bin(self) -> Path:
        return self.folder / "venv" / "bin"

    def pip(self, *args: str) -> None:
        self._run([str(self.bin / "python"), "-m", "pip", "install", "-q", *args])

    def python(self, code: str) -> str:
        return self._run([str(self.bin / "python"), "-c", code])

    def command(self, name: str, *args: str) -> str:
        return self._run([str(self.bin / name), *args])

    def _run(self, command: list[str]) -> str:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout


def find_python(version: str) -> str | None:
    """A Python that starts: named in the environment, on PATH, or kept by pyenv (whose PATH entry may refuse)."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [
        os.environ.get(f"ROBOALIGN_PYTHON{version.replace('.', '')}"),
        shutil.which(f"python{version}"),
        *sorted(str(path) for path in versions.glob(f"{version}.*/bin/python{version}")),
    ]
    for python in filter(None, candidates):
        done = subprocess.run([python, "--version"], capture_output=True, text=True, timeout=30)
        if done.returncode == 0 and done.stdout.startswith(f"Python {version}."):
            return python
    return None
