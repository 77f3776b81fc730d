"""What README.md and docs/ say is so: snippets run and print what is under them, commands, files and fields exist."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from roboalign.cli.main import main
from roboalign.sdk.bundle import Manifest, PolicySpec
from roboalign.sdk.data.layout import dataset_features
from roboalign.trainer.checkpoint import CheckpointMeta

ROOT = Path(__file__).resolve().parents[1]
PAGES = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
MAX_LINE = 120

each_page = pytest.mark.parametrize("page", PAGES)


def blocks(page: str, language: str) -> list[tuple[str, str | None]]:
    """Every block of a language, with the `text` block right under it, which shows what it prints."""
    pattern = rf"```{language}\n(.*?)```\n(?:\n```text\n(.*?)```\n)?"
    return re.findall(pattern, PAGES[page] + "\n", flags=re.DOTALL)


def run_python(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_python_block_moves_the_arm(tmp_path: Path) -> None:
    assert "flow: " in run_python(blocks("README.md", "python")[0][0], tmp_path)


@pytest.mark.parametrize(
    ("page", "number"),
    [(page, number) for page in PAGES if page != "README.md" for number in range(len(blocks(page, "python")))],
)
def test_a_python_block_prints_what_is_under_it(page: str, number: int, tmp_path: Path) -> None:
    code, printed = blocks(page, "python")[number]
    assert printed, "every python block of docs/ is followed by a text block with its output"
    assert run_python(code, tmp_path) == printed


@pytest.mark.parametrize(
    "command",
    sorted(
        {
            name
            for text in PAGES.values()
            for name in re.findall(r"(?:^|`)roboalign ((?:train |data )?[a-z-]+)", text, re.M)
        }
    ),
)
def test_every_command_that_is_named_exists(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0, capsys.readouterr().err


@each_page
def test_every_file_that_is_linked_exists(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", PAGES[page])
    assert links
    assert not [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]


@each_page
def test_every_source_file_that_is_named_exists(page: str) -> None:
    named = re.findall(r"`((?:sdk|drivers|trainer|export|src|examples|tests|docs)/[^`\s<]*)`", PAGES[page])
    assert not [path for path in named if not (ROOT / path).exists()]


@each_page
def test_a_page_is_ascii(page: str) -> None:
    assert PAGES[page].isascii()


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_a_page_of_docs_is_not_too_wide(page: str) -> None:
    rows = [line for line in PAGES[page].splitlines() if not line.startswith("|")]  # a table's row cannot be broken
    assert not [line for line in rows if len(line) > MAX_LINE]


def test_the_first_screen_has_the_two_commands() -> None:
    first_screen = "\n".join(PAGES["README.md"].splitlines()[:12])
    assert "make demo" in first_screen
    assert "make test" in first_screen


def test_the_page_on_files_names_every_column_and_field() -> None:
    page = PAGES["docs/data-format.md"]
    names = {*dataset_features(image_size_px=96, num_joints=7)}
    names |= {field.name for kind in (CheckpointMeta, Manifest, PolicySpec) for field in fields(kind)}
    assert not sorted(name for name in names if f"`{name}`" not in page)
