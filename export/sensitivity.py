"""How much each part of a policy loses when its weights are rounded to codes, measured in the robot's actions.

One part at a time is rounded in PyTorch as the bundle would store it, or multiplies as the graphs will, and the policy
answers the same observations as with its full weights, from the same noise. A part that loses more than is accepted is
tried with codes of 8 bits, then stays at 16 bit, and says so. Last, all parts are rounded together as they were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch

from roboalign.export.awq import fold_scales
from roboalign.export.gptq import Moments
from roboalign.export.planner import WRITTEN_PRODUCTS
from roboalign.export.products import ProductScales, computing
from roboalign.export.rounding import (
    QUANTIZED_BITS,
    Calibration,
    Layer,
    QuantizedWeight,
    quantizable,
    round_layers,
)
from roboalign.sdk.errors import CheckFailed
from roboalign.sdk.policy import Policy
from roboalign.sdk.types import FloatArray, Observation
from roboalign.trainer.backend import TorchBackend

__all__ = ["KEPT", "PARTS", "PartLoss", "Rounded", "answers", "modules_of", "narrow_parts", "round_parts"]

PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "vision": ("model", ("model.vision.", "model.visual.")),
    "decoder": ("model", ("model.language_model.",)),
    "head": ("head", ("",)),
}
"""By name: the file that holds the part's weights (without its ending), and how their names begin."""

KEPT = "fp16"
"""Precision of a part that loses too much as codes."""

_FALLBACKS = {"int4": ("int4", "int8"), "int8": ("int8",)}
"""What is tried for a part, in turn."""

_MIN_COVERAGE = 0.9
"""Share of a part's weights whose products have to be narrow: less would be narrow in name only."""

