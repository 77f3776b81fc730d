"""`roboalign run`: one sentence, in one simulated scene or on a robot that is named, with the thought printed."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roboalign.cli.output import (
    BACKEND_HELP,
    MAX_AGE_HELP,
    POLICY_HELP,
    RECALL_HELP,
    THINKING_HELP,
    policy_ref,
    print_note,
    print_result,
    require_real_time,
    thinking_of,
)

if TYPE_CHECKING:
    from roboalign.drivers.setup.takeover import TakeoverReport
    from roboalign.sdk.control.session import SessionConfig
    from roboalign.sdk.evaluation import PolicyRef

__all__ = ["run"]


def run(
    policy: Annotated[
        str | None,
        typer.Argument(help=POLICY_HELP, show_default="the shipped bundle"),
    ] = None,
    task: Annotated[str, typer.Option("--task", help="What to do.")] = "put the red block in the blue bowl",
    real_time: Annotated[
        bool, typer.Option("--real-time", help="Simulate in real time, with the processes of a robot; no film.")
    ] = False,
    robot: Annotated[
        Path | None, typer.Option("--robot", help="Robot file; moves a real arm.", show_default="simulation")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Chooses among the unseen scenes that fit the sentence.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Film to write (gif), in simulation.")] = Path("runs/run.gif"),
    seconds: Annotated[
        float, typer.Option("--seconds", help="Of a robot or in real time: longest time to act.")
    ] = 30.0,
    yes: Annotated[bool, typer.Option("--yes", help="With --robot: do not ask before it moves.")] = False,
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
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="Of a robot or in real time: trace to write (jsonl).", show_default="none"),
    ] = None,
    rerun: Annotated[
        Path | None,
        typer.Option("--rerun", help="Of a robot or in real time: recording for rerun (rrd).", show_default="none"),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Of a robot or in real time: report to write (html).", show_default="none"),
    ] = None,
    page: Annotated[
        str | None,
        typer.Option(
            "--page", help="Of a robot or in real time: port of a live page, or host:port.", show_default="none"
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            "--record",
            help="Of a robot or in real time: LeRobotDataset to write, with --takeover.",
            show_default="none",
        ),
    ] = None,
    takeover: Annotated[
        str | None,
        typer.Option("--takeover", help="Who corrects the policy: keyboard, gamepad or leader.", show_default="nobody"),
    ] = None,
    episodes: Annotated[int, typer.Option("--episodes", help="With --record: episodes to have at the end.")] = 1,
    leader: Annotated[
        Path | None, typer.Option("--leader", help="Robot file of the leader arm.", show_default="none")
    ] = None,
    gamepad: Annotated[Path, typer.Option("--gamepad", help="Device of the gamepad.")] = Path("/dev/input/js0"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Act on a sentence; prints each thought. Simulation writes a film; a robot is parked at the end."""
    from roboalign.sdk.errors import ConfigError

    chosen = thinking_of(thinking, think=think, max_age_s=max_thought_age, recalls=recall_thoughts)
    if robot is not None or real_time:
        from roboalign.sdk.control.session import SessionConfig, page_config
        from roboalign.sdk.serving.wire import TOKEN_VARIABLE

        served = None if page is None else page_config(page, os.environ.get(TOKEN_VARIABLE))
        config = SessionConfig(seconds=seconds, trace=trace, rerun=rerun, report=report, page=served)
    if (record is None) != (takeover is None):
        raise ConfigError("--record and --takeover go together: who corrects, and where it is written")
    if takeover is None and (episodes != 1 or leader is not None):
        raise ConfigError("--episodes and --leader are of a recording; add --record DATASET --takeover WHO")
    if record is not None and takeover is not None:
        require_real_time({"--record": record if robot is None and not real_time else None})
        if episodes > 1 and not (trace is None and rerun is None and report is None):
            raise ConfigError("--trace, --rerun and --report are of one run; leave them out, or record one episode")
        hands = {"kind": takeover, "leader": leader, "gamepad": gamepad}
        ref = policy_ref(policy, actions=actions, think=think, backend=backend, thinking=chosen)
        wanted = {"out": record, "task": task, "episodes": episodes}
        made = _record(robot, ref, config, hands, wanted, seed=seed, is_sure=yes)
        print_result(record, as_json=as_json, report=made)
        return
    if robot is not None:
        from roboalign.drivers.setup.dialogue import Terminal
        from roboalign.drivers.setup.run import run_file

        ran = run_file(
            robot,
            policy,
            task,
            Terminal(print_note),
            config=config,
            is_sure=yes,
            actions=actions,
            think=think,
            thinking=chosen,
            backend=backend,
        )
        print_result(f"{ran.ticks} actions, stopped by {ran.stopped_by}", as_json=as_json, report=ran)
        return
    if real_time:
        from roboalign.sdk.control.policy_process import PolicyRecipe
        from roboalign.sdk.control.simulated import run_simulated

        settings: dict[str, object] = {"bundle": policy, "actions": actions, "think": think, "backend": backend}
        if chosen is not None:
            settings["thinking"] = asdict(chosen)
        recipe = PolicyRecipe(settings=settings)
        run_ = run_simulated(task, recipe, config, print_note, seed=seed)
        print_result(f"success: {run_.success}", as_json=as_json, run=run_)
        return
    require_real_time({"--trace": trace, "--rerun": rerun, "--report": report, "--page": page})
    from roboalign.sdk.evaluation import PlayConfig, run_task

    ref = policy_ref(policy, actions=actions, think=think, backend=backend, thinking=chosen)
    result = run_task(PlayConfig(task=task, seed=seed, out=out, policy=ref), say=print_note)
    episode = result.episode
    print_result(
        out,
        as_json=as_json,
        success=episode.success,
        steps=episode.steps,
        scene_seed=result.scene_seed,
        acted=episode.sources,
        thoughts=episode.thoughts,
    )


