"""What pip installs on a board: the files of versions are whole, resolve to wheels for it, and are enough to act.

The resolution asks the package index for what a board would get; its interpreter's version, its C library and its
processor are named to pip. The environments are made here, with the same versions for this machine's processor.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import tomllib
from onnx import TensorProto, helper
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from tests.boards import write_board
from tests.environments import ACT, LIST_MODULES, CleanEnvironment, find_python

from roboalign.export import all_targets
from roboalign.export.targets import oldest_runtime

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LARGEST_INSTALL_BYTES = 300e6


@dataclass(frozen=True)
class System:
    """What pip sees of a JetPack."""

    python: str
    glibc: int
    """Minor version of the C library: 2.35 of Ubuntu 22.04, 2.39 of 24.04."""

    @property
    def platforms(self) -> list[str]:
        """Wheels that it takes, newest first."""
        return [f"manylinux_2_{minor}_aarch64" for minor in range(self.glibc, 16, -1)] + ["manylinux2014_aarch64"]

    @property
    def markers(self) -> dict[str, str]:
        return {"python_version": self.python, "platform_machine": "aarch64", "platform_system": "Linux"}


SYSTEMS = {"jetpack-6.txt": System("3.10", 35), "jetpack-7.txt": System("3.12", 39)}

# Markers such as platform_machine are evaluated for the machine that pip runs on, whatever --platform says.
PIP_ON_ARM = (
    "import platform, runpy, sys; platform.machine = lambda: 'aarch64'; runpy.run_module('pip', run_name='__main__')"
)


def asked_for(requirements: list[str], markers: dict[str, str]) -> Iterator[Requirement]:
    """What a list of requirements asks for on a system, extras of this project followed."""
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate(markers):
            continue
        if requirement.name == PROJECT["name"]:
            for extra in sorted(requirement.extras):
                yield from asked_for(PROJECT["optional-dependencies"][extra], markers)
        else:
            yield requirement


def constraints_path(name: str) -> Path:
    return next(
        jetpack.constraints_path
        for target in all_targets().values()
        for jetpack in target.jetpacks
        if jetpack.constraints == name
    )


def sections(name: str) -> list[dict[str, Version]]:
    """What a file of versions pins, section by section; a line that is no exact version is an error."""
    text = constraints_path(name).read_text(encoding="utf-8")
    found = []
    for paragraph in text.split("\n\n"):
        lines = [line for line in paragraph.splitlines() if not line.startswith("#")]
        pins = [re.fullmatch(r"([a-z0-9-]+)==([\w.]+)", line) for line in lines]
        assert all(pins), lines
        if lines:
            found.append({pin[1]: Version(pin[2]) for pin in pins if pin})
    return found


def test_every_jetpack_of_the_table_has_its_python_in_a_file_of_versions() -> None:
    jetpacks = {jetpack for target in all_targets().values() for jetpack in target.jetpacks}
    assert {jetpack.constraints for jetpack in jetpacks} == set(SYSTEMS)
    assert all(SYSTEMS[jetpack.constraints].python == jetpack.python for jetpack in jetpacks)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_file_pins_exactly_what_the_runtime_asks_for(name: str) -> None:
    extras = PROJECT["optional-dependencies"]
    wanted = list(asked_for([*PROJECT["dependencies"], *extras["jetson"], *extras["camera"]], SYSTEMS[name].markers))
    direct, others = sections(name)
    assert set(direct) == {canonicalize_name(requirement.name) for requirement in wanted}
    assert not set(direct) & set(others)
    wrong = [str(one) for one in wanted if direct[canonicalize_name(one.name)] not in one.specifier]
    assert wrong == []


@pytest.mark.parametrize("extra", ["jetson", "all"])
def test_tensorrt_is_asked_of_no_package_index(extra: str) -> None:
    wanted = asked_for([*PROJECT["dependencies"], f"roboalign[{extra}]"], SYSTEMS["jetpack-6.txt"].markers)
    assert not [requirement.name for requirement in wanted if requirement.name.startswith("tensorrt")]


def test_the_table_means_the_oldest_onnxruntime_that_may_be_installed() -> None:
    (wanted,) = map(Requirement, PROJECT["optional-dependencies"]["cpu"])
    assert str(wanted) == f"onnxruntime>={oldest_runtime().version}"
    assert (
        min(sections(name)[0]["onnxruntime"] for name in SYSTEMS)
        in Requirement(f"x~={oldest_runtime().version}.0").specifier
    )


def resolve(name: str, wheel: Path, folder: Path) -> dict[str, Version]:
    """What pip would install on a board from wheels alone, this project left out."""
    system = SYSTEMS[name]
    python = find_python(system.python)
    if python is None:
        pytest.skip(f"gate: no working Python {system.python} here; install one, or name it in the environment")
    platforms = [word for platform in system.platforms for word in ("--platform", platform)]
    command = [python, "-c", PIP_ON_ARM, "install", "-q", "--dry-run", "--ignore-installed", "--only-binary=:all:"]
    command += [*platforms, "--target", str(folder / "nothing"), "-c", str(constraints_path(name))]
    command += ["--report", str(folder / "report.json"), f"roboalign[jetson,camera] @ {wheel.as_uri()}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["environment"]["platform_machine"] == "aarch64"
    assert report["environment"]["python_version"] == system.python
    names = {canonicalize_name(one["metadata"]["name"]): one["metadata"]["version"] for one in report["install"]}
    del names["roboalign"]
    return {package: Version(version) for package, version in names.items()}


@pytest.mark.gate
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_board_gets_exactly_the_versions_of_its_file_as_wheels(name: str, wheel: Path, tmp_path: Path) -> None:
    direct, others = sections(name)
    found = resolve(name, wheel, tmp_path)
    assert found == {**direct, **others}
    assert not [package for package in found if re.match("tensorrt|torch|nvidia|cuda", package)]


@pytest.fixture(scope="module", params=SYSTEMS)
def board(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, CleanEnvironment]:
    """The name of a file of versions, and an environment that pip made with it, on this machine's processor."""
    name = str(request.param)
    python = find_python(SYSTEMS[name].python)
    if python is None:
        pytest.skip(f"gate: no working Python {SYSTEMS[name].python} here; install one, or name it in the environment")
    clean = CleanEnvironment(tmp_path_factory.mktemp("board"), python)
    clean.pip("--only-binary=:all:", "-c", str(constraints_path(name)), f"roboalign[jetson] @ {wheel.as_uri()}")
    return name, clean


