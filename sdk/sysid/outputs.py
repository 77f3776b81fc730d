"""The folder that `roboalign sysid` writes: result, recording, randomisation, report."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.randomization.domain import DomainRandomization
from roboalign.sdk.sysid.identify import Identification
from roboalign.sdk.sysid.recording import Recording
from roboalign.sdk.sysid.report import report_page
from roboalign.sdk.sysid.result import SysidResult

__all__ = ["keep_recording", "randomization_toml", "write_outputs"]

RESULT_FILE = "sysid.json"
RECORDING_FILE = "recording.json"
RANDOMIZATION_FILE = "randomization.toml"
REPORT_FILE = "report.html"


def keep_recording(out: Path, recording: Recording) -> Path:
    """Writes the recording alone, so that nothing of a wiggle is lost whatever comes after it."""
    out.mkdir(parents=True, exist_ok=True)
    recording.save(out / RECORDING_FILE)
    return out / RECORDING_FILE


def write_outputs(out: Path, found: Identification, *, base: str | None) -> None:
    """Writes everything but the recording; `base` is the preset of what was not identified.

    Raises:
        ConfigError: There is no such preset.
    """
    out.mkdir(parents=True, exist_ok=True)
    result = found.result
    text = randomization_toml(result, base)
    _write(out / RESULT_FILE, json.dumps(result.to_json(), indent=1) + "\n")
    _write(out / RANDOMIZATION_FILE, text)
    DomainRandomization.load(out / RANDOMIZATION_FILE)
    _write(out / REPORT_FILE, report_page(found))


def randomization_toml(result: SysidResult, base: str | None) -> str:
    """Returns the randomisation around an arm as TOML."""
    if result.randomization(base).is_off:
        raise ConfigError("nothing was identified that could vary")
    lines = [
        f"# Around {result.robot} as roboalign sysid found it: each joint's range is its 95 % interval.",
        *([] if base is None else [f'preset = "{base}"']),
        f'name = "sysid-{result.robot}"',
    ]
    for concern, parameters in result.changes().items():
        lines += ["", f"[{concern}]"]
        lines += [f"{name} = {_toml(value)}" for name, value in parameters.items()]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """Returns numbers, lists and tables as TOML."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
