"""A run from end to end: the processes, the loop, what is written and shown, and the report that says how it went."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from roboalign.sdk.bundle import PolicySpec
from roboalign.sdk.control.channels import Channels
from roboalign.sdk.control.live_page import PageConfig
from roboalign.sdk.control.loop_report import RunReport
from roboalign.sdk.control.pictures import PictureRing
from roboalign.sdk.control.policy_process import PolicyProcess, PolicyRecipe
from roboalign.sdk.control.realtime import Granted, high_priority, quiet_memory
from roboalign.sdk.control.recorder import Recorder, RecorderConfig
from roboalign.sdk.control.rerun_file import require_rerun
from roboalign.sdk.control.run_page import write_run_page
from roboalign.sdk.control.tick import LoopSettings, RealTimeLoop
from roboalign.sdk.control.watchdog import Guard
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.robot import Robot

__all__ = ["SessionConfig", "page_config", "run_session"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionConfig:
    """What a run leaves, and how long it takes at most."""

    seconds: float = 30.0
    """Longest time to act."""
    policy: str = "the policy"
    """What the policy is called."""
    trace: Path | None = None
    """File of the trace (JSON lines); None writes none."""
    report: Path | None = None
    """File of the report (HTML); None writes none."""
    rerun: Path | None = None
    """File of the recording of rerun (rrd); None writes none."""
    page: PageConfig | None = None
    """Where the live page is served; None serves none."""
    scene: Mapping[str, object] | None = None
    """Of a simulated run, the scene: `robot`, `task` and `seed`."""
    is_spoken: bool = True
    """Whether thoughts and reasons go to the terminal."""

    def __post_init__(self) -> None:
        if not self.seconds > 0.0:
            raise ConfigError(f"seconds is {self.seconds}, expected more than 0")
        if self.rerun is not None:
            require_rerun(self.rerun)

    @property
    def is_watched(self) -> bool:
        """Whether pictures are wanted where the policy asks for none."""
        return self.page is not None or self.rerun is not None

    @property
    def is_written(self) -> bool:
        """Whether the joints are wanted in every period."""
        return self.trace is not None or self.rerun is not None


def page_config(text: str, token: str | None) -> PageConfig:
    """Returns where a page is served: `8360`, or `0.0.0.0:8360` with a token.

    Raises:
        ConfigError: The text is neither, or others can reach the address and there is no token.
    """
    found = re.fullmatch(r"(?:(?P<host>[^:]+|\[[0-9a-fA-F:]+\]):)?(?P<port>\d{1,5})", text)
    if found is None:
        raise ConfigError(f"the page's address is {text!r}, expected PORT or HOST:PORT, e.g. 8360")
    host = (found["host"] or "127.0.0.1").strip("[]")
    return PageConfig(host=host, port=int(found["port"]), token=token)


def run_session(
    robot: Robot,
    recipe: PolicyRecipe,
    sentence: str,
    config: SessionConfig,
    say: Callable[[str], None],
    *,
    admit: Callable[[PolicySpec], None] = lambda needs: None,
    use: Callable[[], AbstractContextManager[object]],
    until: Callable[[], bool] | None = None,
) -> RunReport:
    """Runs a policy on a robot, each in a process of its own, and says what the run was like, also after an error.

    Args:
        robot: Not connected yet; `use` does that.
        recipe: How to make the policy.
        sentence: What to follow.
        config: What the run leaves.
        say: Takes lines for people.
        admit: Told what the policy needs before anything is opened; raises where it does not fit.
        use: Connects the robot for as long as it is entered, and parks it afterwards.
        until: Ends the run by returning true; asked after each control period.

    Raises:
        RoboalignError: The policy cannot be loaded, something does not fit, or the robot did not do what it was asked.
    """
    with ExitStack() as opened:
        channels = Channels(robot.spec)
        opened.callback(channels.close)
        opened.enter_context(_lent_pictures(robot, channels))
        policy = PolicyProcess(recipe, channels)
        opened.callback(policy.close)
        say("loading the policy in a process of its own")
        needs = policy.open(sentence)
        admit(needs)
        settings = LoopSettings.for_policy(
            needs, policy.latency_s, is_shown=config.is_watched, is_traced=config.is_written
        )
        recorder = Recorder(
            channels,
            RecorderConfig(
                trace=config.trace,
                rerun=config.rerun,
                page=config.page,
                policy=config.policy,
                scene=config.scene,
                is_spoken=config.is_spoken,
            ),
        )
        url = recorder.open(sentence, robot.spec.control_rate_hz)
        loop = RealTimeLoop(Guard(robot), policy, channels, settings)
        opened.callback(lambda: recorder.finish(loop.report()))  # where something fails before the loop runs
        if url:
            say(f"live page: {url}")
        try:
            # Memory first: a robot that is connected waits for commands, and parks when they are late.
            with quiet_memory() as is_locked, use(), high_priority() as scheduler:
                granted = Granted(scheduler=scheduler, is_memory_locked=is_locked, is_gc_frozen=True)
                max_ticks = max(1, round(config.seconds * robot.spec.control_rate_hz))
                loop.run(sentence, max_ticks=max_ticks, until=until, granted=str(granted))
        finally:
            report = _finished(loop.report(), recorder, config)
            for line in report.lines():
                say(line)
    return report


@contextmanager
def _lent_pictures(robot: Robot, channels: Channels) -> Iterator[None]:
    """Lets a robot write its pictures where the policy sees them, if its class can.

    The class is asked, and not the object: something around a robot that passes on whatever it does not know itself
    may keep pictures or change them.
    """
    lend: Callable[[Robot, Mapping[str, PictureRing]], None] | None = getattr(type(robot), "lend_pictures", None)
    if lend is None:
        yield
        return
    lend(robot, channels.pictures)
    try:
        yield
    finally:
        lend(robot, {})


def _finished(report: RunReport, recorder: Recorder, config: SessionConfig) -> RunReport:
    """Ends the recorder and writes the report's page."""
    lost, problem = recorder.finish(report)
    report = replace(report, trace_lost=lost, trace_problem=problem)
    if config.report is not None:
        write_run_page(config.report, report, config.policy, trace=config.trace)
    return report
