"""Tokens read by compiled functions: the numbers of the graphs and of numpy, and when the graphs are left to it."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.bundles import tiny_bench_bundle

from roboalign.bench.models import make_prompt
from roboalign.sdk.backends import compiled_step, in_place
from roboalign.sdk.backends.in_place import InPlaceBackend
from roboalign.sdk.backends.step_kernels import (
    BLOCK,
    GROUP,
    _exp,
    _multiply_codes,
    can_multiply_codes,
    decode_tokens,
)
from roboalign.sdk.bundle import Bundle, read_bundle
from roboalign.sdk.errors import BackendError
from roboalign.sdk.quantized import StoredCodes, quantize_matrix
from roboalign.sdk.types import FloatArray

WORDS = (30, 41, 52, 63, 74, 85, 96, 107, 118, 129, 140)

needs_vnni = pytest.mark.skipif(not can_multiply_codes(), reason="this processor has no AVX-512 VNNI")
KINDS = ["fp32", pytest.param("int4", marks=needs_vnni)]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Small bundles of random weights by precision."""
    folder = tmp_path_factory.getbasetemp()
    return {kind: read_bundle(tiny_bench_bundle(folder, kind)) for kind in ("fp32", "int4", "int8")}


@pytest.fixture
def changed(bundles: dict[str, Bundle], tmp_path: Path) -> Bundle:
    """A copy of the bundle in float32 that a test may change."""
    return copied(bundles["fp32"], tmp_path)


def copied(bundle: Bundle, folder: Path) -> Bundle:
    shutil.copytree(bundle.path, folder / "changed")
    return Bundle(path=folder / "changed", manifest=bundle.manifest)


def say(bundle: Bundle, **changes: object) -> None:
    """Changes what a bundle's configuration says; None takes it out."""
    path = bundle.path / "config.json"
    said = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in said.items() if value is not None}))


def opened(bundle: Bundle, *, compiles: bool) -> InPlaceBackend:
    backend = InPlaceBackend(bundle, on_codes=bundle.manifest.precision == "int4", compiles=compiles)
    assert backend.is_compiled == compiles
    return backend


def both(bundle: Bundle) -> tuple[InPlaceBackend, InPlaceBackend]:
    return opened(bundle, compiles=False), opened(bundle, compiles=True)


def some_picture() -> FloatArray:
    return np.random.default_rng(0).standard_normal((3, 96, 96), dtype=np.float32)


def after_words(backend: InPlaceBackend, words: Sequence[int] = WORDS) -> dict[str, FloatArray]:
    """What a sequence holds after a prompt and words, and the scores behind each."""
    decoding = backend.prefill(make_prompt(60), some_picture())
    rows = []
    for word in words:
        backend.step(decoding, word)
        rows.append(decoding.logits.copy())
    return {"scores": np.stack(rows), **backend.inspect(decoding)}


