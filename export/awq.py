"""Scales the inputs of matrices so that rounding hurts those that matter least, without changing the function (AWQ).

Inputs with large activations get larger weights, and so a smaller relative error of rounding; what makes these inputs
is divided by as much (Lin et al. 2023, arXiv 2306.00978, equations 4 and 5: s = size^a, a searched on a grid). Here the
division goes only where it is exact in real numbers: into the rows of a linear layer or of a norm in front. Behind a
SiLU or GELU, and where a sum of several layers is read, there is no such place; those matrices keep their inputs as
they are. Clipping, the paper's optional second step, is `round_by_cost` and is for all of them.

Departures from the paper: the size of an input is its root mean square, not its mean absolute value, and the searched
loss is the error of the matrices themselves, not of the block around them; both follow from the moments that GPTQ
needs too. Where keys and values are shared by several heads, the output of the attention is left alone, as in theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from roboalign.export.gptq import Moments
from roboalign.sdk.quantized import Codes, QuantizedLayout, dequantize, quantize_matrix
from roboalign.sdk.types import FloatArray
from roboalign.trainer.flow import FlowHead

__all__ = ["fold_scales", "round_by_cost"]

_NUM_EXPONENTS = 20
"""Exponents tried, 0 (no scaling) to 0.95: the grid of the authors' code."""

_SMALLEST = 1e-4
"""An input is taken to be at least this share of the mean size: likewise."""

_DAMPING = 0.01
"""Added to what errors cost, as a share of the mean: few observations leave inputs unseen."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows of a weight, bias or norm that make the inputs of other layers."""

    values: torch.Tensor
    """The parameter."""
    start: int = 0
    """First row."""
    offset: float = 0.0
    """Added where the parameter is used, as in `x * (1 + scale)`."""

    def divide(self, scale: torch.Tensor) -> None:
        rows = self.values[self.start : self.start + len(scale)]
        rows.copy_((rows + self.offset) / scale.view(-1, *[1] * (rows.ndim - 1)) - self.offset)


@dataclass(frozen=True, slots=True, eq=False)
class _Fold:
    """Layers that read the same inputs, and all that makes these."""

    readers: tuple[torch.nn.Linear, ...]
    makers: tuple[_Rows, ...]


def round_by_cost(
    weight: FloatArray, moments: Moments, bits: int
) -> tuple[Codes, NDArray[np.float16], QuantizedLayout]:
    """Returns what `quantize_matrix` does, with each block cut off where the error of what it computes is smallest.

    Inputs are taken to be independent of each other here: an error in a row costs what that input squared is.
    """
    cost = np.diag(moments)
    mean = cost.mean() or 1.0
    return quantize_matrix(weight, bits, (cost / mean + _DAMPING).astype(np.float32))


@torch.no_grad()
def fold_scales(module: torch.nn.Module, moments: Mapping[str, Moments], bits: int) -> dict[str, Moments]:
    """Scales the inputs of matrices, in place; the module computes the same as before, up to float32.

    Args:
        module: a model or an action head.
        moments: of the inputs, by weight; layers without any are scaled only along with others that have.
        bits: of a code.

    Returns:
        The moments of the inputs as they are now.
    """
    names = {layer: f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)}
    found = dict(moments)
    for fold in _folds(module):
        readers = [(names[layer], layer) for layer in fold.readers if names[layer] in moments]
        if not readers:
            continue
        weights = [layer.weight.detach().to("cpu", torch.float32).numpy().T for _, layer in readers]
        scale = _best_scale(weights, moments[readers[0][0]], bits)
        wide = torch.from_numpy(scale)
        for layer in fold.readers:
            layer.weight.mul_(wide)
        for rows in fold.makers:
            rows.divide(wide)
        for name, _ in readers:
            found[name] = moments[name] / np.outer(scale, scale)
    return found


def _best_scale(weights: Sequence[FloatArray], moments: Moments, bits: int) -> FloatArray:
    """Returns float32[K] for matrices float[K, N] with the same inputs; all ones where nothing is gained."""
    size = np.sqrt(np.diag(moments))
    size = np.maximum(size / (size.mean() or 1.0), _SMALLEST)
    best, least = np.ones(len(size), np.float32), np.inf
    for exponent in np.arange(_NUM_EXPONENTS) / _NUM_EXPONENTS:
        raw = size**exponent
        scale = (raw / np.sqrt(raw.max() * raw.min())).astype(np.float32)
        loss = sum(_loss(weight, scale, moments, bits) for weight in weights)
        if loss < least:
            best, least = scale, loss
    return best


def _loss(weight: FloatArray, scale: FloatArray, moments: Moments, bits: int) -> float:
    """Returns the squared error of what a matrix computes, summed over the inputs that were seen."""
    wide = scale[:, None]
    rounded = dequantize(*round_by_cost(weight * wide, moments / np.outer(scale, scale), bits))
    error = (rounded / wide - weight).astype(np.float64)
    return float((error * (moments @ error)).sum())


def _folds(module: torch.nn.Module) -> Iterator[_Fold]:
    """Yields all folds of a module; a layer is scaled as a reader before the rows of its output are divided."""
    for part in module.modules():
        if isinstance(part, LlamaDecoderLayer):
            yield from _decoder_folds(part)
        elif isinstance(part, FlowHead):
            yield from _head_folds(part)


def _decoder_folds(layer: Any) -> Iterator[_Fold]:
    attention, feed = layer.self_attn, layer.mlp
    yield _Fold((attention.q_proj, attention.k_proj, attention.v_proj), (_Rows(layer.input_layernorm.weight),))
    if attention.v_proj.out_features == attention.o_proj.in_features:
        yield _Fold((attention.o_proj,), _outputs(attention.v_proj))
    yield _Fold((feed.gate_proj, feed.up_proj), (_Rows(layer.post_attention_layernorm.weight),))
    yield _Fold((feed.down_proj,), _outputs(feed.up_proj))


def _head_folds(head: Any) -> Iterator[_Fold]:
    norm, linear = head.source
    yield _Fold((linear,), _outputs(norm))
    yield _Fold(tuple(block.cross.key_value for block in head.blocks), _outputs(linear))
    for block in head.blocks:
        # What reads a norm's output, after it was shifted and scaled by the 3 k-th and the one behind of nine parts.
        for index, readers in enumerate(
            ((block.mine.query, block.mine.key_value), (block.cross.query,), (block.feed[0],))
        ):
            shift = 3 * index * linear.out_features
            scale = shift + linear.out_features
            yield _Fold(readers, (*_outputs(block.modulation, shift), *_outputs(block.modulation, scale, is_gain=True)))
        for attention in (block.mine, block.cross):
            yield _Fold((attention.out,), _outputs(attention.key_value, attention.out.in_features))


def _outputs(maker: Any, start: int = 0, *, is_gain: bool = False) -> tuple[_Rows, ...]:
    """Returns the rows of a layer or norm that make its outputs from `start` on; a gain g is used as 1 + g."""
    rows = [_Rows(maker.weight, start)]
    if maker.bias is not None:
        rows.append(_Rows(maker.bias, start, 1.0 if is_gain else 0.0))
    return tuple(rows)
