"""The supervised loop of the `base` and `sft` stages: next-token cross-entropy on the reply.

Every batch is drawn from a generator seeded by (seed, step), so a resumed run sees exactly the batches that an
uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from roboalign.sdk.errors import ConfigError
from roboalign.trainer.frames import FrameTable
from roboalign.trainer.nano import NanoForConditionalGeneration, NanoProcessor
from roboalign.trainer.progress import MetricsLog, Timer, check_same_settings, learning_rate, progress_bar
from roboalign.trainer.resume import load_training_state, save_training_state
from roboalign.trainer.samples import Batch, Sample, collate

__all__ = ["FitConfig", "PlaceReadout", "draw_kinds", "fit", "held_out_loss", "random_shift"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """Settings of the supervised loop."""

    steps: int
    """Updates."""
    batch_size: int = 64
    """Samples an update."""
    peak_rate: float = 1e-3
    """Learning rate after warm-up."""
    warmup_share: float = 0.03
    """Share of the steps that warm up (paper: .03)."""
    weight_decay: float = 0.02
    """AdamW weight decay."""
    clip_norm: float = 1.0
    """Gradient norm limit."""
    place_weight: float = 0.0
    """Weight of the auxiliary loss that reads the named objects' places from the first image tokens."""
    shift_px: int = 0
    """Pictures are brightened and darkened at random when this is not 0; kept as a share of 255 in pixels."""
    save_every: int = 200
    """Steps between two training states on disk."""
    threads: int = 1
    """CPU threads."""
    seed: int = 0
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"FitConfig.{name} is {getattr(self, name)}, expected at least 1")


class PlaceReadout(nn.Module):
    """Reads table positions from the first two image tokens; used by the base stage only and thrown away after it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.readout = nn.Sequential(nn.Linear(dim, 64), nn.SiLU(), nn.Linear(64, 2))

    def loss(self, tokens_BKD: torch.Tensor, places_B22: torch.Tensor) -> torch.Tensor:
        """Returns the mean absolute error in decimetres over the places that are not NaN."""
        guess_B22 = self.readout(tokens_BKD[:, :2])
        target_B22 = (places_B22 - torch.tensor([0.5, 0.0])) * 10.0
        known = ~target_B22.isnan()
        if not known.any():
            return guess_B22.sum() * 0.0
        return F.smooth_l1_loss(guess_B22[known], target_B22[known], beta=0.1)


def draw_kinds(weights: Mapping[str, float], count: int, rng: np.random.Generator) -> list[str]:
    """Returns `count` sample kinds, drawn by weight."""
    names = sorted(weights)
    share = np.asarray([weights[n] for n in names], np.float64)
    if (share < 0).any() or share.sum() <= 0:
        raise ConfigError(f"sample weights are {dict(weights)}, expected non-negative numbers with a positive sum")
    return [names[int(i)] for i in rng.choice(len(names), size=count, p=share / share.sum())]


def random_shift(pixels_BCHW: torch.Tensor, amount_px: int, rng: np.random.Generator) -> torch.Tensor:
    """Returns pictures with random brightness and contrast: the one augmentation that leaves every label true."""
    if amount_px == 0:
        return pixels_BCHW
    size = (len(pixels_BCHW), 1, 1, 1)
    gain = torch.from_numpy(rng.uniform(1 - amount_px / 100, 1 + amount_px / 100, size).astype(np.float32))
    offset = torch.from_numpy(rng.uniform(-amount_px / 100, amount_px / 100, size).astype(np.float32))
    return pixels_BCHW * gain + offset


def fit(
    model: NanoForConditionalGeneration,
    processor: NanoProcessor,
    table: FrameTable,
    held: FrameTable,
    draw: Callable[[FrameTable, int, np.random.Generator], list[Sample]],
    config: FitConfig,
    *,
    folder: Path,
    label: str,
) -> Timer:
    """Trains `model` in place and returns the time used; resumes from `folder/state` when a state is there.

    Args:
        model: trained in place.
        processor: makes the batches.
        table: training frames.
        held: held-out frames, for the held-out loss in `folder/metrics.jsonl`.
        draw: draws `count` samples from a table.
        config: settings.
        folder: where `state/` and `metrics.jsonl` are kept.
        label: name on the progress bar.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    readout = PlaceReadout(model.config.hidden_size)
    trained = nn.ModuleDict({"model": model, "readout": readout})
    optimizer = _optimizer(trained, config)
    state = load_training_state(folder / "state", model=trained, optimizer=optimizer)
    settings = {**asdict(config), "label": label, "data_hash": table.data_hash}
    for name in ("threads", "save_every"):  # neither changes the result
        del settings[name]
    if state:
        check_same_settings(state.extra["settings"], settings, folder=folder)
    first = state.step if state else 0
    timer = Timer(**(state.extra["time"] if state else {}))
    log = MetricsLog(folder / "metrics.jsonl", first_step=first)
    model.train()
    with progress_bar(label, config.steps, done=first) as update:
        for step in range(first, config.steps):
            rate = learning_rate(step, peak=config.peak_rate, steps=config.steps, warmup_share=config.warmup_share)
            for group in optimizer.param_groups:
                group["lr"] = rate
            rng = np.random.default_rng((config.seed, step))
            batch = collate(draw(table, config.batch_size, rng), table, processor)
            loss, parts = _loss(model, readout, batch, config, rng)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(trained.parameters(), config.clip_norm)
            optimizer.step()
            log.write(step=step, rate=rate, grad_norm=float(norm), cpu_s=timer.cpu_s, wall_s=timer.wall_s, **parts)
            update(1, f"loss {parts['loss']:.3f}")
            last = step + 1 == config.steps
            if (step + 1) % config.save_every == 0 or last:
                log.write(step=step, held_loss=held_out_loss(model, processor, held, draw, config))
                extra = {"time": {"wall_s": timer.wall_s, "cpu_s": timer.cpu_s}, "settings": settings}
                save_training_state(folder / "state", model=trained, optimizer=optimizer, step=step + 1, extra=extra)
    model.eval()
    return timer


