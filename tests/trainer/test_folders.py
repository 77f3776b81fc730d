"""Kills at every file operation: what is found afterwards is the old folder or the new one, and always a whole one."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from roboalign.trainer.folders import move_into_place, partial_dir, recover, remove_folder, temporary_dir

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")


def write(output: Path, text: str) -> None:
    temporary = temporary_dir(output)
    for name in ("one", "two"):
        (temporary / name).write_text(text)
    move_into_place(temporary, output)


def content(folder: Path) -> list[str]:
    return [file.read_text() for file in sorted(folder.iterdir())]


def killed_at(operation: int, action: Callable[[], None]) -> bool:
    """Runs `action` in a process that is killed before its n-th change of the disk; false when it ended before that."""
    child = os.fork()
    if child == 0:
        left = operation

        def count(event: str, args: tuple) -> None:
            nonlocal left
            if event in CHANGES or (event == "open" and "w" in str(args[1])):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        action()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_kill_at_any_moment_of_a_replacement_leaves_one_of_the_two(tmp_path) -> None:
    """A kill between two renames once left no state at all: the run would have started from its first step."""
    folder, operation, seen = tmp_path / "state", 0, set()
    write(folder, "old")
    while killed_at(operation, lambda: write(folder, "new")):
        recover(folder)
        found = content(folder)
        assert found in (["old"] * 2, ["new"] * 2), operation
        seen.add(found[0])
        assert [path.name for path in tmp_path.iterdir()] == ["state"]
        write(folder, "old")
        operation += 1
    assert content(folder) == ["new"] * 2
    assert (operation >= 7, seen) == (True, {"old", "new"})


def test_a_kill_at_any_moment_of_a_removal_leaves_all_or_nothing(tmp_path) -> None:
    """A half-removed run folder was once taken for a damaged state, and the finished stage could not be repeated."""
    folder, operation = tmp_path / "sft.partial", 0
    write(folder, "x")
    while killed_at(operation, lambda: remove_folder(folder)):
        recover(folder)
        assert not folder.exists() or content(folder) == ["x"] * 2, operation
        write(folder, "x")
        operation += 1
    assert not folder.exists()
    assert operation >= 3


def test_only_leftovers_of_this_name_are_removed(tmp_path) -> None:
    others = [tmp_path / name for name in (".sft.12.tmp.d", ".xsft.12.tmp", ".sft-2.12.tmp", "sft.12.old", ".sft.old")]
    for folder in (*others, tmp_path / ".sft.12.tmp"):
        folder.mkdir()
    recover(tmp_path / "sft")
    assert sorted(tmp_path.iterdir()) == sorted(others)


@pytest.mark.parametrize("name", ["sft", "a.b"])
def test_a_stage_works_beside_its_result(name) -> None:
    assert partial_dir(Path("runs") / name) == Path("runs") / f"{name}.partial"
