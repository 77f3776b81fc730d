"""The flow head with a part of its answer given: real-time chunking, so that a chunk goes on from the one before.

While a chunk is computed, actions of the one before are still applied: they are committed. Here each Euler step sets
the committed part of the noisy chunk to what it has to become, mixed with its noise for that flow time, and does so
with what is left of the old chunk behind it as far as a soft mask says (`blend_weights`); the head fills in the rest.
This is real-time chunking (arXiv 2506.07339) with inpainting by replacement instead of its gradient of the guidance:
nothing is differentiated, so it runs where numpy does.

It is the head of `trainer/flow.py` in numpy, from the weights that every bundle holds. A head of a few million weights
takes milliseconds; one for a 7B model on a board would need a graph of its own, which is not exported yet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from roboalign.sdk.control.chunks import blend_weights
from roboalign.sdk.errors import BundleError, ConfigError, DataError
from roboalign.sdk.quantized import load_weights
from roboalign.sdk.types import ACTION_NAMES, FloatArray

__all__ = ["Committed", "GuidedHead"]

_FILES = ("head.json", "head.safetensors")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Committed:
    """What a chunk has to go on from."""

    actions: FloatArray
    """float32[N, A], what is left of the chunk before from the moment of the observation on; may be empty."""
    delay: int
    """So many of them will have been applied when the new chunk comes: they are kept as they are."""

    def __post_init__(self) -> None:
        actions = np.asarray(self.actions, np.float32)
        if actions.ndim != 2 or actions.shape[1] != len(ACTION_NAMES) or not np.isfinite(actions).all():
            raise DataError(
                f"committed actions have shape {actions.shape}, expected finite (steps, {len(ACTION_NAMES)})"
            )
        if self.delay < 0:
            raise ConfigError(f"Committed.delay is {self.delay}, expected 0 or more steps")
        object.__setattr__(self, "actions", actions)


class GuidedHead:
    """Samples chunks from hidden states, with the first actions given. Shapes: L tokens, D, T actions, A fields."""

    def __init__(self, config: Mapping[str, object], weights: Mapping[str, FloatArray]) -> None:
        """Takes the content of `head.json`, and the weights by name in float32."""
        self._weights = weights
        self._num = {
            name: int(str(config[name])) for name in ("num_layers", "num_heads", "num_frequencies", "num_steps")
        }
        ranges = ("action_low", "action_high", "state_mean", "state_std")
        self._low, self._high, self._mean, self._std = (np.array(config[name], np.float32) for name in ranges)

    @classmethod
    def load(cls, folder: Path) -> GuidedHead:
        """Reads the head of a bundle or checkpoint.

        Raises:
            ConfigError: The folder has no head that could be guided.
            BundleError: Its head is damaged.
        """
        lacking = [name for name in _FILES if not (folder / name).is_file()]
        if lacking:
            raise ConfigError(
                f"{folder} has no {lacking[0]}, so its chunks cannot be guided by the ones before; choose chunks"
                " 'switch' or 'blend'"
            )
        try:
            config = json.loads((folder / "head.json").read_text(encoding="utf-8"))
            return cls(config, load_weights(folder / "head.safetensors"))
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise BundleError(f"the action head in {folder} is damaged: {err}; copy the folder again") from err

    def sample(
        self, hidden_LD: FloatArray, state_S: FloatArray, noise_TA: FloatArray, committed: Committed
    ) -> FloatArray:
        """Returns actions float32[T, A] in their units, from hidden states, the robot's state and noise."""
        horizon, num_steps = len(noise_TA), self._num["num_steps"]
        overlap = min(len(committed.actions), horizon)
        weight_T1 = blend_weights(horizon, overlap, committed.delay)[:, None]
        goal_TA = np.zeros_like(noise_TA)
        goal_TA[:overlap] = (committed.actions[:overlap] - self._low) / (self._high - self._low) * 2.0 - 1.0
        memory, state_E = self._condition(hidden_LD), self._embed_state(state_S)
        x_TA: FloatArray = noise_TA
        for step in range(num_steps):
            time = step / num_steps
            noisy_TA = np.float32(1.0 - time) * noise_TA + np.float32(time) * goal_TA
            x_TA = weight_T1 * noisy_TA + (1.0 - weight_T1) * x_TA
            x_TA = x_TA + self._velocity(x_TA, time, state_E, memory) / np.float32(num_steps)
        x_TA = weight_T1 * goal_TA + (1.0 - weight_T1) * x_TA
        actions: FloatArray = ((x_TA + 1.0) / 2.0 * (self._high - self._low) + self._low).astype(np.float32)
        return actions

    def _linear(self, name: str, x: FloatArray) -> FloatArray:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _condition(self, hidden_LD: FloatArray) -> list[tuple[FloatArray, FloatArray]]:
        normed = _normalized(hidden_LD) * self._weights["source.0.weight"] + self._weights["source.0.bias"]
        source = self._linear("source.1", normed)
        return [self._memory(f"blocks.{index}.cross", source) for index in range(self._num["num_layers"])]

    def _memory(self, name: str, source: FloatArray) -> tuple[FloatArray, FloatArray]:
        key, value = np.split(self._linear(f"{name}.key_value", source), 2, axis=1)
        return self._heads(key), self._heads(value)

    def _heads(self, x: FloatArray) -> FloatArray:
        return x.reshape(len(x), self._num["num_heads"], -1).transpose(1, 0, 2)

    def _embed_state(self, state_S: FloatArray) -> FloatArray:
        x = (state_S - self._mean) / self._std
        angles = np.concatenate([x * 2.0**k for k in range(self._num["num_frequencies"])])
        features = np.concatenate((x, np.sin(angles), np.cos(angles)))
        return self._linear("state_in.2", _silu(self._linear("state_in.0", features)))

    def _embed_time(self, time: float) -> FloatArray:
        angles = time * np.exp(np.linspace(0.0, 6.0, 32))
        features = np.concatenate((np.sin(angles), np.cos(angles))).astype(np.float32)
        return self._linear("time_in.2", _silu(self._linear("time_in.0", features)))

    def _velocity(
        self, x_TA: FloatArray, time: float, state_E: FloatArray, memory: list[tuple[FloatArray, FloatArray]]
    ) -> FloatArray:
        cond = _silu(self._embed_time(time) + state_E)
        x = self._linear("action_in", x_TA) + self._weights["position"]
        for index, pair in enumerate(memory):
            name = f"blocks.{index}"
            parts = np.split(self._linear(f"{name}.modulation", cond), 9)
            h = _normalized(x) * (1.0 + parts[1]) + parts[0]
            x = x + parts[2] * self._attend(f"{name}.mine", h, self._memory(f"{name}.mine", h))
            h = _normalized(x) * (1.0 + parts[4]) + parts[3]
            x = x + parts[5] * self._attend(f"{name}.cross", h, pair)
            h = _normalized(x) * (1.0 + parts[7]) + parts[6]
            x = x + parts[8] * self._linear(f"{name}.feed.2", _gelu(self._linear(f"{name}.feed.0", h)))
        return self._linear("out", _normalized(x) * self._weights["norm.weight"] + self._weights["norm.bias"])

    def _attend(self, name: str, x: FloatArray, memory: tuple[FloatArray, FloatArray]) -> FloatArray:
        query, (key, value) = self._heads(self._linear(f"{name}.query", x)), memory
        score = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
        share = np.exp(score - score.max(axis=-1, keepdims=True))
        mixed = (share / share.sum(axis=-1, keepdims=True)) @ value
        return self._linear(f"{name}.out", mixed.transpose(1, 0, 2).reshape(len(x), -1))


def _normalized(x: FloatArray) -> FloatArray:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled: FloatArray = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return scaled


def _silu(x: FloatArray) -> FloatArray:
    return np.asarray(x / (1.0 + np.exp(-x)), np.float32)


def _gelu(x: FloatArray) -> FloatArray:
    return np.asarray(0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))), np.float32)
