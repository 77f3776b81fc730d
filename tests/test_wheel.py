"""The built wheel where nothing else of the project is: a clean environment."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.environments import ACT, LIST_MODULES, CleanEnvironment

pytestmark = pytest.mark.gate

ROOT = Path(__file__).resolve().parents[1]
ROBOT_PACKAGES = ("numpy", "tokenizers", "safetensors", "pillow", "typer", "rich", "onnxruntime")
"""What runs the shipped bundle: the core and the [cpu] extra, no torch."""


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> CleanEnvironment:
    clean = CleanEnvironment(tmp_path_factory.mktemp("clean"), sys.executable)
    clean.pip("-c", str(ROOT / "constraints.txt"), *ROBOT_PACKAGES)
    clean.pip("--no-deps", str(wheel))
    return clean


def test_torch_is_not_in_the_clean_environment(installed: CleanEnvironment) -> None:
    assert "None" in installed.python("from importlib.util import find_spec; print(find_spec('torch'))")


def test_the_torch_free_rooms_import(installed: CleanEnvironment) -> None:
    code = LIST_MODULES + (
        "from roboalign import sdk\n"
        "assert all(getattr(sdk, name) is not None for name in sdk.__all__)\n"
        "names = [*modules('roboalign.sdk'), *modules('roboalign.drivers'), *modules('roboalign.cli')]\n"
        "for name in names:\n"
        "    importlib.import_module(name)\n"
        "print(len(names))"
    )
    assert int(installed.python(code)) > 20


def test_the_other_rooms_are_found(installed: CleanEnvironment) -> None:
    code = LIST_MODULES + (
        "from importlib.machinery import PathFinder\n"
        "from importlib.util import find_spec\n"
        "names = []\n"
        "for room in ('roboalign.trainer', 'roboalign.export'):\n"
        "    where = list(find_spec(room).submodule_search_locations)\n"
        "    names += [(found.name, where) for found in pkgutil.iter_modules(where)]\n"
        "assert all(PathFinder.find_spec(name, where) for name, where in names)\n"
        "assert not {'torch', 'roboalign.trainer', 'roboalign.export'} & set(sys.modules)\n"
        "print(len(names))"
    )
    assert int(installed.python(code)) > 8


def test_rooms_are_not_top_level_but_the_short_name_is(installed: CleanEnvironment) -> None:
    code = (
        "from importlib.util import find_spec\n"
        "import sdk; from roboalign import sdk as true\n"
        "assert sdk.Policy is true.Policy\n"
        "print([name for name in ('trainer', 'export', 'drivers') if find_spec(name)])"
    )
    assert installed.python(code).strip() == "[]"


def test_the_command_answers(installed: CleanEnvironment) -> None:
    assert installed.command("roboalign", "--version").startswith("roboalign ")
    assert "collect" in installed.command("roboalign", "--help")


def test_a_missing_extra_is_named(installed: CleanEnvironment) -> None:
    code = "from roboalign.cli.main import main; raise SystemExit(main(['train', 'base', '--data', 'x']) != 2)"
    command = [str(installed.bin / "python"), "-c", code]
    done = subprocess.run(command, cwd=installed.folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "pip install 'roboalign[train]'" in done.stderr


def test_the_shipped_bundle_acts_without_torch(installed: CleanEnvironment) -> None:
    assert installed.python(ACT).split() == ["flow", "False"]
