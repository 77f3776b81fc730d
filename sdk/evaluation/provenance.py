"""What a report says about where its numbers come from: checkpoints, packages, machine, date."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from roboalign import __version__
from roboalign.sdk.errors import DataError

__all__ = ["checkpoint_facts", "machine_facts"]

_PACKAGES = ("torch", "transformers", "trl", "onnxruntime", "pybullet", "numpy")
_NAMED = ("recipe", "parent", "seeds", "data_hash")


def checkpoint_facts(folder: Path) -> dict[str, str]:
    """Returns what `roboalign.json` says about a checkpoint: origin, time, and every number that it measured."""
    path = folder / "roboalign.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        facts = {name: _words(meta[name]) for name in _NAMED if meta.get(name)}
        facts["time"] = f"{meta.get('wall_s', 0.0):.0f} s, {meta.get('cpu_s', 0.0):.0f} CPU s"
        return {**facts, **_flat(meta.get("metrics", {}))}
    except (OSError, json.JSONDecodeError, AttributeError, TypeError) as err:
        raise DataError(f"{path} does not describe a checkpoint ({err}); train the stage again") from err


def machine_facts() -> dict[str, str]:
    """Returns versions, machine and date."""
    return {
        "written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "roboalign": __version__,
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version}" for name in _PACKAGES if (version := _version(name))),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return str(value)


def _flat(value: object, name: str = "") -> dict[str, str]:
    """Returns the numbers and words of nested JSON by path; lists are left out."""
    if isinstance(value, Mapping):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{name}/{key}" if name else key).items()}
    if isinstance(value, list) or value is None:
        return {}
    return {name: f"{value:.4g}" if isinstance(value, float) else str(value)}
