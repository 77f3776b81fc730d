"""The suites by name, and tasks that other packages add."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.sim.tasks import find_task, task_names
from roboalign.sdk.suites import Suite, find_suite, gym_id, suite_names, suite_tasks

ROOT = Path(__file__).resolve().parents[3]
TEN = ("spatial", "object", "goal", "long", "chain")


@pytest.mark.parametrize("name", TEN)
def test_a_suite_has_ten_tasks_of_its_own_and_fifty_states_each(name: str) -> None:
    suite = find_suite(name)
    assert len(suite.tasks) == 10
    assert all(task.startswith(f"{name}/") for task in suite.tasks)
    assert (suite.num_states, suite.robot, suite.kind) == (50, "panda", "sim")


def test_every_task_of_every_simulator_suite_is_known() -> None:
    for suite in map(find_suite, suite_names()):
        if suite.kind == "sim":
            for task in suite.tasks:
                assert suite.robot in find_task(task).robots
                assert set(suite.splits) <= set(find_task(task).splits)
    assert {task.name for task in suite_tasks()} <= set(task_names())


def test_the_so101_has_the_families_place_and_push() -> None:
    assert find_suite("so101").tasks == ("place", "push")
    assert find_suite("so101").robot == "so101"


def test_the_outside_benchmark_is_listed_without_being_installed() -> None:
    suite = find_suite("libero_object")
    assert (suite.kind, len(suite.tasks), suite.num_states) == ("libero", 10, 50)
    assert "swap" in suite.splits
    assert find_suite("libero_spatial_lan").splits == ("train",)


def test_an_unknown_suite_lists_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown suite 'spatail'; did you mean spatial"):
        find_suite("spatail")
    with pytest.raises(ConfigError, match="choose one of spatial, object, goal"):
        find_suite("xyz")


def test_a_suite_refuses_what_it_cannot_be() -> None:
    with pytest.raises(ConfigError, match="names a task twice"):
        Suite(name="two", tasks=("place", "place"), splits=("train",))
    with pytest.raises(ConfigError, match="choose one of sim, libero"):
        Suite(name="real", tasks=("place",), splits=("train",), kind="real")


def test_gym_ids_are_unique() -> None:
    ids = [gym_id(name, robot) for name in task_names() for robot in find_task(name).robots]
    assert len(set(ids)) == len(ids)
    assert "roboalign/SpatialLeftOfBowl-Panda-v0" in ids
    assert "roboalign/Place-SO101-v0" in ids


def run_python(code: str, *folders: Path) -> str:
    path = os.pathsep.join(map(str, (*folders, ROOT / "src")))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_listing_the_suites_loads_no_simulator() -> None:
    code = (
        "import json, sys\nfrom roboalign.sdk.suites import suite_names, suite_tasks, frozen_scene\n"
        "suite_names(), suite_tasks()\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    assert not {"pybullet", "gymnasium", "pyarrow", "PIL", "torch", "mujoco"} & set(json.loads(run_python(code)))


def install(folder: Path, entry: str) -> None:
    """Installs the example as a package of another author would be: a module and a dist-info folder."""
    source = ROOT / "examples" / "add_a_task.py"
    (folder / "their_task.py").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    info = folder / "their_task-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-task\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[roboalign.tasks]\n{entry}\n", encoding="utf-8")


@pytest.mark.parametrize("entry", ["hover = their_task:TASK", "hover = their_task:Hover"])
def test_an_installed_package_adds_a_task(tmp_path: Path, entry: str) -> None:
    pytest.importorskip("pybullet")
    install(tmp_path, entry)
    code = (
        "import gymnasium, roboalign.sdk.sim\nfrom roboalign.sdk.sim import SimEnv\n"
        "env = SimEnv('hover'); env.reset(seed=0); print(env.instruction)\n"
        "print('roboalign/Hover-Panda-v0' in gymnasium.registry)"
    )
    assert run_python(code, tmp_path).splitlines()[-2:] == ["hold the red cylinder over the blue block", "True"]


@pytest.mark.parametrize("place", ["their_task:argparse", "their_task:nothing", "no_such_module:TASK"])
def test_an_entry_point_that_gives_no_task_is_named(tmp_path: Path, place: str) -> None:
    install(tmp_path, f"hover = {place}")
    code = (
        "from roboalign.sdk.sim.tasks import find_task\n"
        "try:\n    find_task('hover')\nexcept Exception as err:\n    print(type(err).__name__, err)"
    )
    said = run_python(code, tmp_path)
    assert "also, entry point 'hover' of roboalign.tasks" in said
