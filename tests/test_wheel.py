"""The built wheel where nothing else of the project is: a clean environment, and the oldest Python it promises."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.boards import write_board

pytestmark = pytest.mark.gate

ROOT = Path(__file__).resolve().parents[1]
ROBOT_PACKAGES = ("numpy", "tokenizers", "safetensors", "pillow", "typer", "rich", "onnxruntime")
"""What runs the shipped bundle: the core and the [cpu] extra, no torch."""

LIST_MODULES = (
    "import importlib, pkgutil, sys\n"
    "def modules(room):\n"
    "    package = importlib.import_module(room)\n"
    "    found = [module.name for module in pkgutil.walk_packages(package.__path__, room + '.')]\n"
    "    wrappers = {'roboalign.sdk.sim.env', 'roboalign.drivers.lerobot_plugin'}  # of gymnasium, and of lerobot\n"
    "    return [room, *(name for name in found if name not in wrappers)]\n"
)


class CleanEnvironment:
    """A new virtual environment, used from a folder that holds nothing of the project."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder = folder
        self._run([python, "-m", "venv", str(folder / "venv")])

    @property
    def bin(self) -> Path:
        return self.folder / "venv" / "bin"

    def pip(self, *args: str) -> None:
        self._run([str(self.bin / "python"), "-m", "pip", "install", "-q", *args])

    def python(self, code: str) -> str:
        return self._run([str(self.bin / "python"), "-c", code])

    def command(self, name: str, *args: str) -> str:
        return self._run([str(self.bin / name), *args])

    def _run(self, command: list[str]) -> str:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout


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
    code = (
        "import sys, numpy as np\n"
        "from roboalign import sdk\n"
        "with sdk.Policy.load() as policy:\n"
        "    size = policy.spec.image_size_px\n"
        "    images = {name: np.full((size, size, 3), 128, np.uint8) for name in policy.spec.camera_names}\n"
        "    state = np.array([0.5, 0.0, 0.2, 0.0, 0.08], np.float32)\n"
        "    chunk = policy.act(sdk.Observation(images=images, state=state, joint_pos_rad=np.zeros(7, np.float32),\n"
        "        instruction='put the red block in the blue bowl', time_s=0.0))\n"
        "print(chunk.source, 'torch' in sys.modules)"
    )
    assert installed.python(code).split() == ["flow", "False"]


@pytest.fixture(scope="module")
def jetpack_6(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> CleanEnvironment:
    """JetPack 6 has Python 3.10, and its libraries want numpy 1.26; what a board has no use for is left out."""
    python = find_python_310()
    if python is None:
        pytest.skip("gate: no working Python 3.10 here; install one, or name it in ROBOALIGN_PYTHON310")
    clean = CleanEnvironment(tmp_path_factory.mktemp("jetpack6"), python)
    clean.pip("numpy==1.26.4", "tomli")
    clean.pip("--no-deps", str(wheel))
    return clean


def test_a_board_is_found_and_planned_for_on_python_310(jetpack_6: CleanEnvironment, tmp_path: Path) -> None:
    """No torch, no onnx, and TOML through tomli."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from roboalign.export import find_place, plan_export, plan_lines, run_size\n"
        "from roboalign.export.build import find_builder\n"
        "from roboalign.sdk.bundle import shipped_bundle_path\n"
        f"root = Path({str(write_board(tmp_path))!r})\n"
        "plan = plan_export(run_size(shipped_bundle_path()), find_place('jetson', root=root), 'fp16')\n"
        "assert 'tomllib' not in sys.modules\n"
        "print(find_builder(root)[1].name, plan.target, plan.boards[0].jetpack, len(plan_lines(plan)) > 5)"
    )
    assert jetpack_6.python(code).split() == ["agx-orin-64gb", "agx-orin-64gb", "6.2", "True"]


def test_the_sdk_imports_on_python_310_with_numpy_126(jetpack_6: CleanEnvironment) -> None:
    code = LIST_MODULES + (
        "import numpy\n"
        "from roboalign import sdk\n"
        "assert all(getattr(sdk, name) is not None for name in sdk.__all__)\n"
        "for name in modules('roboalign.sdk') + modules('roboalign.drivers'):\n"
        "    importlib.import_module(name)\n"
        "print(sys.version_info[:2], numpy.__version__)"
    )
    assert jetpack_6.python(code).strip() == "(3, 10) 1.26.4"


def find_python_310() -> str | None:
    """A Python 3.10 that starts: named in the environment, on PATH, or kept by pyenv (whose PATH entry may refuse)."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [
        os.environ.get("ROBOALIGN_PYTHON310"),
        shutil.which("python3.10"),
        *sorted(str(path) for path in versions.glob("3.10.*/bin/python3.10")),
    ]
    for python in filter(None, candidates):
        done = subprocess.run([python, "--version"], capture_output=True, text=True, timeout=30)
        if done.returncode == 0 and done.stdout.startswith("Python 3.10."):
            return python
    return None
