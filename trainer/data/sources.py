"""Sources opened: a mixture becomes a stream of samples, each a function of seed and number alone.

Frames of a dataset are kept in memory, as the stages keep them; chat files are read row by row, their pictures when
they are drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.reply import write_reply
from roboalign.sdk.types import ACTION_NAMES, ImageArray
from roboalign.trainer.checkpoint import sha256_of_file
from roboalign.trainer.data.chat import ChatFile, ChatSample
from roboalign.trainer.data.mixture import ACTION_KINDS, MOTION, RECORDED, Mixture, SourceSpec
from roboalign.trainer.data.pictures import read_picture
from roboalign.trainer.data.schedule import Schedule
from roboalign.trainer.frames import FrameTable, load_frames
from roboalign.trainer.samples import Sample, action_text, make_sample

__all__ = [
    "ChatSource",
    "FrameSource",
    "Opening",
    "SampleStream",
    "Source",
    "open_mixture",
    "usable_rows",
]


class Source(Protocol):
    """Rows that become samples."""

    content_hash: str
    """Changes with what the rows hold."""

    def __len__(self) -> int:
        """Number of rows."""

    def sample(self, row: int, rng: np.random.Generator) -> Sample:
        """Returns the sample of a row; wording is drawn from `rng`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """What the samples have to fit: the model, its codec, its robot."""

    fmt: PromptFormat
    """Units of the words, and the size of the pictures."""
    codec: FastCodec | None = None
    """Makes action tokens; None refuses sources with actions."""
    horizon: int = 8
    """Actions in a chunk, where there is no codec."""
    robot: str | None = None
    """Robot of the model; None takes the one of the first dataset."""
    state_names: tuple[str, ...] | None = None
    """States that the model learns from; None takes any."""
    held_share: float = 0.0
    """Share of the episodes of each dataset that is left out, the last ones."""
    max_frames: int | None = None
    """Frames of each dataset at most; None reads all."""

    def __post_init__(self) -> None:
        if self.codec is not None and self.codec.config.names != ACTION_NAMES:
            raise ConfigError(
                f"the codec's actions are {', '.join(self.codec.config.names)}, expected {', '.join(ACTION_NAMES)}; "
                "give a checkpoint that was trained on such actions"
            )


class FrameSource:
    """One kind of sample from the frames of a dataset."""

    def __init__(self, table: FrameTable, kind: str, name: str, opening: Opening, *, style: str | None = None) -> None:
        self.rows = usable_rows(table, kind, style)
        self.content_hash = f"{table.data_hash} {len(table)} {kind} {style}"
        self._table, self._kind, self._name, self._style = table, kind, name, style
        self._opening = opening

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, row: int, rng: np.random.Generator) -> Sample:
        """Returns the sample of a row; wording is drawn from `rng`."""
        frame, opening = int(self.rows[row]), self._opening
        made = make_sample(self._table, frame, self._kind, opening.fmt, rng, opening.codec, style=self._style)
        return replace(made, source=self._name)


class ChatSource:
    """Conversations about pictures; `skipped` says of each picture that was left out, by row, why."""

    def __init__(self, spec: SourceSpec, opening: Opening) -> None:
        self.file = ChatFile(spec.path, turns=spec.turns)
        self.skipped: dict[int, str] = {}
        self.content_hash = sha256_of_file(spec.path)
        self._spec, self._opening = spec, opening

    def __len__(self) -> int:
        return len(self.file)

    def sample(self, row: int, rng: np.random.Generator) -> Sample:
        """Returns the sample of a row; in place of one whose picture is skipped, the next row that has one."""
        for step in range(len(self)):
            found = self.file.at((row + step) % len(self))
            try:
                image = None if found.image is None else self.picture(found)
            except DataError as err:
                if self._spec.on_bad_image == "stop":
                    raise
                self.skipped[found.row] = str(err)
                continue
            return self._sample(found, image)
        raise DataError(f"{self.file.path}: no picture can be read, e.g. {next(iter(self.skipped.values()))}")

    def picture(self, found: ChatSample) -> ImageArray:
        """Returns the picture of a sample, in the size of the model; the error names file and row."""
        try:
            folder = self._spec.images or self._spec.path.parent
            return read_picture(found.image or "", folder, size_px=self._opening.fmt.image_size_px)
        except DataError as err:
            raise DataError(f"{self.file.path}: row {found.row}: {err}") from err

    def _sample(self, found: ChatSample, image: ImageArray | None) -> Sample:
        answer = found.answer
        if found.action is not None:
            answer = action_text(self._codec(found).encode(found.action))
        return Sample(
            text=found.text,
            state=found.state,
            image=image,
            pace="slow" if found.thought else "quick",
            task="ask" if found.action is None else "act",
            reply=write_reply(found.thought, answer or ""),
            source=self._spec.name,
        )

    def _codec(self, found: ChatSample) -> FastCodec:
        codec, action = self._opening.codec, found.action
        where = f"{self.file.path}: row {found.row}"
        if codec is None:
            raise ConfigError(f"{where} holds an action, which needs a codec; give a checkpoint of stage sft or later")
        expected = (codec.config.horizon, len(codec.config.names))
        if action is not None and action.shape != expected:
            raise DataError(
                f"{where}: the action has shape {list(action.shape)}, expected {list(expected)}, the codec's"
            )
        return codec


