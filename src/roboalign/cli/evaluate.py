"""`roboalign eval`: success of a policy, or of a control, over paired held-out scenes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from roboalign.cli.output import (
    BACKEND_HELP,
    MAX_AGE_HELP,
    POLICY_HELP,
    RECALL_HELP,
    THINKING_HELP,
    parse_names,
    policy_ref,
    print_note,
    print_result,
    print_wrapped,
    thinking_of,
)

if TYPE_CHECKING:
    from roboalign.sdk.evaluation import EvalReport, PolicyRef
    from roboalign.sdk.evaluation.latency import LatencyProfile

__all__ = ["evaluate"]

WIDTH = 80
"""Columns of the table."""


def evaluate(
    policy: Annotated[
        str | None,
        typer.Argument(help=POLICY_HELP, show_default="the shipped bundle"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder of the result; an interrupted evaluation in it goes on.", show_default="runs/eval-..."
        ),
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", help="Suite to evaluate on, e.g. spatial.", show_default="single tasks")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks", help="Tasks, taken in turn, separated by commas.", show_default="all of the suite, or place,push"
        ),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="train, language, object, swap, camera or lighting: what is held out.")
    ] = "train",
    trials: Annotated[
        int | None, typer.Option("--trials", help="Episodes of each task of a suite, at most 50.", show_default="10")
    ] = None,
    episodes: Annotated[
        int | None, typer.Option("--episodes", help="Episodes in all, without a suite.", show_default="60")
    ] = None,
    first_episode: Annotated[
        int, typer.Option("--first-episode", help="Number of the first scene; of a suite, of each task.")
    ] = 0,
    robot: Annotated[
        str | None,
        typer.Option(
            "--robot",
            help="Arm, without a suite: panda or so101; or robot.toml: on a robot, judged by you.",
            show_default="panda",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="On a robot: what to do.", show_default="the scenes and sentences of --tasks"),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="On a robot: a second policy, both in disguise.", show_default="none"),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", help="On a robot: longest run.")] = 30.0,
    yes: Annotated[bool, typer.Option("--yes", help="On a robot: do not ask before it moves.")] = False,
    randomize: Annotated[
        str, typer.Option("--randomize", help="Domain randomisation: off, mild, strong, or a file.")
    ] = "off",
    actions: Annotated[
        str, typer.Option("--actions", help="Who acts: flow (the head) or fast (action tokens).")
    ] = "flow",
    think: Annotated[bool, typer.Option("--think/--no-think", help="Write a thought before each chunk.")] = True,
    thinking: Annotated[
        str | None, typer.Option("--thinking", help=THINKING_HELP, show_default="as --think says")
    ] = None,
    max_thought_age: Annotated[
        float | None, typer.Option("--max-thought-age", help=MAX_AGE_HELP, show_default="2.0")
    ] = None,
    recall_thoughts: Annotated[bool, typer.Option("--recall-thoughts", help=RECALL_HELP)] = False,
    backend: Annotated[str, typer.Option("--backend", help=BACKEND_HELP)] = "auto",
    shuffled: Annotated[
        bool, typer.Option("--shuffled", help="Control: tell the policy the sentence of another task.")
    ] = False,
    blind: Annotated[bool, typer.Option("--blind", help="Control: give the policy black pictures.")] = False,
    shuffled_thoughts: Annotated[
        bool, typer.Option("--shuffled-thoughts", help="Control: give the policy its thoughts about another scene.")
    ] = False,
    thought_age: Annotated[
        int, typer.Option("--thought-age", help="Give the policy its thought of so many calls ago.")
    ] = 0,
    replan_every: Annotated[
        int | None,
        typer.Option("--replan-every", help="Ask again after so many actions.", show_default="the whole chunk"),
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(
            "--latency",
            help="The scene goes on while a model computes: prefill=S,token=S,action=S, or BOARD/MODEL as predicted.",
            show_default="the scene waits",
        ),
    ] = None,
    chunks: Annotated[
        str | None,
        typer.Option(
            "--chunks",
            help="With a latency: wait for a chunk; or ask early, and hold, switch, ensemble, blend or rtc.",
            show_default="wait",
        ),
    ] = None,
    image_size: Annotated[int, typer.Option("--image-size", help="Pictures for the policy, pixels a side.")] = 96,
    workers: Annotated[int, typer.Option("--workers", help="Processes; use 1 when latency matters.")] = 1,
    films: Annotated[
        int, typer.Option("--films", help="Film strips in the report: so many successes, so many failures.")
    ] = 1,
    videos: Annotated[int, typer.Option("--videos", help="Videos to write, of the first episodes.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Measure closed-loop success of any policy on any suite, with intervals.

    Every policy gets the same scenes. The folder holds report.html, report.json and one line for each episode.
    With --robot robot.toml you set scenes and say how it went; the same command goes on.
    """
    from roboalign.sdk.errors import ConfigError
    from roboalign.sdk.evaluation import EvalConfig
    from roboalign.sdk.evaluation import evaluate as run_evaluation

    chosen = thinking_of(thinking, think=think, max_age_s=max_thought_age, recalls=recall_thoughts)
    if robot is not None and robot.endswith(".toml"):
        _require_robot_options(
            {
                "--suite": suite is not None,
                "--trials": trials is not None,
                "--split": split != "train",
                "--randomize": randomize != "off",
                "--latency": latency is not None,
                "--chunks": chunks is not None,
                "--replan-every": replan_every is not None,
                "--workers": workers != 1,
                "--films": films != 1,
                "--image-size": image_size != 96,
                "--videos": videos != 0,
                "a control": shuffled or blind or shuffled_thoughts or thought_age > 0,
            }
        )
        if task is not None and tasks is not None:
            raise ConfigError("--task and --tasks both say what to do; give one of them")
        refs = [
            policy_ref(name, actions=actions, think=think, backend=backend, thinking=chosen)
            for name in _named(policy, against)
        ]
        wanted: dict[str, object] = {"out": out, "sentence": task, "seconds": seconds, "is_sure": yes}
        wanted |= {"tasks": tasks, "episodes": episodes, "first_episode": first_episode}
        _judge_on_robot(Path(robot), refs, wanted, as_json=as_json)
        return
    _require_simulation(
        {"--task": task is not None, "--against": against is not None, "--yes": yes, "--seconds": seconds != 30.0}
    )
    ref = policy_ref(
        policy,
        actions=actions,
        think=think,
        is_shuffled=shuffled,
        is_blind=blind,
        has_shuffled_thoughts=shuffled_thoughts,
        thought_age=thought_age,
        backend=backend,
        thinking=chosen,
        latency=None if latency is None else _profile(latency),
        chunks=chunks,
    )
    unusual = {
        "shuffled": shuffled,
        "blind": blind,
        "no-think": not ref.think,
        "beside": chosen is not None and chosen.mode == "beside",
        f"late-{latency}": latency is not None,
        f"{chunks}": chunks is not None,
        "shuffled-thoughts": shuffled_thoughts,
        f"age{thought_age}": thought_age > 0,
        backend: backend != "auto",
    }
    config = EvalConfig(
        out=out or Path("runs") / f"eval-{_label(policy, suite, split, unusual)}",
        suite=suite,
        tasks=() if tasks is None else parse_names(tasks),
        split=split,
        trials=trials,
        episodes=episodes,
        first_episode=first_episode,
        robot=robot,
        randomization=randomize,
        image_size_px=image_size,
        replan_every=replan_every,
        workers=workers,
        films=films,
        videos=videos,
    )
    report = run_evaluation(config, ref)
    _print_table(report)
    print_result(config.out / "report.html", as_json=as_json, report=report)


