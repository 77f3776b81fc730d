"""The nano vision-language model: an instruction-conditioned convolutional stem in front of a small Llama decoder.

Shape suffixes: B batch, L tokens, D hidden size, C channels, H/W rows and columns, K keypoints, V vocabulary.

A plain patch encoder of this size localises objects but does not bind the *named* colour to a place; conditioning the
stem on the instruction does (the FiLM layers of RT-1, arXiv 2212.06817), which is why the stem sees the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, LlamaModel, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from roboalign.trainer.nano.configuration import NanoConfig

__all__ = [
    "FilmBlock",
    "NanoForConditionalGeneration",
    "NanoModel",
    "NanoOutput",
    "NanoPreTrainedModel",
    "NanoVision",
    "TextSummary",
]


class TextSummary(nn.Module):
    """One vector for the instruction: two convolutions over its embeddings (word order matters), then a maximum."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, padding=1)

    def forward(self, embeds_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        mask_B1L = mask_BL.unsqueeze(1).to(embeds_BLD.dtype)
        x_BDL = embeds_BLD.transpose(1, 2) * mask_B1L
        x_BDL = F.silu(self.conv1(x_BDL)) * mask_B1L
        x_BDL = F.silu(self.conv2(x_BDL))
        return x_BDL.masked_fill(mask_B1L == 0, -1e4).amax(dim=2)


class FilmBlock(nn.Module):
    """Residual convolution block whose features are scaled and shifted by the instruction."""

    def __init__(self, channels: int, cond_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(4, channels)
        self.film = nn.Linear(cond_dim, 2 * channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: torch.Tensor, cond_BD: torch.Tensor) -> torch.Tensor:
        scale, shift = self.film(cond_BD)[:, :, None, None].chunk(2, dim=1)
        h_BCHW = self.norm(self.conv1(x_BCHW)) * (1 + scale) + shift
        return x_BCHW + self.conv2(F.silu(h_BCHW))


class NanoVision(nn.Module):
    """Picture and instruction to `num_image_tokens` embeddings.

    The first K tokens are keypoints: a softmax over the map gives an expected position and the feature there. The
    others are the cells of a coarse grid.
    """

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        c1, c2, c3 = config.vision_channels
        dim = config.hidden_size
        self.summary = TextSummary(dim)
        self.conv1 = nn.Conv2d(3, c1, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(c1, c2, 3, stride=2, padding=1)
        self.fine1 = FilmBlock(c2, dim)
        self.fine2 = FilmBlock(c2, dim)
        self.heat = nn.Conv2d(c2, config.num_keypoints, 1)
        self.heat_film = nn.Linear(dim, 2 * c2)
        self.point = nn.Linear(c2 + 2, dim)
        self.point_coords = nn.Sequential(nn.Linear(2, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.conv3 = nn.Conv2d(c2, c3, 3, stride=2, padding=1)
        self.coarse = FilmBlock(c3, dim)
        self.cell = nn.Linear(c3, dim)
        self.grid_size = config.grid_size
        self.slot = nn.Parameter(torch.zeros(config.num_image_tokens, dim))

    def keypoints(self, map_BCHW: torch.Tensor, cond_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns expected positions [B, K, 2] in [-1, 1] (column, row) and pooled features [B, K, C]."""
        scale, shift = self.heat_film(cond_BD)[:, :, None, None].chunk(2, dim=1)
        heat_BKHW = self.heat(map_BCHW * (1 + scale) + shift)
        rows, cols = heat_BKHW.shape[2], heat_BKHW.shape[3]
        weight_BKN = heat_BKHW.flatten(2).softmax(dim=2)
        col_W = torch.linspace(-1.0, 1.0, cols, dtype=map_BCHW.dtype, device=map_BCHW.device)
        row_H = torch.linspace(-1.0, 1.0, rows, dtype=map_BCHW.dtype, device=map_BCHW.device)
        place_N2 = torch.stack((col_W.repeat(rows), row_H.repeat_interleave(cols)), dim=1)
        return weight_BKN @ place_N2, weight_BKN @ map_BCHW.flatten(2).transpose(1, 2)

    def forward(
        self, pixel_values: torch.Tensor, embeds_BLD: torch.Tensor, text_mask_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns image tokens [B, K + G*G, D] and keypoint positions [B, K, 2]."""
        return self.look(pixel_values, self.summary(embeds_BLD, text_mask_BL))

    def look(self, pixel_values: torch.Tensor, cond_BD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the same from the summary of the words."""
        x = F.silu(self.conv1(pixel_values))
        x = F.silu(self.conv2(x))
        x = self.fine2(self.fine1(x, cond_BD), cond_BD)
        place_BK2, feature_BKC = self.keypoints(x, cond_BD)
        points_BKD = self.point(torch.cat((feature_BKC, place_BK2), dim=2)) + self.point_coords(4.0 * place_BK2)
        y = self.coarse(F.silu(self.conv3(x)), cond_BD)
        y = F.avg_pool2d(y, y.shape[-1] // self.grid_size)
        cells_BGD = self.cell(y.flatten(2).transpose(1, 2))
        return torch.cat((points_BKD, cells_BGD), dim=1) + self.slot, place_BK2


@dataclass
class NanoOutput(ModelOutput):
    """What `NanoForConditionalGeneration.forward` returns."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    keypoints: torch.Tensor | None = None


class NanoPreTrainedModel(PreTrainedModel):
    """Shared loading code."""

    config_class: ClassVar[type[NanoConfig]] = NanoConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: ClassVar = ["LlamaDecoderLayer"]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, NanoVision):
            nn.init.normal_(module.slot, std=0.02)


class NanoModel(NanoPreTrainedModel):
    """Vision stem and text decoder without the output head."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__(config)
        self.vision = self.make_vision(config)
        self.language_model = LlamaModel(config.decoder_config())
        self.post_init()

    def make_vision(self, config: Any) -> nn.Module:
        """Returns the untrained vision encoder."""
        return NanoVision(config)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.embed_tokens = value

    def merge(
        self, input_ids_BL: torch.Tensor, pixel_values: torch.Tensor | None, attention_mask_BL: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns token embeddings with the image tokens put at their placeholders, and the keypoint positions."""
        embeds_BLD = self.language_model.embed_tokens(input_ids_BL)
        if pixel_values is None:
            return embeds_BLD, None
        is_image_BL = input_ids_BL == self.config.image_token_id
        seen_BL = is_image_BL.long().cumsum(dim=1)
        text_mask_BL = seen_BL == 0
        if attention_mask_BL is not None:
            text_mask_BL = text_mask_BL & attention_mask_BL.bool()
        image_BND, places = self.vision(pixel_values, embeds_BLD, text_mask_BL)
        index_BL = (seen_BL - 1).clamp(0, image_BND.shape[1] - 1)
        spread_BLD = image_BND.gather(1, index_BL.unsqueeze(2).expand(-1, -1, image_BND.shape[2]))
        return torch.where(is_image_BL.unsqueeze(2), spread_BLD, embeds_BLD), places

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Any, torch.Tensor | None]:
        """Returns the decoder's output and the keypoint positions [B, K, 2] (None without a picture)."""
        embeds, places = self.merge(input_ids, pixel_values, attention_mask)
        return self.language_model(inputs_embeds=embeds, attention_mask=attention_mask, **kwargs), places


class NanoForConditionalGeneration(NanoPreTrainedModel, GenerationMixin):
    """The nano vision-language model with its (tied) output head."""

    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: NanoConfig) -> None:
        super().__init__(config)
        self.model = self.make_model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def make_model(self, config: Any) -> NanoModel:
        """Returns the untrained model under the output head."""
        return NanoModel(config)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> NanoOutput:
        """Runs the model; `labels` int64[B, L] gives the mean cross-entropy of the next token (-100 is ignored)."""
        out, places = self.model(
            input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        loss = None
        if labels is not None:
            target_BL = labels[:, 1:]
            wanted_BL = target_BL != -100
            logits = self.lm_head(out.last_hidden_state[:, :-1][wanted_BL])
            loss = F.cross_entropy(logits, target_BL[wanted_BL])
        else:
            logits = self.lm_head(out.last_hidden_state[:, keep])
        return NanoOutput(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states if output_hidden_states else None,
            keypoints=places,
        )

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        """Passes the picture on the first step only: later steps reuse the cache."""
        pixel_values = kwargs.pop("pixel_values", None)
        is_first = kwargs.pop("is_first_iteration", False)
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first, **kwargs)
        cache = kwargs.get("past_key_values")
        if pixel_values is not None and (is_first or cache is None or cache.get_seq_length() == 0):
            inputs["pixel_values"] = pixel_values
        return inputs