def usable_rows(table: FrameTable, kind: str, style: str | None) -> NDArray[np.int64]:
    """Returns the frames that can become a kind of sample: those whose words are recorded, or all with truth."""
    if kind == "action" or (style == MOTION and kind != "vqa"):
        return np.arange(len(table))
    if table.truths is not None and style not in (RECORDED, MOTION):
        return np.arange(len(table))
    if kind == "vqa":
        return np.flatnonzero([bool(words.questions) for words in table.words])
    return np.flatnonzero([words.has_thought for words in table.words])


class SampleStream:
    """The samples of a run: a pure function of mixture, seed and number; see `Schedule` for what it promises.

    Args:
        sources: Rows by name.
        shares: Weight of each.
        seed: Seed of order and wording.
    """

    def __init__(self, sources: Mapping[str, Source], shares: Mapping[str, float | Fraction], *, seed: int) -> None:
        self.sources = sources
        self.schedule = Schedule(shares, {name: len(source) for name, source in sources.items()}, seed=seed)
        self._seed = seed

    def at(self, number: int) -> Sample:
        """Returns the sample with this number, counted from 0."""
        drawn = self.schedule.at(number)
        return self.sources[drawn.source].sample(drawn.row, np.random.default_rng((self._seed, 3, number)))

    def draw(self, step: int, count: int) -> list[Sample]:
        """Returns the samples of one update of `count` samples."""
        return [self.at(number) for number in range(step * count, (step + 1) * count)]

    @property
    def content_hash(self) -> str:
        """Hash of what the stream is made from: contents of the sources, and their shares."""
        lines = [f"{name} {parts} {self.sources[name].content_hash}\n" for name, parts in self.schedule.parts.items()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def describe(self) -> dict[str, object]:
        """Returns what a checkpoint says about the stream: its hash, the share of each source, and what was skipped."""
        shares = {name: parts / self.schedule.period for name, parts in self.schedule.parts.items()}
        return {"sha256": self.content_hash, "shares": shares, "skipped": self.skipped}

    @property
    def skipped(self) -> dict[str, int]:
        """Rows left out so far because their picture does not decode, by source; sources without any are absent."""
        counts = {n: len(source.skipped) for n, source in self.sources.items() if isinstance(source, ChatSource)}
        return {name: count for name, count in counts.items() if count}


def open_mixture(mixture: Mixture, opening: Opening, *, seed: int) -> SampleStream:
    """Opens every source that has a weight.

    A lerobot source becomes one source for each of its kinds, named `<source>/<kind>`.

    Raises:
        ConfigError: a source has actions, and there is no codec.
        DataError: a source is missing, empty, does not decode, or is of another robot, rate or action space.
    """
    sources: dict[str, Source] = {}
    shares: dict[str, float | Fraction] = {}
    for spec in mixture.sources:
        if spec.weight == 0:
            continue
        if spec.format == "chat":
            sources[spec.name], shares[spec.name] = ChatSource(spec, opening), spec.weight
            continue
        parts, robot = _frame_sources(spec, opening)
        opening = replace(opening, robot=opening.robot or robot)
        exact = {kind: Fraction(str(share)) for kind, share in spec.kind_shares.items()}
        for kind, share in exact.items():
            name = f"{spec.name}/{kind}"
            sources[name], shares[name] = parts[kind], Fraction(str(spec.weight)) * share / sum(exact.values())
    return SampleStream(sources, shares, seed=seed)


def _frame_sources(spec: SourceSpec, opening: Opening) -> tuple[dict[str, FrameSource], str | None]:
    codec = opening.codec
    if codec is None and any(kind in ACTION_KINDS for kind in spec.kind_shares):
        raise ConfigError(
            f"source {spec.name!r} has samples with actions, which need a codec; give a checkpoint of stage sft or "
            "later"
        )
    table = load_frames(
        spec.path,
        horizon=opening.horizon if codec is None else codec.config.horizon,
        image_size_px=opening.fmt.image_size_px,
        max_frames=opening.max_frames,
        rate_hz=None if codec is None else codec.config.rate_hz,
        robot=opening.robot,
        state_names=opening.state_names,
        thought=spec.thought,
    )
    if opening.held_share:
        table, _ = table.split(opening.held_share)
    made = {
        kind: FrameSource(table, kind, f"{spec.name}/{kind}", opening, style=spec.style) for kind in spec.kind_shares
    }
    for kind, source in made.items():
        if not len(source):
            what = "questions" if kind == "vqa" else "thoughts"
            raise DataError(
                f"source {spec.name!r}: kind {kind} was asked for, and {spec.path} has neither simulator truth nor "
                f"{what} in words; found the columns {', '.join(table.columns)}; name the column of thoughts, or leave "
                f"{kind} out"
            )
    return made, table.robot
