"""Outcomes read from evaluations and tables, and those that were entered twice."""

import json
import shutil

import pytest
from evaluation_fakes import LineScene, WalkSetup

from roboalign.cli.main import main
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.evaluation.comparison import compare
from roboalign.sdk.evaluation.gap_inputs import evaluations_in, read_policies, read_table
from roboalign.sdk.evaluation.results import read_report
from roboalign.sdk.evaluation.rollouts import EvalConfig, evaluate


def run(out, step_m, **options):
    config = EvalConfig(out=out, **{"tasks": ("place",), "episodes": 12, "films": 0, **options})
    evaluate(config, WalkSetup(step_m), LineScene())
    return out


def on_robot(folder, copy):
    """A copy of an evaluation that says it was measured on a robot."""
    shutil.copytree(folder, copy)
    row = json.loads((copy / "report.json").read_text())
    (copy / "report.json").write_text(json.dumps({**row, "world": "robot"}))
    return copy


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two policies, each with an evaluation in simulation and one that counts as real."""
    root = tmp_path_factory.mktemp("gap")
    steps = {"fast": 0.04, "slow": 0.01}
    sim = {name: [run(root / "sim" / name, step)] for name, step in steps.items()}
    real = {name: [on_robot(sim[name][0], root / "real" / name)] for name in steps}
    return root, sim, real


def test_evaluations_are_read_by_policy(folders):
    _, sim, real = folders
    fast, slow = read_policies(sim=sim, real=real)
    assert (fast.name, fast.sim.world, fast.real.world) == ("fast", "simulation", "robot")
    assert sum(fast.sim.successes) > sum(slow.sim.successes)
    assert fast.sim.layouts == fast.real.layouts
    assert fast.sim.sources == (str(sim["fast"][0]),)


def test_a_folder_of_evaluations_names_them(folders):
    root, sim, _ = folders
    assert evaluations_in(root / "sim") == sim
    with pytest.raises(DataError, match="it is an evaluation itself: name it, NAME=FOLDER"):
        evaluations_in(sim["fast"][0])


def test_evaluations_of_one_policy_are_put_together(folders, tmp_path):
    """As of several arms: other scenes by their randomisation, the same layouts by their seeds."""
    _, sim, real = folders
    more = {name: [run(tmp_path / name, step, randomization="mild")] for name, step in (("fast", 0.04), ("slow", 0.01))}
    fast, _ = read_policies(sim={name: sim[name] + more[name] for name in sim}, real=real)
    assert len(fast.sim.scenes) == len(set(fast.sim.scenes)) == 24
    assert len(set(fast.sim.layouts)) == 12


def test_outcomes_entered_twice_are_refused(folders, tmp_path):
    _, sim, real = folders
    with pytest.raises(ConfigError, match="entered twice"):
        read_policies(sim={**sim, "slow": sim["fast"]}, real=real)
    with pytest.raises(ConfigError, match="entered twice"):
        read_policies(sim=sim, real={**real, "fast": sim["fast"]})
    copy = shutil.copytree(real["fast"][0], tmp_path / "copy")
    with pytest.raises(ConfigError, match="entered twice"):
        read_policies(sim=sim, real={**real, "fast": [*real["fast"], copy]})
    again = run(tmp_path / "again", 0.04)  # a repetition in simulation is no new evidence
    with pytest.raises(ConfigError, match="entered twice"):
        read_policies(sim={**sim, "fast": [*sim["fast"], again]}, real=real)
    longer = run(tmp_path / "longer", 0.04, episodes=13)
    with pytest.raises(ConfigError, match=r"place with seed 1000000000, .* was entered twice"):
        read_policies(sim={**sim, "fast": [*sim["fast"], longer]}, real=real)


def test_a_policy_is_the_same_one_in_both_worlds(folders, tmp_path):
    _, sim, real = folders
    paths = []
    for index, folder in enumerate((sim["fast"][0], real["fast"][0])):
        copy = shutil.copytree(folder, tmp_path / str(index))
        row = json.loads((copy / "report.json").read_text())
        row["policy"]["fingerprint"] = f"print {index}"
        (copy / "report.json").write_text(json.dumps(row))
        paths.append(copy)
    with pytest.raises(ConfigError, match=r"fast: .* are of different policies"):
        read_policies(sim={**sim, "fast": [paths[0]]}, real={**real, "fast": [paths[1]]})


def test_a_policy_without_a_world_is_refused(folders):
    _, sim, real = folders
    with pytest.raises(ConfigError, match="slow has no outcomes of reality"):
        read_policies(sim=sim, real={"fast": real["fast"]})


def test_a_world_that_is_none_is_refused(folders, tmp_path):
    copy = shutil.copytree(folders[1]["fast"][0], tmp_path / "copy")
    row = json.loads((copy / "report.json").read_text())
    (copy / "report.json").write_text(json.dumps({**row, "world": "dream"}))
    with pytest.raises(DataError, match="of the world 'dream'"):
        read_report(copy)


def test_worlds_are_not_compared_scene_by_scene(folders):
    _, sim, real = folders
    with pytest.raises(ConfigError, match="world is 'simulation' in the first and 'robot' in the second"):
        compare(read_report(sim["fast"][0]), read_report(real["fast"][0]))


TABLE = """policy,world,scene,success
a,sim,1,1
a,sim,2,0
a,real,1,success
b,sim,1,0
b,sim,2,0
b,real,1,fail
"""


def test_a_table_is_read(tmp_path):
    path = tmp_path / "outcomes.csv"
    path.write_text(TABLE)
    a, b = read_table(path)
    assert (a.name, a.sim.successes, a.real.successes) == ("a", (True, False), (True,))
    assert (b.real.world, b.real.successes) == ("robot", (False,))
    assert a.real.scenes[0] == a.sim.scenes[0]
    path.write_text(TABLE, encoding="utf-8-sig")  # as a spreadsheet writes it
    assert read_table(path) == (a, b)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TABLE + "a,real,1,0\n", "line 8: a has an outcome for scene 1"),
        (TABLE + "c,sim,1,0\n", "c has no outcomes of reality"),
        (TABLE.replace("success\n", "result\n", 1), "has no column success"),
        (TABLE + "a,hardware,3,0\n", "line 8: world is 'hardware', expected sim or real"),
        (TABLE + "a,real,3,maybe\n", "success is 'maybe'"),
        (TABLE + "a,real,3\n", "line 8 has no success"),
    ],
)
def test_a_table_with_a_fault_is_refused(tmp_path, text, message):
    path = tmp_path / "outcomes.csv"
    path.write_text(text)
    with pytest.raises((ConfigError, DataError), match=message):
        read_table(path)


def test_the_verb_prints_figures_and_writes_a_page(folders, tmp_path, capsys):
    root, sim, _ = folders
    page = tmp_path / "gap.html"
    named = [f"--sim={name}={paths[0]}" for name, paths in sim.items()]
    assert main(["gap", *named, "--real", str(root / "real"), "--out", str(page), "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["path"] == str(page)
    assert found["gap"]["mmrv"]["value"] == 0.0
    assert found["gap"]["policies"][0]["sim"]["rate"] > 0.5
    assert "2 policies are too few" in said.err
    assert "<svg" in page.read_text()


def test_notes_are_wrapped_to_the_terminals_width(folders, capsys, monkeypatch):
    root, _, _ = folders
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["gap", "--sim", str(root / "sim"), "--real", str(root / "real")]) == 0
    lines = capsys.readouterr().err.splitlines()
    notes = lines[next(index for index, line in enumerate(lines) if line.startswith("note: ")) :]
    assert notes[:2] == ["note: 2 policies are too few to believe a correlation; 6 or", "  more are."]
    assert max(map(len, notes)) <= 60


def test_the_verb_refuses_swapped_worlds(folders, capsys):
    root, _, _ = folders
    assert main(["gap", "--sim", str(root / "real"), "--real", str(root / "sim")]) == 2
    assert "simulation and reality are swapped" in capsys.readouterr().err


@pytest.mark.parametrize("args", [[], ["--table", "x.csv", "--sim", "a=b"], ["--sim", "=b", "--real", "a=b"]])
def test_the_verb_refuses_what_is_no_pair(args, capsys):
    assert main(["gap", *args]) == 2
    assert "error: found" in capsys.readouterr().err
