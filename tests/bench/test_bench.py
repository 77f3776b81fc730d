"""`roboalign bench`: every row is there and says what it compared; no time is judged."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from roboalign import bench
from roboalign.bench import decode as decode_room
from roboalign.bench import draft as draft_room
from roboalign.bench import head as head_room
from roboalign.bench import prefix as prefix_room
from roboalign.bench import rivals as rivals_room
from roboalign.bench.models import ModelSizes, bench_model
from roboalign.bench.timing import Spread, interleave, ratio
from roboalign.cli.main import main
from roboalign.sdk.backends.in_place import InPlaceBackend
from roboalign.sdk.errors import CheckFailed, ConfigError

QUICK = {"sizes": ("tiny",), "rounds": 3, "tokens": 16}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of 64 features, made once."""
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def decoded(work: Path) -> bench.BenchResult:
    config = bench.BenchConfig(**QUICK, precisions=("fp32", "int4"), work=work)
    return bench.run_decode(config, lambda line: None)


@pytest.fixture
def small_head(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"_VOCAB": 512, "_FIRST": 256, "_COUNT": 64, "_START": 254, "_END": 255, "_CALLS": 10}
    for name, value in sizes.items():
        monkeypatch.setattr(head_room, name, value)
    monkeypatch.setattr(head_room, "_SIZES", ModelSizes(hidden=64, intermediate=64, layers=1, head_dim=32))


def names(result: bench.BenchResult) -> list[str]:
    return [f"{row.bench} {row.name}" for row in result.rows]


def test_decode_compares_every_precision_with_generate_and_with_memory(decoded) -> None:
    assert names(decoded) == [
        "decode tiny-fp32 / generate",
        "decode tiny-fp32 of memory speed",
        "decode tiny-int4 / generate",
        "decode tiny-int4 of memory speed",
    ]
    assert decoded.rows[0].note == "a token, by onnxruntime's graphs; 16 of 16 tokens equal"
    assert all(0.0 < row.ratio.low <= row.ratio.median <= row.ratio.high for row in decoded.rows)


def test_other_tokens_than_those_of_generate_are_a_failure(work, monkeypatch) -> None:
    step = InPlaceBackend.step
    monkeypatch.setattr(InPlaceBackend, "step", lambda self, decoding, token: step(self, decoding, token + 1))
    with pytest.raises(
        CheckFailed, match=r"tiny-fp32 writes other tokens than transformers.generate from place \d+ on"
    ):
        bench.run_decode(bench.BenchConfig(**QUICK, precisions=("fp32",), work=work), lambda line: None)


def test_one_token_again_and_again_proves_nothing() -> None:
    with pytest.raises(CheckFailed, match="wrote only 1 different tokens, so equal ones prove nothing"):
        decode_room._check_tokens([5] * 17, [5] * 17, "tiny-fp32", is_exact=True)


def test_draft_has_a_row_for_each_share_that_holds(work) -> None:
    result = bench.run_draft(bench.BenchConfig(**QUICK, precisions=("fp32",), work=work), lambda line: None)
    shares = ("0%", "80%", "90%", "100%", "80% scattered")
    assert names(result) == [f"draft tiny-fp32 at {share}" for share in shares]
    assert [row.bar for row in result.rows] == [0.95, 3.4, 5.0, 10.0, None]
    passes = [int(row.note.partition(" ")[0]) for row in result.rows]
    assert passes[0] == 32
    assert passes[3] < passes[2] < passes[1] < passes[0]


def test_a_drafted_thought_that_differs_is_a_failure(work, monkeypatch) -> None:
    read = draft_room._Writer._read

    def slip(self, run):
        agreed = read(self, run)
        if len(run) > 1:
            self._backend.step(self._decoding, 40)
        return agreed

    monkeypatch.setattr(draft_room._Writer, "_read", slip)
    with pytest.raises(CheckFailed, match="the drafted thought is not the one that is written without a draft"):
        bench.run_draft(bench.BenchConfig(**QUICK, precisions=("fp32",), work=work), lambda line: None)


@pytest.mark.parametrize(("overlap", "longest", "runs"), [(0.8, 100, 1), (0.8, 2, 10), (0.0, 100, 1), (1.0, 100, 0)])
def test_a_draft_differs_in_as_many_tokens_as_it_says(overlap: float, longest: int, runs: int) -> None:
    plain = list(range(100, 200))
    changed = draft_room._changed(plain, overlap, longest)
    differs = np.array(changed) != np.array(plain)
    assert differs.sum() == round(100 * (1 - overlap))
    assert np.count_nonzero(np.diff(np.concatenate(([0], differs.astype(int)))) == 1) == runs


