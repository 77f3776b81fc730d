"""Datasets: recording demonstrations and reading them back (LeRobotDataset v3.0)."""

from roboalign.sdk.data.arrow import decode_png, encode_png
from roboalign.sdk.data.collect import CollectConfig, collect
from roboalign.sdk.data.episode import Episode, LanguageRow, action_chunks, truth_from_json, truth_to_json
from roboalign.sdk.data.lerobot import DatasetInfo, LeRobotDataset
from roboalign.sdk.data.preview import DatasetPreview, preview_dataset
from roboalign.sdk.data.writer import DatasetWriter

__all__ = [
    "CollectConfig",
    "DatasetInfo",
    "DatasetPreview",
    "DatasetWriter",
    "Episode",
    "LanguageRow",
    "LeRobotDataset",
    "action_chunks",
    "collect",
    "decode_png",
    "encode_png",
    "preview_dataset",
    "truth_from_json",
    "truth_to_json",
]
