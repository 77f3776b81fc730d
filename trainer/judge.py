"""Who judges replies: prompts made of frames, and the chosen reward with everything that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.fast import FastCodec
from roboalign.trainer.backbone import HuggingFaceBackbone, PromptInputs
from roboalign.trainer.frames import FrameTable
from roboalign.trainer.probe import reply_tokens
from roboalign.trainer.rewards import (
    Demonstration,
    EnergyScale,
    ReplyScore,
    RewardCase,
    RewardWeights,
    find_neighbours,
    find_reward,
    score_reply,
)
from roboalign.trainer.success import Rollout, RolloutPool

__all__ = ["ActionPrompts", "Judge", "Verdict"]


class ActionPrompts:
    """Frames as think-then-act prompts, with the demonstrated action of each."""

    def __init__(self, table: FrameTable, backbone: HuggingFaceBackbone, codec: FastCodec) -> None:
        self.table = table
        self.codec = codec
        self.tokens = reply_tokens(backbone, codec.vocab_size)
        self.backbone = backbone
        self._targets: dict[int, Demonstration] = {}

    def __len__(self) -> int:
        return len(self.table)

    def inputs(self, rows: Sequence[int]) -> PromptInputs:
        """Returns the prompts of some frames."""
        index = np.asarray(rows, dtype=np.int64)
        return self.backbone.encode_prompts(
            [self.table.instruction(i) for i in index],
            self.table.states[index],
            list(self.table.images[index]),
            pace="slow",
            task="act",
        )

    def target(self, row: int) -> Demonstration:
        """Returns what was demonstrated at the prompt `row`."""
        if row not in self._targets:
            self._targets[row] = Demonstration.of(self.table.chunks[row], self.codec)
        return self._targets[row]

    def score(self, row: int, reply_ids: Sequence[int]) -> ReplyScore:
        """Returns the score of one reply to the prompt `row`."""
        target = self.target(row)
        return score_reply(reply_ids, target.ids, target.actions, codec=self.codec, tokens=self.tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What some replies are worth."""

    scores: list[ReplyScore]
    """Part by part."""
    rewards: list[float]
    """By the chosen reward."""
    shares: list[NDArray[np.float64] | None]
    """What each action token of a reply was worth, where the reward says so (`RewardRule.shares`)."""


class Judge:
    """Scores and rewards replies to the prompts of one table."""

    def __init__(
        self,
        prompts: ActionPrompts,
        reward: str,
        *,
        weights: RewardWeights,
        source: FrameTable,
        pool: RolloutPool | None = None,
    ) -> None:
        """Prepares what the reward needs; nothing else is computed.

        Args:
            prompts: the frames that are replied to.
            reward: its name.
            weights: parts of `soft`.
            source: training frames: the energy of their chunks, and where other demonstrations are looked for.
            pool: carries out rollouts, for a reward that needs them.
        """
        self.prompts, self.rule, self._weights, self._source = prompts, find_reward(reward), weights, source
        needs = self.rule.needs
        self._energy = EnergyScale.fit(prompts.codec, source.chunks) if "energy" in needs else None
        self._neighbours = find_neighbours(prompts.table, source) if "neighbours" in needs else None
        if "rollout" in needs and pool is None:
            raise ConfigError(f"reward {reward!r} needs a pool of simulators, found none; give AlignConfig.workers")
        self._pool = pool
        self._cases: dict[int, RewardCase] = {}

    def judge(self, rows: Sequence[int], replies: Sequence[Sequence[int]]) -> Verdict:
        """Returns scores and rewards of replies to the prompts `rows`.

        Raises:
            ConfigError: the reward raised an exception or gave something else than a number from 0 to 1.
        """
        scores = [self.prompts.score(row, ids) for row, ids in zip(rows, replies, strict=True)]
        if "rollout" in self.rule.needs:
            scores = self._simulated(rows, scores)
        rewards = [self._reward(place, row, score) for place, (row, score) in enumerate(zip(rows, scores, strict=True))]
        shares = [self._shares(row, score) for row, score in zip(rows, scores, strict=True)]
        return Verdict(scores=scores, rewards=rewards, shares=shares)

    def _shares(self, row: int, score: ReplyScore) -> NDArray[np.float64] | None:
        if self.rule.shares is None or score.actions is None:
            return None
        return self.rule.shares(score, self.case(row))

    def case(self, row: int) -> RewardCase:
        """Returns what replies to the prompt `row` are judged against."""
        if row not in self._cases:
            self._cases[row] = self._make_case(row)
        return self._cases[row]

    def _make_case(self, row: int) -> RewardCase:
        prompts = self.prompts
        others: tuple[Demonstration, ...] = ()
        if self._neighbours is not None:
            chunks = self._source.chunks
            others = tuple(Demonstration.of(chunks[other], prompts.codec) for other in self._neighbours[row])
        case = RewardCase(
            codec=prompts.codec,
            target=prompts.target(row),
            weights=self._weights,
            others=others,
            energy=self._energy,
            state=prompts.table.states[row],
        )
        if "truth" not in self.rule.needs:
            return case
        tokenizer = prompts.backbone.tokenizer
        return replace(
            case,
            truth=prompts.table.require_truths(f"the reward {self.rule.name}")[row],
            fmt=prompts.backbone.processor.prompt_format,
            words=lambda ids: str(tokenizer.decode(list(ids))),
        )

    def _simulated(self, rows: Sequence[int], scores: Sequence[ReplyScore]) -> list[ReplyScore]:
        assert self._pool is not None
        truths = self.prompts.table.require_truths(f"the reward {self.rule.name}")
        rollouts = [Rollout(truth=truths[row], actions=s.actions) for row, s in zip(rows, scores, strict=True)]
        values = self._pool.outcomes(rows, rollouts, self.prompts.codec.config.horizon)
        return [replace(score, outcome=value) for score, value in zip(scores, values, strict=True)]

    def _reward(self, place: int, row: int, score: ReplyScore) -> float:
        where = f"reward {self.rule.name!r}, reply {place} (frame {row})"
        try:
            value: object = self.rule.function(score, self.case(row))
        except Exception as err:
            raise ConfigError(f"{where}: raised {type(err).__name__}: {err}; repair the reward") from err
        if not isinstance(value, (int, float, np.floating)) or not 0.0 <= value <= 1.0:
            raise ConfigError(f"{where}: gave {_shown(value)}, expected one number from 0 to 1; repair the reward")
        return float(value)


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
