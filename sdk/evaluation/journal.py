"""`episodes.jsonl`: a header line that names policy and settings, then a line for each finished episode."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.evaluation.episodes import EpisodeResult
from roboalign.sdk.evaluation.results import JsonValue, episode_from_json, episode_to_json

__all__ = ["Journal"]


class Journal:
    """The finished episodes of an evaluation, on disk after each one; an interrupted evaluation goes on from here."""

    def __init__(self, folder: Path, *, policy: Mapping[str, JsonValue], settings: Mapping[str, JsonValue]) -> None:
        """Opens the journal of a folder, or starts one.

        Raises:
            ConfigError: The folder holds an evaluation of another policy or with other settings.
            DataError: The file is something else.
        """
        self._folder, self._path = folder, folder / "episodes.jsonl"
        self._header = json.loads(json.dumps({"policy": policy, "config": settings}))
        self.episodes: dict[tuple[str, int], EpisodeResult] = {}
        """By task and seed."""
        self.wall_s = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        lines = self._complete_lines()
        if lines:
            header = self._read_header(lines[0])
            self._read_episodes(lines[1:])
            if self.episodes:
                self._check_header(header)
        if not self.episodes:
            # An attempt that failed before its first episode ended binds nobody.
            self.wall_s, lines = 0.0, [json.dumps(self._header)]
        # What a kill cut off in the middle of a line is dropped here, and its episode is run again.
        self._replace(lines)

    def append(self, episode: EpisodeResult) -> None:
        """Writes one finished episode."""
        self.episodes[episode.task, episode.seed] = episode
        self._write(episode_to_json(episode))

    def add_time(self, wall_s: float) -> None:
        """Books the wall time of this run."""
        self.wall_s += wall_s
        self._write(json.dumps({"wall_s": wall_s}))

    def _write(self, line: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _replace(self, lines: list[str]) -> None:
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        partial.replace(self._path)

    def _complete_lines(self) -> list[str]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except UnicodeDecodeError as err:
            raise DataError(f"{self._path} is not text; give another --out") from err
        return text.split("\n")[:-1]

    def _read_episodes(self, lines: list[str]) -> None:
        for line in lines:
            if line.startswith('{"wall_s"'):
                self.wall_s += self._wall_s(line)
                continue
            episode = episode_from_json(line)
            self.episodes[episode.task, episode.seed] = episode

    def _wall_s(self, line: str) -> float:
        try:
            return float(json.loads(line)["wall_s"])
        except (ValueError, TypeError) as err:
            raise DataError(f"{self._path} holds a damaged line: {line[:80]!r}; delete that line") from err

    def _read_header(self, line: str) -> dict[str, dict[str, JsonValue]]:
        try:
            found = json.loads(line)
        except json.JSONDecodeError as err:
            raise DataError(f"{self._path} does not start with an evaluation header; give another --out") from err
        if not isinstance(found, dict) or not all(isinstance(found.get(part), dict) for part in self._header):
            raise DataError(f"{self._path} does not start with an evaluation header; give another --out")
        return found

    def _check_header(self, found: Mapping[str, Mapping[str, JsonValue]]) -> None:
        for part, wanted in self._header.items():
            there = found[part]
            for key in wanted:
                if there.get(key) != wanted[key]:
                    raise ConfigError(
                        f"{self._folder} holds an evaluation with {part} {key} = {there.get(key)!r},"
                        f" asked for {wanted[key]!r}; give another --out, or delete that folder"
                    )
