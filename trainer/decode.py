"""Decoding many samples of few prompts, one token a step.

`PlainDecoder` runs any backbone through transformers, on a cache that holds every prompt once for each sample.
`SharedPromptDecoder` runs a Llama decoder (nano has one): keys and values of a prompt are kept once for all of its
samples, those of the samples grow in memory that was set aside for them, and the layers are called directly. Both give
the same logits within float tolerance (tests/trainer/test_decode.py).

Shape suffixes: U prompts, R rows (samples that are still written), S samples a prompt, K key-value heads, G query
heads for each of them, P prompt tokens, T tokens written so far, E size of a head, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn import functional as F
from transformers import LlamaModel

from roboalign.trainer.backbone import Backbone, HuggingFaceBackbone
from roboalign.trainer.inputs import DecoderState

__all__ = ["Decoder", "PlainDecoder", "SharedPromptDecoder", "make_decoder"]

_BLOCK = 32
"""Tokens for which memory is set aside at a time."""


class Decoder(Protocol):
    """Reads one token a row."""

    def step(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Reads int64[R]; returns logits float[R, V] for the next token."""

    def select(self, rows: torch.Tensor) -> None:
        """Goes on with the rows int64[R'] only, in rising order."""


def make_decoder(backbone: Backbone, state: DecoderState, num_samples: int) -> Decoder:
    """Returns the fastest decoder that fits the backbone, for `num_samples` rows a prompt."""
    if SharedPromptDecoder.fits(backbone):
        return SharedPromptDecoder(backbone, state, num_samples)
    return PlainDecoder(backbone, state, num_samples)


