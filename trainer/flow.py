"""The flow-matching action head: a small diffusion transformer on the hidden states of a frozen backbone.

The maths are GR00T-N1.5's (paper, stage 3): noise at t = 0, actions at t = 1, x_t = (1 - t) noise + t actions, the head
predicts the velocity actions - noise, training times are (s - Beta(1.5, 1)) / s with s = .999 clamped at 0, four Euler
steps. Departures: one embodiment instead of tables for many, no extra "future" tokens, and the keys and values of the
conditioning are computed once for all steps (`condition`), which is what makes the exported graph cheap. Training asks
few queries of many tokens, whose hidden states need no gradient: there the projections are moved to the side of the
queries (`_Fold`), which is the same function at half the cost.

Shape suffixes: B batch, R noise draws, N = B x R, L conditioning tokens, D backbone width, E head width, H heads, K
head size, Q queries, T horizon, A action fields, S state fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.sdk.quantized import read_weights

__all__ = ["FlowHead", "FlowHeadConfig", "Memory", "flow_loss", "sample_times"]

_BETA_A, _BETA_B, _TIME_SCALE = 1.5, 1.0, 0.999  # GR00T N1.5: noise_beta_alpha, noise_beta_beta, noise_s

Memory = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values [B, heads, L, E / heads] of the conditioning, one pair a layer."""