@pytest.mark.gate
def test_the_shipped_bundle_acts_with_these_versions(board: tuple[str, CleanEnvironment]) -> None:
    assert board[1].python(ACT).split() == ["flow", "False"]


@pytest.mark.gate
def test_an_install_is_small(board: tuple[str, CleanEnvironment]) -> None:
    """pip and setuptools come with Python; everything else in the environment counts, compiled Python included."""
    (packages,) = board[1].folder.glob("venv/lib/python3.*/site-packages")
    own = [path for path in packages.iterdir() if not re.match("pip|setuptools|pkg_resources|_distutils", path.name)]
    files = [file for path in own for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    num_bytes = sum(file.stat().st_size for file in files)
    print(f"{board[0]}: {num_bytes / 1e6:.0f} MB in {len(files)} files")
    assert 100e6 < num_bytes <= LARGEST_INSTALL_BYTES


@pytest.mark.gate
def test_the_sdk_and_the_drivers_import(board: tuple[str, CleanEnvironment]) -> None:
    code = LIST_MODULES + (
        "import numpy\n"
        "from roboalign import sdk\n"
        "assert all(getattr(sdk, name) is not None for name in sdk.__all__)\n"
        "for name in modules('roboalign.sdk') + modules('roboalign.drivers'):\n"
        "    importlib.import_module(name)\n"
        "print('%d.%d' % sys.version_info[:2], numpy.__version__)"
    )
    assert board[1].python(code).split() == [SYSTEMS[board[0]].python, "1.26.4"]


@pytest.mark.gate
def test_a_board_is_found_and_planned_for(board: tuple[str, CleanEnvironment], tmp_path: Path) -> None:
    """No torch, no onnx, and TOML through tomli on Python 3.10."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from roboalign.export import find_place, plan_export, plan_lines, run_size\n"
        "from roboalign.export.build import find_builder\n"
        "from roboalign.sdk.bundle import shipped_bundle_path\n"
        f"root = Path({str(write_board(tmp_path))!r})\n"
        "plan = plan_export(run_size(shipped_bundle_path()), find_place('jetson', root=root), 'fp16')\n"
        "assert ('tomllib' in sys.modules) == (sys.version_info >= (3, 11))\n"
        "print(find_builder(root)[1].name, plan.target, plan.boards[0].jetpack, len(plan_lines(plan)) > 5)"
    )
    assert board[1].python(code).split() == ["agx-orin-64gb", "agx-orin-64gb", "6.2", "True"]


@pytest.mark.gate
def test_the_file_format_that_the_table_allows_is_the_newest_that_loads(
    board: tuple[str, CleanEnvironment], tmp_path: Path
) -> None:
    """On JetPack 6 the next version is refused, which is why the table has the one before it."""
    newest = oldest_runtime().ir
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    for ir in (newest, newest + 1):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=ir)
        onnx.save(model, tmp_path / f"{ir}.onnx")
    code = (
        "import onnxruntime\n"
        "from pathlib import Path\n"
        "onnxruntime.set_default_logger_severity(4)\n"
        "def loads(path):\n"
        "    try:\n"
        "        return bool(onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider']))\n"
        "    except Exception as err:\n"
        "        assert 'IR version' in str(err), err\n"
        "        return False\n"
        f"print(loads({str(tmp_path / f'{newest}.onnx')!r}), loads({str(tmp_path / f'{newest + 1}.onnx')!r}))"
    )
    is_oldest = board[0] == "jetpack-6.txt"
    assert board[1].python(code).split() == ["True", str(not is_oldest)]


@pytest.mark.gate
@pytest.mark.parametrize("backend", ["onnx-cuda", "onnx-tensorrt"])
def test_a_gpu_that_is_not_there_is_an_error(board: tuple[str, CleanEnvironment], backend: str) -> None:
    code = (
        "from roboalign import sdk\n"
        "try:\n"
        f"    sdk.Policy.load(backend={backend!r})\n"
        "except sdk.BackendError as err:\n"
        "    print('was asked for and cannot be used' in str(err))"
    )
    assert board[1].python(code).strip() == "True"