class PlainDecoder:
    """Any backbone, through its own `step`."""

    def __init__(self, backbone: Backbone, state: DecoderState, num_samples: int) -> None:
        self._backbone, self._state = backbone, state.repeat(num_samples)

    def step(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Reads int64[R]; returns logits float[R, V] for the next token."""
        logits, self._state = self._backbone.step(token_ids, self._state)
        return logits

    def select(self, rows: torch.Tensor) -> None:
        """Goes on with the rows int64[R'] only."""
        self._state = self._state.select(rows)


class SharedPromptDecoder:
    """A Llama decoder whose samples share the cache of their prompt."""

    def __init__(self, backbone: HuggingFaceBackbone, state: DecoderState, num_samples: int) -> None:
        decoder: Any = backbone.decoder
        self._layers = [_Layer(layer) for layer in decoder.layers]
        self._embed, self._norm, self._head = decoder.embed_tokens, decoder.norm, backbone.model.get_output_embeddings()
        self._prompts = [(layer.keys, layer.values) for layer in cast(Any, state.cache).layers]
        keys_UKPE = self._prompts[0][0]
        prompts = len(keys_UKPE)
        self._slot_R: torch.Tensor | None = None  # None: every sample of every prompt is still there
        self._shape = (prompts, num_samples)
        self._bias_U11P = torch.zeros_like(state.attention_mask, dtype=keys_UKPE.dtype).masked_fill(
            state.attention_mask == 0, -torch.inf
        )[:, None, None]
        self._position_R = state.next_position.repeat_interleave(num_samples)
        limit = torch.arange(decoder.config.max_position_embeddings, device=keys_UKPE.device)[None]
        cos, sin = decoder.rotary_emb(keys_UKPE, limit)
        self._cos, self._sin = cos[0], sin[0]
        self._written = 0
        rows, (heads, size) = prompts * num_samples, (keys_UKPE.shape[1], keys_UKPE.shape[3])
        self._tails = [keys_UKPE.new_empty((2, rows, heads, _BLOCK, size)) for _ in self._layers]

    @staticmethod
    def fits(backbone: Backbone) -> bool:
        """True for a plain Llama decoder, with or without LoRA in its layers; no scaled or changing positions."""
        if not isinstance(backbone, HuggingFaceBackbone) or type(backbone.decoder) is not LlamaModel:
            return False
        linear = (child for layer in backbone.decoder.layers for child in _projections(layer))
        has_plain_positions = backbone.decoder.rotary_emb.rope_type == "default"
        return has_plain_positions and all(type(child) in (nn.Linear, LoraLinear) for child in linear)

    def step(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Reads int64[R]; returns logits float[R, V] for the next token."""
        if self._written == self._tails[0].shape[3]:
            self._tails = [F.pad(tail, (0, 0, 0, _BLOCK)) for tail in self._tails]
        hidden = self._embed(token_ids)
        places = self._position_R + self._written
        cos, sin = self._cos[places][:, None], self._sin[places][:, None]
        for number, layer in enumerate(self._layers):
            query, key, value = layer.project(hidden, cos, sin)
            tail = self._tails[number]
            tail[0, :, :, self._written] = key
            tail[1, :, :, self._written] = value
            hidden = layer.finish(hidden, self._attend(number, query))
        self._written += 1
        return cast(torch.Tensor, self._head(_normed(self._norm, hidden)))

    def select(self, rows: torch.Tensor) -> None:
        """Goes on with the rows int64[R'] only, in rising order."""
        slots = torch.arange(len(self._position_R), device=rows.device) if self._slot_R is None else self._slot_R
        self._slot_R = slots[rows]
        self._position_R = self._position_R[rows]
        self._tails = [tail[:, rows] for tail in self._tails]

    def _attend(self, number: int, query_RKGE: torch.Tensor) -> torch.Tensor:
        """Returns float[R, K * G * E]: attention to the prompt, read once for all samples, and to what was written."""
        keys_UKPE, values_UKPE = self._prompts[number]
        keys_RKTE, values_RKTE = self._tails[number][:, :, :, : self._written + 1]
        prompt_length = keys_UKPE.shape[2]
        seen = self._by_prompt(query_RKGE) @ keys_UKPE.transpose(2, 3) + self._bias_U11P
        scores = torch.cat((self._by_row(seen), query_RKGE @ keys_RKTE.transpose(2, 3)), dim=3)
        weights = scores.float().softmax(dim=3).to(query_RKGE.dtype)
        prompt_weights, own_weights = weights.split((prompt_length, self._written + 1), dim=3)
        mixed = self._by_row(self._by_prompt(prompt_weights) @ values_UKPE) + own_weights @ values_RKTE
        return mixed.flatten(1)

    def _by_prompt(self, x_RKGn: torch.Tensor) -> torch.Tensor:
        """Returns float[U, K, S * G, n]: the rows under their prompts, zeros where a sample has ended."""
        prompts, samples = self._shape
        if self._slot_R is not None:
            full = x_RKGn.new_zeros((prompts * samples, *x_RKGn.shape[1:]))
            full[self._slot_R] = x_RKGn
            x_RKGn = full
        _, heads, groups, size = x_RKGn.shape
        x_UKSGn = x_RKGn.view(prompts, samples, heads, groups, size).transpose(1, 2)
        return x_UKSGn.reshape(prompts, heads, samples * groups, size)

    def _by_row(self, x_UKMn: torch.Tensor) -> torch.Tensor:
        """Returns float[R, K, G, n] of float[U, K, S * G, n]."""
        prompts, samples = self._shape
        _, heads, _, size = x_UKMn.shape
        x = x_UKMn.view(prompts, heads, samples, -1, size).transpose(1, 2).flatten(0, 1)
        return x if self._slot_R is None else x[self._slot_R]


class _Layer:
    """One decoder layer with its three input projections, and its two gates, each as one matrix.

    LoRA's additions are added to the weights once, here: they do not change while replies are written.
    """

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._layer, self._act = layer, mlp.act_fn
        self._size, self._scaling, self._groups = attention.head_dim, attention.scaling, attention.num_key_value_groups
        inputs = (attention.q_proj, attention.k_proj, attention.v_proj)
        self._num_queries, self._num_keys, _ = (len(projection.weight) // self._size for projection in inputs)
        self._qkv = _joined(inputs)
        self._gates = _joined((mlp.gate_proj, mlp.up_proj))
        self._out, self._down = _joined((attention.o_proj,)), _joined((mlp.down_proj,))

    def project(
        self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns query float[R, K, G, E] (scaled), key and value float[R, K, E], turned to their positions."""
        joined = F.linear(_normed(self._layer.input_layernorm, hidden), *self._qkv).unflatten(1, (-1, self._size))
        turned = _turn(joined[:, : self._num_queries + self._num_keys], cos, sin)
        query, key = turned[:, : self._num_queries], turned[:, self._num_queries :]
        value = joined[:, self._num_queries + self._num_keys :]
        return (query * self._scaling).unflatten(1, (-1, self._groups)), key, value

    def finish(self, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """Returns the layer's output."""
        hidden = hidden + F.linear(mixed, *self._out)
        gate, up = F.linear(_normed(self._layer.post_attention_layernorm, hidden), *self._gates).chunk(2, dim=1)
        return hidden + F.linear(self._act(gate) * up, *self._down)


def _projections(layer: Any) -> tuple[nn.Module, ...]:
    attention, mlp = layer.self_attn, layer.mlp
    return (
        *(attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
        *(mlp.gate_proj, mlp.up_proj, mlp.down_proj),
    )


def _joined(projections: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor | None]:
    biases = [projection.bias for projection in projections]
    bias = None if biases[0] is None else torch.cat(biases)
    weights = [_weight(projection) for projection in projections]
    return weights[0] if len(weights) == 1 else torch.cat(weights), bias


def _weight(projection: Any) -> torch.Tensor:
    """Returns a layer's weight, with what LoRA adds to it."""
    if not isinstance(projection, LoraLinear):
        return cast(torch.Tensor, projection.weight)
    added = [projection.get_delta_weight(name) for name in projection.active_adapters]
    return cast(torch.Tensor, sum(added, projection.base_layer.weight))


def _normed(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Returns what the layer's own module would, in one operation."""
    return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _turn(x_RHE: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Returns the heads with their rotary position."""
    first, second = x_RHE.chunk(2, dim=2)
    return x_RHE * cos + torch.cat((-second, first), dim=2) * sin
