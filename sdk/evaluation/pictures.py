"""Pictures of an episode: animated gifs and film strips, and PNG bytes for a page. Pillow is imported when used."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from roboalign.sdk.errors import ConfigError, DataError, missing_extra
from roboalign.sdk.evaluation.episodes import EpisodeResult
from roboalign.sdk.types import ImageArray

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FilmFrame", "FilmStrip", "captioned_frames", "encode_png", "read_film", "write_film", "write_gif"]

FILM_FRAMES = 6
"""Pictures in a film strip: what fits beside each other on a page and still shows every stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilmFrame:
    """One picture of a film strip."""

    step: int
    """Control step at which it was taken."""
    thought: str | None
    """The last thought up to that step; None when the policy did not think."""
    instruction: str
    """The sentence that held at that step."""
    png: bytes
    """The picture as a PNG file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilmStrip:
    """A few pictures of one episode, in order, with what the policy thought."""

    seed: int
    """Seed of the scene."""
    task: str
    """Name of the task."""
    instruction: str
    """The sentence of the scene; of a sequence, the first one."""
    success: bool
    """Whether the episode ended in success."""
    steps: int
    """Length of the episode in control periods."""
    progress: float
    """Largest share of the stages that was reached, 0 to 1."""
    goals_done: int
    """Goals that were reached."""
    num_goals: int
    """Goals of the episode."""
    mean_act_s: float
    """Mean time of one answer of the policy."""
    is_repeated: bool
    """Whether the episode went the same way when it was played for the pictures."""
    sources: tuple[str, ...]
    """Who acted."""
    frames: tuple[FilmFrame, ...]
    """Pictures in order of time."""


def encode_png(image: ImageArray, *, scale: int = 1) -> bytes:
    """Returns uint8[H, W, 3] as the bytes of a PNG file, enlarged by a whole factor without smoothing."""
    buffer = io.BytesIO()
    _to_pil(image, scale).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_gif(frames: Sequence[ImageArray], path: Path, *, rate_hz: float = 10.0, scale: int = 1) -> Path:
    """Writes uint8[H, W, 3] pictures as an endlessly repeated gif; nothing half-written stays under `path`."""
    if not frames:
        raise ConfigError(f"there is no picture to write into {path}")
    if not rate_hz > 0.0:
        raise ConfigError(f"rate_hz is {rate_hz}, expected more than 0")
    images = [_to_pil(frame, scale) for frame in frames]
    from PIL.Image import Dither

    # One palette for all: a palette for each frame makes still surfaces flicker.
    palette = _to_pil(np.concatenate([frames[0], frames[len(frames) // 2], frames[-1]]), 1).quantize(colors=256)
    images = [image.quantize(palette=palette, dither=Dither.NONE) for image in images]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    duration_ms = round(1000.0 / rate_hz)
    durations = [duration_ms] * (len(images) - 1) + [max(duration_ms, 1500)]
    try:
        images[0].save(
            partial, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False
        )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def captioned_frames(episode: EpisodeResult) -> list[ImageArray]:
    """Returns the episode's pictures with the instruction and the thought in force printed under each."""
    return [
        _caption(image, f"> {_told_at(episode, step)}", _thought_at(episode, step) or "")
        for step, image in episode.frames
    ]


def _caption(image: ImageArray, instruction: str, thought: str) -> ImageArray:
    """Returns the picture with a text block of fixed height under it: one line of instruction, three of thought."""
    from PIL import Image as PilImage
    from PIL import ImageDraw, ImageFont

    width = image.shape[1]
    size = max(8, width // 27)
    line_height = size + 4
    per_line = int(width / (size * 0.52))
    lines = [instruction[:per_line], *textwrap.wrap(thought, per_line)[:3]]
    canvas = PilImage.new("RGB", (width, image.shape[0] + 4 * line_height + 6), (255, 255, 255))
    canvas.paste(_to_pil(image, 1), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        colour = (20, 20, 20) if number == 0 else (60, 60, 140)
        place = (4, image.shape[0] + 3 + number * line_height)
        draw.text(place, line, fill=colour, font=ImageFont.load_default(size))
    return np.asarray(canvas, np.uint8)


def write_film(
    folder: Path, episode: EpisodeResult, *, num_frames: int = FILM_FRAMES, is_repeated: bool = True
) -> Path:
    """Writes pictures spread over the whole episode and `film.json`, in that order, into `folder`."""
    if not episode.frames:
        raise ConfigError(f"the episode of seed {episode.seed} was run without record_frames, there is nothing to show")
    folder.mkdir(parents=True, exist_ok=True)
    chosen = np.unique(np.linspace(0, len(episode.frames) - 1, num_frames).round().astype(int))
    rows = []
    for index in chosen:
        step, image = episode.frames[index]
        name = f"step-{step:04d}.png"
        (folder / name).write_bytes(encode_png(image))
        thought, told = _thought_at(episode, step), _told_at(episode, step)
        rows.append({"step": step, "thought": thought, "instruction": told, "file": name})
    act_s = episode.latency_s.get("act", ())
    text = json.dumps(
        {
            "seed": episode.seed,
            "task": episode.task,
            "instruction": episode.instruction,
            "success": episode.success,
            "steps": episode.steps,
            "progress": episode.progress,
            "goals_done": episode.goals_done,
            "num_goals": episode.num_goals,
            "mean_act_s": sum(act_s) / max(1, len(act_s)),
            "is_repeated": is_repeated,
            "sources": sorted(episode.sources),
            "frames": rows,
        },
        indent=2,
    )
    (folder / "film.json").write_text(text + "\n", encoding="utf-8")
    return folder


def read_film(folder: Path) -> FilmStrip:
    """Reads what `write_film` wrote."""
    path = folder / "film.json"
    try:
        film = json.loads(path.read_text(encoding="utf-8"))
        rows = film.pop("frames")
        frames = tuple(FilmFrame(**{**_without_file(row), "png": (folder / row["file"]).read_bytes()}) for row in rows)
        return FilmStrip(**{**film, "sources": tuple(film["sources"]), "frames": frames})
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as err:
        raise DataError(f"{path} is not a film strip of `roboalign eval` ({err}); run the evaluation again") from err


def _without_file(row: Mapping[str, str]) -> dict[str, object]:
    return {key: value for key, value in row.items() if key != "file"}


def _told_at(episode: EpisodeResult, step: int) -> str:
    """Returns the sentence that held at a step."""
    before = [text for at, text in episode.instructions if at <= step]
    return before[-1] if before else episode.instruction


def _thought_at(episode: EpisodeResult, step: int) -> str | None:
    """Returns the thought that was in force at a step."""
    before = [text for at, text in episode.thoughts if at <= step]
    return before[-1] if before else None


def _to_pil(image: ImageArray, scale: int) -> Image:
    """Wraps an array as a Pillow image, enlarged by a whole factor."""
    try:
        from PIL import Image as PilImage
    except ImportError as err:
        raise missing_extra("pillow", "sim", "writing a picture") from err
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"a picture is {image.dtype}{list(image.shape)}, expected uint8[height, width, 3] RGB")
    wrapped = PilImage.fromarray(image)
    if scale == 1:
        return wrapped
    return wrapped.resize((image.shape[1] * scale, image.shape[0] * scale), PilImage.Resampling.NEAREST)
