"""The machines that a bundle can be for, read from `targets.toml`: boards, JetPack releases, what a GPU can compute.

A folder is `built` when its target can run it as it is. Engines are compiled on the Jetson itself, never here: an
engine fits one GPU, one TensorRT and one JetPack. So a bundle for a board is portable, says `built: false`, and names
the command to type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from roboalign.sdk.board import Board
from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.settings_file import read_settings

__all__ = [
    "BUILD_COMMAND",
    "PORTABLE",
    "JetPack",
    "OldestRuntime",
    "Target",
    "all_targets",
    "capability_dtypes",
    "find_jetpack",
    "find_target",
    "oldest_runtime",
    "target_names",
    "target_of_board",
    "version_key",
]

PORTABLE = "jetson"
"""Alias: this board on a Jetson, elsewhere what all boards have in common."""

BUILD_COMMAND = "roboalign build ."
"""What is left to type on a board, in the bundle's folder."""

_MEMORY_SEEN = (0.85, 1.01)
"""Share of the soldered memory that a kernel reports; modules of one name differ by a factor of two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JetPack:
    """One release of NVIDIA's system for Jetson."""

    name: str
    """Version, e.g. `6.2`."""
    l4t: tuple[str, ...]
    """Releases of Jetson Linux that it means, as prefixes; empty when they are not known."""
    tensorrt: tuple[str, str]
    """Oldest and newest TensorRT that it can have."""
    opset: int
    """Newest ai.onnx operator set that the oldest of these reads."""
    python: str
    """Its Python."""
    edge_llm: bool
    """Whether TensorRT Edge-LLM of the version planned for runs on it."""
    constraints: str
    """File of exact versions for pip's `-c`, in `export/constraints`, and in every bundle for it."""

    def has_tensorrt(self, version: str) -> bool:
        """Whether it can have a TensorRT; releases are compared by their first two numbers."""
        low, high = map(version_key, self.tensorrt)
        return low <= version_key(version) <= high

    @property
    def constraints_path(self) -> Path:
        """Where the file of versions lies in this installation."""
        return Path(__file__).with_name("constraints") / self.constraints


@dataclass(frozen=True, kw_only=True, slots=True)
class OldestRuntime:
    """The oldest onnxruntime that has to load a bundle."""

    version: str
    """Its version, as the extra `[cpu]` asks for it."""
    ir: int
    """Newest ONNX IR version that it reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One kind of machine."""

    name: str
    """What `--target` or `--board` takes."""
    title: str
    """In words."""
    dtypes: tuple[str, ...]
    """Types it can compute with; for `cpu`, types that weights can be stored in."""
    capability: str | None = None
    """Compute capability of its GPU; None for `cpu`, and for `host` before it was looked at."""
    memory_gb: float | None = None
    """Memory, shared by CPU and GPU on a board; None when unknown."""
    bandwidth_gb_s: float | None = None
    """Peak of its memory; None when unknown, and then nothing is predicted."""
    jetpacks: tuple[JetPack, ...] = ()
    """Releases that it can have; empty for other machines than boards."""
    device_tree: tuple[str, ...] = ()
    """What its name in the device tree contains."""
    stand_in: str | None = None
    """Compute capability whose compiler runs without the board."""
    opset: int | None = None
    """Newest operator set, for a machine without JetPack; None when not known."""
    decode_efficiency: float | None = None
    """Share of the peak bandwidth that decoding reaches, from published rows."""
    attained_tflops: Mapping[str, float] = field(default_factory=dict)
    """Arithmetic that published prefills reach by weight type, and published vision encoders under `fp16`."""

    @property
    def is_board(self) -> bool:
        """Whether it is a Jetson, on which engines have to be built."""
        return bool(self.jetpacks)


@cache
def _content() -> Mapping[str, object]:
    return read_settings(Path(__file__).with_name("targets.toml"), "target table")


@cache
def _jetpacks() -> Mapping[str, JetPack]:
    found = {}
    for row in cast(list[dict[str, object]], _content()["jetpack"]):
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        found[str(row["name"])] = JetPack(**values)  # type: ignore[arg-type]  # our own file; a test reads it all
    return found


