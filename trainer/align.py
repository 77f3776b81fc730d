"""Stage `align`: GRPO on think-then-act replies (paper, section 3.2), with guards the paper does not mention.

Before the first update the policy is measured; when there is nothing to explore the stage refuses with the numbers.
While it runs, held-out greedy and sampled error, decodability, the variety of the answers and short closed-loop
rollouts are watched: the best weights are kept (step 0 included, so the result is never worse than the start by that
measure), and a run that is destroying the policy or moving it towards standing still is stopped. All of it happened.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from roboalign.sdk.errors import CheckFailed
from roboalign.sdk.fast import FastCodec
from roboalign.trainer.align_config import AlignConfig, grpo_config
from roboalign.trainer.backbone import HuggingFaceBackbone, make_backbone, quiet_transformers
from roboalign.trainer.checkpoint import Checkpoint, CheckpointMeta, load_checkpoint, partial_dir, save_checkpoint
from roboalign.trainer.frames import load_frames
from roboalign.trainer.grpo import AlignTrainer
from roboalign.trainer.judge import ActionPrompts, Judge
from roboalign.trainer.lora import add_lora, merge_lora
from roboalign.trainer.measure import Measurement, what_is_missing
from roboalign.trainer.probe import reply_mask
from roboalign.trainer.progress import progress_bar
from roboalign.trainer.refusals import check_codec_range
from roboalign.trainer.replies import keep_replies
from roboalign.trainer.resume import restore_weights
from roboalign.trainer.rewards import find_reward
from roboalign.trainer.rollout import TokenMask
from roboalign.trainer.run import stage_run
from roboalign.trainer.success import RolloutPool
from roboalign.trainer.supervised import training_device
from roboalign.trainer.watch import AlignWatch, ClosedLoop

__all__ = ["AlignConfig", "ClosedLoop", "align"]


@stage_run("align")
def align(config: AlignConfig, *, closed_loop: ClosedLoop | None = None) -> Path:
    """Runs the stage and returns the checkpoint folder; resumes when it was interrupted.

    Args:
        config: settings.
        closed_loop: short rollouts to run at every measurement; None measures tokens only.

    Raises:
        CheckFailed: there is nothing to explore, and `config.force` is not set.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(config.threads)
    parent = load_checkpoint(config.sft, expect_stage="sft")
    codec = parent.load_codec()
    backbone = make_backbone(parent.load_model(), parent.load_processor())
    backbone.model.to(training_device())
    fmt = backbone.processor.prompt_format
    table = load_frames(
        config.data,
        horizon=codec.config.horizon,
        image_size_px=fmt.image_size_px,
        max_frames=config.max_frames,
        rate_hz=codec.config.rate_hz,
        robot=parent.meta.notes.get("robot"),
        state_names=parent.meta.states,
    )
    check_codec_range(codec, table.chunks, where=config.data)
    train, held = table.split(config.held_share)
    mask = reply_mask(backbone, codec, constrained=config.is_constrained)
    adapted = None
    if config.lora is not None:
        torch.manual_seed(config.seed)
        adapted = add_lora(backbone, config.lora)
    with RolloutPool(config.workers) as pool:
        judge, held_judge = (
            Judge(
                ActionPrompts(frames, backbone, codec), config.reward, weights=config.weights, source=train, pool=pool
            )
            for frames in (train, held)
        )
        watch = AlignWatch(config, held_judge, mask, closed_loop)
        work = _run(config, judge, mask, watch)
    if config.keep == "best":
        restore_weights(backbone.model, load_file(watch.best_file), where=work)
    adapter = () if adapted is None else merge_lora(adapted, work)
    keep_replies(work, backbone, codec, held, seed=config.seed)
    _save(config, parent, backbone, codec, watch, table.data_hash, work, adapter)
    return config.out


