"""What is measured about a policy, and what the figures mean: something to explore, destruction, collapse.

Everything is measured on the same prompts and with the same draws at every call, and none of it touches the global
random generators. A reply that does not decode counts with `UNDECODABLE_ERROR`, so that a policy cannot look better
by failing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from roboalign.sdk.types import ACTION_NAMES, FloatArray
from roboalign.trainer.judge import Judge, Verdict
from roboalign.trainer.rewards import ReplyScore
from roboalign.trainer.rollout import TokenMask, sample_replies

__all__ = [
    "UNDECODABLE_ERROR",
    "Measurement",
    "ReplyMeasure",
    "collapse",
    "destruction",
    "distinct_share",
    "finite_error",
    "mean_motion_m",
    "measure_policy",
    "what_is_missing",
]

UNDECODABLE_ERROR = 1.0
"""Error counted for a reply that does not decode: half the range of every field, far worse than a bad guess."""

_MOVES = [ACTION_NAMES.index(name) for name in ("dx_m", "dy_m", "dz_m")]


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
    thought_tokens: float
    """Mean length of the thought."""
    distinct: float
    """Different chunks over replies; what does not decode is no chunk."""
    motion_m: float
    """Mean length of a step of the decoded chunks; 0 when none decodes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """The state of a policy at one step."""

    greedy: ReplyMeasure
    """One reply a prompt, always the most likely token."""
    sampled: ReplyMeasure
    """Several replies a prompt, drawn as in training."""
    informative: float
    """Share of the prompts whose samples do not all earn the same reward; the others teach nothing."""
    demonstrated_distinct: float
    """Different chunks over prompts in the demonstrations."""
    demonstrated_motion_m: float
    """Mean length of a step in the demonstrations."""
    closed_loop: Mapping[str, float] = field(default_factory=dict)
    """What the closed-loop callback returned."""

    @property
    def error(self) -> float:
        """Mean of greedy and sampled error; what the best checkpoint is chosen by, among those that still vary."""
        return (self.greedy.error + self.sampled.error) / 2

    def to_json(self) -> dict[str, object]:
        """Returns a JSON-able description."""
        return asdict(self) | {"error": self.error}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """Builds the measurement from `to_json`'s result."""
        fields = {name: value for name, value in data.items() if name != "error"}
        measures = {name: ReplyMeasure(**data[name]) for name in ("greedy", "sampled")}
        return cls(**{**fields, **measures})


def measure_policy(
    judge: Judge,
    rows: Sequence[int],
    mask: TokenMask,
    *,
    num_samples: int,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> Measurement:
    """Measures greedy and sampled replies to the prompts `rows`; the model comes back in the mode it was in."""
    prompts = judge.prompts
    backbone = prompts.backbone
    was_training = backbone.model.training
    backbone.model.eval()
    inputs = prompts.inputs(rows)
    generator = torch.Generator(device=inputs.input_ids.device).manual_seed(seed)
    common: dict[str, Any] = {"max_tokens": max_tokens, "eos_id": prompts.tokens.eos, "generator": generator}
    greedy = sample_replies(backbone, inputs, mask, num_samples=1, temperature=0.0, **common)
    sampled = sample_replies(backbone, inputs, mask, num_samples=num_samples, temperature=temperature, **common)
    backbone.model.train(was_training)
    many = [row for row in rows for _ in range(num_samples)]
    verdict = judge.judge(many, sampled.token_ids)
    spread = np.ptp(np.asarray(verdict.rewards).reshape(len(rows), num_samples), axis=1)
    targets = [prompts.target(row) for row in rows]
    return Measurement(
        greedy=_summary(judge.judge(rows, greedy.token_ids), greedy.token_ids),
        sampled=_summary(verdict, sampled.token_ids),
        informative=float((spread > 1e-6).mean()),
        demonstrated_distinct=len({target.ids for target in targets}) / len(targets),
        demonstrated_motion_m=mean_motion_m([target.actions for target in targets]),
    )


def _summary(verdict: Verdict, replies: Sequence[Sequence[int]]) -> ReplyMeasure:
    scores = verdict.scores
    return ReplyMeasure(
        reward=float(np.mean(verdict.rewards)),
        error=float(np.mean([finite_error(s) for s in scores])),
        decodable=float(np.mean([s.is_decodable for s in scores])),
        well_formed=float(np.mean([s.is_well_formed for s in scores])),
        prefix=float(np.mean([s.prefix for s in scores])),
        first_token=float(np.mean([s.is_first_right for s in scores])),
        tokens=float(np.mean([len(ids) for ids in replies])),
        thought_tokens=float(np.mean([len(s.thought_ids) for s in scores])),
        distinct=distinct_share(scores),
        motion_m=mean_motion_m([s.actions for s in scores if s.actions is not None]),
    )


def distinct_share(scores: Sequence[ReplyScore]) -> float:
    """Returns the number of different chunks over the number of replies."""
    return len({s.actions.tobytes() for s in scores if s.actions is not None}) / len(scores)


def mean_motion_m(chunks: Sequence[FloatArray]) -> float:
    """Returns the mean length of the tool's displacement in one step of the chunks float[T, A]; 0 without chunks."""
    if not chunks:
        return 0.0
    return float(np.linalg.norm(np.stack(chunks)[:, :, _MOVES], axis=2).mean())


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


def collapse(start: Measurement, now: Measurement, *, limit: float) -> str | None:
    """Returns why the policy has collapsed towards one answer or towards standing still, or None.

    The greedy chunks must keep `limit` of their variety and of their motion. Both are measured against the start, or
    against the demonstrations where those vary or move less, so that a policy may lose what it had too much of.
    """
    varied = min(start.greedy.distinct, now.demonstrated_distinct)
    if now.greedy.distinct < limit * varied:
        return (
            f"{now.greedy.distinct:.1%} of the greedy chunks are different ones (start {start.greedy.distinct:.1%}, "
            f"limit {limit * varied:.1%})"
        )
    moved_m = min(start.greedy.motion_m, now.demonstrated_motion_m)
    if now.greedy.motion_m < limit * moved_m:
        return (
            f"the greedy chunks move {1e3 * now.greedy.motion_m:.1f} mm a step "
            f"(start {1e3 * start.greedy.motion_m:.1f} mm, limit {1e3 * limit * moved_m:.1f} mm)"
        )
    return None
