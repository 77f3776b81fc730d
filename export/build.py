"""`roboalign build`: what compiles a portable bundle on the board it is for.

This version does everything up to compiling: it verifies the bundle, finds the board, its JetPack and its TensorRT, and
refuses with the reason. Compiling itself is not implemented yet, and it says so rather than pretend.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from roboalign.export.targets import PORTABLE, JetPack, Target, target_of_board
from roboalign.sdk.board import Board, detect_board
from roboalign.sdk.bundle import Manifest, read_bundle
from roboalign.sdk.errors import BackendError, BundleError

__all__ = ["build", "find_builder"]


def find_builder(root: Path = Path("/")) -> tuple[Board, Target, JetPack | None]:
    """Returns the board that this is, when engines can be built on it.

    Raises:
        BackendError: this is no Jetson, or it has no TensorRT of its JetPack.
        ConfigError: this is a Jetson that is none of the table.
    """
    board = detect_board(root)
    if board is None:
        raise BackendError(
            "engines are built on the Jetson itself, and this machine is none (no such name in the device tree, no "
            "/etc/nv_tegra_release); copy the bundle to the board and type there: roboalign build BUNDLE"
        )
    target, jetpack = target_of_board(board)
    if board.tensorrt is None:
        raise BackendError(
            f"this is {target.title}, and no libnvinfer of JetPack is on it; install it with: sudo apt install tensorrt"
        )
    if jetpack is not None and not jetpack.has_tensorrt(board.tensorrt):
        low, high = jetpack.tensorrt
        raise BackendError(
            f"this board has TensorRT {board.tensorrt}, and JetPack {jetpack.name} is known with {low} to {high}; "
            "install the TensorRT of its JetPack"
        )
    return board, target, jetpack


def build(bundle: Path, *, root: Path = Path("/")) -> NoReturn:
    """Refuses, with the first reason that there is; the last one is that this version cannot compile yet.

    Raises:
        BundleError: the bundle is missing or altered, has nothing to build, or is for another board.
        BackendError: this is no Jetson, it has no TensorRT, or everything is right and compiling is not implemented.
    """
    manifest = read_bundle(bundle).manifest
    if manifest.built:
        raise BundleError(f"bundle {bundle} is for {manifest.target} and runs as it is; there is nothing to build")
    board, target, _ = find_builder(root)
    if manifest.target not in (PORTABLE, target.name):
        raise BundleError(
            f"bundle {bundle} is for {manifest.target}, and this is {target.name}; export it for {target.name}, or "
            f"for any board with --target {PORTABLE}"
        )
    raise BackendError(
        f"this is {target.title} with TensorRT {board.tensorrt}, and the bundle is whole; but building on a board is "
        f"not implemented in this version. Its graphs are plain ONNX: {_by_hand(manifest)} compiles one by hand, which "
        "nobody has tried; until then onnxruntime acts from the bundle"
    )


def _by_hand(manifest: Manifest) -> str:
    name = next(iter(manifest.graphs.values())).file
    return f"'/usr/src/tensorrt/bin/trtexec --onnx={name} --stronglyTyped --saveEngine={Path(name).stem}.engine'"
