"""The thought before as a draft of the next one: what the model would write again is read, not written.

A model that writes nearly the same thought again spends a pass on each of its tokens. Here the old thought is read in
windows, one pass each, and the scores of that pass say how far the model agrees: these tokens are kept, and the first
one that it would have written otherwise is written instead. Greedy decoding gives the same tokens either way; this is
speculative decoding (arXiv 2211.17192, section 2, temperature 0) with the past as the draft model, which costs nothing.

`Draft` decides what to read next and never sees scores. A token is proposed only where the model's next token is known
to be the draft's, so that a wrong draft costs no pass at its first token.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Draft"]

_REACH = 8
"""Tokens that are looked ahead of the expected place for that where a changed thought goes on as before."""

_MOST_MATCHES = 3
"""Tokens in a row that have to be as drafted, at most, before the next window is risked."""


class Draft:
    """A guess of what will be written, and where in it the writing is.

    Ask `propose` with the token that the model writes next, read what it returns, and say with `report` how many of
    these tokens the model agreed with.

    >>> draft = Draft((7, 8, 9, 10, 11), windows=(2, 4))
    >>> draft.propose(7, room=10)
    (7, 8)
    >>> draft.report(2)
    >>> draft.propose(9, room=10)
    (9, 10, 11)
    >>> draft.report(1)
    >>> draft.propose(12, room=10)
    (12,)
    """

    def __init__(self, token_ids: Sequence[int] = (), *, windows: Sequence[int] = ()) -> None:
        """Takes the old thought, and how many tokens can be read at once, rising; none of either drafts nothing."""
        self._ids = tuple(token_ids)
        self._windows = tuple(windows)
        self._size = 0  # which window is next
        self._place = 0  # of the token in the draft that is expected next
        self._lost = 0  # tokens written since the draft was left
        self._matches = 0  # tokens in a row that were as drafted
        self._needed = 1  # of these before a window is risked
        self._proposed = 0

    def propose(self, token_id: int, *, room: int) -> tuple[int, ...]:
        """Returns tokens to read next: the given one, and what the draft has behind it, at most `room` in all."""
        place = self._find(token_id)
        run: tuple[int, ...] = (token_id,)
        if place is None:
            self._lost, self._matches = self._lost + 1, 0
        else:
            # Found where it was not expected, it may be there by chance: the next one has to be there too.
            self._matches = self._matches + 1 if place == self._place + self._lost else 0
            self._place, self._lost = place, 0
            if self._windows and self._matches >= self._needed:
                run = self._ids[place : place + min(self._windows[self._size], max(room, 1))]
        self._proposed = len(run)
        return run

    def report(self, num_agreed: int) -> None:
        """Takes how many of the proposed tokens were right; the first always is."""
        if self._lost:
            return
        self._place += num_agreed
        if self._proposed == 1:
            return
        self._matches += num_agreed - 1
        if num_agreed == self._proposed:
            self._size = min(self._size + 1, len(self._windows) - 1)
            self._needed = 1
            return
        self._size = self._matches = 0
        self._needed = 1 if num_agreed > 1 else min(self._needed + 1, _MOST_MATCHES)

    def _find(self, token_id: int) -> int | None:
        """Returns where the draft has a token: where it is expected, or near; None where it has not."""
        expected = self._place + self._lost
        near = range(self._place, min(expected + _REACH, len(self._ids)))
        found = [place for place in near if self._ids[place] == token_id]
        return min(found, key=lambda place: abs(place - expected), default=None)
