"""The main job: from the shipped base to a policy that acts, measured in closed loop, in one HTML report.

Only public commands run here, each as its own process and each printed as you would type it. The report is written from
the files that they leave behind. An interrupted demo goes on when it is started again: finished steps are skipped, an
unfinished one is given the chance to continue by its own command. A refused `align` (exit code 1) is reported as such,
and the demo goes on with the model of the `sft` stage.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from roboalign import __version__
from roboalign.sdk.errors import CheckFailed, ConfigError
from roboalign.steps import PROGRAM, Step, last_error, outcome_of, stop, terminated_as_interrupt

__all__ = ["RECIPES", "DemoConfig", "plan", "run_demo"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """Budgets of the demo."""

    out: Path
    """Folder of everything the demo makes; an unfinished demo in it goes on."""
    recipe: str = "nano-demo"
    """Recipe of the training stages."""
    demonstrations: int = 600
    """Episodes to record."""
    families: tuple[str, ...] = ("place", "push")
    """Task families that are recorded and evaluated."""
    eval_episodes: int = 60
    """Held-out scenes for every policy."""
    films: int = 2
    """Film strips of successes, and of failures, of each policy."""
    seed: int = 0
    """Seed of recording and training."""
    workers: int = 2
    """Processes that record and evaluate."""
    threads: int = 2
    """CPU threads of training."""

    def __post_init__(self) -> None:
        for name in ("demonstrations", "eval_episodes", "workers", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"DemoConfig.{name} is {getattr(self, name)}, expected at least 1")


RECIPES: Mapping[str, DemoConfig] = {
    "demo": DemoConfig(out=Path("runs/demo")),
    "debug": DemoConfig(
        out=Path("runs/demo-debug"), recipe="nano-debug", demonstrations=8, eval_episodes=4, films=1, threads=1
    ),
}
"""Sizes of the run: `demo` for two cores and a quarter of an hour, `debug` for seconds a stage."""


def plan(config: DemoConfig, *, is_refused: bool = False) -> tuple[Step, ...]:
    """Returns every command of the demo in order; `is_refused` builds the head on the sft model."""
    out = config.out
    data, sft, align, head, bundle = (out / name for name in ("data", "sft", "align", "head", "bundle"))
    families = ",".join(config.families)
    train = (
        "--data",
        str(data),
        "--recipe",
        config.recipe,
        "--seed",
        str(config.seed),
        "--threads",
        str(config.threads),
    )
    record = ["--episodes", str(config.demonstrations), "--tasks", families]
    record += ["--seed", str(config.seed), "--workers", str(config.workers), "--out", str(data)]
    trained = sft if is_refused else align
    steps = [
        Step(name="collect", argv=("collect", *record), output=data),
        Step(name="sft", argv=("train", "sft", *train, "--out", str(sft)), output=sft),
        Step(
            name="align", argv=("train", "align", str(sft), *train, "--out", str(align)), output=align, may_refuse=True
        ),
        Step(name="head", argv=("train", "head", str(trained), *train, "--out", str(head)), output=head),
        Step(name="export", argv=("export", str(head), "--target", "cpu", "--out", str(bundle)), output=bundle),
    ]
    common = ["--episodes", str(config.eval_episodes), "--tasks", families, "--workers", str(config.workers)]
    for name, contender in _CONTENDERS.items():
        who = [str(bundle) if word == "BUNDLE" else word for word in contender.argv]
        films = config.films if contender.role in ("main", "policy") else 0
        folder = out / f"eval-{name}"
        argv = ("eval", *who, *common, "--films", str(films), "--out", str(folder))
        steps.append(Step(name=f"eval-{name}", argv=argv, output=folder / "report.json"))
    return tuple(steps)


@dataclass(frozen=True, slots=True)
class _Contender:
    """Who is evaluated: what the report calls it, its role there, and what `roboalign eval` is told."""

    label: str
    role: str
    argv: tuple[str, ...]


_CONTENDERS = {
    "this-run": _Contender("this run's policy", "main", ("BUNDLE",)),
    "shipped": _Contender("shipped bundle", "policy", ()),
    "random": _Contender("random", "control", ("random",)),
    "shuffled": _Contender("this run's policy, shuffled instruction", "control", ("BUNDLE", "--shuffled")),
    "expert": _Contender("expert (knows the scene)", "reference", ("expert",)),
}
"""By the name of the step; `BUNDLE` stands for the bundle of this run."""


def run_demo(
    *, out: Path, recipe: str = "demo", say: Callable[[str], None] | None = None, program: tuple[str, ...] | None = None
) -> Path:
    """Runs every step that is not done yet and writes `report.html`; returns its path.

    Args:
        out: Folder of everything the demo makes.
        recipe: One of `RECIPES`.
        say: Gets every line for the reader; by default they go to stderr.
        program: What stands for `roboalign`; by default this Python with `-m roboalign`.

    Raises:
        CheckFailed: A command failed; the message names its log.
        ConfigError: The recipe is unknown, or the folder holds a demo with other settings.
        BundleError: The shipped models are not there.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"there is no demo recipe {recipe!r}; choose one of {', '.join(RECIPES)}")
    config = replace(RECIPES[recipe], out=out)
    say = say or partial(print, file=sys.stderr, flush=True)
    if program is None:
        _check_shipped()
    journal = _Journal(config)
    runner = _Runner(journal, say, program or PROGRAM)
    is_refused = False
    for name in [step.name for step in plan(config)]:
        step = next(step for step in plan(config, is_refused=is_refused) if step.name == name)
        outcome = runner.run(step)
        if outcome == "refused":
            is_refused = True
            say("align refused: the demo goes on with the sft model, and the report says so")
    say(f"all commands took {journal.wall_s / 60:.1f} min; writing the report")
    return _write_report(config, journal, is_refused=is_refused)


