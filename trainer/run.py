"""The run of a stage: one writer for its folder, why it stopped, and what follows its numbers while it runs.

A stage works in `<out>.partial/`. This module puts three things there that every stage has: `status.json` (running,
finished, interrupted, refused or failed, with the reason), `settings.json` (the resolved configuration) and
`report.html`. When the stage is done, the three go into its checkpoint and the folder is removed. A run that ended
before it wrote anything of its own leaves no folder: its reason is the error message.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from roboalign import __version__
from roboalign.sdk.data.storage import one_writer, told_when_full
from roboalign.sdk.errors import BundleError, ConfigError, RoboalignError
from roboalign.sdk.types import STATE_NAMES
from roboalign.trainer.checkpoint import trained_for
from roboalign.trainer.folders import is_main_process, partial_dir, recover, remove_folder
from roboalign.trainer.parallel import all_processes, barrier
from roboalign.trainer.progress import check_same_settings, following
from roboalign.trainer.refusals import check_start, data_info

__all__ = [
    "SETTINGS_FILE",
    "STATUS_FILE",
    "RunOptions",
    "RunStatus",
    "StageConfig",
    "plain_settings",
    "read_status",
    "stage_run",
]

STATUS_FILE = "status.json"
SETTINGS_FILE = "settings.json"
STATES = ("running", "finished", "interrupted", "refused", "failed")

_REFRESH_S = 20.0
"""Seconds between two updates of status and report while a stage runs."""
_OWN_FILES = {STATUS_FILE, SETTINGS_FILE, "report.html"}
_NOT_PART_OF_THE_RESULT = ("out", "threads", "save_every", "force")
"""Settings that may change between an interrupted run and the one that goes on, at any depth."""


class StageConfig(Protocol):
    """What every stage's configuration has."""

    @property
    def out(self) -> Path:
        """Checkpoint folder to write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How a stage is run; nothing here changes its result."""

    must_resume: bool = False
    """Refuse to start anew: there has to be an interrupted run to go on with."""
    tensorboard: bool = False
    """Also write the numbers as TensorBoard events to `<out>.tensorboard/`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """What `status.json` says."""

    state: str
    """One of `STATES`; `running` with a process that is gone means that it was killed."""
    reason: str
    """Why it stopped, in one line; empty while it runs and when it finished."""
    stage: str
    """The stage."""
    step: int | None
    """Last step whose numbers were written; None before the first."""
    started_utc: str
    """When this process began, ISO 8601."""
    updated_utc: str
    """When this was written."""
    pid: int
    """Process that runs or ran."""
    roboalign: str
    """Version that wrote the folder."""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ConfigError(f"RunStatus.state is {self.state!r}, expected one of {', '.join(STATES)}")


def read_status(folder: Path) -> RunStatus | None:
    """Returns what the status of a run folder or checkpoint says; None when it has none.

    Raises:
        BundleError: the file is damaged.
    """
    file = folder / STATUS_FILE
    if not file.is_file():
        return None
    try:
        return RunStatus(**json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as err:
        raise BundleError(f"{file} is damaged ({err}); delete {folder} to start again") from err


def plain_settings(config: Any) -> dict[str, Any]:
    """Returns a stage's configuration as JSON values; folders by name, for where they lay says nothing elsewhere."""
    return json.loads(json.dumps(asdict(config), default=lambda value: getattr(value, "name", str(value))))


def stage_run(stage: str) -> Callable[[Callable[..., Path]], Callable[..., Path]]:
    """Decorates the function of a stage (its configuration first): see the module.

    The decorated function takes one more keyword, `run` (`RunOptions`). Of the processes that `accelerate` started,
    only the first writes; the others begin when it has judged the folder, and end together with it.
    """

    def decorate(function: Callable[..., Path]) -> Callable[..., Path]:
        @functools.wraps(function)
        def run_stage(config: Any, *, run: RunOptions | None = None, **more: Any) -> Path:
            with all_processes():
                if not is_main_process():
                    barrier()
                    return function(config, **more)
                with one_writer(Path(config.out)), _Run(stage, config, run or RunOptions()) as current:
                    barrier()
                    output = function(config, **more)
                    current.finish(output)
                return output

        return run_stage

    return decorate


