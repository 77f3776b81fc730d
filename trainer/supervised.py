"""The supervised loop of the `base` and `sft` stages, for every backbone: next-token cross-entropy on the reply.

Every batch is a function of the step and of a generator seeded by (seed, step), so a resumed run sees exactly the
batches that an uninterrupted one would have seen. An update may be cut into micro-batches: samples of one length go
together, and the loss is the mean over all reply tokens of the update, however it is cut. Arithmetic is float32 on a
CPU; on a GPU the forward pass is bfloat16 and the weights stay as they were loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from roboalign.sdk.errors import ConfigError
from roboalign.trainer.backbone import HuggingFaceBackbone, PromptInputs
from roboalign.trainer.lora import LoraSettings
from roboalign.trainer.parallel import Parallel, Trained
from roboalign.trainer.progress import MetricsLog, Timer, check_same_settings, learning_rate, progress_bar
from roboalign.trainer.response import ResponseLoss, response_loss
from roboalign.trainer.resume import load_training_state, save_training_state
from roboalign.trainer.samples import Batch, Sample, collate

__all__ = ["Draw", "FitConfig", "PlaceReadout", "draw_kinds", "fit", "held_out_loss", "random_shift", "training_device"]

Draw = Callable[[int, int, np.random.Generator], list[Sample]]
"""Returns the samples of a step: (step, count, generator of this step) -> `count` samples, the same at every call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """Settings of the supervised loop."""

    steps: int
    """Updates."""
    batch_size: int = 64
    """Samples an update."""
    micro_batch: int | None = None
    """Samples in memory at once, those of one length together; None takes the whole update."""
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
    freeze_vision: bool = False
    """Leave the vision encoder as it is (the paper, which starts from a pretrained one)."""
    lora: LoraSettings | None = None
    """Train low-rank additions to the decoder instead of all parameters; None trains all (the paper)."""
    checkpointing: bool = False
    """Make activations again for the gradient instead of keeping them: less memory, more time."""
    save_every: int = 200
    """Steps between two training states on disk."""
    threads: int = 1
    """CPU threads."""
    seed: int = 0
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batch", "save_every", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"FitConfig.{name} is {value}, expected at least 1")


class PlaceReadout(nn.Module):
    """Reads table positions from the first two image tokens; used by the base stage only and thrown away after it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.readout = nn.Sequential(nn.Linear(dim, 64), nn.SiLU(), nn.Linear(64, 2))

    def loss(self, tokens_BKD: torch.Tensor, places_B22: torch.Tensor) -> torch.Tensor:
        """Returns the mean absolute error in decimetres over the places that are not NaN."""
        guess_B22 = self.readout(tokens_BKD[:, :2])
        target_B22 = (places_B22 - torch.tensor([0.5, 0.0], device=places_B22.device)) * 10.0
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
    if pixels_BCHW.dim() != 4:
        raise ConfigError(
            f"FitConfig.shift_px is {amount_px}, but this model cuts pictures into patches of its own; set it to 0"
        )
    size = (len(pixels_BCHW), 1, 1, 1)
    gain = torch.from_numpy(rng.uniform(1 - amount_px / 100, 1 + amount_px / 100, size).astype(np.float32))
    offset = torch.from_numpy(rng.uniform(-amount_px / 100, amount_px / 100, size).astype(np.float32))
    return pixels_BCHW * gain.to(pixels_BCHW.device) + offset.to(pixels_BCHW.device)


def fit(
    backbone: HuggingFaceBackbone,
    draw: Draw,
    draw_held: Draw,
    config: FitConfig,
    *,
    data_hash: str,
    folder: Path,
    label: str,
) -> Timer:
    """Trains the backbone's model in place and returns the time used; resumes when `folder/state` is there.

    Args:
        backbone: its model is trained in place, and moved to the GPU where there is one.
        draw: the training samples.
        draw_held: held-out samples, for the held-out loss in `folder/metrics.jsonl`.
        config: settings.
        data_hash: of the data; an interrupted run is not finished on other data.
        folder: where `state/` and `metrics.jsonl` are kept.
        label: name on the progress bar.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    model = backbone.model.to(training_device())
    readout = PlaceReadout(backbone.hidden_size).to(model.device)
    trained, parallel = _trained_part(backbone, readout, config), Parallel()
    if config.lora is not None:
        parallel.refuse("a model with low-rank additions", "leave out --processes, or train all weights with --lora 0")
    parallel.shard(trained, backbone.decoder.layers)
    saved, optimizer = _saved_part(trained), _optimizer(trained, config)
    state = load_training_state(folder / "state", model=saved, optimizer=optimizer)
    settings = {**json.loads(json.dumps(asdict(config))), "label": label, "data_hash": data_hash}
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
            optimizer.zero_grad(set_to_none=True)
            samples = parallel.share(draw(step, config.batch_size, rng))
            parts = _backward(backbone, trained, samples, config, rng, parallel)
            norm = parallel.clip(_learning(trained), config.clip_norm)
            optimizer.step()
            log.write(step=step, rate=rate, grad_norm=norm, cpu_s=timer.cpu_s, wall_s=timer.wall_s, **parts)
            update(1, f"loss {parts['loss']:.3f}")
            last = step + 1 == config.steps
            if (step + 1) % config.save_every == 0 or last:
                log.write(step=step, held_loss=trained(lambda: held_out_loss(backbone, draw_held, config)))
                extra = {"time": {"wall_s": timer.wall_s, "cpu_s": timer.cpu_s}, "settings": settings}
                save_training_state(folder / "state", model=saved, optimizer=optimizer, step=step + 1, extra=extra)
    backbone.model = parallel.gather(trained)["model"].eval()
    return timer


