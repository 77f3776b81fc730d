"""The FAST codec: what it promises about any chunk, and what it says about files and inputs that are wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from roboalign.sdk.errors import BundleError, ConfigError, DataError
from roboalign.sdk.fast import FAST_FILE, FastCodec, FastConfig
from roboalign.sdk.fast_file import codec_hash
from roboalign.sdk.types import ACTION_NAMES, FloatArray

HORIZON, DIMS = 8, 5
UNITS = np.array([0.04, 0.04, 0.04, 0.2, 1.0])


def demonstrations(count: int, seed: int) -> FloatArray:
    """Smooth displacements, a yaw that moves in half of the chunks, and a binary gripper that switches at most once."""
    rng = np.random.default_rng(seed)
    time_T1 = np.linspace(0, 2, HORIZON)[:, None]
    offset, swing, phase = rng.normal(size=(3, count, 1, DIMS))
    chunks = np.tanh(0.6 * offset + 0.4 * swing * np.sin(time_T1 + 6 * phase)) * UNITS
    chunks[rng.random(count) < 0.5, :, 3] = 0
    switch, before = rng.integers(0, 3 * HORIZON, (count, 1)), rng.integers(0, 2, (count, 1))
    chunks[:, :, 4] = np.where(np.arange(HORIZON) < switch, before, 1 - before)
    return chunks.astype(np.float32)


@pytest.fixture(scope="module")
def codec() -> FastCodec:
    return FastCodec.fit(demonstrations(2000, seed=0), rate_hz=10)


CODEC = FastCodec.fit(demonstrations(500, seed=1), rate_hz=10, vocab_size=256)
"""For the property tests, which cannot take a fixture of another scope."""

any_chunk = arrays(np.float32, (HORIZON, DIMS), elements=st.floats(-1e6, 1e6, width=32))
near_chunk = arrays(np.float64, (HORIZON, DIMS), elements=st.floats(-1.2, 1.2)).map(lambda unit: unit * UNITS)
any_ids = st.lists(st.integers(0, CODEC.vocab_size - 1), max_size=60)


def unconfigured(**changes: object) -> FastConfig:
    values = {
        "horizon": 2, "names": ("x_m",), "rate_hz": 10.0, "scale": 1.0, "low": [-1.0], "high": [1.0],
        "min_coefficient": -2, "max_coefficient": 2, "merges": ((0, 1),),
    }  # fmt: skip
    return FastConfig(**{**values, **changes})


@given(any_chunk)
def test_every_finite_chunk_encodes_to_tokens_that_decode(chunk):
    decoded = CODEC.decode(CODEC.encode(chunk))
    assert decoded.status == "ok"
    assert decoded.actions.shape == (HORIZON, DIMS)
    assert decoded.actions.dtype == np.float32


@given(any_chunk)
def test_decoding_and_encoding_again_changes_no_coefficient(chunk):
    decoded = CODEC.decode(CODEC.encode(chunk)).actions
    np.testing.assert_array_equal(CODEC.coefficients(decoded[None])[0], CODEC.coefficients(chunk[None])[0])


@given(near_chunk)
def test_a_coefficient_that_is_not_clipped_is_within_half_a_quantum(chunk):
    config = CODEC.config
    quantised, _ = CODEC.coefficients(chunk[None])
    inside = (quantised > config.min_coefficient) & (quantised < config.max_coefficient)
    error_TD = (CODEC.decode(CODEC.encode(chunk)).actions - chunk) * 2 / (config.high - config.low)
    error = np.abs(dct(error_TD)).reshape(1, -1)
    assert error[inside].max(initial=0) <= 0.5 / config.scale + 1e-4


@given(near_chunk)
def test_an_action_of_an_unclipped_chunk_is_off_by_less_than_the_worst_case(chunk):
    config = CODEC.config
    if CODEC.coefficients(chunk[None])[1]:
        return
    bound = 0.5 / config.scale * np.sqrt(HORIZON) * (config.high - config.low) / 2
    assert (np.abs(CODEC.decode(CODEC.encode(chunk)).actions - chunk) <= bound * 1.001).all()


@given(st.lists(any_chunk, min_size=1, max_size=4))
def test_encoding_many_equals_encoding_one_by_one(chunks):
    assert CODEC.encode_many(np.stack(chunks)) == [CODEC.encode(chunk) for chunk in chunks]


@given(any_ids)
def test_any_ids_decode_to_actions_or_to_the_reason_why_not(ids):
    decoded = CODEC.decode(ids)
    total = sum(int(CODEC.token_lengths[token]) for token in ids)
    expected = {-1: "short", 0: "ok", 1: "long"}[int(np.sign(total - HORIZON * DIMS))]
    assert (decoded.status, decoded.num_coefficients) == (expected, total)
    assert (decoded.actions is not None) == (expected == "ok")


@given(any_ids, st.sampled_from([-1, CODEC.vocab_size, 10**9]), st.integers(0, 60))
def test_an_id_outside_the_vocabulary_is_invalid(ids, wrong, place):
    decoded = CODEC.decode([*ids[:place], wrong, *ids[place:]])
    assert decoded.status == "invalid"
    assert decoded.actions is None


@given(st.lists(st.integers(CODEC.config.min_coefficient, CODEC.config.max_coefficient), min_size=40, max_size=40))
def test_every_coefficient_is_a_token_so_any_chunk_can_be_spelled_one_by_one(coefficients):
    decoded = CODEC.decode([value - CODEC.config.min_coefficient for value in coefficients])
    assert decoded.status == "ok"
    np.testing.assert_array_equal(CODEC.coefficients(decoded.actions[None])[0][0], coefficients)


@given(any_chunk, any_chunk)
def test_a_chunk_leaves_nothing_behind_for_the_next_one(first, second):
    alone = CODEC.encode(second)
    CODEC.encode(first)
    CODEC.decode(CODEC.encode(first)[:-1])
    assert CODEC.encode(second) == alone


def dct(values_TD):
    scipy_fft = pytest.importorskip("scipy.fft")
    return scipy_fft.dct(values_TD, type=2, norm="ortho", axis=0)


def test_coefficients_are_the_rounded_ortho_dct_with_the_lowest_frequency_of_all_fields_first(codec):
    chunk, config = demonstrations(1, seed=5)[0].astype(np.float64), codec.config
    unit = (chunk - (config.low + config.high) / 2.0) / ((config.high - config.low) / 2.0)
    expected = np.rint(dct(unit) * config.scale).reshape(-1)
    np.testing.assert_array_equal(codec.coefficients(chunk[None])[0][0], expected)


def test_first_tokens_of_a_constant_chunk_hold_the_level_of_every_field(codec):
    chunk = np.tile(UNITS / 2, (HORIZON, 1))
    coefficients = codec.coefficients(chunk[None])[0][0]
    assert np.count_nonzero(coefficients[:DIMS]) == DIMS - 1  # the gripper at 0.5 is in the middle of its range
    assert not coefficients[DIMS:].any()


def test_held_out_chunks_all_round_trip_within_the_error_of_the_fit(codec):
    held_out = demonstrations(1000, seed=9)
    assert all(codec.decode(ids).status == "ok" for ids in codec.encode_many(held_out))
    report = codec.report(held_out)
    assert report.num_saturated == 0
    assert max(np.divide(report.p95_error, codec.fit_report.p95_error)) < 1.1


def test_merging_shortens_the_sequence(codec):
    assert codec.vocab_size == 512
    assert codec.report(demonstrations(500, seed=9)).tokens_per_chunk < 0.4 * HORIZON * DIMS


def test_normalisation_uses_the_first_and_last_percentile(codec):
    flat = demonstrations(2000, seed=0).reshape(-1, DIMS)
    np.testing.assert_allclose(codec.config.low, np.percentile(flat, 1, axis=0), rtol=1e-6)
    np.testing.assert_allclose(codec.config.high, np.percentile(flat, 99, axis=0), rtol=1e-6)
    assert (codec.config.low[4], codec.config.high[4]) == (0, 1)


def test_a_constant_field_gets_the_floor_of_the_span():
    chunks = demonstrations(200, seed=2)
    chunks[:, :, 3] = 0.1
    codec = FastCodec.fit(chunks, rate_hz=10)
    assert codec.config.high[3] - codec.config.low[3] == pytest.approx(1e-3, rel=1e-3)
    assert codec.report(chunks).max_error[3] < 1e-6


@pytest.mark.parametrize("tremble", [0, 0.002])
def test_a_field_that_rarely_moves_is_not_saturated(tremble):
    """With the percentiles alone, one yaw of 0.2 rad in 400 steps became a coefficient of thousands."""
    chunks = demonstrations(1000, seed=2)
    chunks[:, :, 3] = np.random.default_rng(0).uniform(-tremble, tremble, (1000, HORIZON))
    chunks[::50, 2, 3] = 0.2
    codec = FastCodec.fit(chunks, rate_hz=10)
    assert codec.fit_report.num_saturated == 0
    assert codec.fit_report.max_error[3] < 0.02


def test_coefficients_outside_the_alphabet_are_clipped_and_counted(codec):
    chunk = np.tile(UNITS * 50, (HORIZON, 1))
    report = codec.report(chunk[None])
    assert report.num_saturated == DIMS
    assert codec.decode(codec.encode(chunk)).status == "ok"


def test_the_alphabet_leaves_room_for_merges_when_the_scale_asks_for_too_many_values():
    codec = FastCodec.fit(demonstrations(300, seed=3), rate_hz=10, vocab_size=64, scale=50)
    assert codec.config.alphabet_size == 48
    assert codec.vocab_size == 64
    assert codec.fit_report.num_saturated > 0


def test_fit_reports_the_error_in_the_unit_of_each_field(codec):
    lines = codec.fit_report.lines()
    assert [line.split(":")[0] for line in lines[:DIMS]] == list(ACTION_NAMES)
    assert lines[0].endswith(" m")
    assert lines[3].endswith(" rad")
    assert "0 coefficients of 2000 chunks saturated" in lines[-1]


@pytest.mark.parametrize("millimetres", [4.0, 2.0, 1.0])
def test_the_picked_scale_is_the_smallest_that_meets_the_tolerance(millimetres):
    chunks, tolerance = demonstrations(500, seed=4), [millimetres / 1000] * 3 + [0.05, 0.2]
    codec = FastCodec.fit(chunks, rate_hz=10, tolerance=tolerance)
    coarser = FastCodec.fit(chunks, rate_hz=10, scale=codec.config.scale / 1.3)
    assert (np.array(codec.fit_report.p95_error) <= tolerance).all()
    assert (np.array(coarser.fit_report.p95_error) > tolerance).any()


def test_a_tolerance_that_cannot_be_reached_is_refused_with_the_best_error():
    with pytest.raises(ConfigError, match="no scale reaches the tolerance"):
        FastCodec.fit(demonstrations(50, seed=4), rate_hz=10, tolerance=[1e-9] * DIMS, vocab_size=64)


def test_fitting_twice_gives_the_same_codec():
    chunks = demonstrations(300, seed=6)
    assert FastCodec.fit(chunks, rate_hz=10).hash == FastCodec.fit(chunks.copy(), rate_hz=10).hash


def test_one_step_of_one_field_can_be_encoded():
    codec = FastCodec.fit(np.linspace(-1, 1, 50).reshape(50, 1, 1), rate_hz=1, names=("x_m",), vocab_size=32)
    assert codec.decode(codec.encode([[0.5]])).actions == pytest.approx(0.5, abs=0.06)


def test_tokens_of_a_fixed_chunk_stay_what_they_are(codec):
    """Golden: shipped checkpoints hold these ids, so a change here breaks every trained model."""
    chunk = np.linspace(-1, 1, HORIZON)[:, None] * UNITS
    config = unconfigured(
        horizon=HORIZON, names=ACTION_NAMES, scale=10.0, low=-UNITS, high=UNITS,
        min_coefficient=-30, max_coefficient=30, merges=((30, 30), (61, 61), (30, 62), (12, 12)),
    )  # fmt: skip
    first, third, fifth = (64, 64, 12), (28,) * 5, (29,) * 5
    zeros = (62, 30)
    assert FastCodec(config).encode(chunk) == (*zeros, *first, *zeros, *third, *zeros, *fifth, 62, 62, 61)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((HORIZON, DIMS - 1)), "expected chunks of"),
        (np.zeros((HORIZON + 1, DIMS)), "expected chunks of"),
        (np.full((HORIZON, DIMS), np.nan), "not finite"),
        (np.full((HORIZON, DIMS), np.inf), "not finite"),
    ],
)
def test_a_chunk_that_cannot_be_right_is_refused(codec, actions, message):
    with pytest.raises(DataError, match=message):
        codec.encode(actions)


@pytest.mark.parametrize("shape", [(0, HORIZON, DIMS), (3, 0, DIMS), (3, HORIZON, 2), (HORIZON, DIMS)])
def test_fit_refuses_actions_of_another_shape(shape):
    with pytest.raises(DataError, match="actions have shape"):
        FastCodec.fit(np.zeros(shape), rate_hz=10)


@pytest.mark.parametrize(
    "changes",
    [
        {"horizon": 0}, {"names": ()}, {"rate_hz": 0.0}, {"scale": float("nan")}, {"low": [1.0]}, {"low": [0.0, 0.0]},
        {"high": [float("inf")]}, {"max_coefficient": -3}, {"merges": ((0, 5),)}, {"merges": ((0, 1), (0, 1))},
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_right_is_refused(changes):
    with pytest.raises(ConfigError, match="FastConfig"):
        unconfigured(**changes)


def test_a_saved_codec_loads_as_the_same_codec(codec, tmp_path: Path):
    path = codec.save(tmp_path / "deep" / "er")
    loaded = FastCodec.load(path.parent)
    chunk = demonstrations(1, seed=7)[0]
    assert loaded.hash == codec.hash
    assert loaded.fit_report == codec.fit_report
    assert loaded.encode(chunk) == codec.encode(chunk)
    np.testing.assert_array_equal(
        loaded.decode(loaded.encode(chunk)).actions, codec.decode(codec.encode(chunk)).actions
    )


def test_saving_leaves_only_the_codec_file(codec, tmp_path: Path):
    codec.save(tmp_path)
    codec.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FAST_FILE]


def test_a_save_that_fails_leaves_the_old_file_whole(codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    codec.save(tmp_path)

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        CODEC.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FAST_FILE]
    assert FastCodec.load(tmp_path).hash == codec.hash


def test_the_hash_covers_the_file_and_differs_between_codecs(codec, tmp_path: Path):
    assert json.loads(codec.save(tmp_path).read_text())["sha256"] == codec.hash
    assert codec.hash != CODEC.hash
    assert codec_hash(codec.config, None) != codec.hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "truncated"),
        (lambda text: "", "truncated"),
        (lambda text: text.replace('"scale": 10.0', '"scale": 11.0'), "was altered"),
        (lambda text: text.replace('"format_version": 1', '"format_version": 2'), "format version 2, .* reads 1"),
        (lambda text: "[]", "no action codec"),
        (lambda text: '{"format": "other"}', "no action codec"),
        (lambda text: chr(233), "cannot be read"),
    ],
)
def test_a_file_that_is_not_what_was_saved_is_refused_in_one_line(codec, tmp_path: Path, change, message):
    path = codec.save(tmp_path)
    path.write_text(change(path.read_text()), encoding="utf-8")
    with pytest.raises(BundleError, match=message) as caught:
        FastCodec.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(BundleError, match=r"fast\.json does not exist"):
        FastCodec.load(tmp_path)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(16, 64), st.integers(0, 2**32 - 1))
def test_a_codec_of_any_shape_round_trips_what_it_was_fitted_on(horizon, dims, vocab_size, seed):
    chunks = np.random.default_rng(seed).normal(size=(30, horizon, dims))
    codec = FastCodec.fit(chunks, rate_hz=5, names=tuple(f"f{dim}_m" for dim in range(dims)), vocab_size=vocab_size)
    assert all(codec.decode(ids).status == "ok" for ids in codec.encode_many(chunks))
    assert codec.encode_many(chunks) == [codec.encode(chunk) for chunk in chunks]


def test_without_merges_every_token_is_one_coefficient() -> None:
    chunks = demonstrations(200, seed=5)
    codec = FastCodec.fit(chunks, rate_hz=10.0, vocab_size=256, max_merges=0)
    assert {len(ids) for ids in codec.encode_many(chunks)} == {codec.num_coefficients}
    assert set(codec.token_lengths.tolist()) == {1}


def test_a_negative_number_of_merges_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_merges is -1"):
        FastCodec.fit(demonstrations(20, seed=5), rate_hz=10.0, max_merges=-1)
