"""What the README tells a newcomer to type works as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from roboalign.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_first_python_block_moves_the_arm(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "flow: " in done.stdout


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"(?:^|`)roboalign ((?:train |data )?[a-z-]+)", TEXT, re.M)) - {"demo"})
)
def test_every_command_that_is_named_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0, capsys.readouterr().err


def test_every_file_that_is_linked_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_first_screen_has_the_two_commands() -> None:
    first_screen = "\n".join(TEXT.splitlines()[:12])
    assert "make demo" in first_screen
    assert "make test" in first_screen
