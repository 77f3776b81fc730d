"""The table of machines: every row is whole, boards are told apart, and what does not fit is named."""

import dataclasses
import re
from pathlib import Path

import pytest
from tests.boards import AGX_ORIN, NANO, THOR, write_board

from roboalign.export import all_targets, find_target, targets
from roboalign.export.targets import capability_dtypes, find_jetpack, target_of_board
from roboalign.sdk.board import detect_board
from roboalign.sdk.errors import ConfigError

BOARDS = {name: target for name, target in all_targets().items() if target.is_board}
TABLE = Path(targets.__file__).with_name("targets.toml")


def test_the_table_has_the_machines_of_the_plan() -> None:
    assert set(all_targets()) == {
        "orin-nano-8gb",
        "orin-nx-16gb",
        "agx-orin-32gb",
        "agx-orin-64gb",
        "agx-thor",
        "cpu",
        "host",
    }


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_lacks_no_figure(name: str) -> None:
    empty = [field.name for field in dataclasses.fields(BOARDS[name]) if not getattr(BOARDS[name], field.name)]
    assert empty == ["opset"]  # its JetPack has one
    assert 0.3 < (BOARDS[name].decode_efficiency or 0) < 1


def test_every_figure_that_was_looked_up_has_its_source_on_its_line() -> None:
    figures = ("tensorrt", "opset", "edge_llm = true", "dtypes", "bandwidth_gb_s")
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith(figures)]
    assert len(lines) > 20
    assert not [line for line in lines if not re.search(r"# .*(\[[DMR?]\]|float32)", line)]


@pytest.mark.parametrize(
    ("model", "release", "memory_gib", "expected"),
    [
        (NANO, "# R36 (release), REVISION: 4.3", 7.4, ("orin-nano-8gb", "6.2")),
        (
            "NVIDIA Jetson Orin NX Engineering Reference",
            "# R39 (release), REVISION: 2.1",
            15.3,
            ("orin-nx-16gb", "7.2"),
        ),
        (AGX_ORIN, "# R36 (release), REVISION: 4.4", 29.8, ("agx-orin-32gb", "6.2")),
        (AGX_ORIN, "# R39 (release), REVISION: 2", 61.4, ("agx-orin-64gb", "7.2")),
        (THOR, "# R38 (release), REVISION: 4.0", 122.8, ("agx-thor", "7.1")),
    ],
)
def test_a_board_is_told_by_name_and_memory(
    tmp_path: Path, model: str, release: str, memory_gib: float, expected: tuple[str, str]
) -> None:
    board = detect_board(write_board(tmp_path, model=model, release=release, memory_gib=memory_gib))
    assert board is not None
    target, jetpack = target_of_board(board)
    assert jetpack is not None
    assert (target.name, jetpack.name) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": NANO, "memory_gib": 3.6}, "with 3.9 GB, which is none of the boards"),
        ({"model": "NVIDIA Jetson Xavier NX"}, "'NVIDIA Jetson Xavier NX' with 65.9 GB, which is none of the boards"),
        (
            {"release": "# R36 (release), REVISION: 3.0"},
            r"has Jetson Linux 36.3.0; .* known with JetPack 6.2 \(L4T 36.4\)",
        ),
        ({"model": THOR, "memory_gib": 122.8}, "has Jetson Linux 36.4.3; Jetson AGX Thor"),
    ],
)
def test_a_board_outside_the_table_is_refused_by_name(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    board = detect_board(write_board(tmp_path, **changes))  # type: ignore[arg-type]
    assert board is not None
    with pytest.raises(ConfigError, match=message):
        target_of_board(board)


def test_what_is_near_an_unknown_name_is_shown() -> None:
    with pytest.raises(ConfigError, match=r"did you mean .*orin-nano-8gb"):
        find_target("orin-nano")


def test_a_jetpack_that_a_board_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Thor .* has no JetPack 6\.2 .* it knows 7\.0, 7\.1"):
        find_jetpack(find_target("agx-thor"), "6.2")


@pytest.mark.parametrize(
    ("version", "expected"), [("10.2", False), ("10.3", True), ("10.3.0", True), ("10.13.3.9", False), ("11.4", False)]
)
def test_releases_of_tensorrt_are_compared_as_numbers(version: str, expected: bool) -> None:
    assert find_jetpack(find_target("agx-orin-64gb"), "6.2").has_tensorrt(version) is expected


def test_no_version_is_no_number() -> None:
    with pytest.raises(ConfigError, match="'latest' is no version"):
        find_jetpack(find_target("agx-orin-64gb"), "6.2").has_tensorrt("latest")


def test_stand_ins_compute_with_what_their_boards_compute_with() -> None:
    for target in BOARDS.values():
        assert target.stand_in is not None
        assert capability_dtypes(target.stand_in) == target.dtypes


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape("compute capability 7.5; known are 8.7")):
        capability_dtypes("7.5")
