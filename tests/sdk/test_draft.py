"""A draft never changes what is written, and saves passes where it holds."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.sdk.draft import Draft

WORDS = st.lists(st.integers(0, 5), max_size=40)


def write(text: Sequence[int], draft: Draft) -> tuple[list[int], list[int]]:
    """Writes a text as a policy does, for a model that writes it whatever comes before; returns it, and all passes."""
    written: list[int] = []
    passes: list[int] = []
    while len(written) < len(text):
        run = draft.propose(text[len(written)], room=len(text) - len(written))
        assert run[0] == text[len(written)]
        assert len(written) + len(run) <= len(text)
        agreed = 1
        while agreed < len(run) and run[agreed] == text[len(written) + agreed]:
            agreed += 1
        draft.report(agreed)
        written += run[:agreed]
        passes.append(len(run))
    return written, passes


@given(text=WORDS, drafted=WORDS, windows=st.sampled_from([(), (2,), (8,), (2, 4), (8, 32)]))
def test_any_draft_gives_the_text_that_is_written_without_one(
    text: list[int], drafted: list[int], windows: tuple[int, ...]
) -> None:
    written, passes = write(text, Draft(drafted, windows=windows))
    assert written == text
    assert len(passes) <= len(text)
    assert max(passes, default=0) <= max(windows, default=1)


def test_the_same_text_again_is_read_in_growing_windows() -> None:
    assert write(range(100), Draft(range(100), windows=(8, 32)))[1] == [8, 32, 32, 28]


def test_without_a_draft_or_without_windows_every_token_is_a_pass_of_its_own() -> None:
    assert write(range(20), Draft((), windows=(8, 32)))[1] == [1] * 20
    assert write(range(20), Draft(range(20)))[1] == [1] * 20


def test_a_text_that_has_nothing_in_common_costs_no_window() -> None:
    assert write(range(20), Draft(range(50, 70), windows=(8, 32)))[1] == [1] * 20


def test_after_another_word_the_draft_goes_on_behind_it() -> None:
    """One window that breaks at the new word, that word alone, and the rest in windows again."""
    text = [0, 1, 2, 99, 4, 5, 6, 7, 8, 9, 10, 11]
    assert write(text, Draft(range(12), windows=(8,)))[1] == [8, 1, 8]


@pytest.mark.parametrize(
    "change",
    [
        lambda words: [*words[:8], 90, *words[8:]],
        lambda words: [*words[:8], *words[9:]],
        lambda words: [*words[:8], 90, 91, 92, *words[11:]],
    ],
    ids=["one more", "one less", "three others"],
)
def test_what_was_moved_is_found_again(change: Callable[[list[int]], list[int]]) -> None:
    text = change(list(range(60)))
    assert len(write(text, Draft(range(60), windows=(8, 32)))[1]) < len(text) / 4


def test_windows_that_gain_nothing_are_risked_less_and_less() -> None:
    """Every second token differs: a window is read at the first match, and no longer once it was for nothing."""
    text = [place if place % 2 else 100 + place for place in range(40)]
    passes = write(text, Draft(range(40), windows=(8,)))[1]
    assert sum(size > 1 for size in passes) == 1


def test_a_window_ends_where_the_room_does() -> None:
    draft = Draft(range(20), windows=(8,))
    assert draft.propose(0, room=3) == (0, 1, 2)


def test_a_draft_is_taken_up_behind_a_change_longer_than_its_reach() -> None:
    text = [*range(20), *range(100, 126), *range(46, 90)]
    written, passes = write(text, Draft([*range(20), *[99] * 26, *range(46, 90)], windows=(4, 16, 64)))
    assert written == text
    assert passes.count(1) <= 26 + 3
    assert len(passes) <= 26 + 10