_Look = Callable[[torch.Tensor], torch.Tensor]
"""Cross-attention of one layer to the conditioning of the batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowHeadConfig:
    """Sizes of the head, and the units of its inputs and outputs."""

    hidden_size: int
    """Width of the backbone's hidden states."""
    layer: int
    """Decoder layer after which the hidden states are taken (counted from 1, before the final norm)."""
    horizon: int
    """Actions in a chunk."""
    action_low: tuple[float, ...]
    """Action that -1 stands for, per field."""
    action_high: tuple[float, ...]
    """Action that +1 stands for, per field."""
    state_mean: tuple[float, ...]
    """Mean of the robot state in the training data, per field."""
    state_std: tuple[float, ...]
    """Standard deviation of the robot state in the training data, per field."""
    width: int = 128
    """Width of the head."""
    num_layers: int = 3
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads."""
    num_frequencies: int = 4
    """Sine and cosine pairs a state field is expanded into."""
    num_steps: int = 4
    """Euler steps from noise to actions."""

    def __post_init__(self) -> None:
        if len(self.action_low) != len(self.action_high) or len(self.state_mean) != len(self.state_std):
            raise ConfigError("FlowHeadConfig: low and high, and mean and std, need one entry for each field")
        if self.width % self.num_heads:
            raise ConfigError(f"FlowHeadConfig.width {self.width} is no multiple of num_heads {self.num_heads}")

    @property
    def num_actions(self) -> int:
        """Fields of an action."""
        return len(self.action_low)

    @property
    def num_states(self) -> int:
        """Fields of the robot state."""
        return len(self.state_mean)


def _modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class _Attention(nn.Module):
    """Multi-head attention whose keys and values may be computed apart."""

    def __init__(self, width: int, num_heads: int, source_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(source_width, 2 * width)
        self.out = nn.Linear(width, width)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.num_heads, width // self.num_heads).transpose(1, 2)

    def memory(self, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        key, value = self.key_value(source).chunk(2, dim=2)
        return self._split(key), self._split(value)

    def forward(
        self, x: torch.Tensor, memory: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor | None
    ) -> torch.Tensor:
        mixed = F.scaled_dot_product_attention(self._split(self.query(x)), *memory, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))


class _Fold:
    """A head's `source` and the keys and values of one cross-attention, as one step from normalised hidden states.

    Both are linear, so that q . (W h) = (W^T q) . h: the queries are projected instead of the hidden states, and the
    attention runs on the hidden states themselves. The bias of the keys adds the same to every score and drops out.
    """

    def __init__(self, source: nn.Sequential, attention: _Attention) -> None:
        norm, linear = cast(nn.LayerNorm, source[0]), cast(nn.Linear, source[1])
        key_EE, value_EE = attention.key_value.weight.chunk(2)
        scaled_ED = linear.weight * norm.weight
        self.attention = attention
        split = (attention.num_heads, -1, scaled_ED.shape[1])
        scale = (len(key_EE) // attention.num_heads) ** -0.5
        self.key_HKD, self.value_HKD = (key_EE @ scaled_ED * scale).view(split), (value_EE @ scaled_ED).view(split)
        offset_E = linear.weight @ norm.bias + linear.bias
        self.value_bias_E = value_EE @ offset_E + attention.key_value.bias[len(offset_E) :]

    def look(
        self, x_NTE: torch.Tensor, normal_BLD: torch.Tensor, normal_BDL: torch.Tensor, bias_B1L: torch.Tensor
    ) -> torch.Tensor:
        """Returns what `attention` finds for all draws of a sample at once."""
        batch, _, width = normal_BLD.shape
        heads = self.attention.num_heads
        query_BQHK = self.attention.query(x_NTE).view(batch, -1, *self.key_HKD.shape[:2])
        query_BXD = torch.einsum("bqhk,hkd->bhqd", query_BQHK, self.key_HKD).reshape(batch, -1, width)
        score_BXL = torch.baddbmm(bias_B1L, query_BXD, normal_BDL)
        found_BHQD = (score_BXL.softmax(dim=2) @ normal_BLD).view(batch, heads, -1, width)
        value_BQHK = torch.einsum("bhqd,hkd->bqhk", found_BHQD, self.value_HKD)
        return self.attention.out(value_BQHK.reshape(x_NTE.shape) + self.value_bias_E)


class _Block(nn.Module):
    """Self-attention, cross-attention to the backbone, feed-forward; each scaled and shifted by time and state."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(3))
        self.mine = _Attention(width, num_heads, width)
        self.cross = _Attention(width, num_heads, width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(approximate="tanh"), nn.Linear(2 * width, width))
        self.modulation = nn.Linear(width, 9 * width)

    def forward(self, x: torch.Tensor, cond: torch.Tensor, look: _Look) -> torch.Tensor:
        parts = self.modulation(F.silu(cond)).chunk(9, dim=1)
        h = _modulate(self.norms[0](x), parts[0], parts[1])
        x = x + parts[2].unsqueeze(1) * self.mine(h, self.mine.memory(h), None)
        h = _modulate(self.norms[1](x), parts[3], parts[4])
        x = x + parts[5].unsqueeze(1) * look(h)
        h = _modulate(self.norms[2](x), parts[6], parts[7])
        return x + parts[8].unsqueeze(1) * self.feed(h)


