"""Which weights of a module can become codes, and the codes that they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from roboalign.export.awq import round_by_cost
from roboalign.export.gptq import Moments, round_with_moments
from roboalign.sdk.errors import CheckFailed
from roboalign.sdk.quantized import (
    Codes,
    QuantizedLayout,
    block_of,
    dequantize,
    quantize_channels,
    quantize_matrix,
)

__all__ = ["QUANTIZED_BITS", "ROUNDINGS", "Calibration", "Layer", "QuantizedWeight", "quantizable", "round_layers"]

QUANTIZED_BITS = {"int8": 8, "int4": 4}
"""Bits of a code, by precision."""

ROUNDINGS = ("gptq", "awq", "nearest")
"""How weights of linear layers are rounded: by what their inputs were seen to be, or each to the nearest code."""

_CALIBRATED = {"gptq": round_with_moments, "awq": round_by_cost}

Layer = torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d
"""What has a weight that can be stored as codes."""

_MIN_ELEMENTS = 4096
"""A smaller weight is not worth codes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Calibration:
    """What rounding knows of a policy's layers."""

    moments: Mapping[str, Mapping[str, Moments]]
    """Of the inputs of each linear layer, by weight file and weight."""
    rounding: str = "gptq"
    """One of `ROUNDINGS` that uses them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QuantizedWeight:
    """A weight as it is stored."""

    codes: Codes
    """int8, in the layout's shape."""
    scales: NDArray[np.float16]
    """What codes are multiplied by: float16[inputs / block, outputs] of a matrix, float16[outputs] of a kernel."""
    layout: QuantizedLayout
    """How to read them."""

    def decoded(self) -> torch.Tensor:
        """Returns float32 values in the shape that the layer has them in."""
        weight = torch.from_numpy(dequantize(self.codes, self.scales, self.layout))
        return weight.T if self.layout.block else weight


def quantizable(module: torch.nn.Module) -> dict[str, Layer]:
    """Returns the layers whose weight can be stored as codes, by the weight's name.

    Those are linear layers with whole blocks and convolutions, of some size. A weight that an embedding shares stays as
    it is: it is looked up row by row, and the output layer reads it the other way round.
    """
    looked_up = {m.weight.data_ptr() for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    found: dict[str, Layer] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, Layer):
            weight = layer.weight
            has_blocks = not isinstance(layer, torch.nn.Linear) or block_of(layer.in_features) is not None
            if has_blocks and weight.numel() >= _MIN_ELEMENTS and weight.data_ptr() not in looked_up:
                found[f"{name}.weight"] = layer
    return found


def round_layers(
    layers: Mapping[str, Layer], bits: int, moments: Mapping[str, Moments] | None = None, rounding: str = "gptq"
) -> dict[str, QuantizedWeight]:
    """Returns the codes of each layer's weight, by its name.

    Args:
        layers: from `quantizable`.
        bits: of a matrix's codes; a convolution has codes of 8 bits in any case.
        moments: of the inputs of each linear layer; None rounds each weight to the nearest code.
        rounding: what to do with them, `gptq` or `awq`.

    Raises:
        CheckFailed: a value does not fit fp16, or a linear layer has no moments.
    """
    found = {}
    for name, layer in layers.items():
        values = layer.weight.detach().to("cpu", torch.float32)
        if not torch.isfinite(values.half()).all():
            raise CheckFailed(
                f"weight {name} does not fit codes with scales in fp16 (largest value {values.abs().max():.3g}); "
                "use --precision fp32"
            )
        if not isinstance(layer, torch.nn.Linear):
            codes, scales = quantize_channels(values.numpy(), 8)
            layout = QuantizedLayout(bits=8, shape=tuple(values.shape), block=0)
        elif moments is None:
            codes, scales, layout = quantize_matrix(np.ascontiguousarray(values.numpy().T), bits)
        elif name in moments:
            matrix = np.ascontiguousarray(values.numpy().T)
            codes, scales, layout = _CALIBRATED[rounding](matrix, moments[name], bits)
        else:
            raise CheckFailed(f"weight {name} was given no input by the observations; use --rounding nearest")
        found[name] = QuantizedWeight(codes=codes, scales=scales, layout=layout)
    return found
