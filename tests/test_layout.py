"""The house itself: links, names, what may be imported where, and what the wheel holds."""

import ast
import doctest
import re
import subprocess
import sys
import zipfile
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

from roboalign import sdk

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("sdk", "trainer", "export", "drivers")
HEAVY = {"torch", "tensorrt", "onnxruntime", "pybullet", "serial", "transformers", "pyarrow", "gymnasium", "PIL", "cv2"}
WRAPPERS = {"sdk/sim/env.py": {"gymnasium"}, "sdk/backends/step_kernels.py": {"llvmlite", "numba"}}
"""Modules that subclass or decorate with what they wrap, so that they import it when they are loaded; nothing loads
them unasked."""
LARGEST_MODELS_BYTES = 24 * 2**20


def source_files() -> list[Path]:
    """Every Python file of the rooms and of src/, without following links."""
    package = ROOT / "src" / "roboalign"
    folders = [ROOT / room for room in ROOMS] + [package, package / "cli", package / "reproduce", package / "bench"]
    found = {path for room in folders[:4] for path in room.rglob("*.py")}
    return sorted(found | {path for folder in folders[4:] for path in folder.glob("*.py")})


def run_python(code: str, *, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_a_relative_link_that_resolves(room: str) -> None:
    link = ROOT / "src" / "roboalign" / room
    assert link.is_symlink()
    assert link.readlink() == Path("../..") / room
    assert link.resolve() == ROOT / room


@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_both_names_give_the_same_objects(where: str, tmp_path: Path) -> None:
    code = (
        "import sdk; from roboalign import sdk as true\n"
        "assert sdk.__all__ == true.__all__\n"
        "assert all(getattr(sdk, name) is getattr(true, name) for name in true.__all__)\n"
        "print(sdk.Policy.__module__)"
    )
    assert run_python(code, cwd=ROOT if where == "root" else tmp_path) == "roboalign.sdk.policy"


@pytest.mark.parametrize("where", ["root", "elsewhere"])
def test_the_short_name_has_no_submodules(where: str, tmp_path: Path) -> None:
    """From the repository root the folder sdk/ is found first; `import sdk.types` would then make every class twice."""
    code = (
        "import sdk\n"
        "try:\n"
        "    import sdk.types\n"
        "except ModuleNotFoundError as error:\n"
        "    print('not a package' in str(error))"
    )
    assert run_python(code, cwd=ROOT if where == "root" else tmp_path) == "True"


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="Polciy"):
        getattr(sdk, "Polciy")  # noqa: B009


def test_a_fresh_import_of_the_sdk_is_light_and_quick(tmp_path: Path) -> None:
    code = (
        "import time; start = time.process_time()\n"
        "import roboalign.sdk, sys\n"
        "print(time.process_time() - start, *{name.partition('.')[0] for name in sys.modules})"
    )
    seconds = []
    for _ in range(3):
        taken, *loaded = run_python(code, cwd=tmp_path).split()
        assert not HEAVY.intersection(loaded)
        seconds.append(float(taken))
    assert min(seconds) < 0.5


def test_all_public_names_of_the_sdk_load_nothing_heavy(tmp_path: Path) -> None:
    code = "from roboalign.sdk import *; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    assert not HEAVY.intersection(run_python(code, cwd=tmp_path).split())


def test_public_names_of_the_sdk_are_those_of_their_modules() -> None:
    for name in sdk.__all__:
        value = getattr(sdk, name)
        home = getattr(value, "__module__", "roboalign.sdk.types")
        assert home.startswith("roboalign.sdk.")
        assert name in sys.modules[home].__all__


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_all_lists_exactly_the_public_definitions(path: Path) -> None:
    tree = ast.parse(path.read_text())
    listed = _listed_names(tree)
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    public = {name for name in defined if not name.startswith("_")}
    if path.name == "__main__.py" or (listed is None and not public):
        return
    assert listed is not None, "a module with public names needs __all__"
    assert public <= listed, f"not in __all__: {sorted(public - listed)}"
    unknown = listed - _bound_names(tree)
    assert not unknown, f"in __all__ but not defined: {sorted(unknown)}"


def test_every_package_has_a_docstring() -> None:
    for folder in {path.parent for path in source_files()}:
        init = folder / "__init__.py"
        assert init.is_file(), f"{folder.relative_to(ROOT)} has Python files and no __init__.py"
        assert ast.get_docstring(ast.parse(init.read_text())), f"{init.relative_to(ROOT)} has no docstring"


def test_no_file_uses_characters_outside_ascii() -> None:
    bad = [path for path in source_files() if not path.read_text().isascii()]
    assert not bad


def test_the_sdk_imports_only_numpy_at_module_level() -> None:
    """Wrappers import what they wrap inside functions, or are modules that nothing loads until they are asked for."""
    allowed = {*sys.stdlib_module_names, "numpy", "roboalign"}
    for path in sorted((ROOT / "sdk").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        extra = _module_level_imports(ast.parse(path.read_text())) - allowed
        assert extra == WRAPPERS.get(name, set()), f"{name} imports {sorted(extra)} at module level"


@pytest.mark.parametrize(
    "path",
    [path for path in source_files() if ">>> " in path.read_text()],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_examples_in_docstrings_are_true(path: Path) -> None:
    base = ROOT / "src" if path.is_relative_to(ROOT / "src") else ROOT
    name = ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
    module = import_module(name if name.startswith("roboalign") else f"roboalign.{name}")
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_registered_backends_can_be_found() -> None:
    backends = {entry.name: entry.module for entry in entry_points(group="roboalign.backends")}
    assert set(backends) == {"onnx", "tensorrt", "torch"}
    assert all(find_spec(module) for module in backends.values())


def test_the_wheel_holds_every_file_found_on_disk(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    on_disk = {"sdk.py", "roboalign/py.typed"}
    package = ROOT / "src" / "roboalign"
    for folder in [
        *(ROOT / room for room in ROOMS),
        package,
        package / "cli",
        package / "reproduce",
        package / "bench",
    ]:
        inside = folder.glob("*.py") if folder in (package, package / "cli") else folder.rglob("*")
        base = ROOT / "src" / "roboalign" if folder.is_relative_to(ROOT / "src") else ROOT
        files = (
            path for path in inside if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
        )
        on_disk |= {f"roboalign/{path.relative_to(base)}" for path in files}
    assert names == on_disk


def test_the_wheel_has_two_top_level_names(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"roboalign", "sdk.py"}


def test_building_the_wheel_leaves_nothing_behind(wheel: Path) -> None:
    assert not [name for name in ("build", "dist", "src/roboalign.egg-info") if (ROOT / name).exists()]


def test_shipped_models_stay_small() -> None:
    size = sum(path.stat().st_size for path in (ROOT / "sdk" / "models").rglob("*") if path.is_file())
    assert 0 < size <= LARGEST_MODELS_BYTES


def test_constraints_are_exact_versions_of_releases() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line) for line in lines)
    assert "torch==2.13.0" in lines


def _listed_names(tree: ast.Module) -> set[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return set(ast.literal_eval(node.value)) if isinstance(node.value, ast.List | ast.Tuple) else None
    return None


def _bound_names(tree: ast.Module) -> set[str]:
    """Names bound anywhere at module level, also under `if TYPE_CHECKING`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _module_level_imports(tree: ast.Module) -> set[str]:
    """First parts of what is imported when the module is loaded; not inside functions or `if TYPE_CHECKING`."""
    found: set[str] = set()
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            waiting += node.orelse
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found