def _named(policy: str | None, against: str | None) -> list[str]:
    from roboalign.sdk.errors import ConfigError

    if policy is None:
        raise ConfigError("a robot needs a policy for its own arm: name a bundle, e.g. nano-so101")
    return [policy] if against is None else [policy, against]


def _require_robot_options(given: Mapping[str, bool]) -> None:
    _refuse(given, "only in simulation; leave it out, or give --robot panda or so101")


def _require_simulation(given: Mapping[str, bool]) -> None:
    _refuse(given, "only on a robot; add --robot robot.toml")


def _refuse(given: Mapping[str, bool], why: str) -> None:
    from roboalign.sdk.errors import ConfigError

    found = [name for name, is_given in given.items() if is_given]
    if found:
        raise ConfigError(f"{', '.join(found)}: {why}")


def _judge_on_robot(robot: Path, refs: "Sequence[PolicyRef]", wanted: dict[str, object], *, as_json: bool) -> None:
    """Lets a person judge the policies on a robot, and prints what there is."""
    from roboalign.cli.compare import print_comparison
    from roboalign.drivers.arm.files import read_robot_file
    from roboalign.drivers.arm.loading import load_robot
    from roboalign.drivers.setup.dialogue import Terminal
    from roboalign.drivers.setup.trials import TrialConfig, arm_of, contender_for, evaluate_on_robot

    file = read_robot_file(robot)
    labels = [_label(str(ref.path), None, "train", {}) for ref in refs]
    wanted["out"] = wanted["out"] or Path("runs") / f"eval-{'-'.join(labels)}-{file.label}"
    wanted["tasks"] = parse_names(str(wanted["tasks"])) if wanted["tasks"] else None
    arm = arm_of(file, has_sentence=wanted["sentence"] is not None)
    settings = {name: value for name, value in wanted.items() if value is not None}
    config = TrialConfig(arm=arm, **settings)  # type: ignore[arg-type]  # options of these names and types
    contenders = [contender_for(file, ref) for ref in refs]
    result = evaluate_on_robot(load_robot(robot), contenders, config, Terminal(print_note))
    for report in result.reports:
        _print_table(report)
    if result.comparison is not None:
        print_comparison(result.comparison, config.out / "first", config.out / "second")
    made = config.out / ("compare.html" if len(refs) > 1 else "report.html") if result.reports else config.out
    more = {"reports": result.reports, "comparison": result.comparison, "is_complete": result.is_complete}
    print_result(made, as_json=as_json, num_done=result.num_done, **more)


