"""Which Jetson this is, read from the files that JetPack and the kernel leave; runs nothing and loads no library.

It reports what is there. Which target of the exporter that means is the exporter's business; the loader of engines
compares the same facts before it touches one. None of it was ever read on a real board: the files are as NVIDIA
documents them, and the tests write them into a folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Board", "detect_board"]

_MODEL_FILES = ("proc/device-tree/model", "sys/firmware/devicetree/base/model")

_RELEASE_FILE = "etc/nv_tegra_release"

_LIBRARY_FOLDERS = ("usr/lib/aarch64-linux-gnu", "usr/lib/sbsa-linux-gnu")
"""Where Debian packages of TensorRT put libnvinfer; the second is that of the packages for servers (TensorRT 11)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """A Jetson, as its files describe it."""

    model: str
    """Name in the device tree, e.g. `NVIDIA Jetson AGX Orin Developer Kit`; empty when only the release is known."""
    l4t: str | None
    """Release of Jetson Linux, e.g. `36.4.3`; None when `/etc/nv_tegra_release` is absent, as in some containers."""
    tensorrt: str | None
    """Version in the name of the system's libnvinfer, e.g. `10.3.0`; None when it has none."""
    memory_bytes: int | None
    """Memory that the kernel manages, a little less than what is soldered on; None when it does not say."""
    power_mode: str | None = None
    """Name of nvpmodel's mode, e.g. `MAXN`, or its number when it has no name; None when the board does not say."""


def detect_board(root: Path = Path("/")) -> Board | None:
    """Returns the Jetson that the files below `root` describe, or None where there is none."""
    model = _first_text(root, _MODEL_FILES)
    release = _read(root / _RELEASE_FILE)
    if not release and not re.search(r"\b(Jetson|Orin|Thor|Xavier)\b", model):
        return None
    return Board(
        model=model,
        l4t=_l4t(release),
        tensorrt=_tensorrt_version(root),
        memory_bytes=_memory_bytes(root),
        power_mode=_power_mode(root),
    )


def _first_text(root: Path, names: tuple[str, ...]) -> str:
    return next((text for name in names if (text := _read(root / name))), "")


def _read(path: Path) -> str:
    """Returns a small file's text without the closing zero of the device tree; empty when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").rstrip("\0\n ")
    except OSError:
        return ""


def _l4t(release: str) -> str | None:
    """Reads e.g. `# R36 (release), REVISION: 4.3, GCID: ...`."""
    found = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", release)
    return f"{found[1]}.{found[2]}" if found else None


def _tensorrt_version(root: Path) -> str | None:
    versions = [
        tuple(map(int, found[1].split(".")))
        for folder in _LIBRARY_FOLDERS
        for path in sorted((root / folder).glob("libnvinfer.so.*"))
        if (found := re.fullmatch(r"libnvinfer\.so\.(\d+\.\d+\.\d+)", path.name))
    ]
    return ".".join(map(str, max(versions))) if versions else None


def _memory_bytes(root: Path) -> int | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _power_mode(root: Path) -> str | None:
    """Reads what nvpmodel leaves, e.g. `pmode:0002`, and the name that its table gives that number."""
    found = re.search(r"pmode:\s*(\d+)", _read(root / "var/lib/nvpmodel/status"))
    if found is None:
        return None
    number = int(found[1])
    table = _read(root / "etc/nvpmodel.conf")
    name = re.search(rf"<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S+)\s*>", table)
    return name[1] if name else str(number)
