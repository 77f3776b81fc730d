"""What a reader must know before believing a success rate, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping

from roboalign.sdk.evaluation.results import EvalReport

__all__ = ["caveats"]

_WIDE = 0.10
"""An interval wider than this on one side gets a caveat."""
_MANY_HOLDS = 0.01
_Z = 1.96


def caveats(report: EvalReport) -> tuple[str, ...]:
    """Returns the warnings for an evaluation, the weightiest first."""
    lines = [*_judged(report), *_privileges(report), *_size(report), *_tasks(report)]
    holds = report.acted.get("hold", 0)
    if report.num_calls and holds / report.num_calls > _MANY_HOLDS:
        share = 100 * holds / report.num_calls
        reason = max(report.hold_reasons, key=lambda name: report.hold_reasons[name], default="no reason given")
        lines.append(f"{share:.1f} % of the answers could not be used and held the arm still, most often: {reason}.")
    if report.policy.get("think") and report.thought_share < 0.99:
        lines.append(f"Only {100 * report.thought_share:.0f} % of the answers came with a thought.")
    lines += _lateness(report)
    workers = report.config.get("workers")
    if isinstance(workers, int) and workers > 1:
        lines.append(f"Latency was measured with {workers} processes at work; for latency run it with 1.")
    return tuple(lines)


def _lateness(report: EvalReport) -> list[str]:
    """Says what became of the thoughts and of the time, where the scene went on while the policy computed."""
    latency = report.policy.get("latency")
    if not isinstance(latency, Mapping):
        return []
    where = latency.get("name") or "no latency"
    lines = [
        f"The scene went on while the policy computed ({where}; chunks: {report.policy.get('chunks')}); for want of an "
        f"action the arm stood still in {100 * report.stood_share:.1f} % of the control periods."
    ]
    total, age = sum(report.thought_statuses.values()), report.latency_s.get("thought_age")
    if total and age is not None:
        shares = ", ".join(f"{name} {100 * num / total:.0f} %" for name, num in report.thought_statuses.items())
        lines.append(f"Thoughts: {shares}; the picture behind one was {age.p50:.2f} s old (95 %: {age.p95:.2f} s).")
    seams = {name: seam for name, seam in report.seams.items() if math.isfinite(seam.ratio)}
    if seams:
        ratios = ", ".join(f"{name} {seam.ratio:.2f}" for name, seam in seams.items())
        lines.append(f"Mean change at the seams of chunks, in changes inside a chunk: {ratios}.")
    return lines


def _judged(report: EvalReport) -> list[str]:
    if report.world != "robot":
        return []
    knew = "did not know which policy acted" if report.config.get("is_blinded") else "knew which policy acted"
    discarded = report.config.get("discarded") or 0
    return [f"Success on this robot was judged by a person who {knew}; {discarded} runs were discarded and repeated."]


def _privileges(report: EvalReport) -> list[str]:
    kind = report.policy.get("kind")
    lines = []
    if kind == "expert":
        lines.append("The expert knows where everything is; no robot does. It bounds what the scenes allow.")
    if kind == "random":
        lines.append("This is chance: it neither looks nor listens.")
    if report.policy.get("is_shuffled"):
        lines.append("Control: the policy was told the sentence of another task, and judged by the true one.")
    if report.policy.get("is_blind"):
        lines.append("Control: the policy was given black pictures.")
    if report.policy.get("has_shuffled_thoughts"):
        lines.append("Control: every thought was about another scene of the same task.")
    if age := report.policy.get("thought_age"):
        lines.append(f"Every thought was about what the policy saw {age} calls before.")
    if kind == "remote":
        lines.append("The policy ran on a server; nothing proves that it stayed the same during the evaluation.")
    return lines


def _size(report: EvalReport) -> list[str]:
    total = report.total
    below, above = total.rate - total.interval.low, total.interval.high - total.rate
    if max(below, above) <= _WIDE:
        return []
    spread = max(0.25, math.sqrt(total.rate * (1.0 - total.rate))) * _Z
    enough = math.ceil((spread / 0.05) ** 2 / 10) * 10
    return [
        f"{total.num_episodes} episodes are few: policies with true rates from {100 * total.interval.low:.0f} % to"
        f" {100 * total.interval.high:.0f} % could have given this result. About {enough} episodes know the rate to 5"
        " points. A comparison on the same scenes (roboalign compare) needs fewer."
    ]


def _tasks(report: EvalReport) -> list[str]:
    num = len(report.tasks)
    widest = max(result.interval.width for result in report.tasks)
    if num < 2 or widest <= 2 * _WIDE:
        return []
    fewest = min(result.num_episodes for result in report.tasks)
    episodes = f"{fewest} episode{'s' if fewest > 1 else ''}"
    return [
        f"Some of the {num} tasks have only {episodes}, with intervals up to {100 * widest:.0f} points wide: do not"
        " rank the tasks by them."
    ]