def largest_error(found: FloatArray, expected: FloatArray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("kind", "limit"), [("fp32", 1e-4), pytest.param("int4", 2e-2, marks=needs_vnni)])
def test_words_leave_what_the_graphs_leave(bundles, kind: str, limit: float) -> None:
    graphs, compiled = (after_words(backend) for backend in both(bundles[kind]))
    for name, expected in graphs.items():
        assert 0.0 < largest_error(compiled[name], expected) < limit, name


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_actions_alone_are_those_of_the_same_step(bundles, kind: str) -> None:
    compiled = opened(bundles[kind], compiles=True)
    whole = after_words(compiled, WORDS[:1])["scores"][0]
    decoding = compiled.prefill(make_prompt(60), some_picture())
    compiled.step_action(decoding, WORDS[0])
    first, count = 512, compiled.num_action_scores
    assert np.allclose(decoding.logits, whole[first : first + count], atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize("count", [2, GROUP, GROUP + 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_over_several_tokens_gives_what_as_many_passes_give(bundles, kind: str, count: int) -> None:
    compiled = opened(bundles[kind], compiles=True)
    alone = after_words(compiled, [*WORDS[:count], 33])
    compiled.forget()
    decoding = compiled.prefill(make_prompt(60), some_picture())
    rows = compiled.extend(decoding, WORDS[:count]).copy()
    compiled.step(decoding, 33)
    limit = 1e-4 if kind == "fp32" else 0.0  # codes: the same sums in the same order
    assert largest_error(rows, alone["scores"][:count]) <= limit
    assert largest_error(decoding.logits, alone["scores"][-1]) <= limit
    for name, found in compiled.inspect(decoding).items():
        assert largest_error(found, alone[name]) <= limit, name


def test_what_was_taken_back_leaves_no_trace(bundles) -> None:
    compiled = opened(bundles["fp32"], compiles=True)
    expected = after_words(compiled)["scores"][-1]
    compiled.forget()
    decoding = compiled.prefill(make_prompt(60), some_picture())
    start, logits = decoding.length, decoding.logits.copy()
    for word in (77, 78, 79):
        compiled.step(decoding, word)
    compiled.rewind(decoding, start, logits)
    for word in WORDS:
        compiled.step(decoding, word)
    assert np.array_equal(decoding.logits, expected)


def test_nothing_is_written_behind_what_was_skimmed_or_beyond_the_cache(bundles) -> None:
    compiled = opened(bundles["fp32"], compiles=True)
    decoding = compiled.skim_prompt(make_prompt(60), some_picture())
    with pytest.raises(BackendError, match="read for the action head alone"):
        compiled.step(decoding, 5)
    decoding = compiled.prefill(make_prompt(60), some_picture())
    decoding.length = compiled.spec.max_tokens
    with pytest.raises(BackendError, match="do not fit"):
        compiled.step(decoding, 5)


def reference(
    words: FloatArray,
    norms: FloatArray,
    last: FloatArray,
    products: Sequence[FloatArray],
    head: FloatArray,
    num_heads: int,
    num_kv_heads: int,
) -> tuple[FloatArray, list[FloatArray]]:
    """A Llama decoder in float64, as its paper describes it; scores, and the input of each layer and of the end."""

    def norm(x: Any, weight: Any) -> Any:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight

    x, taps = words.astype(np.float64), []
    query_key_value, mix, gate_up, down = products
    length, size = len(words), query_key_value.shape[1] // (num_heads + 2 * num_kv_heads)
    angles = np.arange(length)[:, None] / 10000.0 ** (np.arange(0, size, 2) / size)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def turn(rows: Any) -> Any:
        a, b = np.split(rows, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    for layer in range(len(norms)):
        taps.append(x)
        rows = (norm(x, norms[layer, 0]) @ query_key_value[layer].T).reshape(length, -1, size)
        query, key, value = np.split(rows, [num_heads, num_heads + num_kv_heads], axis=1)
        key, value = (np.repeat(part, num_heads // num_kv_heads, axis=1) for part in (turn(key), value))
        scores = np.einsum("qhk,phk->hqp", turn(query), key) / np.sqrt(size)
        shares = np.exp(np.where(np.tri(length, dtype=bool), scores, -np.inf))
        mixed = np.einsum("hqp,phk->qhk", shares / shares.sum(-1, keepdims=True), value).reshape(length, -1)
        x = x + mixed @ mix[layer].T
        gate, up = np.split(norm(x, norms[layer, 1]) @ gate_up[layer].T, 2, axis=1)
        x = x + (gate / (1.0 + np.exp(-gate)) * up) @ down[layer].T
    taps.append(x)
    return norm(x, last) @ head.T, taps


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tap_layer", [0, 1, 2])
def test_a_decoder_is_read_as_it_is_described(num_kv_heads: int, tap_layer: int) -> None:
    rng, num_heads, hidden, wide, size, length = np.random.default_rng(1), 4, 48, 80, 16, 21
    num_rows = (num_heads + 2 * num_kv_heads) * size

    def draw(*shape: int) -> FloatArray:
        return rng.standard_normal(shape, dtype=np.float32) / np.float32(shape[-1] ** 0.5)

    norms, last = 1 + draw(2, 2, hidden), 1 + draw(hidden)
    products = draw(2, num_rows, hidden), draw(2, hidden, 64), draw(2, 2 * wide, hidden), draw(2, hidden, wide)
    head, words = draw(100, hidden), draw(length, hidden)
    scores, taps = reference(words, norms, last, products, head, num_heads, num_kv_heads)
    angles = np.arange(32)[:, None] / np.float32(10000.0) ** (np.arange(0, size, 2) / size)
    kv = np.zeros((4, num_kv_heads, 32, size), np.float32)
    widths = (hidden, num_rows, 64, 2 * wide, wide, hidden)
    scratch = [np.full((24, width), np.nan, np.float32) for width in widths]
    rounded = np.zeros((24, wide), np.int8), np.zeros((24, 3), np.float32), np.zeros((24, 3), np.int32)
    start = 0
    for count in (1, 5, 1, 13, 1):
        hidden_rows, last_rows, logits = (np.zeros((count, width), np.float32) for width in (hidden, hidden, 100))
        decode_tokens(
            count, words[start : start + count].copy(), norms, last, *products, head, kv, start,
            np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), num_heads, np.float32(1e-6),
            tap_layer, True, hidden_rows, last_rows, logits, *scratch, np.zeros(32, np.float32), *rounded,
        )  # fmt: skip
        assert largest_error(logits, scores[start : start + count]) < 1e-5
        assert largest_error(hidden_rows, taps[tap_layer][start : start + count]) < 1e-5
        start += count


@needs_vnni
@pytest.mark.parametrize("num_tokens", [1, 3, 5, GROUP, GROUP + 1, GROUP + 6])
def test_tiles_multiply_what_their_codes_say(num_tokens: int) -> None:
    rng = np.random.default_rng(2)
    parts = []
    for outputs in (32, 16):
        codes, scales, layout = quantize_matrix(rng.standard_normal((96, outputs), dtype=np.float32), 4)
        parts.append(StoredCodes(codes=codes, scales=scales, layout=layout))
    tiles = compiled_step._tiles(parts)
    x = rng.standard_normal((num_tokens, 96), dtype=np.float32) * 3
    x[-1, :BLOCK] = 0.0  # nothing to divide by
    room = 2 * GROUP
    rounded, scales = np.zeros((room, 96), np.int8), np.zeros((room, 3), np.float32)
    out = np.full((room, 48), np.nan, np.float32)
    _multiply_codes(tiles, x, out[:num_tokens], rounded, scales, np.zeros((room, 3), np.int32))
    blocks = x.reshape(num_tokens, 3, BLOCK)
    step = np.abs(blocks).max(-1, keepdims=True) / 127.0
    near = np.rint(np.divide(blocks, step, out=np.zeros_like(blocks), where=step > 0)) * step
    weights = np.concatenate(
        [part.codes * np.repeat(part.scales.astype(np.float32), BLOCK, axis=0) for part in parts], axis=1
    )
    assert largest_error(out[:num_tokens], near.reshape(num_tokens, 96) @ weights) < 1e-5


def test_the_exponential_is_exact_to_a_few_units_in_its_last_place() -> None:
    x = np.linspace(-86.9, 87.9, 20001, dtype=np.float32)
    found = np.array([_exp(value) for value in x])
    assert np.abs(found / np.exp(x.astype(np.float64)) - 1.0).max() < 3e-7
    assert _exp(np.float32(-1e30)) < 1e-37


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_numbers_that_are_not_finite_stay_so(bundles, kind: str, wrong: float) -> None:
    compiled = opened(bundles[kind], compiles=True)
    decoding = compiled.prefill(make_prompt(60), some_picture())
    in_place.arrays_of(decoding).kv[0, 0, 3, 0] = wrong
    compiled.step(decoding, 5)
    assert np.isnan(decoding.logits).any()


def test_more_tokens_than_there_is_room_for_are_refused_before_anything_is_written(bundles) -> None:
    compiled = opened(bundles["fp32"], compiles=True)
    step, decoding = compiled._compiled, compiled.prefill(make_prompt(60), some_picture())
    assert step is not None
    arrays = in_place.arrays_of(decoding)
    for count, place in ((0, 5), (in_place.WINDOWS[-1] + 1, 5), (2, compiled.spec.max_tokens - 1)):
        with pytest.raises(BackendError, match="do not fit"):
            step.read(arrays, [5] * count, place, is_scored=True)


def test_it_is_used_where_weights_are_too_many_for_a_cache_and_one_thread_reads(bundles, monkeypatch) -> None:
    assert not InPlaceBackend(bundles["fp32"]).is_compiled
    monkeypatch.setattr(in_place, "_CACHE_BYTES", 0)
    assert InPlaceBackend(bundles["fp32"]).is_compiled
    assert not InPlaceBackend(bundles["fp32"], threads=2).is_compiled


def refused(bundle: Bundle, caplog: pytest.LogCaptureFixture, *, on_codes: bool = False) -> str:
    """The line that says why a bundle's tokens are left to the graphs."""
    with caplog.at_level(logging.INFO):
        backend = InPlaceBackend(bundle, on_codes=on_codes, compiles=True)
    assert not backend.is_compiled
    assert after_words(backend)["scores"].shape == (len(WORDS), 1024)
    (line,) = [record.message for record in caplog.records if "are read by onnxruntime" in record.message]
    return line


def test_without_numba_the_graphs_are_used(bundles, monkeypatch, caplog) -> None:
    monkeypatch.setattr(compiled_step, "find_spec", lambda name: None)
    assert "pip install 'roboalign[fast]'" in refused(bundles["fp32"], caplog)


def test_a_numba_that_must_not_compile_is_told(bundles, monkeypatch, caplog) -> None:
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert "NUMBA_DISABLE_JIT" in refused(bundles["fp32"], caplog)


@pytest.mark.parametrize("error", [OSError("no space left"), ImportError("needs another numpy"), KeyError("x")])
def test_a_numba_that_fails_is_told_and_the_graphs_are_used(bundles, monkeypatch, caplog, error: Exception) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(compiled_step.CompiledStep, "read", fail)
    assert "numba cannot be used" in refused(bundles["fp32"], caplog)


def test_codes_of_other_bits_use_the_graphs(bundles, caplog) -> None:
    assert "codes of 8 bits" in refused(bundles["int8"], caplog, on_codes=True)


def test_a_processor_without_products_of_codes_uses_the_graphs(bundles, monkeypatch, caplog) -> None:
    monkeypatch.setattr("roboalign.sdk.backends.step_kernels.can_multiply_codes", lambda: False)
    assert "no AVX-512 VNNI" in refused(bundles["int4"], caplog, on_codes=True)


def test_a_decoder_with_scaled_angles_uses_the_graphs(changed, caplog) -> None:
    say(changed, rope_theta=None, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4})
    assert "no plain Llama decoder" in refused(changed, caplog)


def test_a_bundle_without_its_constants_uses_the_graphs(changed, caplog) -> None:
    (changed.path / "config.json").unlink()
    assert "no config.json" in refused(changed, caplog)


def test_a_decoder_with_biases_uses_the_graphs(changed, caplog) -> None:
    path = changed.path / "model.safetensors"
    extra = "model.language_model.layers.0.self_attn.q_proj.bias"
    save_file({**load_file(path), extra: np.ones(64, np.float32)}, path)
    assert f"{extra} is extra" in refused(changed, caplog)


@needs_vnni
@pytest.mark.parametrize(
    "wrong", [{"rope_theta": 9000.0}, {"rope_theta": 20000.0}, {"rope_theta": 1e5}, {"rms_norm_eps": 0.5}]
)
@pytest.mark.parametrize("kind", ["fp32", "int4"])
def test_a_wrong_constant_is_found_and_the_graphs_are_used(
    bundles, tmp_path, caplog, kind: str, wrong: dict[str, float]
) -> None:
    changed = copied(bundles[kind], tmp_path)
    say(changed, rope_parameters=None, **{"rope_theta": 10000.0, **wrong})
    assert "the compiled step is off by" in refused(changed, caplog, on_codes=kind == "int4")
