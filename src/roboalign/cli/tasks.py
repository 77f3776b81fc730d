"""`roboalign tasks`: which suites, tasks, splits, arms and randomisations there are."""

from typing import Annotated

import typer

from roboalign.cli.output import print_result

__all__ = ["tasks"]


def tasks(
    suite: Annotated[str | None, typer.Argument(help="A suite, to list its tasks.", show_default="all suites")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """List what --suite, --tasks, --split, --robot and --randomize can name."""
    from roboalign.sdk.randomization import PRESETS
    from roboalign.sdk.sim.robots import ROBOTS
    from roboalign.sdk.sim.tasks import task_names
    from roboalign.sdk.suites import find_suite, suite_names

    if suite is not None:
        chosen = find_suite(suite)
        _print_lines(list(chosen.tasks), as_json=as_json, suite=chosen)
        return
    suites = [find_suite(name) for name in suite_names()]
    of_suites = {task for one in suites for task in one.tasks}
    single = [name for name in task_names() if name not in of_suites or "/" not in name]
    width = max(len(one.name) for one in suites)
    lines = [f"{one.name:<{width}}  {len(one.tasks):2} tasks  {', '.join(one.splits)}" for one in suites]
    lines += [f"single tasks: {', '.join(single)}", f"robots: {', '.join(ROBOTS)}", f"presets: {', '.join(PRESETS)}"]
    _print_lines(lines, as_json=as_json, suites=suites, tasks=task_names(), robots=list(ROBOTS), presets=list(PRESETS))


def _print_lines(lines: list[str], *, as_json: bool, **more: object) -> None:
    print_result(lines if as_json else "\n".join(lines), as_json=as_json, **more)
