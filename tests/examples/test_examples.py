"""Every example runs as a newcomer would type it, with a tiny random bundle, and prints what it promises."""

import ast
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
FEWER_LINES_THAN = 80
WIDTH = 80

POLICY_EXAMPLES = [path for path in EXAMPLES if path.stem not in ("add_a_task", "one_program", "steer_and_record")]
"""Those that act with a bundle."""

each_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
each_policy_example = pytest.mark.parametrize("path", POLICY_EXAMPLES, ids=lambda path: path.stem)


def run_example(name: str, *options: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def said(name: str, *options: str | Path, cwd: Path) -> list[str]:
    done = run_example(name, *options, cwd=cwd)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert not [line for line in lines if len(line) > WIDTH]
    return lines


def public_imports(path: Path) -> list[tuple[str, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [(node.module or "", alias.name) for node in found for alias in node.names]


def test_all_examples_are_there():
    names = [
        "add_a_task",
        "ask_for_the_thought",
        "load_and_act",
        "one_program",
        "record_and_replay",
        "steer_and_record",
    ]
    assert [path.stem for path in EXAMPLES] == names


@each_example
def test_an_example_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < FEWER_LINES_THAN


@each_example
def test_an_example_imports_only_public_names(path):
    ours = [(module, name) for module, name in public_imports(path) if module.startswith("roboalign.")]
    assert ours
    hidden = [f"{module}.{name}" for module, name in ours if name not in import_module(module).__all__]
    assert not hidden


@each_example
def test_an_example_uses_no_private_attribute(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr.startswith("_")]


@each_policy_example
def test_an_example_has_help(path, tmp_path):
    text = " ".join(said(path.stem, "--help", cwd=tmp_path))
    assert all(option in text for option in ("--bundle", "--seed", "--task"))


@each_policy_example
def test_a_missing_bundle_is_one_line_without_a_traceback(path, tmp_path):
    done = run_example(path.stem, "--bundle", tmp_path / "nowhere", cwd=tmp_path)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("error: no bundle at ")]
    assert "Traceback" not in done.stderr


def test_load_and_act_moves_the_arm_and_says_how_it_ended(bundle, tmp_path):
    lines = said("load_and_act", "--bundle", bundle, cwd=tmp_path)
    assert lines[0] == 'The robot is told: "put the red block in the blue bowl".'
    assert "red block" in lines[1]
    assert "blue bowl" in lines[1]
    assert lines[2] == "The policy answers 8 actions at a time, for 10 Hz."
    steps = [int(match[1]) for line in lines if (match := re.match(r" +step +(\d+): flow acted, ", line))]
    assert steps == [8, 16, 24, 32, 40, 48, 56, 60]
    assert lines[-1] in ("Success: the task is done.", "No success this time.")


def test_load_and_act_follows_another_task(bundle, tmp_path):
    lines = said(
        "load_and_act", "--bundle", bundle, "--task", "push the green cylinder to the left", "--seed", "1", cwd=tmp_path
    )
    assert "push the green cylinder to the left" in lines[0]
    assert "green cylinder" in lines[1]


def test_a_task_that_is_not_understood_is_explained(bundle, tmp_path):
    done = run_example("load_and_act", "--bundle", bundle, "--task", "make coffee", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: the task 'make coffee' is not understood; ask like " in done.stderr


def test_ask_for_the_thought_shows_three_ways_to_answer(bundle, tmp_path):
    lines = said("ask_for_the_thought", "--bundle", bundle, "--chunks", "2", cwd=tmp_path)
    starts = [index for index, line in enumerate(lines) if line.startswith("Policy.load(")]
    parts = [lines[start:end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
    thinking, quick, tokens = parts
    assert thinking[0] == 'Policy.load(think=True, actions="flow")'
    assert len(answers("flow", thinking)) == 2
    assert all("reading" in line and "thinking" in line and "in all" in line for line in answers("flow", thinking))
    assert not [line for line in thinking if "(no thought)" in line]
    assert len(answers("flow", quick)) == 2
    assert len([line for line in quick if line.endswith("s  (no thought)")]) == 2
    assert not [line for line in quick if "thinking" in line]
    assert len(answers("fast", tokens)) == 2
    assert tokens[1] == thinking[1], "the same scene and prompt make the same thought, whoever acts"


def answers(source: str, lines: list[str]) -> list[str]:
    return [line for line in lines if re.match(rf" {{9}}{source}: .* in all \d+ ms$", line)]


def test_record_and_replay_reaches_the_same_state(bundle, tmp_path):
    out = tmp_path / "recorded"
    recorded, replayed, verdict = said("record_and_replay", "--bundle", bundle, "--out", out, cwd=tmp_path)
    states = [re.search(r"final state ([0-9a-f]{16})\.\.\.$", line) for line in (recorded, replayed)]
    assert all(states)
    assert states[0][1] == states[1][1]
    assert verdict == "identical  every body and every joint, bit by bit"
    assert recorded.startswith("recorded   60 frames at 10 Hz")
    assert (out / "meta" / "info.json").is_file()


def test_a_replay_of_other_actions_is_found_out(bundle, tmp_path):
    """The verdict is not printed whatever happens: with one action changed on its way back, the hashes differ."""
    source = (ROOT / "examples" / "record_and_replay.py").read_text(encoding="utf-8")
    script = tmp_path / "altered.py"
    script.write_text(source.replace("in episode.actions:", "in 0.9 * episode.actions:"), encoding="utf-8")
    assert script.read_text(encoding="utf-8") != source
    done = run_example(str(script.with_suffix("")), "--bundle", bundle, cwd=tmp_path)
    assert done.returncode == 1
    assert "error: the replay ended in another state" in done.stderr


def test_steer_and_record_draws_circles_and_keeps_them(tmp_path):
    lines = said("steer_and_record", "--out", tmp_path / "circles", "--episodes", "1", cwd=tmp_path)
    assert lines[-1] == "recorded 1 episodes at 10 Hz"
    found = re.match(r"episode 0: 16 frames, (\d\.\d) x (\d\.\d) cm", lines[0])
    assert found
    assert all(2.5 <= float(size) <= 4.5 for size in found.groups())
    assert (tmp_path / "circles" / "meta" / "info.json").is_file()


def test_a_task_of_ones_own_fits_one_short_file_and_is_solved(tmp_path):
    assert len((ROOT / "examples" / "add_a_task.py").read_text(encoding="utf-8").splitlines()) < 60
    lines = said("add_a_task", "--seed", "3", cwd=tmp_path)
    assert lines[0] == 'The robot is told: "hold the red cylinder over the blue block".'
    assert lines[-2].endswith("progress 1.00")
    assert lines[-1] == "Success: the task is done."
