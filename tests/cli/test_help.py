"""What the help says, word for word at 80 columns, and how soon.

After a change of the help on purpose: `pytest tests/cli/test_help.py --write-golden`, and read the difference.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "help"
COMMANDS = (
    "",
    "collect",
    "data",
    "data check",
    "data distill",
    "data preview",
    "data show",
    "data sources",
    "bench",
    "bench decode",
    "bench draft",
    "bench head",
    "bench prefix",
    "bench rivals",
    "libero",
    "libero setup",
    "libero tasks",
    "libero collect",
    "libero replay",
    "train",
    "train base",
    "train sft",
    "train align",
    "train head",
    "train act",
    "probe",
    "export",
    "build",
    "info",
    "verify",
    "run",
    "replay",
    "eval",
    "compare",
    "gap",
    "serve",
    "tasks",
    "demo",
    "reproduce",
    "check-robot",
    "doctor",
    "setup-motors",
    "calibrate",
    "teleop",
    "record",
    "sim-bus",
    "sysid",
)


PRINT_ALL = """
import contextlib, io, json, sys
from roboalign.cli.main import main
texts = {}
for command in json.loads(sys.argv[1]):
    # rich draws its boxes with + and - where the encoding has nothing better.
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(stream):
        assert main([*command.split(), "--help"]) == 0
    texts[command] = stream.buffer.getvalue().decode("ascii")
json.dump(texts, sys.stdout)
"""


@pytest.fixture(scope="module")
def help_texts() -> dict[str, str]:
    env = {**os.environ, "COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
    args = [sys.executable, "-c", PRINT_ALL, json.dumps(COMMANDS)]
    done = subprocess.run(args, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    texts = json.loads(done.stdout)
    return {command: "".join(line.rstrip() + "\n" for line in text.splitlines()) for command, text in texts.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_reads_as_agreed(command: str, help_texts: dict[str, str], request: pytest.FixtureRequest) -> None:
    path = GOLDEN / f"roboalign{'-' if command else ''}{command.replace(' ', '-')}.txt"
    text = help_texts[command]
    if request.config.getoption("--write-golden"):
        path.write_text(text, encoding="ascii")
    assert text == path.read_text(encoding="ascii")


def test_no_line_of_the_help_is_cut() -> None:
    for path in GOLDEN.glob("*.txt"):
        assert all(len(line) <= 80 for line in path.read_text().splitlines())


def test_help_answers_within_a_second_of_cpu_time() -> None:
    """CPU time, because the wall clock of a busy machine says little about the program."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "roboalign", "--help"], stdout=subprocess.DEVNULL, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1.0


def test_help_loads_no_room() -> None:
    code = (
        "import contextlib, io, sys\nfrom roboalign.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n    assert main(['--help']) == 0\n"
        "print([name for name in sys.modules if name in {'torch', 'numpy', 'pybullet', 'roboalign.sdk'}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
