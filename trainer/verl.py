"""`roboalign train align --emit verl`: prompts and a reward file for verl and EasyR1, which train with GRPO on Ray.

The folder holds `train.parquet`, `reward.py` (`trainer/verl_reward.py`, its settings filled in) and `settings.json`.
Columns serve both programs: verl reads `data_source`, `prompt` (messages), `images`, `ability`, `reward_model` and
`extra_info`; EasyR1 reads `problem`, `images` and `answer` (its `prompt_key`, `image_key`, `answer_key`). Both say
`<image>` where the picture stands. The format was read from their published code; neither was run here.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from roboalign.sdk.data.arrow import import_pyarrow
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.fast import FastCodec
from roboalign.trainer import verl_reward
from roboalign.trainer.align_config import AlignConfig
from roboalign.trainer.backbone import make_backbone
from roboalign.trainer.checkpoint import load_checkpoint, partial_dir
from roboalign.trainer.frames import load_frames
from roboalign.trainer.judge import ActionPrompts, Judge
from roboalign.trainer.rewards import Demonstration, RewardCase

__all__ = ["EMITTED_REWARDS", "emit_prompts", "emit_verl", "reward_source"]

_ALONE = ("prefix", "gate", "soft", "energy")
EMITTED_REWARDS = (*_ALONE, "multi", *(f"multi:{name}" for name in _ALONE))
"""Rewards that tokens alone decide; the others need the simulator's truth."""

_DATA_SOURCE = "roboalign"
_CHAT = re.compile(r"<\|im_start\|>user\n(.*)<\|im_end\|>", re.DOTALL)


def emit_prompts(config: AlignConfig, program: str) -> Path:
    """Writes the folder `config.out` for another trainer, by its name; ConfigError when only `verl` would do."""
    if program != "verl":
        raise ConfigError(f"--emit is {program!r}, expected verl (EasyR1 reads the same folder)")
    return emit_verl(config)


def emit_verl(config: AlignConfig) -> Path:
    """Writes the folder `config.out` and returns it; ConfigError for a reward that a file of its own cannot compute."""
    if config.reward not in EMITTED_REWARDS:
        raise ConfigError(
            f"reward {config.reward!r} cannot be written for verl, expected one of {', '.join(EMITTED_REWARDS)}; the "
            "others need the simulator's truth"
        )
    if config.out.exists():
        raise ConfigError(f"{config.out} exists already; choose another --out, or delete it")
    parent = load_checkpoint(config.sft, expect_stage="sft")
    codec = parent.load_codec()
    backbone = make_backbone(parent.load_model(), parent.load_processor())
    size_px = backbone.processor.prompt_format.image_size_px
    table = load_frames(config.data, horizon=codec.config.horizon, image_size_px=size_px, max_frames=config.max_frames)
    train, _ = table.split(config.held_share)
    prompts = ActionPrompts(train, backbone, codec)
    judge = Judge(prompts, config.reward, weights=config.weights, source=train)
    chosen = np.random.default_rng((config.seed, 19)).permutation(len(train))[: config.num_prompts]
    work = partial_dir(config.out)
    work.mkdir(parents=True, exist_ok=True)
    pa, parquet = import_pyarrow()
    rows = [_row(judge, int(row), number) for number, row in enumerate(chosen)]
    parquet.write_table(pa.Table.from_pylist(rows), work / "train.parquet")
    source = reward_source(judge.case(int(chosen[0])), config.reward, backbone.tokenizer.eos_token)
    (work / "reward.py").write_text(source, encoding="utf-8")
    (work / "settings.json").write_text(json.dumps(_settings(config), indent=2) + "\n", encoding="utf-8")
    work.rename(config.out)
    return config.out


