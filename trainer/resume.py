"""The state from which an interrupted stage continues: weights, optimizer, random generators, step.

It is not part of a checkpoint; it lives in the stage's partial directory and is written as safetensors and JSON, at
once or not at all. Restoring is strict: a tensor that does not fit is an error (transformers' own resume drops it
with a log line: QwenLM/Qwen3-VL#1763).
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from roboalign.sdk.errors import BundleError
from roboalign.trainer.folders import is_main_process, move_into_place, temporary_dir
from roboalign.trainer.parallel import like, whole

__all__ = [
    "TrainingState",
    "load_training_state",
    "optimizer_tensors",
    "read_optimizer",
    "read_random_state",
    "restore_weights",
    "save_training_state",
    "unique_tensors",
    "write_optimizer",
    "write_random_state",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """Where a stage stood when its state was written."""

    step: int
    """Finished updates."""
    extra: Mapping[str, Any]
    """What the stage wanted to remember (JSON values), e.g. CPU seconds so far."""


def save_training_state(
    directory: Path,
    *,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes weights, optimizer, random generators and step to `directory`, replacing the state that was there.

    Sharded tensors are gathered, so that every process must call this; the files do not depend on their number.
    """
    weights, moments = unique_tensors(model), optimizer_tensors(optimizer)
    if not is_main_process():
        return
    directory = Path(directory)
    temporary = temporary_dir(directory)
    save_file(weights, temporary / "weights.safetensors")
    write_optimizer(temporary, optimizer, moments)
    write_random_state(temporary)
    record = {"step": step, "extra": dict(extra or {})}
    (temporary / "state.json").write_text(json.dumps(record), encoding="utf-8")
    move_into_place(temporary, directory)


def load_training_state(
    directory: Path, *, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> TrainingState | None:
    """Restores model, optimizer and random generators in place; None when no state was written.

    Raises:
        BundleError: a tensor of the model is absent from the state, or the other way round, or the files are damaged.
    """
    directory = Path(directory)
    if not (directory / "state.json").is_file():
        return None
    try:
        weights = load_file(directory / "weights.safetensors")
        record = json.loads((directory / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as err:
        raise BundleError(
            f"the training state in {directory} is damaged ({err}); delete the folder to start again"
        ) from err
    restore_weights(model, weights, where=directory)
    read_optimizer(directory, optimizer)
    read_random_state(directory)
    return TrainingState(step=int(record["step"]), extra=record["extra"])


def unique_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns the parameters and persistent buffers by name, tied tensors once (under their first name)."""
    return {name: whole(tensor).contiguous() for name, tensor in _unique(model).items()}


def restore_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], *, where: Path) -> None:
    """Copies `weights` into `model`; every tensor must be there, with its shape."""
    expected = _unique(model)
    if missing := sorted(expected.keys() ^ weights.keys()):
        raise BundleError(
            f"the state in {where} does not fit the model: {len(missing)} tensors differ, first {missing[0]}"
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            if tensor.shape != weights[name].shape:
                raise BundleError(
                    f"tensor {name} in {where} has shape {list(weights[name].shape)}, expected {list(tensor.shape)}"
                )
            tensor.copy_(like(weights[name], tensor))


def _unique(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    seen: set[int] = set()
    tensors = {}
    # The parameters themselves: a sharded tensor has no address of its own.
    for name, tensor in model.state_dict(keep_vars=True).items():
        key = id(tensor) if isinstance(tensor, DTensor) else tensor.data_ptr()
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        tensors[name] = tensor.detach()
    return tensors


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Returns the optimizer's tensors by `<parameter>.<name>`, gathered where they are sharded."""
    return {
        f"{index}.{name}": whole(torch.as_tensor(value)).clone().contiguous()
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def write_optimizer(
    directory: Path, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Writes the optimizer's tensors to `optimizer.safetensors` and its settings to `optimizer.json`."""
    save_file(dict(tensors or optimizer_tensors(optimizer)), directory / "optimizer.safetensors")
    groups = optimizer.state_dict()["param_groups"]
    (directory / "optimizer.json").write_text(json.dumps(groups), encoding="utf-8")


def read_optimizer(directory: Path, optimizer: torch.optim.Optimizer) -> None:
    """Restores what `write_optimizer` wrote."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in sorted(load_file(directory / "optimizer.safetensors").items()):
        index, name = key.split(".", 1)
        entries.setdefault(int(index), {})[name] = like(value, parameters[int(index)])
    groups = json.loads((directory / "optimizer.json").read_text(encoding="utf-8"))
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def write_random_state(directory: Path) -> None:
    """Writes the state of the generators of python, numpy and torch (CPU, and CUDA where it is used)."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - libraries draw from the global one
    record = {
        "python": [version, list(words), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
    }
    (directory / "random.json").write_text(json.dumps(record), encoding="utf-8")
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    save_file(tensors, directory / "random.safetensors")


def read_random_state(directory: Path) -> None:
    """Restores what `write_random_state` wrote."""
    record = json.loads((directory / "random.json").read_text(encoding="utf-8"))
    version, words, gauss = record["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = record["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    tensors = load_file(directory / "random.safetensors")
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"cuda{index}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda{index}"], index)
