"""Strict writer and parser of a reply, as text and as token ids.

    <think>thought</think><answer>answer</answer>      when the model thinks
    <answer>answer</answer>                            when it does not

Nothing stands before, between or after the tags, each tag occurs once, and neither part is blank. As ids the answer is
text or one action span `<ACTION_START> <ACTION_i>... <ACTION_END>`, and the reply ends with one end-of-sequence token.
The count of coefficients is not checked here; that is `FastCodec.decode`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from roboalign.sdk.errors import ConfigError, DataError

__all__ = [
    "Reply",
    "ReplyIds",
    "ReplyTokens",
    "find_action_ids",
    "parse_reply",
    "parse_reply_ids",
    "write_reply",
    "write_reply_ids",
]

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_SPLIT = re.compile("(" + "|".join(_TAGS) + ")")
_FORM_TEXT = "[<think>...</think>]<answer>...</answer>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A reply taken apart."""

    thought: str | None
    """Text between the think tags; None when the reply has none, or is malformed."""
    answer: str | None
    """Text between the answer tags; None when the reply is malformed."""
    is_well_formed: bool
    problem: str | None = None
    """What is wrong, None when nothing is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyTokens:
    """Language-model ids of the tokens that give a reply its form."""

    think_open: int
    think_close: int
    answer_open: int
    answer_close: int
    action_start: int
    action_end: int
    first_action: int
    """Id of `<ACTION_0>`; the others follow it."""
    num_action: int
    """Number of action tokens."""
    eos: int

    def __post_init__(self) -> None:
        if self.num_action < 1:
            raise ConfigError(f"ReplyTokens.num_action is {self.num_action}, expected at least one action token")
        if len(set(self.form)) != len(self.form) or any(self.is_action(token) for token in self.form):
            raise ConfigError(f"ReplyTokens: two tokens share an id: {self}")

    @property
    def form(self) -> tuple[int, ...]:
        """The ids that may stand only where the form asks for them, action tokens aside."""
        tags = (self.think_open, self.think_close, self.answer_open, self.answer_close)
        return (*tags, self.action_start, self.action_end, self.eos)

    def is_action(self, token: int) -> bool:
        """Returns True for `<ACTION_0>` and those that follow it."""
        return self.first_action <= token < self.first_action + self.num_action


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyIds:
    """A reply of token ids taken apart; the parts are None when it is malformed."""

    thought_ids: tuple[int, ...] | None
    """Ids between the think tags; None when the reply has no thought."""
    action_ids: tuple[int, ...] | None
    """Codec ids (0 is `<ACTION_0>`) of the action span; None when the answer is text."""
    answer_ids: tuple[int, ...] | None
    """Ids of a text answer; None when the answer is an action span."""
    is_well_formed: bool
    problem: str | None = None
    """What is wrong, None when nothing is."""


def write_reply(thought: str | None, answer: str) -> str:
    """Returns the reply as text; `thought` is None for a reply without one.

    Raises:
        DataError: A part is blank or holds a tag, so that it could not be read back.

    >>> write_reply("the bowl is left", "blue")
    '<think>the bowl is left</think><answer>blue</answer>'
    """
    for name, part in (("thought", thought), ("answer", answer)):
        if part is not None and (not part.strip() or any(tag in part for tag in _TAGS)):
            raise DataError(f"the {name} {part!r} is blank or holds one of {' '.join(_TAGS)}")
    think = "" if thought is None else f"<think>{thought}</think>"
    return f"{think}<answer>{answer}</answer>"


def parse_reply(text: str) -> Reply:
    """Returns the parts of a reply, or what is wrong with it; any text is accepted.

    >>> parse_reply("<answer>blue</answer>").answer
    'blue'
    >>> parse_reply("<answer>blue</answer>.").problem
    'text stands outside the tags'
    """
    pieces = _SPLIT.split(text)
    texts, tags = pieces[0::2], tuple(pieces[1::2])
    thought = texts[1] if tags == _TAGS else None
    problem = None
    if tags not in (_TAGS, _TAGS[2:]):
        problem = f"the tags are {' '.join(tags) or 'missing'}, expected {_FORM_TEXT}"
    elif any(texts[0::2]):
        problem = "text stands outside the tags"
    elif thought is not None and not thought.strip():
        problem = "the thought is blank"
    elif not texts[-2].strip():
        problem = "the answer is blank"
    if problem is not None:
        return Reply(thought=None, answer=None, is_well_formed=False, problem=problem)
    return Reply(thought=thought, answer=texts[-2], is_well_formed=True)


def write_reply_ids(
    thought_ids: Sequence[int] | None,
    special: ReplyTokens,
    *,
    action_ids: Sequence[int] | None = None,
    answer_ids: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Returns the reply as ids, end-of-sequence included.

    Args:
        thought_ids: Ids of the thought; None for a reply without one.
        special: Ids of the tags.
        action_ids: Codec ids of an action answer; exactly one of this and `answer_ids` is given.
        answer_ids: Ids of a text answer.

    Raises:
        DataError: A part is empty or holds an id that belongs to the form, so that it could not be read back.
    """
    if (action_ids is None) == (answer_ids is None):
        raise DataError("a reply has either action_ids or answer_ids")
    think = () if thought_ids is None else (special.think_open, *thought_ids, special.think_close)
    if action_ids is not None:
        span = (special.first_action + token for token in action_ids)
        answer: tuple[int, ...] = (special.action_start, *span, special.action_end)
    else:
        answer = tuple(answer_ids or ())
    ids = (*think, special.answer_open, *answer, special.answer_close, special.eos)
    problem = parse_reply_ids(ids, special).problem
    if problem is not None:
        raise DataError(f"a reply with these parts could not be read back: {problem}")
    return ids