@cache
def oldest_runtime() -> OldestRuntime:
    """Returns the onnxruntime that limits what any bundle may hold: every machine can be asked to act with it."""
    return OldestRuntime(**cast(dict[str, Any], _content()["onnxruntime"]))


def capability_dtypes(capability: str) -> tuple[str, ...]:
    """Returns what a GPU of a compute capability can compute with; unknown is a ConfigError."""
    table = cast(dict[str, dict[str, list[str]]], _content()["capability"])
    if capability not in table:
        raise ConfigError(
            f"nothing is known about GPUs of compute capability {capability}; known are {', '.join(table)}"
        )
    return tuple(table[capability]["dtypes"])


@cache
def all_targets() -> Mapping[str, Target]:
    """Returns every target by its name, in the order of the table."""
    targets = {}
    for name, row in cast(dict[str, dict[str, object]], _content()["target"]).items():
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        names = cast(tuple[str, ...], values.pop("jetpacks", ()))
        if "capability" in values:
            values["dtypes"] = capability_dtypes(str(values["capability"]))
        values.setdefault("dtypes", ())
        jetpacks = tuple(_jetpacks()[jetpack] for jetpack in names)
        targets[name] = Target(name=name, jetpacks=jetpacks, **values)  # type: ignore[arg-type]  # as above
    return targets


def target_names() -> tuple[str, ...]:
    """Returns what `--target` takes: every target, and the alias `jetson`."""
    return (*all_targets(), PORTABLE)


def find_target(name: str) -> Target:
    """Returns a target by its name; an unknown name is a ConfigError."""
    if name not in all_targets():
        raise ConfigError(unknown_name("target", name, target_names()))
    return all_targets()[name]


def find_jetpack(target: Target, name: str) -> JetPack:
    """Returns a JetPack of a board by its version; one that the board cannot have is a ConfigError."""
    for jetpack in target.jetpacks:
        if jetpack.name == name:
            return jetpack
    known = ", ".join(jetpack.name for jetpack in target.jetpacks)
    raise ConfigError(f"{target.title} has no JetPack {name} that this version knows; it knows {known or 'none'}")


def target_of_board(board: Board) -> tuple[Target, JetPack | None]:
    """Returns the target that a detected board is, and its JetPack when its release is known.

    Raises:
        ConfigError: the board, its memory or its release is none of the table.
    """
    seen = [target for target in all_targets().values() if any(name in board.model for name in target.device_tree)]
    fitting = [target for target in seen if _has_memory(target, board.memory_bytes)]
    if len(fitting) != 1:
        size = "unknown memory" if board.memory_bytes is None else f"{board.memory_bytes / 1e9:.1f} GB"
        boards = ", ".join(name for name, target in all_targets().items() if target.is_board)
        raise ConfigError(
            f"this is {board.model or 'a Jetson of unknown name'!r} with {size}, which is none of the boards in the "
            f"table; name the nearest one with --board: {boards}"
        )
    return fitting[0], None if board.l4t is None else _jetpack_of_release(fitting[0], board.l4t)


def _has_memory(target: Target, found_bytes: int | None) -> bool:
    if found_bytes is None or target.memory_gb is None:
        return False
    # Modules are sold by binary gigabytes, and the kernel keeps some for itself.
    low, high = (share * target.memory_gb * 2**30 for share in _MEMORY_SEEN)
    return low <= found_bytes <= high


def _jetpack_of_release(target: Target, l4t: str) -> JetPack:
    for jetpack in target.jetpacks:
        if any(l4t == prefix or l4t.startswith(f"{prefix}.") for prefix in jetpack.l4t):
            return jetpack
    known = ", ".join(f"{j.name} (L4T {' or '.join(j.l4t)})" for j in target.jetpacks if j.l4t)
    raise ConfigError(f"this board has Jetson Linux {l4t}; {target.title} is known with JetPack {known}")


def version_key(version: str) -> tuple[int, ...]:
    """Returns the first two numbers of a version, to compare releases by; anything else is a ConfigError."""
    try:
        return tuple(int(part) for part in version.split(".")[:2])
    except ValueError as err:
        raise ConfigError(f"{version!r} is no version, expected numbers such as 10.3") from err