def _profile(text: str) -> "LatencyProfile":
    from roboalign.export.board_latency import board_latency

    return board_latency(text)


def _label(policy: str | None, suite: str | None, split: str, unusual: Mapping[str, bool]) -> str:
    """Returns a folder name: who, and whatever is not the usual."""
    if policy is None:
        name = "shipped"
    elif "://" in policy:
        name = policy.partition("://")[2]
    else:
        name = Path(policy).name
    parts = [name, suite, split if split != "train" else None]
    parts += [word for word, is_so in unusual.items() if is_so]
    return "-".join(part.replace(":", "-").replace("/", "-").strip("-") for part in parts if part)


def _print_table(report: "EvalReport") -> None:
    from roboalign.sdk.evaluation import caveats

    print_note(_cut(f"{report.policy['name']}; who acted: {report.who_acted}", WIDTH))
    print_note(f"{'task':<33}{'solved':>10}{'success':>9}   {'95 % interval':<15}{'progress':>9}")
    prefix = f"{report.config.get('suite')}/"
    for row in (*report.tasks, report.total):
        solved, rate = f"{row.num_successes}/{row.num_episodes}", f"{100 * row.rate:.1f} %"
        interval = f"{100 * row.interval.low:.1f} to {100 * row.interval.high:.1f}"
        name, progress = _cut(row.task.removeprefix(prefix), 32), f"{100 * row.mean_progress:.0f} %"
        print_note(f"{name:<33}{solved:>10}{rate:>9}   {interval:<15}{progress:>9}".rstrip())
    if report.goals is not None:
        for number, (rate_k, interval_k) in enumerate(zip(report.goals.rates, report.goals.intervals, strict=True), 1):
            interval = f"{100 * interval_k.low:.1f} to {100 * interval_k.high:.1f}"
            what = f"at least {number} goals reached" if number > 1 else "at least 1 goal reached"
            print_note(f"{what:<43}{100 * rate_k:7.1f} %   {interval}")
        length = report.goals.mean_length_interval
        mean = f"{report.goals.mean_length:.2f}"
        print_note(f"{'average length':<43}{mean:>9}   {length.low:.2f} to {length.high:.2f}")
    for line in caveats(report):
        print_wrapped(f"note: {line}")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
