"""`bench rivals`: one token after another at int4, by this runtime and by the engines of kept libraries.

The libraries live in an environment of their own, whose Python is named; each engine runs in a process of it
(`rival_engine.py`) and is asked for one round at a time, between two of ours. All read the weights of one model, each
rounded to int4 in its own way with a scale for 32 values.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from roboalign.bench import rival_engine
from roboalign.bench.models import BenchModel, bench_model, make_prompt, work_folder
from roboalign.bench.rows import BenchConfig, BenchResult, Row, make_result
from roboalign.bench.timing import ratio, spread
from roboalign.sdk.backends.in_place import InPlaceBackend
from roboalign.sdk.errors import ConfigError

__all__ = ["run_rivals"]

_PROMPT_TOKENS = 96
_BARS = {"52M": 1.0}


def run_rivals(config: BenchConfig, say: Callable[[str], None]) -> BenchResult:
    """Measures every size against every engine that the other environment has; says why one is missing.

    Raises:
        ConfigError: no environment was named.
    """
    if config.rival_python is None:
        raise ConfigError(
            "bench rivals needs --rival-python: make an environment with onnxruntime-genai, optimum-intel[nncf], "
            "llama-cpp-python and gguf, and name its Python"
        )
    rows: list[Row] = []
    with work_folder(config.work) as work:
        for size in config.sizes:
            made = bench_model(size, "int4", work)
            folder = _write_checkpoint(made, work / f"{made.bundle.name}-llama")
            for name in rival_engine.ENGINES:
                say(f"rivals: {size} against {name}")
                rows.append(_measure(made, size, name, folder, config))
    return make_result(rows, config.threads)


def _write_checkpoint(made: BenchModel, folder: Path) -> Path:
    """Writes the decoder as the Llama checkpoint that it is."""
    if (folder / "config.json").is_file():
        return folder
    inner = made.model.model.language_model
    model = LlamaForCausalLM(inner.config)
    model.model.load_state_dict(inner.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    _tokenizer(inner.config.vocab_size).save_pretrained(folder)
    return folder


def _tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """A word for each id: engines want a tokenizer, and none is used."""
    from tokenizers import Tokenizer, models

    words = {f"w{index}": index for index in range(vocab)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="w1", eos_token="w2", pad_token="w0")


def _measure(made: BenchModel, size: str, name: str, folder: Path, config: BenchConfig) -> Row:
    script = Path(rival_engine.__file__)
    command = [str(config.rival_python), str(script), name, str(folder)]
    command += [str(value) for value in (_PROMPT_TOKENS, config.tokens, config.threads)]
    environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": str(config.threads)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        answer = json.loads(child.stdout.readline() or '{"error": "it died while it got ready"}')
        if "error" in answer:
            return Row(bench="rivals", name=f"{made.name} / {name}", ratio=None, note=f"not run: {answer['error']}")
        ours: dict[str, list[float]] = {"cpu_s": [], "wall_s": []}
        theirs: dict[str, list[float]] = {"cpu_s": [], "wall_s": []}
        backend = InPlaceBackend.open(made.bundle, threads=config.threads)
        try:
            for index in range(config.rounds + 1):
                found = _write(backend, config.tokens)
                child.stdin.write("\n")
                child.stdin.flush()
                other = json.loads(child.stdout.readline())
                if index:  # the first warms up
                    for kind in ours:
                        ours[kind].append(found[kind])
                        theirs[kind].append(other[kind])
        finally:
            backend.close()
            child.stdin.close()
    return Row(
        bench="rivals",
        name=f"{made.name} / {name}",
        ratio=ratio(theirs["cpu_s"], ours["cpu_s"]),
        wall=ratio(theirs["wall_s"], ours["wall_s"]),
        bar=_BARS.get(size),
        ours_ms=1e3 * spread(ours["cpu_s"]).median / config.tokens,
        theirs_ms=1e3 * spread(theirs["cpu_s"]).median / config.tokens,
        note=f"a token; {name} {answer['ready']}",
    )


def _write(backend: InPlaceBackend, tokens: int) -> dict[str, float]:
    import numpy as np

    side = backend.spec.image_size_px
    backend.forget()
    decoding = backend.prefill(make_prompt(_PROMPT_TOKENS), np.zeros((3, side, side), np.float32))
    token = int(decoding.logits.argmax())
    wall, cpu = perf_counter(), process_time()
    for _ in range(tokens):
        backend.step(decoding, token)
        token = int(decoding.logits.argmax())
    return {"cpu_s": process_time() - cpu, "wall_s": perf_counter() - wall}
