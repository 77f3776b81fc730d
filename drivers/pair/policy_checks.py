"""Whether a policy listens to its sentence, and answers in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median
from typing import Protocol

import numpy as np

from roboalign.drivers.pair.session import Evidence
from roboalign.drivers.setup.checks import Check
from roboalign.sdk.bundle import PolicySpec
from roboalign.sdk.types import ActionChunk, Observation

__all__ = ["Answers", "ProbedPolicy", "ask_policy", "check_arrival", "check_instruction", "check_speed"]

_MIN_CHANGE = 0.005  # of an action's range, in the middle of all pairs of sentences
_MAX_OBSERVATIONS = 2
_MAX_SENTENCES = 4


class ProbedPolicy(Protocol):
    """What is needed of a policy; `roboalign.sdk.Policy` has it."""

    @property
    def spec(self) -> PolicySpec:
        """What it sees and does."""
        ...

    def reset(self) -> None:
        """Starts anew, so that equal questions get equal answers."""
        ...

    def act(self, observation: Observation) -> ActionChunk:
        """Answers an observation."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What a policy said about some observations, each with every sentence."""

    sentences: tuple[str, ...]
    """What was asked."""
    chunks: tuple[tuple[ActionChunk, ...], ...]
    """By observation, then by sentence."""
    seconds: tuple[float, ...]
    """How long each answer took."""


def ask_policy(
    policy: ProbedPolicy,
    observations: Sequence[Observation],
    sentences: Sequence[str],
    clock: Callable[[], float] = time.perf_counter,
) -> Answers:
    """Asks a policy about observations with sentences that want different things; the noise is the same each time."""
    chosen = tuple(dict.fromkeys(sentences))[:_MAX_SENTENCES]
    spread = np.linspace(0, len(observations) - 1, min(len(observations), _MAX_OBSERVATIONS)).astype(int)
    chunks, seconds = [], []
    for index in spread:
        row = []
        for sentence in chosen:
            policy.reset()
            start = clock()
            row.append(policy.act(replace(observations[index], instruction=sentence)))
            seconds.append(clock() - start)
        chunks.append(tuple(row))
    return Answers(sentences=chosen, chunks=tuple(chunks), seconds=tuple(seconds))


def check_instruction(answers: Answers, spec: PolicySpec) -> Check:
    """Compares answers to different sentences about the same observation."""
    name = "instruction"
    if len(answers.sentences) < 2 or not answers.chunks:
        return Check.skipped(name, "cannot tell: no two sentences to compare; give one that fits the scene with --task")
    span = np.maximum(np.asarray(spec.action_high) - np.asarray(spec.action_low), 1e-6)
    changes, thoughts, held = [], 0, ""
    for row in answers.chunks:
        held = next((chunk.reason or "" for chunk in row if chunk.source == "hold"), held)
        for one, other in combinations([chunk for chunk in row if chunk.source != "hold"], 2):
            changes.append(float(np.abs((one.actions - other.actions) / span).mean()))
            thoughts += one.thought != other.thought
    if not changes:
        return Check.failed(name, f"the policy holds: {held}", "mend what it says; it must answer before it can listen")
    change = median(changes)
    found = (
        f"another sentence changes the actions by {change:.1%} of their range, {thoughts} of {len(changes)} thoughts"
    )
    if change < _MIN_CHANGE and thoughts == 0:
        remedy = (
            "see that the sentence reaches the policy (no wrapper or server puts its own in its place); if so, the "
            "policy learnt to ignore it: train with several tasks in the same scenes"
        )
        return Check.failed(name, found, remedy)
    return Check.passed(name, found)


def check_arrival(evidence: Evidence) -> Check | None:
    """Looks whether the sentence that a robot was asked with is the one in its observations; None when it is."""
    odd = next((m.seen.instruction for m in evidence.moments if m.seen.instruction != evidence.sentence), None)
    if odd is None:
        return None
    found = f"asked to observe with {evidence.sentence!r}, the robot answers with {odd!r}"
    return Check.failed(
        "instruction", found, "copy the sentence that observe() is given into the Observation, unchanged"
    )


def check_speed(answers: Answers, spec: PolicySpec) -> Check:
    """Compares the time of an answer with the time that its actions last."""
    name = "policy speed"
    if not answers.seconds:
        return Check.skipped(name, "the policy was not asked")
    took, lasts = min(answers.seconds), spec.horizon / spec.rate_hz
    found = f"an answer takes {1000 * took:.0f} ms at best, its {spec.horizon} actions last {1000 * lasts:.0f} ms"
    if took > lasts:
        remedy = (
            "the arm would stop between answers: think beside the actions (--thinking beside) or not at all "
            "(--no-think), use a faster backend, or more power (see power mode)"
        )
        return Check.failed(name, found, remedy)
    return Check.passed(name, found)