def _check_shipped() -> None:
    """Looks for the shipped models now: the first command needs one, a command ten minutes later the other."""
    from roboalign.sdk.bundle import shipped_base_path, shipped_bundle_path

    shipped_bundle_path()
    shipped_base_path()


@dataclass(kw_only=True, slots=True)
class _Record:
    """What became of one step."""

    line: str
    wall_s: float = 0.0
    outcome: str = "started"
    reason: str = ""


@dataclass(slots=True)
class _Journal:
    """`demo.json`: the settings, and what became of every step; written after each."""

    config: DemoConfig
    records: dict[str, _Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        try:
            found = json.loads(text)
            self.records = {name: _Record(**row) for name, row in found["steps"].items()}
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as err:
            raise ConfigError(f"{self.path} is damaged; delete {self.config.out} to begin anew") from err
        if found.get("config") != self._config_json():
            raise ConfigError(f"{self.config.out} holds a demo with other settings; give another --out, or delete it")

    @property
    def path(self) -> Path:
        """The file."""
        return self.config.out / "demo.json"

    @property
    def wall_s(self) -> float:
        """Wall time of all steps."""
        return sum(record.wall_s for record in self.records.values())

    def is_done(self, step: Step) -> bool:
        """Whether the step needs no run; raises ConfigError when its result was taken away."""
        record = self.records.get(step.name)
        if record is None or record.line != step.line or record.outcome not in ("done", "refused"):
            return False
        if record.outcome == "done" and not step.output.exists():
            raise ConfigError(f"{step.output} is gone, but later steps used it; delete {self.config.out} to begin anew")
        return True

    def write(self, name: str, record: _Record) -> None:
        """Books what became of a step."""
        self.records[name] = record
        self.config.out.mkdir(parents=True, exist_ok=True)
        steps = {key: asdict(value) for key, value in self.records.items()}
        unfinished = self.path.with_name("demo.json.partial")
        unfinished.write_text(
            json.dumps({"config": self._config_json(), "steps": steps}, indent=1) + "\n", encoding="utf-8"
        )
        unfinished.replace(self.path)

    def _config_json(self) -> object:
        return json.loads(json.dumps({**asdict(self.config), "out": str(self.config.out), "version": __version__}))


@dataclass(slots=True)
class _Runner:
    """Runs steps as processes, keeps their logs, and books their time."""

    journal: _Journal
    say: Callable[[str], None]
    program: tuple[str, ...]

    def run(self, step: Step) -> str:
        """Returns `done` or `refused`; raises CheckFailed when the command failed."""
        record = self.journal.records.get(step.name)
        if self.journal.is_done(step) and record is not None:
            self.say(f"$ {step.line}\n  {record.outcome} before, in {record.wall_s:.0f} s")
            return record.outcome
        self.say(f"$ {step.line}")
        earlier_s = record.wall_s if record is not None and record.line == step.line else 0.0
        record = _Record(line=step.line, wall_s=earlier_s)
        log = self.journal.config.out / "logs" / f"{step.name}.log"
        start_s = time.monotonic()
        try:
            code = self._execute(step, log)
        except KeyboardInterrupt:
            record.outcome = "interrupted"
            raise
        else:
            record.outcome = outcome_of(step, code)
            record.reason = "" if record.outcome == "done" else last_error(log)
        finally:
            record.wall_s += time.monotonic() - start_s
            self.journal.write(step.name, record)
        if record.outcome == "failed":
            raise CheckFailed(
                f"the step {step.name} ended with exit code {code}: {record.reason or 'no message'};"
                f" see {log}, then start the demo again to go on"
            )
        self.say(f"  {record.outcome} in {record.wall_s:.0f} s" + (f": {record.reason}" if record.reason else ""))
        return record.outcome

    def _execute(self, step: Step, log: Path) -> int:
        """Runs the command to its end and returns its exit code; what it prints goes to the reader and to the log."""
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [*self.program, *step.argv]
        with log.open("a", encoding="utf-8") as file, terminated_as_interrupt():
            file.write(f"$ {step.line}\n")
            # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
            assert process.stdout is not None, "the output was asked for"
            try:
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    self.say("  | " + line.rstrip())
                return process.wait()
            except BaseException:
                stop(process)
                raise
            finally:
                process.stdout.close()


def _write_report(config: DemoConfig, journal: _Journal, *, is_refused: bool) -> Path:
    """Writes the page from the files of the finished steps."""
    from roboalign.sdk.evaluation.provenance import checkpoint_facts, machine_facts
    from roboalign.sdk.evaluation.report import CommandRecord, Contender, ReportSources, Stage, write_report

    out = config.out
    records = [(step, journal.records[step.name]) for step in plan(config, is_refused=is_refused)]
    notes: tuple[str, ...] = ()
    if is_refused:
        reason = journal.records["align"].reason.rstrip(".")
        notes = (
            f"The align stage refused to start: {reason}. This run's policy is the sft model with an action head.",
        )
    contenders = tuple(
        Contender(label=who.label, folder=out / f"eval-{name}", role=who.role) for name, who in _CONTENDERS.items()
    )
    stages = tuple(
        Stage(title=f"Stage {name}", metrics=out / name / "metrics.jsonl", facts=checkpoint_facts(out / name))
        for name in ("sft", "align", "head")
        if (out / name / "metrics.jsonl").is_file()
    )
    commands = tuple(CommandRecord(line=step.line, wall_s=r.wall_s, outcome=r.outcome) for step, r in records)
    sources = ReportSources(
        title="roboalign demo: a sentence moves a simulated arm",
        contenders=contenders,
        stages=stages,
        commands=commands,
        notes=notes,
        provenance={
            **machine_facts(),
            "recipe": config.recipe,
            "demonstrations": f"{config.demonstrations} ({', '.join(config.families)}), seed {config.seed}",
            "evaluation": f"{config.eval_episodes} held-out scenes, the same for every policy",
        },
    )
    return write_report(sources, out / "report.html")
