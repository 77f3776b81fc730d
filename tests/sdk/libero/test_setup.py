"""The set-up, with a stand-in for Python and pip; the real one is checked by hand (it downloads 2 GB)."""

import json
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from roboalign.sdk.errors import BackendError
from roboalign.sdk.libero import setup
from roboalign.sdk.libero.installation import MARKER, benchmark_client, find_installation
from roboalign.sdk.libero.setup import find_python, is_blank, set_up

FAKE = Path(__file__).with_name("fake_benchmark.py")


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def python(tmp_path: Path) -> str:
    """Makes environments whose own python installs nothing and starts the fake benchmark; `$FAKE_*` make it fail."""
    inner = executable(
        tmp_path / "inner",
        f"""case "$*" in
*pip*) echo "Collecting $FAKE_PIP_SAYS"; exit ${{FAKE_PIP_CODE:-0}};;
*--renderer*egl) PYTHONPATH={os.pathsep.join(sys.path)} exec {sys.executable} {FAKE} --renderer egl $FAKE_EGL;;
*) PYTHONPATH={os.pathsep.join(sys.path)} exec {sys.executable} {FAKE} --renderer osmesa $FAKE_OSMESA;;
esac""",
    )
    outer = f"""case "$*" in
*venv,*) echo 3.11;;
*) mkdir -p "$3/bin" && cp {inner} "$3/bin/python";;
esac"""
    return str(executable(tmp_path / "python3.11", outer))


def test_it_installs_checks_and_leaves_a_marker(python: str, tmp_path: Path) -> None:
    said: list[str] = []
    found = set_up(tmp_path / "libero", python=python, say=said.append)
    assert found.renderer == "egl"
    assert json.loads((found.folder / MARKER).read_text())["versions"] == {"mujoco": "0"}
    assert any("about 2 GB" in line for line in said)
    with benchmark_client(find_installation(found.folder)) as client:
        assert client.is_open


def test_a_second_time_it_does_nothing(python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = set_up(tmp_path / "libero", python=python)
    monkeypatch.setenv("FAKE_PIP_CODE", "1")
    assert set_up(tmp_path / "libero", python="/no/such/python") == first


def test_a_renderer_that_draws_nothing_is_passed_over(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_EGL", "blank")
    assert set_up(tmp_path / "libero", python=python).renderer == "osmesa"


def test_without_any_renderer_the_system_packages_are_named(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_EGL", "blank")
    monkeypatch.setenv("FAKE_OSMESA", "die")
    with pytest.raises(BackendError, match=r"egl: the picture .* blank -> apt-get .*libegl1.*osmesa: .*libosmesa6"):
        set_up(tmp_path / "libero", python=python)
    assert not (tmp_path / "libero" / MARKER).exists()


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("ERROR: No matching distribution found", "check the network"),
        ("Temporary failure in name resolution", "check the network"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("error: something else", "see its last lines"),
    ],
)
def test_a_failure_of_pip_is_explained_and_nothing_is_believed(
    said: str, cause: str, python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_PIP_CODE", "1")
    monkeypatch.setenv("FAKE_PIP_SAYS", said)
    with pytest.raises(BackendError, match=cause):
        set_up(tmp_path / "libero", python=python)
    with pytest.raises(BackendError, match="libero setup"):
        find_installation(tmp_path / "libero")


def test_a_full_disk_is_noticed_before_anything_is_made(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "NEEDED_GB", 1e9)
    with pytest.raises(BackendError, match="GB free, LIBERO needs"):
        set_up(tmp_path / "libero", python=python)


def test_a_python_of_another_version_is_refused(tmp_path: Path) -> None:
    old = executable(tmp_path / "python3.8", "echo 3.8")
    with pytest.raises(BackendError, match=r"3\.11 or 3\.10 .*python3\.8 \(3\.8\)"):
        find_python(str(old))


def test_a_python_that_does_not_run_is_refused(tmp_path: Path) -> None:
    broken = executable(tmp_path / "python3.11", "exit 1")
    with pytest.raises(BackendError, match="does not run"):
        find_python(str(broken))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99, "renderer": "egl", "versions": {}}'])
def test_a_marker_that_is_no_marker_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text(text)
    with pytest.raises(BackendError, match=MARKER):
        find_installation(tmp_path)


def test_one_colour_is_blank_and_a_scene_is_not() -> None:
    rng = np.random.default_rng(0)
    assert is_blank(np.full((32, 32, 3), 90, np.uint8))
    assert is_blank(np.zeros((32, 32, 3), np.uint8))
    assert not is_blank(rng.integers(0, 255, (32, 32, 3), np.uint8))
