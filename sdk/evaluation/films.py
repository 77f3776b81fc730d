"""Which episodes of an evaluation are shown, and how they get there: film strips and videos.

What is shown is decided by rule, not by taste: the first successes and the first failures become film strips, the first
episodes become videos. They are played once more with pictures. An episode is a function of its scene and its policy;
where a policy does not repeat itself, the strip says so and shows what it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from roboalign.sdk.errors import DataError
from roboalign.sdk.evaluation.episodes import EpisodeResult
from roboalign.sdk.evaluation.pictures import captioned_frames, read_film, write_film
from roboalign.sdk.evaluation.progress import Progress
from roboalign.sdk.evaluation.videos import VIDEO_SUFFIXES, write_video

__all__ = ["Shown", "choose_films", "write_films"]

Play = Callable[[Sequence[int]], Iterable[tuple[int, EpisodeResult]]]
"""Plays the episodes of these numbers again with pictures, in any order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What was written, relative to the folder of the evaluation."""

    films: tuple[str, ...]
    """Folders of film strips, successes first."""
    videos: tuple[str, ...]
    """Video files."""


def choose_films(episodes: Sequence[EpisodeResult], num_films: int) -> tuple[int, ...]:
    """Returns the numbers of the first successes and of the first failures, `num_films` of each."""
    wins = [index for index, episode in enumerate(episodes) if episode.success][:num_films]
    losses = [index for index, episode in enumerate(episodes) if not episode.success][:num_films]
    return tuple(wins + losses)


def write_films(out: Path, episodes: Sequence[EpisodeResult], *, num_films: int, num_videos: int, play: Play) -> Shown:
    """Writes what is not there yet.

    Args:
        out: Folder of the evaluation.
        episodes: All of them, in order.
        num_films: Film strips of successes, and as many of failures.
        num_videos: Videos.
        play: Plays episodes again.
    """
    films = choose_films(episodes, num_films)
    videos = range(min(num_videos, len(episodes)))
    missing = {index for index in films if not _is_film(out / "films" / _label(episodes[index]))}
    missing |= {index for index in videos if _find_video(out / "videos" / _label(episodes[index])) is None}
    if missing:
        with Progress("films", total=len(missing)) as progress:
            for index, shown in play(sorted(missing)):
                _write(out, episodes[index], shown, is_film=index in films, is_video=index in videos)
                progress.advance()
    found = [_find_video(out / "videos" / _label(episodes[index])) for index in videos]
    return Shown(
        films=tuple(f"films/{_label(episodes[index])}" for index in films),
        videos=tuple(f"videos/{path.name}" for path in found if path is not None),
    )


def _write(out: Path, booked: EpisodeResult, shown: EpisodeResult, *, is_film: bool, is_video: bool) -> None:
    if is_film:
        is_repeated = shown.success == booked.success and shown.state_hash == booked.state_hash
        # The time the policy took was measured when the episode counted.
        write_film(out / "films" / _label(booked), replace(shown, latency_s=booked.latency_s), is_repeated=is_repeated)
    if is_video:
        write_video(captioned_frames(shown), out / "videos" / _label(booked), rate_hz=shown.rate_hz)


def _label(episode: EpisodeResult) -> str:
    return f"{episode.task.replace('/', '-')}-{episode.seed}"


def _is_film(folder: Path) -> bool:
    try:
        read_film(folder)
    except DataError:
        return False
    return True


def _find_video(stem: Path) -> Path | None:
    paths = (stem.with_name(stem.name + suffix) for suffix in VIDEO_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)
