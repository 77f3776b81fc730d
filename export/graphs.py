"""The graphs of a nano policy, as functional modules with explicit keys and values and fixed shapes.

`prefill` reads a prompt and a picture, `step` reads one more token; `export/flow_graph.py` has the action head.
Prompts are padded on the right: attention is causal, so no real position sees the padding, and `length` tells where
the prompt ends. The runtime owns the cache: a graph returns the new rows only, and needs neither ScatterND nor an
in-place write.

Shape suffixes: P longest prompt, L longest sequence, D hidden size, H heads, K head size, V vocabulary, C 2 x layers
(keys and values of each layer in turn).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention

__all__ = [
    "DecoderGraph",
    "DecoderShape",
    "PrefillGraph",
    "StepGraph",
    "decoder_shape",
    "rotate",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderShape:
    """Fixed sizes of the decoder's tensors."""

    num_layers: int
    """Decoder layers."""
    num_heads: int
    """Attention heads."""
    num_kv_heads: int
    """Heads of keys and values; smol shares each among several attention heads, nano does not."""
    head_dim: int
    """Width of one head."""
    hidden_size: int
    """Width of the hidden states."""
    vocab_size: int
    """Tokens that can be written."""


def decoder_shape(model: PreTrainedModel) -> DecoderShape:
    """Returns the sizes of a model's decoder."""
    config = getattr(model.config, "text_config", model.config)
    return DecoderShape(
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", config.num_attention_heads),
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
    )


def rotate(x_HLK: torch.Tensor, cos_LK: torch.Tensor, sin_LK: torch.Tensor) -> torch.Tensor:
    """Returns vectors turned by the angles of their places."""
    half = x_HLK.shape[-1] // 2
    turned = torch.cat((-x_HLK[..., half:], x_HLK[..., :half]), dim=-1)
    return x_HLK * cos_LK + turned * sin_LK


class DecoderGraph(nn.Module):
    """The layers of a model's decoder (Llama, Qwen2 or Qwen3), run on explicit keys and values."""

    def __init__(self, model: PreTrainedModel, tap_layer: int) -> None:
        super().__init__()
        self.model = model
        self.tap_layer = tap_layer
        self.shape = decoder_shape(model)

    def angles(self, position: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
        """Returns the angle [L, K / 2] of each place and pair, for positions int64[L]."""
        return position.to(inv_freq.dtype).unsqueeze(1) * inv_freq.unsqueeze(0)

    def decode(
        self,
        x_LD: torch.Tensor,
        position: torch.Tensor,
        may_see: torch.Tensor,
        past: torch.Tensor | None,
        added: Sequence[torch.Tensor] = (),
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the last hidden states (normalised), those of the tapped layer, and the new rows [C, H, L, K].

        What is `added`, float[L, D], enters behind the first layers.
        """
        states, rows = self.run_layers(x_LD, position, may_see, past, self.shape.num_layers, added)
        return self.model.model.language_model.norm(states[-1]), states[self.tap_layer], rows

    def run_layers(
        self,
        x_LD: torch.Tensor,
        position: torch.Tensor,
        may_see: torch.Tensor,
        past: torch.Tensor | None,
        num_layers: int,
        added: Sequence[torch.Tensor] = (),
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Returns what goes in and what comes out of each of the first layers, and their new rows."""
        text = self.model.model.language_model
        freqs = self.angles(position, text.rotary_emb.inv_freq)
        angles_LK = torch.cat((freqs, freqs), dim=1)
        cos_LK, sin_LK = angles_LK.cos(), angles_LK.sin()
        states, new_rows = [x_LD], []
        for index, layer in enumerate(text.layers[:num_layers]):
            past_pair = None if past is None else (past[2 * index], past[2 * index + 1])
            normed = layer.input_layernorm(x_LD)
            mixed, rows = self._attend(layer.self_attn, normed, cos_LK, sin_LK, may_see, past_pair)
            new_rows.extend(rows)
            x_LD = x_LD + mixed
            x_LD = x_LD + layer.mlp(layer.post_attention_layernorm(x_LD))
            if index < len(added):
                x_LD = x_LD + added[index]
            states.append(x_LD)
        return states, torch.stack(new_rows)

    def _attend(
        self,
        attention: LlamaAttention,
        x_LD: torch.Tensor,
        cos_LK: torch.Tensor,
        sin_LK: torch.Tensor,
        may_see: torch.Tensor,
        past: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        length = x_LD.shape[0]
        shape = self.shape
        query = attention.q_proj(x_LD).view(length, shape.num_heads, shape.head_dim)
        key, value = (
            part(x_LD).view(length, shape.num_kv_heads, shape.head_dim) for part in (attention.k_proj, attention.v_proj)
        )
        if hasattr(attention, "q_norm"):  # Qwen3
            query, key = attention.q_norm(query), attention.k_norm(key)
        query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        query, key = rotate(query, cos_LK, sin_LK), rotate(key, cos_LK, sin_LK)
        rows = [key, value]
        if past is not None:
            key, value = torch.cat((past[0], key), dim=1), torch.cat((past[1], value), dim=1)
        if shape.num_kv_heads != shape.num_heads:
            times = shape.num_heads // shape.num_kv_heads
            key, value = key.repeat_interleave(times, dim=0), value.repeat_interleave(times, dim=0)
        # Scaled before the product, which float16 might not hold otherwise.
        score = (query * self.shape.head_dim**-0.5) @ key.transpose(1, 2)
        # The lowest finite number, not -inf: no row is ever empty, and float16 engines survive it.
        score = torch.where(may_see, score, torch.finfo(score.dtype).min)
        mixed = (score.softmax(dim=-1) @ value).transpose(0, 1).reshape(length, -1)
        return attention.o_proj(mixed), rows


class PrefillGraph(DecoderGraph):
    """ids int64[1, P], length int64[1], pixels [1, 3, S, S] -> logits [1, V], hidden [1, P, D], kv [C, H, P, K]."""

    def forward(
        self, input_ids: torch.Tensor, length: torch.Tensor, pixel_values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        embeds, _ = self.model.model.merge(input_ids, pixel_values, None)
        position = torch.arange(input_ids.shape[1])
        may_see = position.unsqueeze(0) <= position.unsqueeze(1)
        last, tapped, rows = self.decode(embeds[0], position, may_see, None)
        return self.model.lm_head(last.index_select(0, length - 1)), tapped.unsqueeze(0), rows


class StepGraph(DecoderGraph):
    """token int64[1], length int64[1], kv [C, H, L, K] -> logits [1, V], hidden [1, D], new kv rows [C, H, 1, K]."""

    def forward(
        self, token: torch.Tensor, length: torch.Tensor, kv: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        embeds_1D = self.model.model.language_model.embed_tokens(token)
        is_past = torch.arange(kv.shape[2]) < length
        may_see = torch.cat((is_past, torch.ones(1, dtype=torch.bool)))
        last, tapped, rows = self.decode(embeds_1D, length, may_see, kv)
        return self.model.lm_head(last), tapped, rows
