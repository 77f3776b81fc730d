"""Sizes of the smol model."""

from __future__ import annotations

from transformers import LlamaConfig

from roboalign.trainer.nano.configuration import NanoConfig

__all__ = ["SmolConfig"]


class SmolConfig(NanoConfig):
    """Configuration of `SmolForConditionalGeneration`; the defaults are SmolLM2-135M's with our stem in front.

    The stem is nano's, `vision_width` wide; two linear layers (the connector) take its tokens to `hidden_size`.
    """

    model_type = "roboalign_smol"

    def __init__(
        self,
        vocab_size: int = 49152,
        hidden_size: int = 576,
        intermediate_size: int = 1536,
        num_hidden_layers: int = 30,
        head_dim: int = 64,
        num_key_value_heads: int = 3,
        max_position_embeddings: int = 8192,
        rope_theta: float = 100000.0,
        rms_norm_eps: float = 1e-5,
        vision_width: int = 192,
        vision_channels: tuple[int, int, int] | list[int] = (32, 64, 128),
        initializer_range: float = 0.05,
        pad_token_id: int = 0,
        **kwargs: object,
    ) -> None:
        self.num_key_value_heads = num_key_value_heads
        self.rms_norm_eps = rms_norm_eps
        self.vision_width = vision_width
        super().__init__(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_hidden_layers,
            head_dim=head_dim,
            max_position_embeddings=max_position_embeddings,
            rope_theta=rope_theta,
            vision_channels=vision_channels,
            initializer_range=initializer_range,
            pad_token_id=pad_token_id,
            **kwargs,  # type: ignore[arg-type]  # the keys are NanoConfig's, checked there
        )

    def decoder_config(self) -> LlamaConfig:
        """Returns the configuration of the text decoder."""
        config = super().decoder_config()
        config.num_key_value_heads = self.num_key_value_heads
        config.rms_norm_eps = self.rms_norm_eps
        return config

    def stem_config(self) -> NanoConfig:
        """Returns the configuration of the vision stem."""
        return NanoConfig(
            hidden_size=self.vision_width,
            image_size=self.image_size,
            vision_channels=self.vision_channels,
            num_keypoints=self.num_keypoints,
            grid_size=self.grid_size,
        )
