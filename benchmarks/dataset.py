"""Writes and reads 1000 episodes, lossless and as video, and says what they cost and what was lost.

python benchmarks/dataset.py --episodes 1000

The pictures are those of a few demonstrations of the simulator, each episode's moved by another number of pixels, so
that no two are alike and the encoder has the work that it has in earnest.
"""

import argparse
import dataclasses
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from roboalign import sdk
from roboalign.sdk.data import CollectConfig, DatasetWriter, Episode, LeRobotDataset, collect, decode_png, encode_png

IMAGE_SIZE_PX = 96


def moved(episode: Episode, number: int, frames: int) -> Episode:
    """The first frames of an episode with pictures moved to the side."""
    pictures = [np.roll(decode_png(png), number, axis=1) for png in episode.images[:frames] if png is not None]
    return dataclasses.replace(
        episode,
        states=episode.states[:frames],
        joint_pos_rad=episode.joint_pos_rad[:frames],
        actions=episode.actions[:frames] * np.float32(1.0 + number / 1e4),
        images=tuple(encode_png(picture) for picture in pictures),
        truth_json=episode.truth_json[:frames],
    )


def measure(sources: list[Episode], options: argparse.Namespace, folder: Path, *, is_video: bool) -> dict[str, object]:
    """Writes, opens, reads back and compares."""
    path = folder / ("video" if is_video else "images")
    write_s = 0.0
    with DatasetWriter(path, image_size_px=IMAGE_SIZE_PX, num_joints=7, is_video=is_video) as writer:
        for number in range(options.episodes):
            episode = moved(sources[number % len(sources)], number // len(sources), options.frames)
            begin = time.process_time()
            writer.add(episode)
            write_s += time.process_time() - begin
        begin = time.process_time()
    write_s += time.process_time() - begin
    begin = time.process_time()
    dataset = LeRobotDataset(path)
    open_s = time.process_time() - begin
    actions = dataset.actions()
    read_s, worst_db, total, differ = 0.0, np.inf, 0.0, 0
    for number in range(options.episodes):
        expected = moved(sources[number % len(sources)], number // len(sources), options.frames)
        begin = time.process_time()
        frames = np.arange(dataset.episode_starts[number], dataset.episode_starts[number + 1])
        pictures = dataset.images(frames)
        read_s += time.process_time() - begin
        for picture, png in zip(pictures, expected.images, strict=True):
            error = float(np.mean((picture.astype(np.float64) - decode_png(png or b"")) ** 2))
            differ += error > 0.0
            quality_db = 10.0 * np.log10(255.0**2 / max(error, 1e-9))
            worst_db, total = min(worst_db, quality_db), total + quality_db
        if not np.array_equal(actions[frames], expected.actions):
            raise sdk.CheckFailed(f"episode {number}: the actions differ")
    size_mb = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
    return {
        "kind": "video" if is_video else "images",
        "episodes": dataset.num_episodes,
        "pictures": dataset.num_frames,
        "write_cpu_s": round(write_s, 1),
        "open_cpu_s": round(open_s, 3),
        "read_cpu_s": round(read_s, 1),
        "size_mb": round(size_mb, 1),
        "pictures_that_differ": differ,
        "psnr_mean_db": None if not differ else round(total / dataset.num_frames, 1),
        "psnr_worst_db": None if not differ else round(float(worst_db), 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }


def main() -> None:
    """Runs both ways and prints one line of JSON for each; times are CPU seconds, which a busy machine leaves alone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--episodes", type=int, default=1000, help="episodes to write (default: 1000)")
    parser.add_argument("--frames", type=int, default=10, help="frames of each, at most (default: 10)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = CollectConfig(out=Path(folder) / "sources", episodes=12, workers=1, image_every=1)
        sources = list(LeRobotDataset(collect(config, show_progress=False)))
        rows = [measure(sources, options, Path(folder), is_video=is_video) for is_video in (False, True)]
    for row in rows:
        print(json.dumps(row))
    if rows[0]["pictures_that_differ"] or float(str(rows[1]["psnr_worst_db"])) < 35.0:
        raise sdk.CheckFailed("the pictures did not come back as they have to")


if __name__ == "__main__":
    try:
        main()
    except sdk.RoboalignError as error:
        sys.exit(f"error: {error}")