def test_prefix_compares_prompt_and_first_action(work) -> None:
    result = bench.run_prefix(bench.BenchConfig(**QUICK, precisions=("fp32",), work=work), lambda line: None)
    assert names(result) == ["prefix tiny-fp32 prompt", "prefix tiny-fp32 first action"]
    assert all("40 of 200 tokens new" in row.note for row in result.rows)


def test_scores_that_differ_behind_a_kept_beginning_are_a_failure(work, monkeypatch) -> None:
    monkeypatch.setattr(prefix_room, "_MOST_DIFFERENCE", -1.0)
    with pytest.raises(CheckFailed, match="where a prompt is read on, expected at most -1"):
        bench.run_prefix(bench.BenchConfig(**QUICK, precisions=("fp32",), work=work), lambda line: None)


@pytest.mark.usefixtures("small_head")
def test_head_compares_few_rows_with_all(work) -> None:
    result = bench.run_head(bench.BenchConfig(**QUICK, work=work / "h"), lambda line: None)
    assert names(result) == ["head 64 of 512 rows"]
    assert "the best token is the same in 2560 states of the grammar" in result.rows[0].note


@pytest.mark.usefixtures("small_head")
def test_a_head_of_other_rows_is_a_failure(work, monkeypatch) -> None:
    write = head_room.write_read_graphs
    monkeypatch.setattr(
        head_room, "write_read_graphs", lambda *args, action_rows: write(*args, action_rows=(100, action_rows[1]))
    )
    with pytest.raises(CheckFailed, match=r"token \d+ of the few rows is not \d+"):
        bench.run_head(bench.BenchConfig(**QUICK, work=work / "o"), lambda line: None)


def test_rivals_need_an_environment_and_say_what_it_lacks(work) -> None:
    with pytest.raises(ConfigError, match="bench rivals needs --rival-python"):
        bench.run_rivals(bench.BenchConfig(**QUICK, work=work), lambda line: None)
    config = bench.BenchConfig(**QUICK, work=work, rival_python=Path(sys.executable))
    result = bench.run_rivals(config, lambda line: None)
    assert names(result) == [f"rivals tiny-int4 / {name}" for name in rivals_room.rival_engine.ENGINES]
    assert all(row.note.startswith("not run: ModuleNotFoundError") for row in result.rows)
    assert all(row.verdict == "" and row.ratio is None for row in result.rows)
    assert "NaN" not in bench.write_result(result, work / "rivals.json").read_text()
    assert all(line.split()[-2:] == ["-", "-"] for line in bench.table_lines(result) if line.startswith("rivals"))


def test_a_model_is_made_once(work, decoded) -> None:
    stamp = bench_model("tiny", "fp32", work).bundle.stat().st_mtime_ns
    assert bench_model("tiny", "fp32", work).bundle.stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="there is no bench model huge in fp32, expected one of tiny, 8M, 52M"):
        bench_model("huge", "fp32", work)


def test_the_table_fits_80_columns_and_says_which_bars_are_met(decoded) -> None:
    row = decoded.rows[0]
    low, high = (replace(row, bar=bar, name="x" * 60) for bar in (0.001, 1e6))
    lines = bench.table_lines(replace(decoded, rows=(low, high)))
    assert max(map(len, lines)) <= 80
    assert [line.rpartition(" ")[2] for line in lines if line.startswith("decode")] == ["yes", "no"]


def test_json_has_every_row_and_what_it_was_measured_on(decoded, tmp_path) -> None:
    written = json.loads(bench.write_result(decoded, tmp_path / "out.json").read_text())
    assert [row["name"] for row in written["rows"]] == [row.name for row in decoded.rows]
    assert {"machine", "cores", "threads", "date", "load", "versions"} < set(written)
    assert set(written["rows"][0]["ratio"]) == {"median", "low", "high"}


def test_the_command_prints_the_same_as_json(work, tmp_path, capsys) -> None:
    line = ["bench", "draft", "--sizes", "tiny", "--precisions", "fp32", "--rounds", "3", "--tokens", "16"]
    assert main([*line, "--work", str(work), "--json", "--out", str(tmp_path / "draft.json")]) == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "draft.json").read_text())
    assert printed["rows"] == written["rows"]
    assert len(printed["rows"]) == 5


def test_contenders_run_in_turn_and_ratios_are_made_within_a_round() -> None:
    order: list[str] = []
    times = interleave({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert len(times["a"].cpu_s) == len(times["b"].wall_s) == 3
    assert ratio([2.0, 4.0, 6.0], [1.0, 1.0, 1.0]) == Spread(median=4.0, low=2.2, high=5.8)


@pytest.mark.parametrize("change", [{"rounds": 2}, {"tokens": 7}, {"threads": 0}])
def test_what_measures_nothing_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="bench needs 3 or more rounds, 8 or more tokens and 1 or more threads"):
        bench.BenchConfig(**change)
