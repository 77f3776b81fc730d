"""What is read of a Jetson's files; the files are as documented, none comes from a real board."""

from pathlib import Path

import pytest
from tests.boards import AGX_ORIN, write_board

from roboalign.sdk.board import Board, detect_board


def test_a_board_is_read_from_its_files(tmp_path: Path) -> None:
    assert detect_board(write_board(tmp_path, memory_gib=2.0)) == Board(
        model=AGX_ORIN, l4t="36.4.3", tensorrt="10.3.0", memory_bytes=2 * 2**30, power_mode="MAXN"
    )


def test_no_files_are_no_board(tmp_path: Path) -> None:
    assert detect_board(tmp_path) is None


def test_another_computer_with_a_device_tree_is_no_board(tmp_path: Path) -> None:
    write_board(tmp_path, model="Raspberry Pi 5 Model B Rev 1.0", release=None)
    assert detect_board(tmp_path) is None


def test_a_container_without_the_release_file_is_still_a_board(tmp_path: Path) -> None:
    board = detect_board(write_board(tmp_path, release=None))
    assert board is not None
    assert (board.model, board.l4t) == (AGX_ORIN, None)


def test_a_release_without_a_device_tree_is_a_board_of_unknown_name(tmp_path: Path) -> None:
    write_board(tmp_path)
    (tmp_path / "proc/device-tree/model").unlink()
    board = detect_board(tmp_path)
    assert board is not None
    assert (board.model, board.l4t) == ("", "36.4.3")


def test_the_other_place_of_the_device_tree_is_read_too(tmp_path: Path) -> None:
    write_board(tmp_path)
    other = tmp_path / "sys/firmware/devicetree/base"
    other.mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").rename(other / "model")
    board = detect_board(tmp_path)
    assert board is not None
    assert board.model == AGX_ORIN


@pytest.mark.parametrize(
    ("files", "expected"), [((), None), (("10.3.0", "10.16.2"), "10.16.2"), (("11.4.1",), "11.4.1")]
)
def test_the_newest_tensorrt_counts(tmp_path: Path, files: tuple[str, ...], expected: str | None) -> None:
    write_board(tmp_path, tensorrt=None)
    folder = tmp_path / "usr/lib/sbsa-linux-gnu"
    folder.mkdir(parents=True)
    for version in files:
        (folder / f"libnvinfer.so.{version}").touch()
    board = detect_board(tmp_path)
    assert board is not None
    assert board.tensorrt == expected


def test_a_release_file_of_another_form_tells_no_version(tmp_path: Path) -> None:
    board = detect_board(write_board(tmp_path, release="hand made image"))
    assert board is not None
    assert board.l4t is None


@pytest.mark.parametrize(
    ("status", "table", "expected"),
    [
        (None, "< POWER_MODEL ID=2 NAME=MAXN >", None),
        ("pmode:0002", "< POWER_MODEL ID=12 NAME=OTHER >\n< POWER_MODEL ID=2 NAME=MODE_30W >", "MODE_30W"),
        ("pmode:0002", "", "2"),
    ],
)
def test_a_power_mode_has_a_name_or_a_number(
    tmp_path: Path, status: str | None, table: str, expected: str | None
) -> None:
    write_board(tmp_path)
    (tmp_path / "etc/nvpmodel.conf").write_text(table)
    (tmp_path / "var/lib/nvpmodel/status").write_text(status or "")
    board = detect_board(tmp_path)
    assert board is not None
    assert board.power_mode == expected
