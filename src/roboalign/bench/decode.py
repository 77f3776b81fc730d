"""`bench decode`: one token after another, by this runtime and by `transformers.generate`, from the same weights.

Both read the same prompt and picture and write greedily; what is timed is the writing alone. For `generate` that is
the time of all tokens minus that of the first, in the same round. Weights of few bits are compared with `generate` in
float32, as it has none of these; then equal tokens are not expected, least of all of random weights, whose scores lie
close together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from roboalign.bench.models import BenchModel, bench_model, make_prompt, work_folder
from roboalign.bench.rows import BenchConfig, BenchResult, Row, make_result
from roboalign.bench.timing import interleave, memory_read_bytes_s, ratio, spread
from roboalign.sdk.backends.in_place import InPlaceBackend
from roboalign.sdk.errors import CheckFailed
from roboalign.sdk.types import FloatArray

__all__ = ["DECODE_BARS", "SHARE_BARS", "run_decode"]

DECODE_BARS = {("8M", "fp32"): 5.0, ("8M", "int4"): 14.0, ("52M", "int4"): 7.0}
"""How many times as fast as `transformers.generate`."""

SHARE_BARS = {("52M", "fp32"): 0.85, ("52M", "int4"): 0.70}
"""Share of the memory's speed at which weights are read."""

_PROMPT_TOKENS = 96

_BYTES_A_WEIGHT = {"fp32": 4.0, "fp16": 4.0, "int8": 1.0 + 4 / 32, "int4": 0.5 + 4 / 32}
"""As the products read them: float16 becomes float32 when it is loaded, and so do the scales of 32 codes."""

_MIN_DISTINCT = 8


def run_decode(config: BenchConfig, say: Callable[[str], None]) -> BenchResult:
    """Measures every size in every precision.

    Raises:
        CheckFailed: tokens differ where the same arithmetic was done, or too few different ones were written.
    """
    torch.set_num_threads(config.threads)
    rows: list[Row] = []
    with work_folder(config.work) as work:
        for size in config.sizes:
            for precision in config.precisions:
                say(f"decode: {size} in {precision}")
                rows += _measure(size, precision, config, work)
    return make_result(rows, config.threads)


def _measure(size: str, precision: str, config: BenchConfig, work: Path) -> list[Row]:
    made = bench_model(size, precision, work)
    prompt = make_prompt(_PROMPT_TOKENS)
    side = made.model.config.image_size
    picture = np.random.default_rng(0).standard_normal((3, side, side), dtype=np.float32)
    rates: list[float] = []
    read = memory_read_bytes_s()
    backend = InPlaceBackend.open(made.bundle, threads=config.threads)
    try:
        engine_name = "compiled functions" if backend.is_compiled else "onnxruntime's graphs"
        engine = _Engine(backend, prompt, picture, config.tokens)
        generate = _Generate(made, prompt, picture)
        expected = generate.write(config.tokens + 1)
        engine.prepare()
        engine.write()
        equal = _check_tokens(expected, engine.written, made.name, is_exact=precision in ("fp32",))
        engine.prepare()
        times = interleave(
            {
                "prepare": engine.prepare,
                "ours": engine.write,
                "one": lambda: _ignore(generate.write(1)),
                "all": lambda: _ignore(generate.write(config.tokens + 1)),
                "read": lambda: rates.append(read()),
            },
            config.rounds,
        )
    finally:
        backend.close()
    theirs_cpu, theirs_wall = (
        [a - b for a, b in zip(getattr(times["all"], kind), getattr(times["one"], kind), strict=True)]
        for kind in ("cpu_s", "wall_s")
    )
    ours = times["ours"]
    row = Row(
        bench="decode",
        name=f"{made.name} / generate",
        ratio=ratio(theirs_cpu, ours.cpu_s),
        wall=ratio(theirs_wall, ours.wall_s),
        bar=DECODE_BARS.get((size, precision)),
        ours_ms=1e3 * spread(ours.cpu_s).median / config.tokens,
        theirs_ms=1e3 * spread(theirs_cpu).median / config.tokens,
        note=f"a token, by {engine_name}; {equal} of {config.tokens} tokens equal",
    )
    num_bytes = made.decoder_values * _BYTES_A_WEIGHT[precision]
    shares = [
        num_bytes * config.tokens / cpu / rate for cpu, rate in zip(ours.cpu_s, rates[-config.rounds :], strict=True)
    ]
    # A token reads keys and values too; the bar is about weights alone.
    cache_bytes = _cache_bytes(made, _PROMPT_TOKENS + config.tokens // 2)
    share = Row(
        bench="decode",
        name=f"{made.name} of memory speed",
        ratio=spread(shares),
        bar=SHARE_BARS.get((size, precision)),
        is_share=True,
        note=f"{num_bytes / 1e6:.0f} MB of weights a token, memory reads {spread(rates).median / 1e9:.1f} GB/s; with "
        f"{cache_bytes / 1e6:.1f} MB of keys and values {spread(shares).median * (1 + cache_bytes / num_bytes):.0%}",
    )
    return [row, share]


def _cache_bytes(made: BenchModel, places: int) -> float:
    """Returns the bytes of keys and values of so many places."""
    config = made.model.config
    return float(4 * 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * places)


def _check_tokens(expected: Sequence[int], found: Sequence[int], name: str, *, is_exact: bool) -> int:
    """Returns how many leading tokens are equal."""
    differs = [index for index, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b]
    equal = differs[0] if differs else len(expected)
    if is_exact and differs:
        raise CheckFailed(f"{name} writes other tokens than transformers.generate from place {equal} on")
    if len(set(expected)) < _MIN_DISTINCT:
        raise CheckFailed(f"{name} wrote only {len(set(expected))} different tokens, so equal ones prove nothing")
    return min(equal, len(expected) - 1)


class _Engine:
    """This runtime, behind a prompt."""

    def __init__(self, backend: InPlaceBackend, prompt: Sequence[int], picture: FloatArray, tokens: int) -> None:
        self._backend = backend
        self._prompt, self._picture = prompt, picture
        self._tokens = tokens
        self.written: list[int] = []

    def prepare(self) -> None:
        self._decoding = self._backend.prefill(self._prompt, self._picture)

    def write(self) -> None:
        token = int(self._decoding.logits.argmax())
        self.written = [token]
        for _ in range(self._tokens):
            self._backend.step(self._decoding, token)
            token = int(self._decoding.logits.argmax())
            self.written.append(token)


class _Generate:
    """`transformers.generate`, greedy, with its usual cache."""

    def __init__(self, made: BenchModel, prompt: Sequence[int], picture: FloatArray) -> None:
        self._model = made.model
        self._ids = torch.tensor([list(prompt)])
        self._pixels = torch.from_numpy(picture)[None]

    def write(self, tokens: int) -> list[int]:
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=self._ids,
                attention_mask=torch.ones_like(self._ids),
                pixel_values=self._pixels,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        written: list[int] = out[0, self._ids.shape[1] :].tolist()
        return written


def _ignore(value: object) -> None:
    """Takes what a contender returns."""
    del value
