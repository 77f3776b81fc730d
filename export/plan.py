"""The plan of an export: which machine is meant, every board that it can be, and why it would be refused.

`jetson` means this board on a Jetson; elsewhere, unless a board is named, one portable bundle of what all boards have
in common, with a row for every board and JetPack. Nothing here asks a question or loads a model.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from roboalign.export.planner import (
    CODES_OPSET,
    OPSET_OF,
    PRECISIONS,
    WRITTEN_CODES,
    WRITTEN_PRECISIONS,
    WRITTEN_PRODUCTS,
    BoardPlan,
    plan_board,
)
from roboalign.export.shapes import ModelSize
from roboalign.export.targets import (
    BUILD_COMMAND,
    PORTABLE,
    JetPack,
    Target,
    all_targets,
    capability_dtypes,
    find_jetpack,
    find_target,
    target_of_board,
    version_key,
)
from roboalign.sdk.board import Board, detect_board
from roboalign.sdk.errors import ConfigError

__all__ = ["PORTABLE_OPSET", "ExportPlan", "Place", "coded_parts", "find_place", "plan_export", "written_precisions"]

PORTABLE_OPSET = 20
"""Operator set that every JetPack of the table reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The machine or machines that an export is for."""

    name: str
    """A target's name, or `jetson` for all boards."""
    options: tuple[tuple[Target, JetPack | None], ...]
    """What it can turn out to be."""
    is_here: bool
    """Whether it is the board that this runs on."""
    tensorrt: str | None
    """TensorRT that was asked for, or found on this board."""
    note: str
    """How it was settled, when that was not said."""

    @property
    def is_portable(self) -> bool:
        """Whether it is all boards at once."""
        return self.name == PORTABLE

    @property
    def is_board(self) -> bool:
        """Whether engines have to be built on it."""
        return self.options[0][0].is_board


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportPlan:
    """What an export would make, for whom, and why not."""

    model: str
    """The model."""
    target: str
    """Machine, or `jetson` for a portable bundle."""
    precision: str
    """Type of the decoder's weights."""
    opset: int
    """Operator set of the graphs."""
    boards: tuple[BoardPlan, ...]
    """One for each machine that it can turn out to be."""
    refusals: tuple[str, ...]
    """Why it is refused; empty when it is not."""
    notes: tuple[str, ...]
    """What is planned and not written by this version, and what was assumed."""
    built: bool
    """Whether the bundle can run on its target as it is."""
    next_command: str
    """What is left to type on the target; empty when nothing is."""

    @property
    def arithmetic(self) -> str:
        """What graphs compute in: float16 where TensorRT runs them, unless fp32 or narrow products are asked for."""
        if self.precision in WRITTEN_PRODUCTS and self.target != "cpu":
            return WRITTEN_PRODUCTS[self.precision]
        return "float32" if self.target == "cpu" or self.precision == "fp32" else "float16"


def find_place(
    target: str,
    *,
    board: str | None = None,
    jetpack: str | None = None,
    tensorrt: str | None = None,
    root: Path = Path("/"),
    query_gpu: Callable[[], str] | None = None,
) -> Place:
    """Returns the machine that is meant.

    Args:
        target: a target's name, or `jetson`.
        board: which Jetson `jetson` means.
        jetpack: its JetPack; None takes this board's, or the newest whose release is known.
        tensorrt: its TensorRT; None takes the JetPack's.
        root: where the files that describe a board are looked for.
        query_gpu: answers `name, compute capability, MiB` of this machine's GPU; None asks nvidia-smi.

    Raises:
        ConfigError: there is no such machine, or it cannot have that JetPack.
    """
    if tensorrt is not None:
        version_key(tensorrt)
    if board is not None and target not in (PORTABLE, board):
        raise ConfigError(f"--board {board} is for --target {PORTABLE}, found --target {target}")
    if target == "host":
        return _place(_host_target(query_gpu or _ask_nvidia_smi), None, tensorrt)
    if target != PORTABLE or board is not None:
        found = find_target(board or target)
        if board is not None and not found.is_board:
            raise ConfigError(f"{board} is no Jetson; choose one of {', '.join(_boards())}")
        return _named(found, jetpack, tensorrt)
    here = detect_board(root)
    if here is not None:
        return _here(here, jetpack, tensorrt)
    options = tuple(
        (one, release) for one in _boards().values() for release in one.jetpacks if jetpack in (None, release.name)
    )
    if not options:
        raise ConfigError(f"no board of the table has JetPack {jetpack}")
    return Place(name=PORTABLE, options=options, is_here=False, tensorrt=tensorrt, note="")


def _boards() -> dict[str, Target]:
    return {name: target for name, target in all_targets().items() if target.is_board}


def _place(
    target: Target, jetpack: JetPack | None, tensorrt: str | None, note: str = "", is_here: bool = False
) -> Place:
    return Place(name=target.name, options=((target, jetpack),), is_here=is_here, tensorrt=tensorrt, note=note)


def _named(target: Target, jetpack: str | None, tensorrt: str | None) -> Place:
    if not target.is_board:
        if jetpack is not None:
            raise ConfigError(f"{target.name} has no JetPack; --jetpack is for {', '.join(_boards())}")
        return _place(target, None, tensorrt)
    if jetpack is not None:
        return _place(target, find_jetpack(target, jetpack), tensorrt)
    newest = [release for release in target.jetpacks if release.l4t][-1]
    return _place(target, newest, tensorrt, f"JetPack {newest.name} is assumed; --jetpack names another")


