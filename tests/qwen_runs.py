"""A tiny random Qwen policy: the real classes of transformers, nothing trained, answers that vary with what it sees."""

from pathlib import Path

import torch
from tests.bundles import flow_head, step_codec
from tests.trainer import tiny_qwen

from roboalign.trainer.checkpoint import CheckpointMeta, save_checkpoint

__all__ = ["write_qwen_run"]


def write_qwen_run(path: Path, version: str, *, seed: int = 0, scale: int = 1) -> Path:
    """Writes a checkpoint of stage head of a `qwen2_5_vl` or `qwen3_vl` model, `scale` times as wide as usual."""
    codec = step_codec()
    member = tiny_qwen.backbone(version, num_actions=codec.vocab_size, scale=scale)
    torch.manual_seed(seed)
    tiny_qwen.make_lively(member.model)
    meta = CheckpointMeta(stage="head", recipe="tiny", seeds={"all": seed}, notes={"thought_budget": 12}, robot="panda")
    head = flow_head(codec, hidden_size=member.hidden_size)
    save_checkpoint(path, model=member.model, processor=member.processor, meta=meta, codec=codec, head=head)
    return path