_Answers = tuple[FloatArray, list[tuple[int, ...]]]
_Given = TypeVar("_Given")
_Tried = Callable[[str, str], tuple[Mapping[str, Layer], Mapping[str, _Given]]]
_Applied = Callable[[Mapping[str, Layer], Mapping[str, _Given]], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartLoss:
    """What rounding one part did to the answers."""

    part: str
    """Key of `PARTS`, or `all`."""
    precision: str
    """What it was rounded to; `mixed` where parts differ."""
    num_weights: int
    """Weights that become codes."""
    action_error: float
    """95th percentile of the difference of an action field, as a share of that field's range."""
    same_thoughts: float
    """Share of the observations with the same thought, token for token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounded(Generic[_Given]):
    """Which precision each part got, and its codes."""

    chosen: Mapping[str, str]
    """Precision by part: what was asked for, a milder one, or `fp16`."""
    tried: tuple[PartLoss, ...]
    """What was measured, in turn."""
    together: PartLoss
    """All parts as they were chosen."""
    codes: Mapping[str, Mapping[str, _Given]]
    """By weight file (`model`, `head`), then by weight: what was rounded, its codes or the scales of its products."""


def modules_of(backend: TorchBackend) -> dict[str, torch.nn.Module]:
    """Returns the modules of a policy by weight file."""
    assert backend.head is not None
    return {"model": backend.backbone.model, "head": backend.head}


def round_parts(
    backend: TorchBackend,
    observations: Sequence[Observation],
    precision: str,
    *,
    limit: float,
    calibration: Calibration | None = None,
    parts: Collection[str] = tuple(PARTS),
) -> Rounded[QuantizedWeight]:
    """Chooses how each part's weights are stored; the model is as it was afterwards, but for AWQ, which moves scales.

    Args:
        backend: the policy.
        observations: what losses are measured on.
        precision: `int8` or `int4`, tried first.
        limit: largest accepted `PartLoss.action_error`.
        calibration: of the layers' inputs, for GPTQ and AWQ; None rounds to the nearest code.
        parts: which may become codes; the others stay in 16 bits and are not measured.

    Raises:
        CheckFailed: a part has nothing to round, every part that may be rounded loses too much, or an answer is a hold.
    """
    full = answers(backend, observations)  # before AWQ, so that a wrong fold is a loss
    if calibration is not None and calibration.rounding == "awq":
        calibration = _fold(modules_of(backend), calibration, QUANTIZED_BITS[precision], parts)

    def rounded(part: str, option: str) -> tuple[Mapping[str, Layer], Mapping[str, QuantizedWeight]]:
        layers = _layers_of(backend, part, precision)
        return layers, _round(layers, QUANTIZED_BITS[option], PARTS[part][0], calibration)

    return _choose(backend, (observations, full), (precision, parts, limit), rounded, _decoded)


def narrow_parts(
    backend: TorchBackend,
    observations: Sequence[Observation],
    precision: str,
    *,
    limit: float,
    scales: Mapping[str, ProductScales],
    parts: Collection[str],
) -> Rounded[ProductScales]:
    """Chooses which parts multiply narrow numbers; as `round_parts`, with the scales of the products by weight.

    Raises:
        CheckFailed: as `round_parts`, or scales are missing for a tenth of a part's weights or more.
    """
    kind = WRITTEN_PRODUCTS[precision]

    def narrowed(part: str, option: str) -> tuple[Mapping[str, Layer], Mapping[str, ProductScales]]:
        layers = _layers_of(backend, part, precision)
        found = {name: scales[name] for name in layers if name in scales}
        covered = _num_weights(layers, found) / _num_weights(layers, layers)
        if covered < _MIN_COVERAGE:
            raise CheckFailed(
                f"only {covered:.1%} of the weights of the {part} have scales for {option}, expected at least "
                f"{_MIN_COVERAGE:.0%}; use --precision fp16"
            )
        return layers, found

    return _choose(
        backend,
        (observations, answers(backend, observations)),
        (precision, parts, limit),
        narrowed,
        lambda layers, given: computing(layers, given, kind),
    )


def _layers_of(backend: TorchBackend, part: str, precision: str) -> Mapping[str, Layer]:
    file, prefix = PARTS[part]
    layers = {name: one for name, one in quantizable(modules_of(backend)[file]).items() if name.startswith(prefix)}
    if not layers:
        raise CheckFailed(f"the {part} has no weight that can be stored as {precision}; use --precision fp16")
    return layers


def _choose(
    backend: TorchBackend,
    inputs: tuple[Sequence[Observation], _Answers],
    asked: tuple[str, Collection[str], float],
    try_part: _Tried[_Given],
    applied: _Applied[_Given],
) -> Rounded[_Given]:
    """Tries the parts one by one, then all that were accepted together."""
    observations, full = inputs
    precision, parts, limit = asked
    span = np.asarray(backend.spec.action_high, np.float32) - np.asarray(backend.spec.action_low, np.float32)
    chosen = dict.fromkeys(PARTS, KEPT)
    tried: list[PartLoss] = []
    codes: dict[str, dict[str, _Given]] = {file: {} for file in modules_of(backend)}
    for part in (part for part in PARTS if part in parts):
        for option in _FALLBACKS.get(precision, (precision,)):
            layers, found = try_part(part, option)
            with applied(layers, found):
                num = _num_weights(layers, found)
                loss = _loss((part, option, num), (full, answers(backend, observations)), span)
            tried.append(loss)
            if loss.action_error <= limit:
                chosen[part] = option
                codes[PARTS[part][0]] |= found
                break
    if not any(codes.values()):
        milder = "fp16" if precision != "int4" else "int8 or fp16"
        raise CheckFailed(
            f"every part loses more than {limit:.1%} of the action's range in {precision}; use --precision {milder}"
        )
    modules = modules_of(backend)
    all_layers = {f"{file}:{name}": layer for file in modules for name, layer in quantizable(modules[file]).items()}
    all_codes = {f"{file}:{name}": code for file, found in codes.items() for name, code in found.items()}
    kinds = set(chosen.values())
    with applied(all_layers, all_codes):
        what = ("all", kinds.pop() if len(kinds) == 1 else "mixed", _num_weights(all_layers, all_codes))
        together = _loss(what, (full, answers(backend, observations)), span)
    return Rounded(chosen=chosen, tried=tuple(tried), together=together, codes=codes)


def _num_weights(layers: Mapping[str, Layer], names: Collection[str]) -> int:
    return sum(layers[name].weight.numel() for name in names)


def _fold(
    modules: Mapping[str, torch.nn.Module], calibration: Calibration, bits: int, parts: Collection[str]
) -> Calibration:
    """Scales the inputs of the layers of the parts that may be rounded; returns their moments afterwards."""
    found: dict[str, dict[str, Moments]] = {}
    for file, module in modules.items():
        prefixes = tuple(prefix for part in parts if PARTS[part][0] == file for prefix in PARTS[part][1])
        chosen = {name: sums for name, sums in calibration.moments[file].items() if name.startswith(prefixes)}
        found[file] = {**calibration.moments[file], **fold_scales(module, chosen, bits)}
    return Calibration(moments=found, rounding=calibration.rounding)


def _round(
    layers: Mapping[str, Layer], bits: int, file: str, calibration: Calibration | None
) -> dict[str, QuantizedWeight]:
    if calibration is None:
        return round_layers(layers, bits)
    return round_layers(layers, bits, calibration.moments[file], calibration.rounding)


def answers(backend: TorchBackend, observations: Sequence[Observation]) -> _Answers:
    """Returns the actions float32[N, T, A] and the thoughts' tokens for N observations.

    Raises:
        CheckFailed: an answer is a hold.
    """
    policy = Policy(backend)  # not closed: the backend is the caller's
    chunks = [policy.act(observation) for observation in observations]
    if held := [chunk.reason for chunk in chunks if chunk.source == "hold"]:
        raise CheckFailed(f"sensitivity cannot be measured: {len(held)} answers are holds, first: {held[0]}")
    return np.stack([chunk.actions for chunk in chunks]), [chunk.tokens for chunk in chunks]


def _loss(what: tuple[str, str, int], pair: tuple[_Answers, _Answers], span: FloatArray) -> PartLoss:
    part, precision, num_weights = what
    (actions, thoughts), (rounded, other_thoughts) = pair
    return PartLoss(
        part=part,
        precision=precision,
        num_weights=num_weights,
        action_error=float(np.percentile(np.abs(rounded - actions) / span, 95)),
        same_thoughts=float(np.mean([a == b for a, b in zip(thoughts, other_thoughts, strict=True)])),
    )


@contextmanager
def _decoded(layers: Mapping[str, Layer], codes: Mapping[str, QuantizedWeight]) -> Iterator[None]:
    """Puts what the codes decode to into the layers, for a while."""
    kept = {name: layers[name].weight.detach().clone() for name in codes}
    try:
        with torch.no_grad():
            for name, code in codes.items():
                layers[name].weight.copy_(code.decoded())
        yield
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                layers[name].weight.copy_(weight)
