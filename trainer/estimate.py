"""What a stage will need, said before anything heavy is loaded: memory, disk and time.

Everything is an estimate. Parameters are counted from the headers of the weight files (or, for `base`, from the sizes
of the model); memory follows from their number; time is the CPU time that `nano` took for each sample on one core
(sdk/models/README.md), scaled by the number of parameters. A GPU, other sizes, and pictures of another size change the
time by factors that nobody has measured here.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboalign.trainer.folders import partial_dir

__all__ = ["PARENTS", "Estimate", "count_parameters", "estimate_stage", "free_disk_bytes", "parent_of"]

PARENTS = {"sft": ("base", ("base",)), "align": ("sft", ("sft",)), "head": ("backbone", ("sft", "align"))}
"""For each stage that starts from a checkpoint: the name of the setting that holds it, and the stages it may be of."""

_NANO_PARAMETERS = 2.0e6
_SAMPLE_CPU_S = {"base": 1952 / (2600 * 64), "sft": 3028 / (1200 * 64), "align": 818 / (80 * 24 * 8)}
"""CPU seconds a sample (align: a reply) of the recipe `nano`, measurements and probes included."""
_THOUGHT_CPU_S, _CHUNK_CPU_S = 0.0265, 646 / (3000 * 96)
"""The head's 1382 CPU seconds: 27,782 frames with three kinds of thought each, and 3000 updates of 96 chunks."""
_LIBRARIES_BYTES = 0.5e9
_TOKENS = 120
"""Tokens of a prompt with its picture and reply, of `nano`."""
_FLOATS_A_TOKEN = 34
"""Numbers kept for the gradient, for each token, layer and unit of width; measured ones vary by a factor of two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a stage will need. All numbers are estimates."""

    parameters: int | None
    """Of the model; None when its weights are not on this machine."""
    memory_bytes: Mapping[str, float]
    """By part."""
    disk_bytes: float
    """At the same time, in the folder of the run and beside it."""
    cpu_s: float | None
    """Of one core, for what is left to do; None when the stage has no measured rate."""
    done_share: float
    """Part of the updates that an interrupted run has done already."""


def estimate_stage(stage: str, config: Any, *, num_frames: int = 0, image_size_px: int = 0) -> Estimate:
    """Returns the estimate of a stage.

    Args:
        stage: `base`, `sft`, `align` or `head`.
        config: its configuration.
        num_frames: frames with pictures in the data.
        image_size_px: their size.
    """
    parent = parent_of(stage, config)
    parameters, sizes = _model_of(stage, config, parent)
    frames = min(num_frames, getattr(config, "max_frames", None) or num_frames)
    done = _done_share(config)
    memory = _memory(stage, config, parameters or 0, sizes, frames)
    memory["pictures"] = 2 * 3.0 * frames * image_size_px**2  # the table, and its two parts
    memory["libraries"] = _LIBRARIES_BYTES
    cpu_s = _cpu_s(stage, config, parameters or 0, frames)
    return Estimate(
        parameters=parameters,
        memory_bytes=memory,
        disk_bytes=_disk_bytes(stage, parameters or 0),
        cpu_s=None if cpu_s is None or not parameters else cpu_s * (1 - done),
        done_share=done,
    )


def parent_of(stage: str, config: Any) -> Path | None:
    """Returns the checkpoint that a stage starts from; None for a stage that makes its model."""
    return Path(getattr(config, PARENTS[stage][0])) if stage in PARENTS else None


def count_parameters(folder: Path) -> int | None:
    """Returns the number of parameters in the weight files of a folder, from their headers; None without such files."""
    count = sum(
        math.prod(entry["shape"])
        for file in folder.glob("model*.safetensors")
        for name, entry in _header(file)
        if name != "__metadata__"
    )
    return count or None


def free_disk_bytes(folder: Path) -> int:
    """Returns the free bytes where a folder is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _header(file: Path) -> Iterator[tuple[str, Any]]:
    """Yields the entries of a safetensors header: 8 bytes with its length, then JSON."""
    with file.open("rb") as stream:
        yield from json.loads(stream.read(int.from_bytes(stream.read(8), "little"))).items()


def _model_of(stage: str, config: Any, parent: Path | None) -> tuple[int | None, dict[str, int]]:
    """Returns the number of parameters (None where it is not known) and the sizes of the decoder."""
    if parent is not None:
        return count_parameters(parent), _read_sizes(parent)
    if stage != "base":
        return None, _sizes_of({})
    import torch

    from roboalign.trainer.nano import NanoConfig, NanoForConditionalGeneration

    sizes = NanoConfig(**config.model)
    with torch.device("meta"):
        model = NanoForConditionalGeneration(sizes)
    return sum(parameter.numel() for parameter in model.parameters()), _sizes_of(sizes.to_dict())


def _read_sizes(folder: Path) -> dict[str, int]:
    try:
        return _sizes_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return _sizes_of({})


def _sizes_of(config: Mapping[str, Any]) -> dict[str, int]:
    text = {**config, **(config.get("text_config") or {})}
    return {name: int(text.get(name) or 0) for name in ("hidden_size", "num_hidden_layers", "vocab_size")}


def _memory(stage: str, config: Any, parameters: int, sizes: Mapping[str, int], frames: int) -> dict[str, float]:
    width, layers, vocab = (sizes[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size"))
    memory = {"weights": 4.0 * parameters}
    if stage == "head":
        # The backbone only reads; its hidden states stay in memory as float16.
        memory["cached features"] = 2.0 * frames * _TOKENS * width
        return memory
    memory |= {"gradients": 4.0 * parameters, "optimizer": 8.0 * parameters}
    if stage == "align":
        replies = config.prompts_per_rollout * config.samples_per_prompt
        memory |= {"reference weights": 4.0 * parameters, "keys and values": 8.0 * replies * _TOKENS * layers * width}
        samples = config.micro_batch
    else:
        fit = getattr(config, "fit", config)
        samples = getattr(fit, "micro_batch", None) or fit.batch_size
    memory["activations"] = 4.0 * samples * _TOKENS * (_FLOATS_A_TOKEN * layers * width + vocab)
    return memory


def _disk_bytes(stage: str, parameters: int) -> float:
    """A state and the one that replaces it (12 bytes a parameter), a checkpoint and the one that it replaces."""
    states = {"head": 0.0, "align": 2 * 12.0 + 2 * 4.0}.get(stage, 2 * 12.0)
    return parameters * (states + 2 * 2.0)


def _cpu_s(stage: str, config: Any, parameters: int, frames: int) -> float | None:
    size = parameters / _NANO_PARAMETERS
    if stage == "head":
        return size * frames * _THOUGHT_CPU_S + config.steps * config.batch_size * _CHUNK_CPU_S
    if stage == "align":
        rollouts = config.steps / config.updates_per_rollout
        return size * rollouts * config.prompts_per_rollout * config.samples_per_prompt * _SAMPLE_CPU_S["align"]
    if stage not in _SAMPLE_CPU_S:
        return None
    return size * config.fit.steps * config.fit.batch_size * _SAMPLE_CPU_S[stage]


def _done_share(config: Any) -> float:
    state = partial_dir(Path(config.out)) / "state"
    steps = getattr(config, "fit", config).steps
    for name in ("state.json", "extra.json"):
        try:
            return min(1.0, json.loads((state / name).read_text(encoding="utf-8"))["step"] / steps)
        except (OSError, ValueError, KeyError):
            continue
    return 0.0