def parse_reply_ids(ids: Sequence[int], special: ReplyTokens) -> ReplyIds:
    """Returns the parts of a reply of ids, or what is wrong with it; any ids are accepted.

    Args:
        ids: The generated ids up to and with end-of-sequence, padding removed.
        special: Ids of the tags.
    """
    form_ids = frozenset(special.form)
    places = [place for place, token in enumerate(ids) if token in form_ids]
    form = tuple(ids[place] for place in places)
    has_action, has_thought = special.action_start in form, special.think_open in form
    bounds = [-1, *places, len(ids)]
    parts = [tuple(ids[start + 1 : end]) for start, end in pairwise(bounds)]
    # The thought follows tag 0, the answer or action span the last tag that opens something.
    answer_place = (2 if has_thought else 0) + (2 if has_action else 1)
    inside = {1, answer_place} if has_thought else {answer_place}
    problem = None
    if form != _expected_form(special, has_thought=has_thought, has_action=has_action):
        problem = f"the special tokens {form} are not in the order {_FORM_TEXT} and end-of-sequence"
    elif any(part for place, part in enumerate(parts) if place not in inside):
        problem = "tokens stand outside the tags"
    elif not all(parts[place] for place in inside):
        problem = "the thought or the answer is empty"
    elif has_thought and any(special.is_action(token) for token in parts[1]):
        problem = "an action token stands in the thought"
    elif any(special.is_action(token) != has_action for token in parts[answer_place]):
        problem = "the answer mixes action tokens and text, or has no action span"
    if problem is not None:
        return ReplyIds(thought_ids=None, action_ids=None, answer_ids=None, is_well_formed=False, problem=problem)
    answer = parts[answer_place]
    return ReplyIds(
        thought_ids=parts[1] if has_thought else None,
        action_ids=tuple(token - special.first_action for token in answer) if has_action else None,
        answer_ids=None if has_action else answer,
        is_well_formed=True,
    )


def find_action_ids(ids: Sequence[int], special: ReplyTokens) -> tuple[int, ...] | None:
    """Returns the codec ids right behind the first `<ACTION_START>`, whatever else is wrong; None without one.

    For rewards, which score the action of a malformed reply too.
    """
    ids = tuple(ids)
    if special.action_start not in ids:
        return None
    span = takewhile(special.is_action, ids[ids.index(special.action_start) + 1 :])
    return tuple(token - special.first_action for token in span)


def _expected_form(special: ReplyTokens, *, has_thought: bool, has_action: bool) -> tuple[int, ...]:
    think = (special.think_open, special.think_close) if has_thought else ()
    action = (special.action_start, special.action_end) if has_action else ()
    return (*think, special.answer_open, *action, special.answer_close, special.eos)
