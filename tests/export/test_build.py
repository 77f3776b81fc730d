"""What `roboalign build` says: on a machine that is no board, on a board that lacks something, and on one that lacks
nothing, where it must not pretend to have built anything."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.boards import THOR, write_board

from roboalign.export.build import build, find_builder
from roboalign.sdk.bundle import Manifest, read_bundle, write_manifest
from roboalign.sdk.errors import BackendError, BundleError


@pytest.fixture
def portable(bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle with the manifest of a portable one."""
    return retarget(bundle, tmp_path / "portable", target="jetson")


def retarget(bundle: Path, folder: Path, *, target: str) -> Path:
    folder.mkdir()
    for path in bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest: Manifest = read_bundle(bundle).manifest
    write_manifest(folder, replace(manifest, target=target, built=False, next_command="roboalign build ."))
    return folder


def test_no_board_is_the_reason_on_another_machine(portable: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="built on the Jetson itself, and this machine is none"):
        build(portable, root=tmp_path / "empty")


def test_a_board_without_tensorrt_is_told_what_to_install(portable: Path, tmp_path: Path) -> None:
    root = write_board(tmp_path / "board", tensorrt=None)
    with pytest.raises(BackendError, match="no libnvinfer of JetPack is on it; install it with: sudo apt"):
        build(portable, root=root)


def test_a_tensorrt_that_its_jetpack_does_not_have_is_refused(portable: Path, tmp_path: Path) -> None:
    root = write_board(tmp_path / "board", tensorrt="11.4.1")
    with pytest.raises(BackendError, match=r"TensorRT 11\.4\.1, and JetPack 6\.2 is known with 10\.3 to 10\.3"):
        build(portable, root=root)


def test_a_bundle_for_another_board_is_refused(bundle: Path, tmp_path: Path) -> None:
    folder = retarget(bundle, tmp_path / "thor", target="agx-thor")
    with pytest.raises(BundleError, match="is for agx-thor, and this is agx-orin-64gb"):
        build(folder, root=write_board(tmp_path / "board"))


@pytest.mark.parametrize("target", ["jetson", "agx-orin-64gb"])
def test_where_nothing_is_missing_it_says_that_it_cannot_compile_and_writes_nothing(
    bundle: Path, tmp_path: Path, target: str
) -> None:
    folder = retarget(bundle, tmp_path / "bundle", target=target)
    before = sorted(folder.iterdir())
    with pytest.raises(BackendError, match=r"not implemented in this version.*trtexec --onnx=.*nobody has tried"):
        build(folder, root=write_board(tmp_path / "board"))
    assert sorted(folder.iterdir()) == before


def test_a_bundle_for_a_cpu_needs_no_build(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is for cpu and runs as it is"):
        build(bundle, root=write_board(tmp_path / "board"))


def test_a_damaged_bundle_is_refused_before_the_board_is_looked_at(portable: Path, tmp_path: Path) -> None:
    (portable / "step.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"damaged: step\.onnx"):
        build(portable, root=tmp_path / "empty")


def test_a_board_that_lacks_nothing_is_found(tmp_path: Path) -> None:
    release = "# R38 (release), REVISION: 4.0"
    root = write_board(tmp_path, model=THOR, memory_gib=122.8, release=release, tensorrt="10.13.3")
    board, target, jetpack = find_builder(root)
    assert jetpack is not None
    assert (board.tensorrt, target.name, jetpack.name) == ("10.13.3", "agx-thor", "7.1")
