"""Sizes of the nano model."""

from __future__ import annotations

from transformers import LlamaConfig, PreTrainedConfig

__all__ = ["NanoConfig"]


class NanoConfig(PreTrainedConfig):
    """Configuration of `NanoForConditionalGeneration`.

    The text decoder is a Llama of `hidden_size` x `num_hidden_layers`; the vision encoder is a convolutional stem whose
    features are modulated by the instruction (FiLM, as in RT-1), read out as `num_keypoints` attention-pooled points
    and
    `grid_size`^2 cells, each of which becomes one token.
    """

    model_type = "roboalign_nano"

    def __init__(
        self,
        vocab_size: int = 1024,
        hidden_size: int = 160,
        intermediate_size: int = 432,
        num_hidden_layers: int = 4,
        head_dim: int = 32,
        image_size: int = 96,
        vision_channels: tuple[int, int, int] | list[int] = (24, 48, 96),
        num_keypoints: int = 8,
        grid_size: int = 4,
        image_token_id: int = 3,
        max_position_embeddings: int = 512,
        rope_theta: float = 10000.0,
        initializer_range: float = 0.05,
        bos_token_id: int = 1,
        eos_token_id: int = 2,
        pad_token_id: int = 0,
        tie_word_embeddings: bool = True,
        **kwargs: object,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.head_dim = head_dim
        self.num_attention_heads = hidden_size // head_dim
        self.image_size = image_size
        self.vision_channels = list(vision_channels)
        self.num_keypoints = num_keypoints
        self.grid_size = grid_size
        self.image_token_id = image_token_id
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.initializer_range = initializer_range
        kwargs.pop("num_attention_heads", None)
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )

    @property
    def num_image_tokens(self) -> int:
        """Tokens that one picture becomes."""
        return self.num_keypoints + self.grid_size**2

    def decoder_config(self) -> LlamaConfig:
        """Returns the configuration of the text decoder."""
        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            bos_token_id=self.bos_token_id,
            eos_token_id=self.eos_token_id,
            pad_token_id=self.pad_token_id,
            tie_word_embeddings=True,
            attn_implementation=getattr(self, "_attn_implementation", None) or "sdpa",
        )