def _optimizer(trained: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """AdamW; vectors (biases, norms) are not decayed."""
    decayed = [p for p in trained.parameters() if p.ndim > 1]
    plain = [p for p in trained.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.peak_rate, betas=(0.9, 0.98))


def _loss(
    model: NanoForConditionalGeneration,
    readout: PlaceReadout,
    batch: Batch,
    config: FitConfig,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, dict[str, float]]:
    pixels = random_shift(batch.pixel_values, config.shift_px, rng).contiguous(memory_format=torch.channels_last)
    embeds, _ = model.model.merge(batch.input_ids, pixels, batch.attention_mask)
    out = model.model.language_model(inputs_embeds=embeds, attention_mask=batch.attention_mask, use_cache=False)
    wanted = batch.labels[:, 1:] != -100
    logits = model.lm_head(out.last_hidden_state[:, :-1][wanted])
    target = batch.labels[:, 1:][wanted]
    text = F.cross_entropy(logits, target)
    parts = {"loss": float(text.detach()), "token_accuracy": float((logits.argmax(-1) == target).float().mean())}
    if config.place_weight == 0:
        return text, parts
    first = (batch.input_ids == model.config.image_token_id).int().argmax(dim=1)
    index = (first[:, None] + torch.arange(2))[:, :, None].expand(-1, -1, embeds.shape[2])
    place = readout.loss(embeds.gather(1, index), batch.places)
    return text + config.place_weight * place, {**parts, "place_loss": float(place.detach())}


@torch.no_grad()
def held_out_loss(
    model: NanoForConditionalGeneration,
    processor: NanoProcessor,
    held: FrameTable,
    draw: Callable[[FrameTable, int, np.random.Generator], list[Sample]],
    config: FitConfig,
    *,
    batches: int = 4,
) -> float:
    """Returns the reply's mean cross-entropy on the same held-out samples at every call."""
    was_training = model.training
    model.eval()
    rng = np.random.default_rng((config.seed, 2**31))
    total = 0.0
    for _ in range(batches):
        batch = collate(draw(held, config.batch_size, rng), held, processor)
        out = model(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            pixel_values=batch.pixel_values,
            labels=batch.labels,
            use_cache=False,
        )
        total += float(out.loss)
    model.train(was_training)
    return total / batches