def _here(board: Board, jetpack: str | None, tensorrt: str | None) -> Place:
    target, found = target_of_board(board)
    release = find_jetpack(target, jetpack) if jetpack is not None else found
    if release is None:
        raise ConfigError(f"this is {target.title}, and /etc/nv_tegra_release does not say its JetPack; give --jetpack")
    note = f"this board: {board.model}, Jetson Linux {board.l4t or 'unknown'}, TensorRT {board.tensorrt or 'not found'}"
    return _place(target, release, tensorrt or board.tensorrt, note, is_here=True)


def _host_target(query_gpu: Callable[[], str]) -> Target:
    answer = query_gpu().splitlines()
    parts = [part.strip() for part in answer[0].split(",")] if answer else []
    if len(parts) != 3:
        raise ConfigError("target host means this machine's NVIDIA GPU, and nvidia-smi shows none; use --target cpu")
    name, capability, mebibytes = parts
    return replace(
        find_target("host"),
        title=name,
        capability=capability,
        dtypes=capability_dtypes(capability),
        memory_gb=round(float(mebibytes) * 2**20 / 1e9, 1),
    )


def _ask_nvidia_smi() -> str:
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def plan_export(size: ModelSize, place: Place, precision: str) -> ExportPlan:
    """Returns the plan of a model for a place; nothing is loaded or written."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    boards = tuple(
        plan_board(size, target, precision, jetpack=jetpack, tensorrt=place.tensorrt)
        for target, jetpack in place.options
    )
    is_built = place.name == "cpu"
    return ExportPlan(
        model=size.name,
        target=place.name,
        precision=precision,
        opset=PORTABLE_OPSET if place.is_portable else boards[0].opset,
        boards=boards,
        refusals=_portable_refusals(boards, precision) if place.is_portable else _reasons(boards[0]),
        notes=tuple(_notes(size, place, precision)),
        built=is_built,
        next_command=BUILD_COMMAND if place.is_board and size.has_own_graphs else "",
    )


def _portable_refusals(boards: tuple[BoardPlan, ...], precision: str) -> tuple[str, ...]:
    """A portable bundle holds what every board reads; a board with too little memory only loses its own row."""
    without = [
        name for name, target in _boards().items() if WRITTEN_PRODUCTS.get(precision, precision) not in target.dtypes
    ]
    if without:
        return (
            f"{precision} does not run on {', '.join(without)}, so no bundle for all boards can hold it; "
            "name a --board",
        )
    if OPSET_OF.get(precision, PORTABLE_OPSET) > PORTABLE_OPSET:
        return (
            f"{precision} blocks in plain ONNX need opset {OPSET_OF[precision]}, and what all boards read is opset "
            f"{PORTABLE_OPSET}; name a --board with a newer JetPack",
        )
    if all(board.refusals for board in boards):
        return tuple(dict.fromkeys(reason for board in boards for reason in _reasons(board)))
    return ()


def _reasons(board: BoardPlan) -> tuple[str, ...]:
    return tuple(refusal.reason for refusal in board.refusals)


def written_precisions(place: Place) -> tuple[str, ...]:
    """Returns how this version can store weights for a machine."""
    read = [jetpack.opset if jetpack else target.opset for target, jetpack in place.options]
    reads_codes = all(opset is not None and opset >= CODES_OPSET for opset in read)
    dtypes = [target.dtypes for target, _ in place.options]
    products = tuple(
        name for name, kind in WRITTEN_PRODUCTS.items() if place.name != "cpu" and all(kind in one for one in dtypes)
    )
    return (*WRITTEN_PRECISIONS, *(WRITTEN_CODES if reads_codes else ()), *products)


def coded_parts(plan: ExportPlan) -> tuple[str, ...]:
    """Returns which parts of a policy (`vision`, `decoder`, `head`) a plan stores or multiplies as codes."""
    names = {"prefill": "decoder", "step": "decoder"}
    found = {
        names.get(part.part, part.part)
        for board in plan.boards
        for part in board.parts
        if part.precision in (*WRITTEN_CODES, *WRITTEN_PRODUCTS) and part.part != "embed"
    }
    return tuple(sorted(found))


def _notes(size: ModelSize, place: Place, precision: str) -> list[str]:
    notes = [place.note] if place.note else []
    if not size.has_own_graphs:
        notes.append(
            "only the plan is made, from published sizes; a run of this family with an action head is exported by "
            "'roboalign export RUN', with graphs and a plan of its own"
            if size.vision
            else "only the plan is made, from published sizes: this version writes no graphs for a model without eyes"
        )
        if any(jetpack is not None and jetpack.edge_llm for _, jetpack in place.options):
            notes.append(
                "for TensorRT Edge-LLM, 'roboalign export RUN --edge-llm-python PYTHON' prepares it; its server gives "
                "no hidden states, so the model acts by action tokens there and the head is left out"
            )
    elif precision not in written_precisions(place):
        written = " or ".join(written_precisions(place))
        notes.append(f"this version writes {written} weights for {place.name}; {precision} is only planned")
    if place.is_board:
        notes.append("this version has built no engine on any board: memory is estimated, speed is predicted")
    if place.name == "host":
        notes.append("this version builds no engine for this machine's GPU either; onnxruntime acts from the bundle")
    return notes