class _Run:
    """One process at work on a stage."""

    def __init__(self, stage: str, config: StageConfig, options: RunOptions) -> None:
        self._out, self._options = Path(config.out), options
        self._work = partial_dir(self._out)
        self._config, self._settings = config, plain_settings(config)
        now = _now()
        self._status = RunStatus(
            state="running",
            reason="",
            stage=stage,
            step=None,
            started_utc=now,
            updated_utc=now,
            pid=os.getpid(),
            roboalign=__version__,
        )
        self._refreshed_s = time.monotonic()
        self._contexts = ExitStack()

    def __enter__(self) -> _Run:
        _refuse_foreign_folder(self._out)
        for folder in (self._out, self._work, self._work / "state"):
            recover(folder)
        check_start(self._status.stage, self._config)
        self._check_interrupted()
        followers: list[Callable[[Mapping[str, Any]], None]] = [self._follow]
        if self._options.tensorboard:
            from roboalign.trainer.events import EventFiles

            followers.append(EventFiles(self._out.with_name(self._out.name + ".tensorboard")).write)
        self._work.mkdir(parents=True, exist_ok=True)
        self._write_json(self._work / SETTINGS_FILE, self._settings)
        self._write_status(self._work)
        info = data_info(self._config)
        robot = info.robot_type if info else None
        camera = next(iter(info.cameras), None) if info else None
        contexts: tuple[AbstractContextManager[None], ...] = (
            _terminated_as_exit(),
            following(*followers),
            trained_for(robot, camera, info.state_names if info else STATE_NAMES),
        )
        for context in contexts:
            self._contexts.enter_context(context)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        self._contexts.close()
        if error is None or not self._work.is_dir():
            return
        if not {path.name for path in self._work.iterdir()} - _OWN_FILES:
            remove_folder(self._work)
            return
        state, reason = _why(error)
        self._status = replace(self._status, state=state, reason=reason)
        # The disk may be what failed; the error itself must get out all the same.
        try:
            self._refresh()
        except (OSError, RoboalignError) as err:
            print(f"{self._work}: the status could not be written ({err})", file=sys.stderr)

    def finish(self, output: Path) -> None:
        """Puts status, settings and report beside the result and removes the folder of the run."""
        self._status = replace(self._status, state="finished")
        self._write_json(output / SETTINGS_FILE, self._settings)
        self._write_status(output)
        self._write_report(output, replies_from=self._work)
        if self._work.is_dir():
            remove_folder(self._work)

    def _check_interrupted(self) -> None:
        has_state = (self._work / "state").is_dir()
        if self._options.must_resume and not has_state:
            raise ConfigError(
                f"there is nothing to resume: {self._work} has no saved state; leave out --resume to start, or give "
                "the --out of the interrupted run"
            )
        if not has_state:
            return
        before = read_status(self._work)
        if before is not None and before.roboalign != __version__:
            raise BundleError(
                f"{self._work} was written by roboalign {before.roboalign}, this is {__version__}; go on with that "
                "version, delete the folder, or choose another --out"
            )
        file = self._work / SETTINGS_FILE
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            check_same_settings(_flat(found), _flat(self._settings), folder=self._work)

    def _follow(self, values: Mapping[str, Any]) -> None:
        self._status = replace(self._status, step=int(values["step"]))
        if time.monotonic() - self._refreshed_s > _REFRESH_S:
            self._refresh()

    def _refresh(self) -> None:
        self._write_status(self._work)
        self._write_report(self._work)
        self._refreshed_s = time.monotonic()

    def _write_status(self, folder: Path) -> None:
        self._status = replace(self._status, updated_utc=_now())
        self._write_json(folder / STATUS_FILE, asdict(self._status))

    def _write_report(self, folder: Path, *, replies_from: Path | None = None) -> None:
        from roboalign.trainer.report import write_report

        write_report(folder, replies_from=replies_from)

    def _write_json(self, file: Path, values: Mapping[str, Any]) -> None:
        temporary = file.with_name(f".{file.name}.tmp")
        with told_when_full(file.parent, "free some space and give the same command again; it goes on"):
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        temporary.replace(file)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the settings that the result depends on, by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if name in _NOT_PART_OF_THE_RESULT:
            continue
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _why(error: BaseException) -> tuple[str, str]:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "Ctrl-C; the same command goes on"
    if isinstance(error, _Terminated):
        return "interrupted", "asked to stop (SIGTERM); the same command goes on"
    words = " ".join(str(error).split())
    if isinstance(error, RoboalignError):
        return "refused", words
    return "failed", f"{type(error).__name__}: {words}"


class _Terminated(SystemExit):
    """SIGTERM as an exception, so that the run can say why it stopped; the exit code is the shell's for it."""


@contextmanager
def _terminated_as_exit() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there can a signal be handled
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse_foreign_folder(out: Path) -> None:
    """Raises ConfigError when writing the result would remove somebody's files."""
    if out.is_file():
        raise ConfigError(f"--out is {out}, which is a file, expected the name of a folder; choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / "roboalign.json").is_file():
        raise ConfigError(
            f"--out is {out}, which holds files but is no checkpoint; they would be removed: choose another --out"
        )