def _record(
    robot: Path | None,
    policy: "PolicyRef",
    session: "SessionConfig",
    hands: dict[str, Any],
    wanted: dict[str, Any],
    *,
    seed: int,
    is_sure: bool,
) -> "TakeoverReport":
    """Records a policy and a person's corrections, on a robot or in simulation."""
    from dataclasses import replace

    from roboalign.drivers.setup.dialogue import Terminal
    from roboalign.drivers.setup.hands import TAKE_HELP, make_hands
    from roboalign.drivers.setup.pilots import KEY_HELP
    from roboalign.drivers.setup.takeover import record_in_simulation, record_on_robot
    from roboalign.drivers.setup.teleop import RecordConfig
    from roboalign.sdk.control.policy_process import PolicyRecipe

    hands_of = make_hands(**hands)
    config = RecordConfig(**wanted, state=_state_of(policy))
    session = replace(session, policy=policy.name)
    print_note(f"{TAKE_HELP[hands['kind']]}; {KEY_HELP if hands['kind'] == 'keyboard' else 'see docs/hardware.md'}")
    if robot is not None:
        report = record_on_robot(robot, policy, hands_of, config, session, Terminal(print_note), is_sure=is_sure)
    else:
        settings: dict[str, object] = {"bundle": str(policy.path) if policy.kind == "remote" else str(policy.folder)}
        settings |= {"actions": policy.actions, "think": policy.think, "backend": policy.backend}
        if policy.thinking is not None:
            settings["thinking"] = asdict(policy.thinking)
        report = record_in_simulation(PolicyRecipe(settings=settings), hands_of, config, session, print_note, seed=seed)
    print_note(f"{report.human_frames} of {report.frames} frames are the person's")
    if not report.record.is_complete:
        print_note(f"{report.record.kept} episodes are safe; the same command goes on with them")
    return report


def _state_of(policy: "PolicyRef") -> str:
    """Returns what a bundle acts from, so that corrections of it can be learnt by it; of others the usual."""
    from roboalign.sdk.bundle import read_bundle
    from roboalign.sdk.types import STATES

    if policy.kind != "bundle":
        return "measured"
    names = read_bundle(Path(policy.folder)).manifest.policy.state_names
    return next((word for word, known in STATES.items() if known == names), "measured")
