"""Talking with the person at the arm: questions, lines, and "press Enter when you are done" while something runs."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable
from typing import Protocol

from roboalign.sdk.errors import ConfigError

__all__ = ["Dialogue", "Terminal"]


class Dialogue(Protocol):
    """What a guided procedure needs of its user; tests answer from a script."""

    def say(self, text: str) -> None:
        """Shows one line."""
        ...

    def ask(self, question: str) -> str:
        """Asks and waits; returns the answer without surrounding blanks, empty for Enter alone."""
        ...

    def is_done(self) -> bool:
        """Returns whether Enter was pressed since the last question or call; does not wait."""
        ...


class Terminal:
    """A person at a terminal: questions go to stderr, answers come from stdin."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def ask(self, question: str) -> str:
        """Asks and waits.

        Raises:
            ConfigError: There is nobody to answer.
        """
        self.say(question)
        line = sys.stdin.readline()
        if not line:
            raise ConfigError("nobody answers: standard input is closed; run this in a terminal")
        return line.strip()

    def is_done(self) -> bool:
        """Returns whether a line was entered."""
        is_ready = bool(select.select([sys.stdin], [], [], 0.0)[0])
        if is_ready:
            sys.stdin.readline()
        return is_ready
