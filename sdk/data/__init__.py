"""Datasets: recording demonstrations, reading them back (LeRobotDataset v3.0, v2.1), checking and showing them."""

from roboalign.sdk.data.arrow import decode_png, encode_png
from roboalign.sdk.data.check import check_dataset
from roboalign.sdk.data.collect import CollectConfig, collect
from roboalign.sdk.data.episode import Episode, LanguageRow, action_chunks, truth_from_json, truth_to_json
from roboalign.sdk.data.findings import CheckReport, Finding
from roboalign.sdk.data.lerobot import DatasetInfo, LeRobotDataset
from roboalign.sdk.data.preview import DatasetPreview, preview_dataset
from roboalign.sdk.data.show import show_dataset
from roboalign.sdk.data.writer import DatasetWriter

__all__ = [
    "CheckReport",
    "CollectConfig",
    "DatasetInfo",
    "DatasetPreview",
    "DatasetWriter",
    "Episode",
    "Finding",
    "LanguageRow",
    "LeRobotDataset",
    "action_chunks",
    "check_dataset",
    "collect",
    "decode_png",
    "encode_png",
    "preview_dataset",
    "show_dataset",
    "truth_from_json",
    "truth_to_json",
]
