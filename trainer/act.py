"""Trains the ACT-like baseline of `trainer/act_model.py` on the demonstrations that the VLA learns from."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.prompt import PromptFormat
from roboalign.trainer.act_model import ActModel, ActSizes, act_loss, pixels
from roboalign.trainer.checkpoint import partial_dir, sha256_of_file
from roboalign.trainer.frames import FrameTable, load_frames
from roboalign.trainer.progress import MetricsLog, Timer, check_same_settings, learning_rate, progress_bar
from roboalign.trainer.resume import load_training_state, move_into_place, save_training_state

__all__ = ["ActConfig", "train_act"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ActConfig:
    """Settings of the training."""

    data: Path
    """Dataset folder (`roboalign collect`)."""
    out: Path
    """Folder to write."""
    steps: int = 1600
    """Updates."""
    batch_size: int = 64
    """Chunks an update (ACT: 8)."""
    peak_rate: float = 5e-4
    """Learning rate after warm-up (ACT: 1e-5 with pretrained features)."""
    weight_decay: float = 1e-4
    """AdamW weight decay (ACT)."""
    style_weight: float = 10.0
    """Weight of the KL term of the style (ACT)."""
    horizon: int = 8
    """Actions in a chunk (ACT: 100 at 50 Hz)."""
    held_share: float = 0.05
    """Share of the episodes that is held out."""
    max_frames: int | None = None
    """Frames to read at most; None reads all."""
    save_every: int = 500
    """Steps between two training states on disk."""
    threads: int = 1
    """CPU threads."""
    seed: int = 0
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "horizon", "save_every", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"ActConfig.{name} is {getattr(self, name)}, expected 1 or more")


def train_act(config: ActConfig) -> Path:
    """Trains the policy and returns its folder, which `roboalign eval` accepts; resumes when it was interrupted."""
    torch.set_num_threads(config.threads)
    dataset = LeRobotDataset(config.data)
    table = load_frames(
        config.data, horizon=config.horizon, image_size_px=_picture_size(dataset), max_frames=config.max_frames
    )
    train, held = table.split(config.held_share)
    torch.manual_seed(config.seed)
    model = ActModel(_sizes(train, rate_hz=dataset.info.rate_hz))
    work = partial_dir(config.out)
    work.mkdir(parents=True, exist_ok=True)
    timer = Timer()
    _fit(model, train, held, config, work, timer)
    record = {
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "data_hash": table.data_hash,
        "metrics": _held_error(model, held),
        "parameters": sum(p.numel() for p in model.parameters()),
        "frames": len(train),
        "wall_s": timer.wall_s,
        "cpu_s": timer.cpu_s,
    }
    _write(model, record, config.out, work)
    shutil.rmtree(work)
    return config.out


def _picture_size(dataset: LeRobotDataset) -> int:
    rows = dataset.frames_with_images()[:1]
    if len(rows) == 0:
        raise DataError(f"{dataset.path}: no frame has a picture; collect with --image-every 1 or 2")
    return int(dataset.images(rows).shape[1])


def _fit(model: ActModel, train: FrameTable, held: FrameTable, config: ActConfig, work: Path, timer: Timer) -> None:
    """Trains the model in place; resumes from `work/state` when a state is there."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.peak_rate, weight_decay=config.weight_decay, fused=True)
    settings = {**json.loads(json.dumps(asdict(config), default=str)), "data_hash": train.data_hash}
    for name in ("threads", "save_every"):  # neither changes the result
        del settings[name]
    state = load_training_state(work / "state", model=model, optimizer=optimizer)
    first = state.step if state else 0
    if state:
        check_same_settings(state.extra["settings"], settings, folder=work)
        timer.add(**state.extra["time"])
    log = MetricsLog(work / "metrics.jsonl", first_step=first)
    model.train()
    with progress_bar("act", config.steps, done=first) as update:
        for step in range(first, config.steps):
            rate = learning_rate(step, peak=config.peak_rate, steps=config.steps, warmup_share=0.05)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, distance = _loss(model, train, config, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            log.write(step=step, loss=float(loss.detach()), l1=float(distance.detach()), rate=rate, cpu_s=timer.cpu_s)
            update(1, f"l1 {float(distance.detach()):.3f}")
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                log.write(step=step, **_held_error(model, held))
                extra = {"time": {"wall_s": timer.wall_s, "cpu_s": timer.cpu_s}, "settings": settings}
                save_training_state(work / "state", model=model, optimizer=optimizer, step=step + 1, extra=extra)
    model.eval()


def _loss(model: ActModel, train: FrameTable, config: ActConfig, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng((config.seed, step))
    rows = rng.integers(len(train), size=config.batch_size)
    noise = rng.standard_normal((len(rows), model.sizes.style_size)).astype(np.float32)
    return act_loss(
        model,
        pixels(train.images[rows]),
        torch.from_numpy(train.states[rows]),
        model.bag([train.instruction(int(r)) for r in rows]),
        torch.from_numpy(train.chunks[rows]),
        torch.from_numpy(noise),
        style_weight=config.style_weight,
    )


def _held_error(model: ActModel, held: FrameTable, *, count: int = 512, batch_size: int = 64) -> dict[str, float]:
    """Returns the mean absolute error of normalised chunks on held-out frames: what `held_error` of a head is."""
    was_training = model.training
    model.eval()
    rows = np.random.default_rng(5).permutation(len(held))[:count]
    errors = []
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        words = [held.instruction(int(r)) for r in part]
        found = model.predict(held.images[part], held.states[part], words)
        distance = model.normalize(found) - model.normalize(torch.from_numpy(held.chunks[part]))
        errors.append(distance.abs().mean(dim=(1, 2)))
    model.train(was_training)
    return {"held_error": float(torch.cat(errors).mean())}


def _write(model: ActModel, record: dict[str, Any], out: Path, work: Path) -> None:
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model.save(temporary)
    shutil.copyfile(work / "metrics.jsonl", temporary / "metrics.jsonl")
    record["files"] = {path.name: sha256_of_file(path) for path in sorted(temporary.iterdir())}
    (temporary / "training.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    move_into_place(temporary, out)


def _sizes(train: FrameTable, *, rate_hz: float) -> ActSizes:
    flat = train.chunks.reshape(-1, train.chunks.shape[2])
    low, high = np.quantile(flat, (0.01, 0.99), axis=0)
    high = np.where(high - low < 1e-6, low + 1.0, high)
    clean = PromptFormat().clean_text
    counts = Counter(word for row in range(len(train)) for word in clean(train.instruction(row)).split())
    return ActSizes(
        words=tuple(sorted(counts, key=lambda word: (-counts[word], word))),
        horizon=train.chunks.shape[1],
        rate_hz=rate_hz,
        image_size_px=train.images.shape[1],
        action_low=tuple(float(v) for v in low),
        action_high=tuple(float(v) for v in high),
        state_mean=tuple(float(v) for v in train.states.mean(axis=0)),
        state_std=tuple(float(v) for v in train.states.std(axis=0).clip(1e-3)),
    )
