"""What `align` measures: is there anything to explore, does the policy get better, is it being destroyed.

Everything is measured on the same prompts and with the same draws at every call, and none of it touches the global
random generators. A reply that does not decode counts with `UNDECODABLE_ERROR`, so that a policy cannot look better
by failing.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from roboalign.sdk.fast import FastCodec
from roboalign.trainer.backbone import HuggingFaceBackbone, PromptInputs
from roboalign.trainer.frames import FrameTable
from roboalign.trainer.probe import reply_tokens
from roboalign.trainer.progress import MetricsLog, Timer
from roboalign.trainer.resume import unique_tensors
from roboalign.trainer.rewards import ReplyScore, RewardWeights, score_reply, total_reward
from roboalign.trainer.rollout import TokenMask, sample_replies

if TYPE_CHECKING:
    from roboalign.trainer.align import AlignConfig
    from roboalign.trainer.grpo import AlignTrainer

__all__ = [
    "UNDECODABLE_ERROR",
    "ActionPrompts",
    "AlignWatch",
    "ClosedLoop",
    "Measurement",
    "ReplyMeasure",
    "destruction",
    "finite_error",
    "measure_policy",
    "what_is_missing",
]

ClosedLoop = Callable[[HuggingFaceBackbone, FastCodec], Mapping[str, float]]
"""Runs a few short episodes with action tokens and returns numbers such as `success`; must not change the weights."""

UNDECODABLE_ERROR = 1.0
"""Error counted for a reply that does not decode: half the range of every field, far worse than a bad guess."""


class ActionPrompts:
    """Frames as think-then-act prompts, with the demonstrated action of each."""

    def __init__(self, table: FrameTable, backbone: HuggingFaceBackbone, codec: FastCodec) -> None:
        self.table = table
        self.codec = codec
        self.tokens = reply_tokens(backbone, codec.vocab_size)
        self._backbone = backbone

    def __len__(self) -> int:
        return len(self.table)

    def inputs(self, rows: Sequence[int]) -> PromptInputs:
        """Returns the prompts of some frames."""
        index = np.asarray(rows, dtype=np.int64)
        return self._backbone.encode_prompts(
            [self.table.truths[i].instruction for i in index],
            self.table.states[index],
            list(self.table.images[index]),
            pace="slow",
            task="act",
        )

    def score(self, row: int, reply_ids: Sequence[int]) -> ReplyScore:
        """Returns the score of one reply to the prompt `row`."""
        chunk = self.table.chunks[row]
        return score_reply(reply_ids, self.codec.encode(chunk), chunk, codec=self.codec, tokens=self.tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyMeasure:
    """Means over replies."""

    reward: float
    """Mean reward."""
    error: float
    """Mean absolute error of the decoded action in normalised units."""
    decodable: float
    """Share that decodes."""
    well_formed: float
    """Share with the exact form (the paper's r_f)."""
    prefix: float
    """Mean share of the target's tokens that agree from the start (the paper's r_a)."""
    first_token: float
    """Share whose first action token is the demonstrated one."""
    tokens: float
    """Mean length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """The state of a policy at one step."""

    greedy: ReplyMeasure
    """One reply a prompt, always the most likely token."""
    sampled: ReplyMeasure
    """Several replies a prompt, drawn as in training."""
    informative: float
    """Share of the prompts whose samples do not all earn the same reward; the others teach nothing."""
    closed_loop: Mapping[str, float] = field(default_factory=dict)
    """What the closed-loop callback returned."""

    @property
    def error(self) -> float:
        """Mean of greedy and sampled error; what the best checkpoint is chosen by."""
        return (self.greedy.error + self.sampled.error) / 2

    def to_json(self) -> dict[str, object]:
        """Returns a JSON-able description."""
        return asdict(self) | {"error": self.error}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """Builds the measurement from `to_json`'s result."""
        return cls(
            greedy=ReplyMeasure(**data["greedy"]),
            sampled=ReplyMeasure(**data["sampled"]),
            informative=data["informative"],
            closed_loop=data["closed_loop"],
        )


def measure_policy(
    backbone: HuggingFaceBackbone,
    prompts: ActionPrompts,
    rows: Sequence[int],
    mask: TokenMask,
    *,
    reward: str,
    weights: RewardWeights,
    num_samples: int,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> Measurement:
    """Measures greedy and sampled replies to the prompts `rows`; the model comes back in the mode it was in."""
    was_training = backbone.model.training
    backbone.model.eval()
    inputs = prompts.inputs(rows)
    generator = torch.Generator(device=inputs.input_ids.device).manual_seed(seed)
    common: dict[str, Any] = {"max_tokens": max_tokens, "eos_id": prompts.tokens.eos, "generator": generator}
    greedy = sample_replies(backbone, inputs, mask, num_samples=1, temperature=0.0, **common)
    sampled = sample_replies(backbone, inputs, mask, num_samples=num_samples, temperature=temperature, **common)
    backbone.model.train(was_training)
    many = [row for row in rows for _ in range(num_samples)]
    measure, rewards = _summary(prompts, many, sampled.token_ids, reward, weights)
    spread = np.ptp(np.asarray(rewards).reshape(len(rows), num_samples), axis=1)
    return Measurement(
        greedy=_summary(prompts, rows, greedy.token_ids, reward, weights)[0],
        sampled=measure,
        informative=float((spread > 1e-6).mean()),
    )


def _summary(
    prompts: ActionPrompts, rows: Sequence[int], replies: Sequence[Sequence[int]], reward: str, weights: RewardWeights
) -> tuple[ReplyMeasure, list[float]]:
    scores = [prompts.score(row, ids) for row, ids in zip(rows, replies, strict=True)]
    rewards = [total_reward(score, reward, weights) for score in scores]
    measure = ReplyMeasure(
        reward=float(np.mean(rewards)),
        error=float(np.mean([finite_error(s) for s in scores])),
        decodable=float(np.mean([s.is_decodable for s in scores])),
        well_formed=float(np.mean([s.is_well_formed for s in scores])),
        prefix=float(np.mean([s.prefix for s in scores])),
        first_token=float(np.mean([s.is_first_right for s in scores])),
        tokens=float(np.mean([len(ids) for ids in replies])),
    )
    return measure, rewards


def finite_error(score: ReplyScore) -> float:
    """Returns the error of a reply, `UNDECODABLE_ERROR` when it has none."""
    return score.error if math.isfinite(score.error) else UNDECODABLE_ERROR


def what_is_missing(
    start: Measurement, *, min_first_token: float, min_informative: float, min_well_formed: float
) -> list[str]:
    """Returns why there is nothing to explore, one sentence with its number each; empty when there is."""
    found = []
    if start.greedy.first_token < min_first_token:
        found.append(
            f"the first action token is right in {start.greedy.first_token:.1%} of greedy replies "
            f"(needs {min_first_token:.0%})"
        )
    if start.informative < min_informative:
        found.append(
            f"samples differ in reward for {start.informative:.1%} of the prompts (needs {min_informative:.0%})"
        )
    if start.sampled.well_formed < min_well_formed:
        found.append(f"{start.sampled.well_formed:.1%} of the samples are well-formed (needs {min_well_formed:.0%})")
    return found


def destruction(
    start: Measurement, now: Measurement, *, error_ratio: float, error_slack: float, decodable_drop: float
) -> str | None:
    """Returns why the run must stop because it is destroying the policy, or None."""
    limit = start.greedy.error * error_ratio + error_slack
    if now.greedy.error > limit:
        return f"the greedy error went from {start.greedy.error:.3f} to {now.greedy.error:.3f} (limit {limit:.3f})"
    if now.greedy.decodable < start.greedy.decodable - decodable_drop:
        return f"decodable greedy replies went from {start.greedy.decodable:.1%} to {now.greedy.decodable:.1%}"
    if now.sampled.decodable < start.sampled.decodable - decodable_drop:
        return f"decodable samples went from {start.sampled.decodable:.1%} to {now.sampled.decodable:.1%}"
    return None


_LOGGED = {
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "zero_variance",
    "sampled_well_formed": "well_formed",
    "sampled_decodable": "decodable",
    "sampled_prefix": "prefix",
    "sampled_first_token": "first_token",
    "sampled_error": "error",
    "kl": "kl",
    "entropy": "entropy",
    "clip_ratio/low_mean": "clip_low",
    "clip_ratio/high_mean": "clip_high",
    "completions/mean_length": "tokens",
    "completions/clipped_ratio": "cut_replies",
    "sampling_gap": "sampling_gap",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "loss": "loss",
    "generate_s": "generate_s",
    "step_time": "step_s",
}
"""TRL's names of the logged numbers, and ours."""


class AlignWatch(TrainerCallback):
    """Measures, judges, logs and saves while TRL trains."""

    def __init__(
        self,
        config: AlignConfig,
        backbone: HuggingFaceBackbone,
        held: ActionPrompts,
        mask: TokenMask,
        closed_loop: ClosedLoop | None,
    ) -> None:
        self._config, self._backbone, self._held, self._mask = config, backbone, held, mask
        self._closed_loop = closed_loop
        count = min(config.watch_prompts, len(held))
        order = np.random.default_rng((config.seed, 17)).permutation(len(held))
        self._watched = [int(row) for row in order[:count]]
        self.trainer: AlignTrainer | None = None
        self.show: Callable[[int, str], None] = lambda _advance, _note: None
        self.step, self.best_step, self.stopped = 0, 0, ""
        self.history: list[dict[str, Any]] = []

    def begin(self, work: Path, state: Path | None) -> None:
        """Measures the start, or restores what an interrupted run had measured."""
        self._work = work
        extra = json.loads((state / "extra.json").read_text(encoding="utf-8")) if state is not None else None
        self.timer = Timer(**(extra["time"] if extra else {}))
        self.step = extra["step"] if extra else 0
        self.log = MetricsLog(work / "metrics.jsonl", first_step=self.step + 1 if extra else 0)
        if extra is None:
            self._note(0, self.measure())
            return
        self.history, self.best_step = extra["history"], extra["best_step"]

    @property
    def start(self) -> Measurement:
        """The measurement before the first update."""
        return Measurement.from_json(self.history[0]["held"])

    @property
    def best_file(self) -> Path:
        """Weights of the best step so far; older ones stay until a saved state no longer refers to them."""
        return self._work / f"best-{self.best_step}.safetensors"

    def measure(self) -> Measurement:
        """Returns the state of the policy on the held-out prompts."""
        config = self._config
        found = measure_policy(
            self._backbone,
            self._held,
            self._watched,
            self._mask,
            reward=config.reward,
            weights=config.weights,
            num_samples=config.watch_samples,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=config.seed,
        )
        if self._closed_loop is None:
            return found
        was_training = self._backbone.model.training
        self._backbone.model.eval()
        numbers = dict(self._closed_loop(self._backbone, self._held.codec))
        self._backbone.model.train(was_training)
        return replace(found, closed_loop=numbers)

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:
        """Measures, keeps the best weights, stops a run that is destroying the policy."""
        self.step = state.global_step
        last = self.step == self._config.steps
        if self.step % self._config.watch_every == 0 or last:
            now = self.measure()
            self._note(self.step, now)
            reason = destruction(
                self.start,
                now,
                error_ratio=self._config.stop_error_ratio,
                error_slack=self._config.stop_error_slack,
                decodable_drop=self._config.stop_decodable_drop,
            )
            if reason is not None:
                self.stopped = f"stopped at step {self.step}: {reason}"
                control.should_training_stop = True
                print(f"align {self.stopped}; the best weights are of step {self.best_step}", file=sys.stderr)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_kwargs: Any
    ) -> None:
        """Appends the numbers of an update to `metrics.jsonl`, then saves the state."""
        if not logs or "reward" not in logs:
            return
        values = {new: logs[old] for old, new in _LOGGED.items() if old in logs}
        self.log.write(step=state.global_step, cpu_s=self.timer.cpu_s, wall_s=self.timer.wall_s, **values)
        self.show(1, f"reward {logs['reward']:.3f}")
        # Not before: a resumed run does not do the step of its state again, so nobody would write its line.
        if self.step % self._config.save_every == 0 or self.step == self._config.steps:
            self._save_state()

    def _save_state(self) -> None:
        assert self.trainer is not None
        self.trainer.save_state(self._work / "state", self._extra())
        for file in set(self._work.glob("best-*.safetensors")) - {self.best_file}:
            file.unlink()

    def _extra(self) -> dict[str, Any]:
        time = {"wall_s": self.timer.wall_s, "cpu_s": self.timer.cpu_s}
        return {"step": self.step, "best_step": self.best_step, "history": self.history, "time": time}

    def _note(self, step: int, now: Measurement) -> None:
        best = min((Measurement.from_json(entry["held"]).error for entry in self.history), default=float("inf"))
        self.history.append({"step": step, "held": now.to_json()})
        self.log.write(step=step, held=now.to_json(), cpu_s=self.timer.cpu_s, wall_s=self.timer.wall_s)
        if now.error < best:
            self.best_step = step
            temporary = self._work / ".best.tmp"
            save_file(unique_tensors(self._backbone.model), temporary)
            temporary.replace(self.best_file)
