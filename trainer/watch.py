"""What `align` does at every measurement: log, judge, keep the best weights, stop, save the state.

The best weights are those with the smallest mean of greedy and sampled held-out error among the measurements that have
not collapsed. The error alone would prefer a collapse: it is smallest where a policy without knowledge stands still.
The start is never a collapse and counts as step 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import save_file
from transformers import TrainerCallback

from roboalign.sdk.fast import FastCodec
from roboalign.trainer.backbone import HuggingFaceBackbone
from roboalign.trainer.judge import Judge
from roboalign.trainer.measure import Measurement, collapse, destruction, measure_policy
from roboalign.trainer.progress import MetricsLog, Timer
from roboalign.trainer.resume import unique_tensors
from roboalign.trainer.rollout import TokenMask

if TYPE_CHECKING:
    from roboalign.trainer.align import AlignConfig
    from roboalign.trainer.grpo import AlignTrainer

__all__ = ["AlignWatch", "ClosedLoop"]

ClosedLoop = Callable[[HuggingFaceBackbone, FastCodec], Mapping[str, float]]
"""Runs a few short episodes with action tokens and returns numbers such as `success`; must not change the weights."""

_LOGGED = {
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "zero_variance",
    "sampled_well_formed": "well_formed",
    "sampled_decodable": "decodable",
    "sampled_prefix": "prefix",
    "sampled_first_token": "first_token",
    "sampled_error": "error",
    "sampled_distinct": "distinct",
    "sampled_thought_tokens": "thought_tokens",
    "sampled_outcome": "outcome",
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
    "score_s": "score_s",
    "rollout_tokens_s": "rollout_tokens_s",
    "step_time": "step_s",
}
"""TRL's names of the logged numbers, and ours."""


_UPDATE_TIME = {"step_time": 1, "generate_s": -1, "score_s": -1}
"""What is left of a step without sampling and scoring: all log-probabilities, the gradient and the update."""


class AlignWatch(TrainerCallback):
    """Measures, judges, logs and saves while TRL trains."""

    def __init__(
        self,
        config: AlignConfig,
        judge: Judge,
        mask: TokenMask,
        closed_loop: ClosedLoop | None,
    ) -> None:
        self._config, self._judge, self._mask = config, judge, mask
        self._backbone = judge.prompts.backbone
        self._closed_loop = closed_loop
        held = len(judge.prompts)
        count = min(config.watch_prompts, held)
        order = np.random.default_rng((config.seed, 17)).permutation(held)
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
            self._judge,
            self._watched,
            self._mask,
            num_samples=config.watch_samples,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            seed=config.seed,
        )
        if self._closed_loop is None:
            return found
        was_training = self._backbone.model.training
        self._backbone.model.eval()
        numbers = dict(self._closed_loop(self._backbone, self._judge.prompts.codec))
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
            ) or collapse(self.start, now, limit=self._config.stop_variety)
            if reason is not None:
                self.stopped = f"stopped at step {self.step}: {reason}"
                self.log.write(step=self.step, stopped=self.stopped)
                control.should_training_stop = True
                print(f"align {self.stopped}; the best weights are of step {self.best_step}", file=sys.stderr)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_kwargs: Any
    ) -> None:
        """Appends the numbers of an update to `metrics.jsonl`, then saves the state."""
        if not logs or "micro_batch_tokens" not in logs:
            return
        values = {new: logs[old] for old, new in _LOGGED.items() if old in logs}
        update_s = sum(sign * logs.get(name, 0.0) for name, sign in _UPDATE_TIME.items())
        values["update_tokens_s"] = logs["micro_batch_tokens"] * args.gradient_accumulation_steps / update_s
        self.log.write(step=state.global_step, cpu_s=self.timer.cpu_s, wall_s=self.timer.wall_s, **values)
        # Only an update with a rollout of its own has a reward.
        self.show(1, f"reward {logs['reward']:.3f}" if "reward" in logs else "")
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
        before = [Measurement.from_json(entry["held"]) for entry in self.history]
        self.history.append({"step": step, "held": now.to_json()})
        collapsed = self._collapsed(now) or ""
        self.log.write(
            step=step, held=now.to_json(), collapsed=collapsed, cpu_s=self.timer.cpu_s, wall_s=self.timer.wall_s
        )
        if collapsed:
            print(f"align step {step} cannot be the best: {collapsed}", file=sys.stderr)
            return
        if now.error < min((m.error for m in before if self._collapsed(m) is None), default=float("inf")):
            self.best_step = step
            temporary = self._work / ".best.tmp"
            save_file(unique_tensors(self._backbone.model), temporary)
            temporary.replace(self.best_file)

    def _collapsed(self, now: Measurement) -> str | None:
        return collapse(self.start, now, limit=self._config.keep_variety)
