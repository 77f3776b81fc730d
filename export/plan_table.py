"""A plan as text, for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from roboalign.export.plan import ExportPlan
from roboalign.export.planner import BoardPlan
from roboalign.export.prediction import THOUGHT_TOKENS, Prediction
from roboalign.export.targets import PORTABLE

__all__ = ["plan_lines"]

_WIDTH = 80
_LABEL = 12
_LETTERS = {"type": "T", "opset": "O", "version": "V", "run memory": "R", "build memory": "B"}
"""What the table of boards says of a refusal; the plan of one board has it in words."""

_COUNTS = ", ".join(map(str, THOUGHT_TOKENS))


def plan_lines(plan: ExportPlan) -> list[str]:
    """Returns the plan as lines of at most 80 columns; figures of speed are marked as predicted."""
    one = plan.boards[0]
    if plan.target == PORTABLE:
        lines = [f"plan: {plan.model} in {plan.precision} for any Jetson, portable, opset {plan.opset}"]
        lines += _board_table(plan.boards)
    else:
        release = f", JetPack {one.jetpack} (TensorRT {one.tensorrt})" if one.jetpack else ""
        lines = _wrap("plan:", f"{plan.model} in {plan.precision} for {plan.target}{release}, opset {plan.opset}", 6)
        lines += _part_table(one)
    lines += [line for reason in plan.refusals for line in _wrap("refused", reason)]
    lines += [line for note in plan.notes for line in _wrap("note", note)]
    if plan.next_command and not plan.refusals:
        lines += _wrap("then type", f"{plan.next_command}    (on the board, in the bundle's folder)")
    return lines


def _part_table(board: BoardPlan) -> list[str]:
    lines = [f"{'part':8} {'runs on':18} {'type':9} {'weights':>9} {'to build':>9}"]
    for part in board.parts:
        build = _size(part.build_gb) if part.build_gb else "-"
        held = _size(part.weights_gb) if part.weights_gb else "shared"
        lines.append(f"{part.part:8} {part.engine:18} {part.precision:9} {held:>9} {build:>9}")
    there = "" if board.usable_gb is None else f"; {_size(board.usable_gb)} usable"
    built = f"{_size(board.build_gb)} to build" if board.build_gb else "nothing to build"
    lines += _wrap("memory", f"estimated {_size(board.run_gb)} to run, {built}{there}")
    lines += [line for text in _speed(board.prediction) for line in _wrap("predicted", text)]
    reasons: dict[str, list[str]] = {}
    for part in board.parts:
        reasons.setdefault(part.why, []).append(part.part)
    lines += [line for why, parts in reasons.items() for line in _wrap("why", f"{', '.join(parts)}: {why}")]
    return lines


def _speed(prediction: Prediction | None) -> Iterable[str]:
    if prediction is None:
        yield "nothing: no bandwidth or no published rate is known for this"
        return
    if prediction.is_upper_bound:
        yield "nothing: launches decide in so small a model, and no rate of one is published"
        return
    seen = "vision not predicted" if prediction.vision_ms is None else f"vision {prediction.vision_ms:.3g} ms"
    head = "" if prediction.head_ms is None else f", head {prediction.head_ms:.3g} ms"
    yield f"{prediction.tokens_per_s:.3g} tokens/s; prefill {prediction.prefill_ms:.3g} ms, {seen}{head}"
    yield f"{_rates(prediction)} chunks/s after {_COUNTS} tokens of thought"


def _board_table(boards: tuple[BoardPlan, ...]) -> list[str]:
    head = f"{'board':13} {'JetPack/TRT':11} {'build':>7} {'run':>7} {'tok/s*':>6} {'chunks/s*':>21}"
    lines = [f"{head}  fits"]
    for board in boards:
        guess = board.prediction
        is_useful = guess is not None and not guess.is_upper_bound
        speed = f"{guess.tokens_per_s:.3g}" if guess is not None and is_useful else "-"
        rates = _rates(guess) if guess is not None and is_useful else "-"
        against = "".join(_LETTERS[refusal.kind] for refusal in board.refusals)
        lines.append(
            f"{board.target:13} {f'{board.jetpack}/{board.tensorrt}':11} {_size(board.build_gb):>7} "
            f"{_size(board.run_gb):>7} {speed:>6} {rates:>21}  {f'no {against}' if against else 'yes'}"
        )
    lines.append(f"* predicted, not measured; chunks/s after {_COUNTS} tokens of thought")
    lines.append("  - where no rate of so small a model, or on this board, is published")
    if any(board.refusals for board in boards):
        legend = ", ".join(f"{letter} {kind}" for kind, letter in _LETTERS.items())
        lines += _wrap("no", f"{legend}; --board NAME says it in full")
    return lines


def _rates(prediction: Prediction) -> str:
    return " ".join(f"{rate:.2g}" for rate in prediction.chunk_rate_hz)


def _size(gigabytes: float) -> str:
    if gigabytes >= 100:
        return f"{gigabytes:.0f} GB"
    return f"{gigabytes:.1f} GB" if gigabytes >= 0.1 else f"{1e3 * gigabytes:.1f} MB"


def _wrap(label: str, text: str, indent: int = _LABEL) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"{label:{indent}}", subsequent_indent=" " * indent, break_on_hyphens=False
    )
