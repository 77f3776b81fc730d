"""Qwen2.5-VL and Qwen3-VL of a few thousand random parameters: the real classes, tokenizer and picture processor."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from roboalign.trainer.backbone import HuggingFaceBackbone, make_backbone
from roboalign.trainer.qwen import QwenProcessor
from roboalign.trainer.vocabulary import add_action_tokens


def _text(scale: int) -> dict[str, object]:
    sections = [2 * scale, 3 * scale, 3 * scale]  # must sum to half the head dimension
    return {
        "hidden_size": 32 * scale,
        "intermediate_size": 48 * scale,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections},
    }


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
    raw.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in (*names, "<|video_pad|>")])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def backbone(version: str, *, num_actions: int | None = None, tied: bool = True, scale: int = 1) -> HuggingFaceBackbone:
    """Returns a random `qwen2_5_vl` or `qwen3_vl` of about 60 thousand parameters; without actions, as published.

    `scale` widens every layer: at 1, no matrix is large enough to be stored as codes.
    """
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    find = tokenizer.convert_tokens_to_ids
    ids = {
        "image_token_id": find("<|image_pad|>"),
        "video_token_id": find("<|video_pad|>"),
        "vision_start_token_id": find("<|vision_start|>"),
        "vision_end_token_id": find("<|vision_end|>"),
    }
    width = 32 * scale
    vision = {"depth": 2, "hidden_size": width, "intermediate_size": 48 * scale, "num_heads": 2}
    vision |= {"out_hidden_size": width}
    text = _text(scale) | {
        "tie_word_embeddings": tied,
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": find("<|im_end|>"),
        "pad_token_id": find("<|endoftext|>"),
    }
    if version == "qwen2_5_vl":
        vision |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **ids)
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
    else:
        vision |= {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        config = Qwen3VLConfig(
            text_config=text | {"head_dim": width // 2}, vision_config=vision, tie_word_embeddings=tied, **ids
        )
        model = Qwen3VLForConditionalGeneration(config).eval()
    patch = vision["patch_size"]
    images = Qwen2VLImageProcessorPil(
        patch_size=patch, size={"shortest_edge": 4 * patch**2, "longest_edge": 64 * patch**2}
    )
    if num_actions is not None:
        add_action_tokens(model, tokenizer, num_actions, multiple_of=64)
    return make_backbone(model, QwenProcessor(images, tokenizer))


def make_lively(model: torch.nn.Module) -> None:
    """Widens the weights: at the usual scale a random model answers everything alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)


def folder(version: str, path: Path, *, tied: bool = True, is_lively: bool = False) -> Path:
    """Writes a model as it is published (no roboalign.json, no action tokens) and returns its folder."""
    member = backbone(version, tied=tied)
    if is_lively:
        make_lively(member.model)
    member.model.save_pretrained(path)
    member.processor.save_pretrained(path)
    (path / "prompt_format.json").unlink()
    return path
