"""A policy, or two in disguise, judged on a robot: the person sets the scene, watches, and says how it went.

Every trial is a run like `roboalign run --robot`: the policy in a process of its own, limits, and parking at the end.
With two policies each scene is played by both, in an order that nobody is told, and names are told when all trials are
done. What was entered is on disk at once: the same command goes on, and asks for nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from roboalign import __version__
from roboalign.drivers.arm.files import RobotFile
from roboalign.drivers.setup.dialogue import Dialogue
from roboalign.drivers.setup.run import ask_before_moving, names_in, run_beside
from roboalign.sdk.bundle import MANIFEST_NAME, file_digest
from roboalign.sdk.control.loop_report import RunReport
from roboalign.sdk.control.policy_process import PolicyRecipe
from roboalign.sdk.control.session import SessionConfig
from roboalign.sdk.data.storage import one_writer
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation import Comparison, EvalReport, PolicyRef
from roboalign.sdk.evaluation.trials import Outcome, TrialLog, TrialScene, write_trial_reports
from roboalign.sdk.randomization import find_randomization
from roboalign.sdk.robot import Robot
from roboalign.sdk.sim.seeds import eval_seed

__all__ = [
    "RobotContender",
    "TrialConfig",
    "TrialResult",
    "arm_of",
    "contender_for",
    "evaluate_on_robot",
    "scenes_of",
]

_OUTCOMES = {"s": "success", "f": "fail", "d": "discard", "q": "quit"}
_QUESTION = "how did it go: s success, f fail, d discard (the same again), q stop: "


@dataclass(frozen=True, kw_only=True, slots=True)
class RobotContender:
    """A policy that is judged."""

    described: Mapping[str, object]
    """Who it is, as in reports; has a `name`."""
    recipe: PolicyRecipe
    """How to make it."""
    content: str = ""
    """What decides how it acts, whatever it is called; empty where nobody knows, as of a served policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig:
    """What to judge, and where it is written."""

    out: Path
    """Folder of the result; an interrupted evaluation in it goes on."""
    arm: str
    """Kind of the robot, as its simulated arm is called."""
    sentence: str | None = None
    """What to do; None takes scenes and sentences of `tasks` from the simulator."""
    tasks: tuple[str, ...] = ("place", "push")
    """Tasks of the simulator, taken in turn: scene i is the one of `roboalign eval`."""
    episodes: int = 20
    """Trials of each policy."""
    first_episode: int = 0
    """Number of the first scene."""
    seconds: float = 30.0
    """Longest run."""
    is_sure: bool = False
    """Do not ask before the robot moves."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.first_episode < 0:
            raise ConfigError(
                f"TrialConfig.episodes is {self.episodes} and first_episode {self.first_episode}, expected at least 1 "
                "and 0"
            )
        if not self.seconds > 0.0:
            raise ConfigError(f"TrialConfig.seconds is {self.seconds}, expected more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResult:
    """What there is at the end."""

    reports: tuple[EvalReport, ...] = ()
    """One for each policy; empty while trials of two policies are not all done, so that nobody is told too early."""
    comparison: Comparison | None = None
    """Of two policies, the first minus the second."""
    num_done: int = 0
    """Trials that every policy has an outcome of."""
    is_complete: bool = False
    """Whether all trials are done."""


def arm_of(file: RobotFile, *, has_sentence: bool) -> str:
    """Returns the simulated arm of a robot's kind, or the kind where scenes are not drawn by the simulator.

    Raises:
        ConfigError: The simulator has no scenes for this arm, and no sentence says what to do.
    """
    if file.model.kinematics is None and not has_sentence:
        raise ConfigError(f"the simulator has no scenes for a {file.arm}; say what to do with --task 'SENTENCE'")
    return file.model.kinematics or file.arm


def contender_for(file: RobotFile, ref: PolicyRef) -> RobotContender:
    """Returns a bundle, or the policy at an address, as something that can be judged on a robot.

    Raises:
        ConfigError: It is a control or something else that only acts in simulation.
    """
    if ref.kind not in ("bundle", "remote"):
        raise ConfigError(
            f"{ref.name} is a {ref.kind} policy, which acts in simulation; name a bundle that was made for this robot, "
            "or the address of a served policy"
        )
    settings: dict[str, object] = {"robot": names_in(file), "backend": ref.backend}
    settings |= {"actions": ref.actions, "think": ref.think}
    if ref.thinking is not None:
        settings["thinking"] = asdict(ref.thinking)
    described, content, where = ref.describe(), "", str(ref.path)
    if ref.kind == "bundle":
        # The manifest holds the digest of every file, so it speaks for the content, and not for what lies beside it.
        content, where = f"{file_digest(ref.folder / MANIFEST_NAME)} {settings}", str(ref.folder)
    recipe = PolicyRecipe(settings={"bundle": where, **settings})
    return RobotContender(described=described, recipe=recipe, content=content)


Play = Callable[[RobotContender, str, SessionConfig], RunReport]


def scenes_of(config: TrialConfig) -> list[TrialScene]:
    """Returns the scene of each trial.

    Raises:
        ConfigError: A task is unknown, or not laid out for the arm.
    """
    if config.sentence is not None:
        numbers = range(config.first_episode, config.first_episode + config.episodes)
        return [TrialScene(task=config.sentence, seed=k, sentence=config.sentence) for k in numbers]
    from roboalign.sdk.sim.tasks import scene_for

    found = []
    for index in range(config.first_episode, config.first_episode + config.episodes):
        task, seed = config.tasks[index % len(config.tasks)], eval_seed(index)
        scene = scene_for(seed, task, "train", config.arm)
        where = [(item.name, item.x_m, item.y_m) for item in scene.objects]
        where += [(item.name, item.x_m, item.y_m) for item in scene.fixtures]
        places = [f"{name} at x {x_m:.2f} m, y {y_m:.2f} m" for name, x_m, y_m in where]
        found.append(TrialScene(task=task, seed=seed, sentence=scene.instruction, places=tuple(places)))
    return found


def evaluate_on_robot(
    robot: Robot,
    contenders: Sequence[RobotContender],
    config: TrialConfig,
    dialogue: Dialogue,
    *,
    play: Play | None = None,
) -> TrialResult:
    """Judges one policy, or two in disguise; what was entered stays, whatever ends it.

    Args:
        robot: Not connected; every run connects and parks it.
        contenders: One policy, or two to compare.
        config: What to judge.
        dialogue: The person.
        play: Runs a policy; by default as `roboalign run --robot` does, until Enter is pressed.

    Raises:
        ConfigError: The folder is of another evaluation, or a policy does not fit the robot.
        CheckFailed: The person did not want the robot to move.
        RobotError: The robot did not do what it was asked; it was parked if it still could be.
    """
    if len(contenders) not in (1, 2):
        raise ConfigError(f"found {len(contenders)} policies to judge, expected one, or two to compare")
    names = [str(contender.described["name"]) for contender in contenders]
    if len(set(names)) != len(names):
        raise ConfigError(f"both policies are {names[0]}; compare two different ones")
    contents = [contender.content for contender in contenders if contender.content]
    if len(set(contents)) != len(contents):
        raise ConfigError(f"{' and '.join(names)} are the same policy, byte for byte; compare two different ones")
    scenes = scenes_of(config)
    settings = _settings(robot, config)
    with one_writer(config.out):
        log = TrialLog(config.out, policies=[each.described for each in contenders], settings=settings)
        judge = _Judge(robot, contenders, config, dialogue, play)
        try:
            judge.run(log, scenes)
        finally:
            dialogue.say(f"{len(log.outcomes)} outcomes are in {log.path}; the same command goes on with them")
        return _result(config, log, scenes, robot.spec.control_rate_hz)


def _settings(robot: Robot, config: TrialConfig) -> dict[str, object]:
    """Returns what must be the same when an evaluation goes on, and what reports say."""
    return {
        "suite": None,
        "sentence": config.sentence,
        "tasks": list(config.tasks) if config.sentence is None else [config.sentence],
        "first_episode": config.first_episode,
        "split": "train",
        "robot": config.arm,
        "robot_name": robot.spec.name,
        "randomization": "off",
        "randomization_fingerprint": find_randomization("off").fingerprint,
        "image_size_px": robot.spec.image_size_px,
        "seconds": config.seconds,
        "roboalign_version": __version__,
    }


def _result(config: TrialConfig, log: TrialLog, scenes: Sequence[TrialScene], rate_hz: float) -> TrialResult:
    done = log.complete(config.episodes)
    is_complete = len(done) == config.episodes
    if not done or (len(log.policies) > 1 and not is_complete):
        return TrialResult(num_done=len(done), is_complete=is_complete)
    reports, comparison = write_trial_reports(config.out, log, {k: scenes[k] for k in done}, rate_hz=rate_hz)
    return TrialResult(reports=reports, comparison=comparison, num_done=len(done), is_complete=is_complete)


class _Quit(Exception):
    """The person wants to stop."""


class _Judge:
    """Leads a person through the trials that are left."""

    def __init__(
        self,
        robot: Robot,
        contenders: Sequence[RobotContender],
        config: TrialConfig,
        dialogue: Dialogue,
        play: Play | None,
    ) -> None:
        self._robot, self._contenders, self._config, self._dialogue = robot, contenders, config, dialogue
        self._is_blind = len(contenders) > 1
        self._play = self._run if play is None else play

    def run(self, log: TrialLog, scenes: Sequence[TrialScene]) -> None:
        left = [(k, who) for k in range(len(scenes)) for who in log.order(k) if (k, who) not in log.outcomes]
        if not left:
            return
        ask_before_moving(self._robot.spec, self._dialogue, is_sure=self._config.is_sure)
        try:
            for number, (trial, who) in enumerate(left, len(log.outcomes) + 1):
                total = len(scenes) * len(self._contenders)
                self._judge(log, scenes[trial], trial, who, f"run {number} of {total}, scene {trial + 1}")
        except _Quit:
            return

    def _judge(self, log: TrialLog, scene: TrialScene, trial: int, who: int, title: str) -> None:
        """One trial, as often as it is discarded."""
        while True:
            self._set_up(scene, trial, title)
            policy = "the policy" if self._is_blind else str(self._contenders[who].described["name"])
            session = SessionConfig(seconds=self._config.seconds, policy=policy, is_spoken=not self._is_blind)
            report = self._play(self._contenders[who], scene.sentence, session)
            word = self._choose(_QUESTION)
            if word == "quit":
                raise _Quit
            if word == "discard":
                log.discard(trial, who, self._dialogue.ask("why, Enter for no note: "))
                continue
            is_success, note = word == "success", ""
            progress = float(is_success)
            try:
                progress = progress if is_success else self._progress()
                note = self._dialogue.ask("a note, Enter for none: ")
            finally:  # an interruption here costs the note, not the outcome
                log.add(
                    Outcome(
                        trial=trial,
                        who=who,
                        success=is_success,
                        progress=progress,
                        note=note,
                        steps=report.ticks,
                        chunks=report.chunks,
                        stopped_by=report.stopped_by,
                        written=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
                    )
                )
            return

    def _set_up(self, scene: TrialScene, trial: int, title: str) -> None:
        """Says what stands where, and waits until it does."""
        self._dialogue.say(f"{title}: {scene.sentence}")
        for place in scene.places:
            self._dialogue.say(f"  {place}")
        if scene.places:
            picture = _draw(self._config, scene, trial)
            self._dialogue.say(f"  {picture}")
        answer = self._dialogue.ask("set the scene, then Enter (Enter again ends the run early); q to stop: ")
        if answer.lower() in ("q", "quit"):
            raise _Quit

    def _choose(self, question: str) -> str:
        while True:
            answer = self._dialogue.ask(question).lower()
            word = _OUTCOMES.get(answer, answer)
            if word in _OUTCOMES.values():
                return word
            self._dialogue.say(f"found {answer!r}, expected one of {', '.join(_OUTCOMES)}")

    def _progress(self) -> float:
        while True:
            answer = self._dialogue.ask("how much of it was done, 0 to 100 %, Enter for 0: ")
            try:
                share = float(answer or 0.0) / 100.0
            except ValueError:
                share = -1.0
            if 0.0 <= share <= 1.0:
                return share
            self._dialogue.say(f"found {answer!r}, expected a number from 0 to 100")

    def _run(self, contender: RobotContender, sentence: str, session: SessionConfig) -> RunReport:
        """A run as of `roboalign run`; of two policies nothing is said that tells them apart."""
        self._dialogue.is_done()  # an Enter of before does not end this run
        return run_beside(
            self._robot,
            contender.recipe,
            sentence,
            self._dialogue,
            config=session,
            is_asked=True,
            until=self._dialogue.is_done,
            say=(lambda line: None) if self._is_blind else None,
        )


def _draw(config: TrialConfig, scene: TrialScene, trial: int) -> Path | str:
    """Draws the scene as the simulated camera sees it; returns the file, or why there is none."""
    path = config.out / "scenes" / f"{trial:03d}.png"
    if path.exists():
        return path
    try:
        import PIL  # noqa: F401 - writes the picture
        import pybullet  # noqa: F401 - draws it
    except ImportError as err:
        return f"no picture: {err.name} is not installed (pip install 'roboalign[sim]')"
    from roboalign.sdk.data.arrow import encode_png
    from roboalign.sdk.sim.camera import front_camera
    from roboalign.sdk.sim.robots import find_robot
    from roboalign.sdk.sim.tasks import scene_for
    from roboalign.sdk.sim.world import SimWorld

    model = find_robot(config.arm)
    world = SimWorld(robot=model, camera=front_camera(256, model.table))
    try:
        world.connect()
        world.build(scene_for(scene.seed, scene.task, "train", config.arm))
        picture = encode_png(world.render())
    finally:
        world.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(picture)
    partial.replace(path)
    return path
