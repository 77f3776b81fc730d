"""`bench draft`: a thought written with the thought before as its draft, and written anew; the tokens are equal.

The draft is the thought itself with a share of its tokens changed, in one run of tokens in its middle, as when one
phrase of a thought no longer holds; `scattered` has them in runs of two. At 0 % no token is as drafted.

In float32 the tokens have to be equal. Where codes are multiplied as they are, activations are rounded to 8 bits, and
the last bit of one that lies between two codes decides: a pass over several tokens and as many passes over one then
differ by as much as codes do, and random weights have no margin. There the tokens that are equal are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from roboalign.bench.models import MAX_THOUGHT_TOKENS, bench_model, make_prompt, work_folder
from roboalign.bench.rows import BenchConfig, BenchResult, Row, make_result
from roboalign.bench.timing import interleave, ratio, spread
from roboalign.sdk.backends.in_place import InPlaceBackend
from roboalign.sdk.draft import Draft
from roboalign.sdk.errors import CheckFailed

__all__ = ["run_draft"]

_BARS = {
    ("fp32", 0.0): 0.95,
    ("fp32", 0.8): 3.4,
    ("fp32", 0.9): 5.0,
    ("fp32", 1.0): 10.0,
    ("int4", 0.0): 0.95,
    ("int4", 0.8): 2.2,
}
"""How many times as fast as without a draft, by precision and share of tokens that hold."""

_OVERLAPS = (0.0, 0.8, 0.9, 1.0)
_SCATTERED = 2
_MOST_ROUNDS = 8
_PROMPT_TOKENS = 96


def run_draft(config: BenchConfig, say: Callable[[str], None]) -> BenchResult:
    """Measures every size in every precision.

    Raises:
        CheckFailed: a drafted thought is not the one that is written without a draft.
    """
    torch.set_num_threads(config.threads)
    rows: list[Row] = []
    with work_folder(config.work) as work:
        for size in config.sizes:
            for precision in config.precisions:
                say(f"draft: {size} in {precision}")
                rows += _measure(size, precision, config, work)
    return make_result(rows, config.threads)


def _measure(size: str, precision: str, config: BenchConfig, work: Path) -> list[Row]:
    made = bench_model(size, precision, work)
    backend = InPlaceBackend.open(made.bundle, threads=config.threads)
    try:
        writer = _Writer(backend, min(2 * config.tokens, MAX_THOUGHT_TOKENS))
        plain = writer.write(())
        text = plain if not backend.on_codes else _settled(writer, plain)
        drafts = {f"{made.name} at {overlap:.0%}": _changed(text, overlap, len(text)) for overlap in _OVERLAPS}
        drafts[f"{made.name} at 80% scattered"] = _changed(text, 0.8, _SCATTERED)
        passes, equal = {}, {}
        for name, drafted in drafts.items():
            found = writer.write(drafted)
            if found != plain and not backend.on_codes:
                raise CheckFailed(f"{name}: the drafted thought is not the one that is written without a draft")
            passes[name] = writer.num_passes
            equal[name] = next(
                (place for place, pair in enumerate(zip(found, plain, strict=True)) if len({*pair}) > 1), len(plain)
            )
        contenders = {name: _writing(writer, drafted) for name, drafted in drafts.items()}
        times = interleave({"plain": _writing(writer, ()), **contenders}, config.rounds)
    finally:
        backend.close()
    return [
        Row(
            bench="draft",
            name=name,
            ratio=ratio(times["plain"].cpu_s, times[name].cpu_s),
            wall=ratio(times["plain"].wall_s, times[name].wall_s),
            bar=None if "scattered" in name else _BARS.get((precision, _OVERLAPS[index])),
            ours_ms=1e3 * spread(times[name].cpu_s).median,
            theirs_ms=1e3 * spread(times["plain"].cpu_s).median,
            note=f"{passes[name]} passes for {len(plain)} tokens, the first {equal[name]} equal",
        )
        for index, name in enumerate(drafts)
    ]


def _settled(writer: _Writer, text: list[int]) -> list[int]:
    """Returns a text that is written again, word by word, where it is the draft."""
    for _ in range(_MOST_ROUNDS):
        again = writer.write(text)
        if again == text:
            return text
        text = again
    return text


def _changed(plain: Sequence[int], overlap: float, longest: int) -> tuple[int, ...]:
    """Returns the tokens with a share of them changed, in runs of at most so many that lie evenly apart."""
    changed, count = list(plain), round((1.0 - overlap) * len(plain))
    num_runs = -(-count // longest) if count else 0
    for index in range(num_runs):
        size = min(longest, count - index * longest)
        middle = (2 * index + 1) * len(plain) // (2 * num_runs)
        start = max(0, min(middle - size // 2, len(plain) - size))
        # No token of the thought: a number that is written nowhere in it.
        changed[start : start + size] = [_unused(plain)] * size
    return tuple(changed)


def _unused(plain: Sequence[int]) -> int:
    return next(token for token in range(8, 1024) if token not in plain)


def _writing(writer: _Writer, drafted: Sequence[int]) -> Callable[[], None]:
    def write() -> None:
        writer.write(drafted)

    return write


class _Writer:
    """Writes a thought behind the same prompt again and again, as `sdk.turn.Turn` does."""

    def __init__(self, backend: InPlaceBackend, tokens: int) -> None:
        self._backend, self._tokens = backend, tokens
        side = backend.spec.image_size_px
        picture = np.random.default_rng(0).standard_normal((3, side, side), dtype=np.float32)
        self._decoding = backend.prefill(make_prompt(_PROMPT_TOKENS), picture)
        self._start, self._logits = self._decoding.length, self._decoding.logits.copy()
        self.num_passes = 0

    def write(self, drafted: Sequence[int]) -> list[int]:
        backend, decoding = self._backend, self._decoding
        backend.rewind(decoding, self._start, self._logits)
        draft = Draft(drafted, windows=backend.windows)
        written: list[int] = []
        self.num_passes = 0
        while len(written) < self._tokens:
            token = int(decoding.logits.argmax())
            run = draft.propose(token, room=self._tokens - len(written))
            agreed = self._read(run)
            draft.report(agreed)
            written += run[:agreed]
            self.num_passes += 1
        return written

    def _read(self, run: Sequence[int]) -> int:
        backend, decoding = self._backend, self._decoding
        if len(run) == 1:
            backend.step(decoding, run[0])
            return 1
        start = decoding.length
        logits = backend.extend(decoding, run)
        best = logits.argmax(axis=1)
        agreed = 1
        while agreed < len(run) and best[agreed - 1] == run[agreed]:
            agreed += 1
        if agreed < len(run):
            backend.rewind(decoding, start + agreed, logits[agreed - 1])
        return agreed