def reward_source(case: RewardCase, reward: str, end: str) -> str:
    """Returns the text of a reward file for this codec; `end` is the text of the end-of-sequence token."""
    codec = case.codec
    low, high = codec.config.low.astype(np.float64), codec.config.high.astype(np.float64)
    settings = {
        "reward": "multi:gate" if reward == "multi" else reward,
        "end": end,
        "spelled": _spelled(codec),
        "horizon": codec.config.horizon,
        "dims": codec.config.num_dims,
        "scale": codec.config.scale,
        "middle": ((low + high) / 2).tolist(),
        "half": ((high - low) / 2).tolist(),
        "weights": {name: getattr(case.weights, name) for name in ("form", "distance", "prefix", "sharpness")},
        "spread": [] if case.energy is None else case.energy.spread.tolist(),
    }
    empty = "SETTINGS: dict[str, Any] = {}\n"
    source = inspect.getsource(verl_reward)
    assert source.count(empty) == 1
    return source.replace(empty, f"SETTINGS: dict[str, Any] = json.loads({json.dumps(settings)!r})\n")


def _row(judge: Judge, row: int, number: int) -> dict[str, Any]:
    prompts, case = judge.prompts, judge.case(row)
    picture = BytesIO()
    Image.fromarray(prompts.table.images[row]).save(picture, format="PNG")
    text = _user_text(prompts, row)
    truth = json.dumps({"targets": [_target(one, prompts.codec) for one in (case.target, *case.others)]})
    return {
        "data_source": _DATA_SOURCE,
        "prompt": [{"role": "user", "content": text}],
        "problem": text,
        "images": [{"bytes": picture.getvalue(), "path": None}],
        "answer": truth,
        "ability": "action",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"index": number, "frame": row, "split": "train"},
    }


def _target(target: Demonstration, codec: FastCodec) -> dict[str, Any]:
    coefficients, _ = codec.coefficients(target.actions[None])
    return {"ids": list(target.ids), "actions": target.actions.tolist(), "coefficients": coefficients[0].tolist()}


def _user_text(prompts: ActionPrompts, row: int) -> str:
    """Returns what the user says, with one `<image>`: the trainers put their own chat form around it."""
    backbone = prompts.backbone
    tokenizer, processor = backbone.tokenizer, backbone.processor
    text = str(tokenizer.decode(prompts.inputs([row]).input_ids[0].tolist()))
    placeholder = tokenizer.convert_ids_to_tokens(processor.image_token_id)
    text = re.sub(rf"(\s*{re.escape(placeholder)})+", " <image>", text)
    for name in ("<|vision_start|>", "<|vision_end|>", tokenizer.bos_token):
        text = text.replace(name, "") if name else text
    chat = _CHAT.search(text)
    return (chat[1] if chat else text).strip()


def _spelled(codec: FastCodec) -> list[list[int]]:
    """Returns the coefficients that each token stands for."""
    config = codec.config
    spelled = [[value] for value in range(config.min_coefficient, config.max_coefficient + 1)]
    for left, right in config.merges:
        spelled.append(spelled[left] + spelled[right])
    return spelled


def _settings(config: AlignConfig) -> Mapping[str, Any]:
    """Returns the recipe under EasyR1's names; paths are the user's."""
    replies = config.prompts_per_rollout // config.updates_per_rollout
    return {
        "data": {
            "prompt_key": "problem",
            "answer_key": "answer",
            "image_key": "images",
            "rollout_batch_size": config.prompts_per_rollout,
            "max_response_length": config.max_tokens,
        },
        "algorithm": {"adv_estimator": "grpo", "use_kl_loss": True, "kl_penalty": "low_var_kl", "kl_coef": config.beta},
        "worker": {
            "actor": {
                "global_batch_size": replies,
                "clip_ratio_low": config.clip_low,
                "clip_ratio_high": config.clip_high,
                "max_grad_norm": config.max_grad_norm,
                "optim": {"lr": config.learning_rate, "weight_decay": config.weight_decay},
            },
            "rollout": {"n": config.samples_per_prompt, "temperature": config.temperature},
            "reward": {
                "reward_function": "reward.py:compute_score",
                "skip_special_tokens": False,
            },
        },
    }
