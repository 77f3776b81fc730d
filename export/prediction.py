"""How fast a model would be on a board: a roofline of bytes and arithmetic, never a measurement.

Decoding reads every weight of the decoder and of the output layer once a token, and the keys and values of all tokens
before it; a board does that at its peak bandwidth times one efficiency. Every layer takes as long as reading another
`LAYER_BYTES`: launches, and products too small to reach the bandwidth. Both are fitted to published rates of TensorRT
Edge-LLM (`benchmarks/prediction.py`), none of which is of a model below half a billion parameters: for smaller ones a
prediction is an upper bound. Prefill and vision are arithmetic at the rate that published ones attained. Left out: the
attention's own arithmetic, other work on the same memory, power modes, heat.
"""

from __future__ import annotations

from dataclasses import dataclass

from roboalign.export.shapes import ModelSize
from roboalign.export.targets import Target

__all__ = [
    "BYTES",
    "LAYER_BYTES",
    "THOUGHT_TOKENS",
    "Prediction",
    "decode_bytes",
    "decode_cost_bytes",
    "decode_rate_hz",
    "predict",
    "prefill_ms",
    "vision_ms",
]

BYTES = {
    "fp32": 4.0,
    "fp16": 2.0,
    "bf16": 2.0,
    "int8": 1.0,
    "int8-w8a8": 1.0,
    "fp8": 1.0,
    "int4": 0.5 + 2 / 128,
    "nvfp4": 0.5 + 1 / 16,
}
"""Bytes of a weight: INT4 has a 16-bit scale for each 128 of them, as Edge-LLM wants (ours have one for each 32), NVFP4
an 8-bit one for each 16."""

THOUGHT_TOKENS = (0, 32, 64, 128)
"""Lengths of thought that the chunk rate is given for."""

_KV_BYTES = 2.0
"""Keys and values are kept in 16 bit by every runtime that is planned for."""

LAYER_BYTES = 1.0e7
"""What a layer costs beyond its own bytes, as bytes at the attained rate: 39 us on Thor, 62 on AGX Orin."""

SMALLEST_FITTED_BYTES = 0.5e9
"""Bytes a token of the smallest model whose rate is published (Qwen3-0.6B in 4 bit)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Predicted times of one board; every figure is computed, none measured."""

    tokens_per_s: float
    """Thought tokens a second, with half the context filled."""
    prefill_ms: float
    """Reading the prompt."""
    vision_ms: float | None
    """The picture; None when its work does not follow from its weights."""
    head_ms: float | None
    """All steps of the action head; None without one."""
    chunk_rate_hz: tuple[float, ...]
    """Chunks a second for `THOUGHT_TOKENS`, one after the other: vision, prefill, thought, head."""
    is_upper_bound: bool
    """True for models smaller than any whose rate is published: launches decide, which nothing was fitted to."""


def decode_bytes(size: ModelSize, precision: str, context_tokens: float) -> float:
    """Returns the bytes that one decoded token reads: layers, 16-bit output layer, keys and values."""
    head_precision = precision if precision == "fp32" else "fp16"
    weights = size.decoder * BYTES[precision] + size.embed * BYTES[head_precision]
    return weights + size.kv_values * _KV_BYTES * context_tokens


def decode_cost_bytes(
    size: ModelSize, precision: str, context_tokens: float, layer_bytes: float = LAYER_BYTES
) -> float:
    """Returns what one decoded token costs, in bytes at the attained rate: those it reads, and some a layer."""
    return decode_bytes(size, precision, context_tokens) + size.layers * layer_bytes


def decode_rate_hz(size: ModelSize, target: Target, precision: str, context_tokens: float) -> float | None:
    """Returns tokens a second, or None for a target without bandwidth or efficiency."""
    if target.bandwidth_gb_s is None or target.decode_efficiency is None:
        return None
    attained = target.bandwidth_gb_s * 1e9 * target.decode_efficiency
    return attained / decode_cost_bytes(size, precision, context_tokens)


def prefill_ms(size: ModelSize, target: Target, precision: str, num_tokens: int) -> float | None:
    """Returns the time of a prompt: its arithmetic, or reading the weights once where that takes longer."""
    rate = decode_rate_hz(size, target, precision, 0)
    # For fp32 nothing was published, and 16-bit arithmetic would flatter it.
    tflops = target.attained_tflops.get(precision) or (precision != "fp32" and target.attained_tflops.get("fp16"))
    if rate is None or not tflops:
        return None
    return max(1e3 / rate, 2 * size.decoder * num_tokens / (tflops * 1e9))


def vision_ms(size: ModelSize, target: Target, num_patches: int) -> float | None:
    """Returns the time of the vision encoder, in 16 bit."""
    tflops = target.attained_tflops.get("fp16")
    return None if tflops is None else 2 * size.vision * num_patches / (tflops * 1e9)


def predict(size: ModelSize, target: Target, precision: str) -> Prediction | None:
    """Returns what the roofline says for a board, or None where it says nothing."""
    rate_hz = decode_rate_hz(size, target, precision, size.context_tokens / 2)
    prompt_ms = prefill_ms(size, target, precision, size.prompt_tokens)
    if rate_hz is None or prompt_ms is None:
        return None
    seen_ms = None if size.patches is None else vision_ms(size, target, size.patches)
    head_ms = _head_ms(size, target, precision)
    fixed_ms = prompt_ms + (seen_ms or 0.0) + (head_ms or 0.0)
    return Prediction(
        tokens_per_s=rate_hz,
        prefill_ms=prompt_ms,
        vision_ms=seen_ms,
        head_ms=head_ms,
        chunk_rate_hz=tuple(1e3 / (fixed_ms + 1e3 * count / rate_hz) for count in THOUGHT_TOKENS),
        is_upper_bound=decode_bytes(size, precision, 0) < SMALLEST_FITTED_BYTES,
    )


def _head_ms(size: ModelSize, target: Target, precision: str) -> float | None:
    """Time of the action head: each step is as a decoded token is; a chunk is too short for arithmetic to matter."""
    if size.head is None or target.bandwidth_gb_s is None or target.decode_efficiency is None:
        return None
    step_bytes = size.head.weights * BYTES["fp32" if precision == "fp32" else "fp16"] + size.head.layers * LAYER_BYTES
    return 1e3 * size.head.steps * step_bytes / (target.bandwidth_gb_s * 1e9 * target.decode_efficiency)
