"""Measures sampling and whole GRPO steps of `align` beside TRL's own default path, on the same model and prompts.

    python benchmarks/grpo.py --out runs/grpo.json

Ours reads each prompt once, shares its cache among the samples, and computes all log-probabilities on top of one read
prompt. TRL's default is transformers' `generate` on every prompt repeated for each of its samples, and
log-probabilities of whole sequences, prompt and picture included (`GRPOTrainer._generate_single_turn` is called as it
is). Both sample freely, without the length constraint, at temperature 1, and both stop at the end token. The two take
turns within one process, so that the load of the machine meets both alike. Speeds are tokens of replies a second,
because the replies of the two are different draws; CPU seconds say more than wall seconds on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from roboalign.sdk.bundle import shipped_bundle_path
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.seeds import train_seed
from roboalign.trainer.align_config import AlignConfig, grpo_config
from roboalign.trainer.backbone import load_backbone
from roboalign.trainer.frames import FrameTable
from roboalign.trainer.grpo import AlignTrainer
from roboalign.trainer.judge import ActionPrompts, Judge
from roboalign.trainer.probe import reply_mask
from roboalign.trainer.rewards import RewardWeights


class RepeatingTrainer(AlignTrainer):
    """TRL's default way: every reply is read with its own copy of the prompt, and padded to the longest of all."""

    def _longest(self, completion_mask: torch.Tensor) -> int:
        return completion_mask.shape[1]

    def _distributions(
        self, model: torch.nn.Module, rows: torch.Tensor, completion_ids: torch.Tensor, completion_mask: torch.Tensor
    ) -> torch.Tensor:
        prompts = self._prompts.inputs(rows.tolist())
        sequence = prompts.extend(completion_ids, completion_mask)
        logits = self._backbone.logits(sequence, keep=completion_ids.shape[1] + 1, module=model)[:, :-1]
        return self._mask.log_probs(logits, completion_ids, temperature=self.temperature)


def simulated_frames(count: int, codec: FastCodec) -> FrameTable:
    """Returns the first frame of `count` scenes, with the expert's chunk."""
    env = SimEnv("mix")
    images, states, chunks, truths = [], [], [], []
    for index in range(count):
        env.reset(seed=train_seed(index))
        seen = env.observe()
        images.append(seen.images["front"])
        states.append(seen.state)
        truths.append(env.truth())
        chunk = []
        for _ in range(codec.config.horizon):
            chunk.append(env.expert_action())
            env.advance(chunk[-1])
        chunks.append(np.stack(chunk))
    env.close()
    return FrameTable(
        images=np.stack(images),
        states=np.stack(states),
        chunks=np.stack(chunks),
        truths=tuple(truths),
        episodes=np.arange(count),
        data_hash="benchmark",
    )


def make_trainer(options: argparse.Namespace, work: Path, *, is_ours: bool) -> AlignTrainer:
    """Returns a trainer on the model of a folder, with the reward `prefix` (its scoring is the same for both)."""
    backbone, codec = load_backbone(options.model), FastCodec.load(options.model)
    frames = simulated_frames(options.prompts, codec)
    config = AlignConfig(
        data=work,
        sft=options.model,
        out=work / "out",
        recipe="benchmark",
        steps=10_000,
        reward="prefix",
        rollout="own" if is_ours else "trl",
        prompts_per_rollout=options.prompts,
        samples_per_prompt=options.samples,
        micro_batch=options.micro_batch,
        max_tokens=options.max_tokens,
    )
    judge = Judge(ActionPrompts(frames, backbone, codec), "prefix", weights=RewardWeights(), source=frames)
    rows = list(range(options.prompts)) * 2
    args = grpo_config(config, work / ("ours" if is_ours else "trl"), banned_ids=backbone.banned_ids)
    mask = reply_mask(backbone, codec, constrained=False)
    kind = AlignTrainer if is_ours else RepeatingTrainer
    trainer = kind(judge=judge, rows=rows, mask=mask, args=args, rollout=config.rollout)
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    trainer.create_optimizer_and_scheduler(num_training_steps=10_000)
    return trainer


def one_step(trainer: AlignTrainer, options: argparse.Namespace) -> dict[str, float]:
    """Samples once, then runs one whole step (with its own sampling); returns CPU and wall seconds, and tokens."""
    trainer.model.train()
    count = trainer.args.gradient_accumulation_steps
    batch = [{"prompt": f"frame {row}", "row": row} for row in range(options.prompts) for _ in range(options.samples)]
    trainer._rows = torch.tensor([example["row"] for example in batch])
    watch = Stopwatch()
    replies = trainer.rollout_func([], trainer)["completion_ids"]
    found = watch.stop("rollout")
    watch = Stopwatch()
    for _ in range(count):
        trainer.training_step(trainer.model, batch, num_items_in_batch=None)
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    found |= watch.stop("step")
    metrics: Any = trainer._metrics["train"]
    return found | {
        "rollout_tokens": sum(map(len, replies)),
        "step_tokens": sum(metrics["micro_batch_tokens"][-count:]),
    }


class Stopwatch:
    """CPU seconds of this process and wall seconds since it was made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def stop(self, name: str) -> dict[str, float]:
        """Returns both, named."""
        return {
            f"{name}_cpu_s": time.process_time() - self._cpu,
            f"{name}_wall_s": time.perf_counter() - self._wall,
        }


def speed(run: dict[str, float], part: str, clock: str) -> float:
    """Returns tokens of replies a second."""
    return run[f"{part}_tokens"] / run[f"{part}_{clock}_s"]


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Lets the two take turns; returns speeds and ratios."""
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: make_trainer(options, Path(folder), is_ours=name == "ours") for name in runs}
        for trainer in trainers.values():
            one_step(trainer, options)
        for repeat in range(options.repeats):
            for name in ("ours", "trl") if repeat % 2 == 0 else ("trl", "ours"):
                runs[name].append(one_step(trainers[name], options))
    ratios = {
        f"{part}_{clock}": [
            speed(ours, part, clock) / speed(trl, part, clock)
            for ours, trl in zip(runs["ours"], runs["trl"], strict=True)
        ]
        for part in ("rollout", "step")
        for clock in ("cpu", "wall")
    }
    return {"settings": {k: str(v) for k, v in vars(options).items()}, "runs": runs, "ratios": ratios}


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=shipped_bundle_path(), help="default: the shipped policy")
    parser.add_argument("--prompts", type=int, default=24, help="a rollout (default: 24, the nano recipe's)")
    parser.add_argument("--samples", type=int, default=8, help="a prompt (default: 8, the nano recipe's)")
    parser.add_argument("--micro-batch", type=int, default=48, help="replies in one backward pass (default: 48)")
    parser.add_argument("--max-tokens", type=int, default=96, help="longest reply (default: 96)")
    parser.add_argument("--repeats", type=int, default=7, help="steps of each (default: 7)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    found = compare(options)
    for name, runs in found["runs"].items():
        rollout, step = (statistics.median(speed(run, part, "cpu") for run in runs) for part in ("rollout", "step"))
        length = statistics.mean(run["step_tokens"] for run in runs) / (options.prompts * options.samples)
        print(f"{name:5} {rollout:6.0f} (rollout) {step:6.0f} (step) tokens a CPU second, {length:.1f} tokens a reply")
    for part, values in found["ratios"].items():
        middle, low, high = statistics.median(values), min(values), max(values)
        print(f"{part:12} {middle:.2f} times as fast ({low:.2f} to {high:.2f}, n = {len(values)})")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