def training_device() -> torch.device:
    """Returns the GPU where torch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _Learning(nn.Module):
    """The parameters that learn, and nothing else: a saved state need not hold a frozen model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)


def _trained_part(backbone: HuggingFaceBackbone, readout: PlaceReadout, config: FitConfig) -> Trained:
    """Freezes what is not to learn and returns everything that computes the loss."""
    backbone.vision.requires_grad_(not config.freeze_vision)
    if config.checkpointing:
        cast(Any, backbone.model).activation_checkpointing_enable({"use_reentrant": False})
    return Trained({"model": backbone.model, "readout": readout})


def _saved_part(trained: Trained) -> nn.Module:
    """Returns what the saved state holds: everything where everything learns."""
    return trained if all(p.requires_grad for p in trained.parameters()) else _Learning(trained)


def _learning(trained: nn.Module) -> list[nn.Parameter]:
    return [p for p in trained.parameters() if p.requires_grad]


def _optimizer(trained: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """AdamW; vectors (biases, norms) are not decayed."""
    decayed = [p for p in _learning(trained) if p.ndim > 1]
    plain = [p for p in _learning(trained) if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.peak_rate, betas=(0.9, 0.98))


def _batches(samples: Sequence[Sample], backbone: HuggingFaceBackbone, config: FitConfig) -> list[Batch]:
    """Returns the samples in micro-batches, those of one length together, so that little is padded."""
    size = config.micro_batch or len(samples)
    if size < len(samples):
        samples = sorted(samples, key=lambda sample: len(sample.text) + len(sample.reply))
    return [collate(samples[start : start + size], backbone) for start in range(0, len(samples), size)]


def _backward(
    backbone: HuggingFaceBackbone,
    trained: Trained,
    samples: Sequence[Sample],
    config: FitConfig,
    rng: np.random.Generator,
    parallel: Parallel,
) -> dict[str, float]:
    """Adds the gradients of the mean over all reply tokens of an update, however it is cut; returns what to log."""
    batches = _batches(samples, backbone, config)
    num_tokens = parallel.total(sum(int((batch.labels[:, 1:] != -100).sum()) for batch in batches))
    sums: dict[str, float] = {}
    for batch in batches:
        share = len(batch.labels) / (len(samples) * parallel.size)
        loss, parts = trained(
            partial(_loss, backbone, cast(PlaceReadout, trained["readout"]), batch, config, rng, num_tokens, share)
        )
        (loss * parallel.size).backward()  # sharded gradients are averaged over the processes
        sums = {name: sums.get(name, 0.0) + value for name, value in parts.items()}
    return {name: parallel.total(value) for name, value in sums.items()}


def _loss(
    backbone: HuggingFaceBackbone,
    readout: PlaceReadout,
    batch: Batch,
    config: FitConfig,
    rng: np.random.Generator,
    num_tokens: float,
    share: float,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Returns what a micro-batch adds to the loss of its update, and to the numbers that are logged."""
    inputs = _shifted(batch.inputs, config, rng)
    text, embeds_BLD = _read(backbone, inputs, batch.labels)
    loss = text.total / num_tokens
    parts = {"loss": float(loss.detach()), "token_accuracy": text.num_right / num_tokens}
    if config.place_weight:
        first = (inputs.input_ids == cast(Any, backbone.processor).image_token_id).int().argmax(dim=1)
        index = (first[:, None] + torch.arange(2, device=first.device))[:, :, None]
        tokens_B2D = embeds_BLD.gather(1, index.expand(-1, -1, embeds_BLD.shape[2])).float()
        place = readout.loss(tokens_B2D, batch.places) * share
        parts["place_loss"] = float(place.detach())
        loss = loss + config.place_weight * place
    return loss, parts


def _read(
    backbone: HuggingFaceBackbone, inputs: PromptInputs, labels_BL: torch.Tensor
) -> tuple[ResponseLoss, torch.Tensor]:
    """Returns the loss on the replies, and what the decoder got; bfloat16 on a GPU."""
    device = inputs.input_ids.device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        hidden_BLD, embeds_BLD = backbone.read(inputs)
        return response_loss(backbone.model.get_output_embeddings(), hidden_BLD, labels_BL), embeds_BLD


def _shifted(inputs: PromptInputs, config: FitConfig, rng: np.random.Generator) -> PromptInputs:
    if "pixel_values" not in inputs.extra:
        return inputs
    pixels = random_shift(inputs.extra["pixel_values"], config.shift_px, rng)
    if pixels.dim() == 4:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    return replace(inputs, extra={**inputs.extra, "pixel_values": pixels})


@torch.no_grad()
def held_out_loss(backbone: HuggingFaceBackbone, draw: Draw, config: FitConfig, *, batches: int = 4) -> float:
    """Returns the reply's mean cross-entropy on the same held-out samples at every call."""
    was_training = backbone.model.training
    backbone.model.eval()
    rng = np.random.default_rng((config.seed, 2**31))
    means = []
    for index in range(batches):
        total, num_tokens = 0.0, 0
        for batch in _batches(draw(index, config.batch_size, rng), backbone, config):
            text, _ = _read(backbone, batch.inputs, batch.labels)
            total, num_tokens = total + float(text.total), num_tokens + text.num_tokens
        means.append(total / num_tokens)
    backbone.model.train(was_training)
    return sum(means) / batches
