"""Runs in the environment of lerobot: opens, writes and describes what `test_lerobot.py` asks for, as numpy files."""

import json
import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.compute_stats import get_feature_stats
from lerobot.datasets.lerobot_dataset import LeRobotDataset

CAMERA = "observation.images.front"
FPS = 10


def read(folder: str, out: str) -> None:
    """Writes what lerobot finds in a dataset."""
    dataset = LeRobotDataset("ours/dataset", root=folder, video_backend="pyav")
    items = [dataset[index] for index in range(len(dataset))]
    cameras = list(dataset.meta.camera_keys)
    arrays = {key: np.stack([np.asarray(item[key]) for item in items]) for key in ("observation.state", "action")}
    for key in cameras:
        pixels = np.stack([np.asarray(item[key]) for item in items])
        arrays[key] = np.round(255.0 * pixels).astype(np.uint8).transpose(0, 2, 3, 1)
    for key in ("timestamp", "episode_index", "frame_index"):
        arrays[key] = np.array([item[key].item() for item in items])
    facts = {
        "length": len(dataset),
        "episodes": dataset.num_episodes,
        "fps": dataset.fps,
        "cameras": cameras,
        "tasks": [item["task"] for item in items],
        "subtasks": [[row["content"] for row in item.get("language_persistent", [])] for item in items],
        "q99": np.ravel(dataset.meta.stats["action"]["q99"]).tolist(),
    }
    np.savez(out, facts=json.dumps(facts), **arrays)


def write(folder: str, source: str, dtype: str) -> None:
    """Writes a dataset of two episodes from arrays."""
    given = np.load(source)
    images, states = given["images"], given["states"]
    column = {"dtype": "float32", "shape": (states.shape[-1],), "names": [f"j{n}.pos" for n in range(states.shape[-1])]}
    features = {
        "observation.state": column,
        "action": column,
        CAMERA: {"dtype": dtype, "shape": images.shape[2:], "names": ["height", "width", "channels"]},
    }
    dataset = LeRobotDataset.create(
        "theirs/dataset", FPS, features, root=folder, robot_type="so100", use_videos=dtype == "video"
    )
    for episode in range(len(images)):
        for frame in range(images.shape[1]):
            values = {"observation.state": states[episode, frame], "action": states[episode, frame] + 1.0}
            dataset.add_frame({**values, CAMERA: images[episode, frame], "task": f"task {episode}"})
        dataset.save_episode()
    dataset.finalize()


def convert(folder: str) -> None:
    """Turns a dataset of version 2.1 into one of version 3.0, in its place."""
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    convert_dataset("older/dataset", root=folder, push_to_hub=False)


def describe(source: str, out: str) -> None:
    """Writes lerobot's statistics of an array `[N, D]`."""
    stats = get_feature_stats(np.load(source)["values"], axis=0, keepdims=False)
    np.savez(out, **stats)


if __name__ == "__main__":
    Path(sys.argv[-1]).parent.mkdir(parents=True, exist_ok=True)
    {"read": read, "write": write, "convert": convert, "describe": describe}[sys.argv[1]](*sys.argv[2:])
