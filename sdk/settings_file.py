"""Files that people write: TOML, or JSON where Python has no TOML reader."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from roboalign.sdk.errors import ConfigError

__all__ = ["parse_settings"]


def parse_settings(path: Path, text: str) -> object:
    """Returns the content of a `.json` or `.toml` file; `path` says which it is, and where an error is."""
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as err:
            raise ConfigError(f"{path} is no JSON: {err}") from err
    if path.suffix != ".toml":
        raise ConfigError(f"{path} ends in {path.suffix!r}, expected .json or .toml")
    if sys.version_info < (3, 11):
        raise ConfigError(f"{path}: TOML needs Python 3.11; write the same as JSON")
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"{path} is no TOML: {err}") from err
