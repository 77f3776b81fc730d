"""Reads a settings file, TOML or JSON, and says in one line what is wrong with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from roboalign.sdk.errors import ConfigError

__all__ = ["read_settings"]


def read_settings(path: Path, what: str) -> dict[str, object]:
    """Returns the table in a `.json` or `.toml` file; `what` names it in errors, e.g. `randomisation`.

    Raises:
        ConfigError: The file is missing, is neither, or does not hold a table.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"cannot read the {what} {path}: {err}") from err
    content = _parse(path, text)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, expected a table of settings")
    return content


def _parse(path: Path, text: str) -> object:
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as err:
            raise ConfigError(f"{path} is no JSON: {err}") from err
    if path.suffix != ".toml":
        raise ConfigError(f"{path} ends in {path.suffix!r}, expected .json or .toml")
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ModuleNotFoundError as err:
            raise ConfigError(f"{path}: TOML needs Python 3.11, or: pip install tomli; or write it as JSON") from err

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"{path} is no TOML: {err}") from err