def _run(config: AlignConfig, judge: Judge, mask: TokenMask, watch: AlignWatch) -> Path:
    """Trains; returns the folder of the run, which says why it stopped should it stop early."""
    work = partial_dir(config.out)
    work.mkdir(parents=True, exist_ok=True)
    (work / "align.json").write_text(json.dumps(_config_json(config), indent=2) + "\n", encoding="utf-8")
    state = work / "state"
    is_resumed = state.is_dir()
    watch.begin(work, state if is_resumed else None)
    if not is_resumed:
        _check_start(watch.start, config, work)
    if config.freeze_vision:
        _freeze_vision(judge.prompts.backbone)
    rows = _training_order(len(judge.prompts), config)
    with quiet_transformers(), warnings.catch_warnings():
        # TRL 1.16 still uses names that transformers 5.23 deprecates.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        trainer = AlignTrainer(
            judge=judge,
            rows=rows,
            mask=mask,
            args=grpo_config(config, work, banned_ids=judge.prompts.backbone.banned_ids),
            rollout=config.rollout,
            credit=config.credit,
            callbacks=[watch],
        )
        watch.trainer = trainer
        with progress_bar(f"align {config.reward}", config.steps, done=watch.step) as watch.show:
            trainer.train(resume_from_checkpoint=str(state) if is_resumed else None)
    return work


def _check_start(start: Measurement, config: AlignConfig, work: Path) -> None:
    missing = what_is_missing(
        start,
        min_first_token=config.min_first_token if find_reward(config.reward).pays_nothing_behind_first else 0.0,
        min_informative=config.min_informative,
        min_well_formed=config.min_well_formed,
    )
    if not missing:
        return
    message = f"nothing to explore for align from {config.sft}: {'; '.join(missing)}"
    if config.force:
        print(f"{message}; going on because of force", file=sys.stderr)
        return
    raise CheckFailed(f"{message}. Train sft longer, or override with force")


def _training_order(num_frames: int, config: AlignConfig) -> list[int]:
    """Returns the frame of each prompt of the whole run: passes over the frames, each in a new order."""
    rng = np.random.default_rng((config.seed, 19))
    chosen = rng.permutation(num_frames)[: config.num_prompts]
    needed = config.steps // config.updates_per_rollout * config.prompts_per_rollout
    passes = [rng.permutation(chosen) for _ in range(-(-needed // len(chosen)))]
    return [int(row) for row in np.concatenate(passes)[:needed]]


def _freeze_vision(backbone: HuggingFaceBackbone) -> None:
    for parameter in backbone.vision.parameters():
        parameter.requires_grad_(False)


def _save(
    config: AlignConfig,
    parent: Checkpoint,
    backbone: HuggingFaceBackbone,
    codec: FastCodec,
    watch: AlignWatch,
    data_hash: str,
    work: Path,
    adapter: Sequence[Path],
) -> None:
    kept = watch.best_step if config.keep == "best" else watch.step
    held = {entry["step"]: entry["held"] for entry in watch.history}
    meta = CheckpointMeta(
        stage="align",
        recipe=config.recipe,
        parent=parent.path.name,
        parent_sha256=parent.sha256,
        seeds={"align": config.seed},
        metrics={
            "start": held[0],
            "kept": held.get(kept),
            "kept_step": kept,
            "last_step": watch.step,
            "stopped": watch.stopped,
        },
        data_hash=data_hash,
        wall_s=watch.timer.wall_s,
        cpu_s=watch.timer.cpu_s,
        notes={**_config_json(config), **{name: parent.meta.notes.get(name) for name in ("pairing", "robot")}},
    )
    files = {name: work / name for name in ("metrics.jsonl", "align.json")}
    files |= {f"adapter/{path.name}": path for path in adapter}
    save_checkpoint(
        config.out,
        model=backbone.model,
        processor=backbone.processor,
        meta=meta,
        codec=codec,
        dtype=config.dtype,
        extra_files=files,
    )


def _config_json(config: AlignConfig) -> dict[str, Any]:
    # Folders by name only: where they lay says nothing to whoever reads the checkpoint elsewhere.
    return {name: value.name if isinstance(value, Path) else value for name, value in asdict(config).items()}