class FlowHead(nn.Module):
    """Predicts velocities of noisy action chunks, and samples chunks."""

    action_low: torch.Tensor
    action_high: torch.Tensor
    state_mean: torch.Tensor
    state_std: torch.Tensor

    def __init__(self, config: FlowHeadConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.source = nn.Sequential(nn.LayerNorm(config.hidden_size), nn.Linear(config.hidden_size, width))
        self.state_in = nn.Sequential(
            nn.Linear(config.num_states * (1 + 2 * config.num_frequencies), width), nn.SiLU(), nn.Linear(width, width)
        )
        self.action_in = nn.Linear(config.num_actions, width)
        self.position = nn.Parameter(torch.randn(config.horizon, width) * 0.02)
        self.time_in = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_Block(width, config.num_heads) for _ in range(config.num_layers))
        for block in self._blocks():  # every block starts as the identity (adaLN-zero)
            nn.init.zeros_(block.modulation.weight)
            nn.init.zeros_(block.modulation.bias)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config.num_actions)
        for name, values in (("low", config.action_low), ("high", config.action_high)):
            self.register_buffer(f"action_{name}", torch.tensor(values), persistent=False)
        for name, values in (("mean", config.state_mean), ("std", config.state_std)):
            self.register_buffer(f"state_{name}", torch.tensor(values), persistent=False)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def _blocks(self) -> list[_Block]:
        return cast(list[_Block], list(self.blocks))

    def normalize(self, actions_BTA: torch.Tensor) -> torch.Tensor:
        """Returns actions in their units as numbers around -1..1."""
        return (actions_BTA - self.action_low) / (self.action_high - self.action_low) * 2 - 1

    def denormalize(self, actions_BTA: torch.Tensor) -> torch.Tensor:
        """Returns actions in their units; the inverse of `normalize`."""
        return (actions_BTA + 1) / 2 * (self.action_high - self.action_low) + self.action_low

    def condition(self, hidden_BLD: torch.Tensor) -> Memory:
        """Returns the keys and values of the backbone's hidden states, the same for every Euler step."""
        source = self.source(hidden_BLD)
        return [block.cross.memory(source) for block in self._blocks()]

    def embed_state(self, state_BS: torch.Tensor) -> torch.Tensor:
        """Returns the robot state (in its units) as one vector [B, E]."""
        x = (state_BS - self.state_mean) / self.state_std
        angles = torch.cat([x * (2.0**k) for k in range(self.config.num_frequencies)], dim=1)
        return self.state_in(torch.cat((x, angles.sin(), angles.cos()), dim=1))

    def embed_time(self, time_B: torch.Tensor) -> torch.Tensor:
        """Returns the flow time in 0..1 as one vector [B, E]."""
        freq = torch.exp(torch.linspace(0.0, 6.0, 32, device=time_B.device, dtype=time_B.dtype))
        angles = time_B.unsqueeze(1) * freq
        return self.time_in(torch.cat((angles.sin(), angles.cos()), dim=1))

    def velocity(
        self,
        noisy_BTA: torch.Tensor,
        time_B: torch.Tensor,
        state_BE: torch.Tensor,
        memory: Memory,
        mask_BL: torch.Tensor,
    ) -> torch.Tensor:
        """Returns d x / d t [B, T, A] at flow time `time_B` (0 is noise), in normalised units.

        Args:
            noisy_BTA: x_t.
            time_B: flow time in 0..1.
            state_BE: from `embed_state`.
            memory: from `condition`.
            mask_BL: bool, True where a hidden state is real.
        """
        mask = mask_BL[:, None, None, :]
        looks = [partial(b.cross, memory=pair, mask=mask) for b, pair in zip(self._blocks(), memory, strict=True)]
        return self._run(noisy_BTA, self.embed_time(time_B) + state_BE, looks)

    def velocities(
        self,
        noisy_BRTA: torch.Tensor,
        time_BR: torch.Tensor,
        state_BS: torch.Tensor,
        hidden_BLD: torch.Tensor,
        mask_BL: torch.Tensor,
    ) -> torch.Tensor:
        """Returns `velocity` [B, R, T, A] for R noisy chunks of each sample: the same function, made for training."""
        draws = noisy_BRTA.shape[1]
        normal_BLD = F.layer_norm(hidden_BLD, hidden_BLD.shape[2:], eps=cast(nn.LayerNorm, self.source[0]).eps)
        bias_B1L = torch.zeros_like(hidden_BLD[:, :, 0]).masked_fill(~mask_BL, float("-inf")).unsqueeze(1)
        shared = {"normal_BLD": normal_BLD, "normal_BDL": normal_BLD.transpose(1, 2).contiguous(), "bias_B1L": bias_B1L}
        looks = [partial(_Fold(self.source, block.cross).look, **shared) for block in self._blocks()]
        cond_NE = self.embed_time(time_BR.flatten()) + self.embed_state(state_BS).repeat_interleave(draws, dim=0)
        return self._run(noisy_BRTA.flatten(0, 1), cond_NE, looks).view(noisy_BRTA.shape)

    def _run(self, noisy_BTA: torch.Tensor, cond_BE: torch.Tensor, looks: Sequence[_Look]) -> torch.Tensor:
        x_BTE = self.action_in(noisy_BTA) + self.position
        for block, look in zip(self._blocks(), looks, strict=True):
            x_BTE = block(x_BTE, cond_BE, look)
        return self.out(self.norm(x_BTE))

    def sample(
        self, hidden_BLD: torch.Tensor, mask_BL: torch.Tensor, state_BS: torch.Tensor, noise_BTA: torch.Tensor
    ) -> torch.Tensor:
        """Returns action chunks [B, T, A] in their units, by Euler steps from `noise_BTA` (standard normal)."""
        memory, state_BE = self.condition(hidden_BLD), self.embed_state(state_BS)
        x_BTA, steps = noise_BTA, self.config.num_steps
        for step in range(steps):
            time_B = torch.full_like(x_BTA[:, 0, 0], step / steps)
            x_BTA = x_BTA + self.velocity(x_BTA, time_B, state_BE, memory, mask_BL) / steps
        return self.denormalize(x_BTA)

    def save(self, directory: Path, /, *, dtype: torch.dtype = torch.float32) -> None:
        """Writes `head.safetensors` and `head.json` into a folder that exists."""
        tensors = {name: value.to(dtype).contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, Path(directory) / "head.safetensors")
        text = json.dumps(asdict(self.config), indent=2, sort_keys=True)
        (Path(directory) / "head.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> FlowHead:
        """Reads what `save` wrote, as float32; raises BundleError when a file is absent or damaged."""
        directory = Path(directory)
        for name in ("head.json", "head.safetensors"):
            if not (directory / name).is_file():
                raise BundleError(
                    f"{directory} has no {name}, so no action head; run `roboalign train head` on it first"
                )
        try:
            raw = json.loads((directory / "head.json").read_text(encoding="utf-8"))
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
            config = FlowHeadConfig(**values)
            head = cls(config)
            file = directory / "head.safetensors"
            decoded = read_weights(file)
            stored = load_file(file) if decoded is None else {k: torch.from_numpy(v) for k, v in decoded.items()}
            head.load_state_dict({k: v.float() for k, v in stored.items()})
        except (TypeError, ValueError, RuntimeError, OSError, SafetensorError) as err:
            raise BundleError(f"the action head in {directory} is damaged: {err}; copy the folder again") from err
        return head.eval()


def sample_times(count: int, generator: np.random.Generator) -> torch.Tensor:
    """Returns `count` training times in 0..1.

    GR00T N1.5 draws (s - Beta) / s, which is below 0 for 0.1 % of the draws; those are clamped here.
    """
    beta = generator.beta(_BETA_A, _BETA_B, size=count)
    return torch.from_numpy(np.clip((_TIME_SCALE - beta) / _TIME_SCALE, 0.0, 1.0).astype(np.float32))


def flow_loss(
    head: FlowHead,
    hidden_BLD: torch.Tensor,
    mask_BL: torch.Tensor,
    state_BS: torch.Tensor,
    actions_BTA: torch.Tensor,
    rng: np.random.Generator,
    *,
    draws: int = 1,
) -> torch.Tensor:
    """Returns the mean squared error of the velocity over `draws` noise samples for each chunk."""
    target_B1TA = head.normalize(actions_BTA).unsqueeze(1)
    noises, times = [], []
    for _ in range(draws):
        noises.append(torch.from_numpy(rng.standard_normal(actions_BTA.shape).astype(np.float32)))
        times.append(sample_times(len(actions_BTA), rng))
    noise_BRTA = torch.stack(noises, dim=1).to(actions_BTA.device)
    time_BR = torch.stack(times, dim=1).to(actions_BTA.device)
    weight = time_BR[:, :, None, None]
    noisy_BRTA = (1 - weight) * noise_BRTA + weight * target_B1TA
    guess_BRTA = head.velocities(noisy_BRTA, time_BR, state_BS, hidden_BLD, mask_BL)
    return F.mse_loss(guess_BRTA, target_B1TA - noise_BRTA)
