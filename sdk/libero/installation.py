"""Where the benchmark's own Python environment is, and how its process is started from there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from roboalign.sdk.errors import BackendError
from roboalign.sdk.libero.client import LiberoClient, server_command

__all__ = [
    "DEFAULT_FOLDER",
    "FOLDER_VARIABLE",
    "MARKER",
    "Installation",
    "benchmark_client",
    "find_installation",
    "folder_of_choice",
    "private_folders",
]

FOLDER_VARIABLE = "ROBOALIGN_LIBERO"
"""Environment variable that names another folder than the default."""
DEFAULT_FOLDER = Path("runs") / "libero"
"""Where `roboalign libero setup` installs, relative to the working directory."""
MARKER = "installation.json"
"""Written last: a folder with it holds a benchmark that has drawn a picture."""
FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Installation:
    """A benchmark that was set up and checked."""

    folder: Path
    """Folder of the environment and its marker."""
    renderer: str
    """`egl` or `osmesa`: the first that drew a picture that is not blank."""
    versions: Mapping[str, str]
    """Packages that were checked."""

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.folder / "venv" / "bin" / "python"


def folder_of_choice(folder: Path | None = None) -> Path:
    """Returns the folder that was given, or that of `ROBOALIGN_LIBERO`, or the default."""
    if folder is not None:
        return Path(folder)
    return Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)


def find_installation(folder: Path | None = None) -> Installation:
    """Returns the benchmark that `roboalign libero setup` installed.

    Raises:
        BackendError: there is none, or it was made by another version.
    """
    place = folder_of_choice(folder)
    path = place / MARKER
    how = "run 'roboalign libero setup' (about 2 GB), or name its folder in the environment variable " + FOLDER_VARIABLE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"]
        installation = Installation(folder=place, renderer=content["renderer"], versions=content["versions"])
    except FileNotFoundError:
        raise BackendError(f"LIBERO is not installed in {place} (no {MARKER} there); {how}") from None
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise BackendError(f"{path} cannot be read ({err}); delete it and {how}") from err
    if found != FORMAT:
        raise BackendError(f"{path} has format {found!r}, this roboalign reads {FORMAT}; delete the folder and {how}")
    return installation


def private_folders(folder: Path) -> dict[str, str]:
    """Returns environment variables that keep every cache, and LIBERO's own configuration, inside the folder."""
    cache = folder.absolute() / "cache"
    names = {
        "TMPDIR": "tmp",
        "XDG_CACHE_HOME": "xdg",
        "MPLCONFIGDIR": "matplotlib",
        "NUMBA_CACHE_DIR": "numba",
        "LIBERO_CONFIG_PATH": "libero",
    }
    return {variable: str(cache / name) for variable, name in names.items()}


def benchmark_client(installation: Installation) -> LiberoClient:
    """Returns a client for the installation; its process starts when it is opened."""
    command = server_command(installation.python, installation.renderer)
    return LiberoClient(command, env=private_folders(installation.folder))
