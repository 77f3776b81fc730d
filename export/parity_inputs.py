"""Observations that travel in a bundle, so that a board without a simulator compares engines on the same inputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from roboalign.sdk.bundle import Bundle
from roboalign.sdk.errors import BundleError
from roboalign.sdk.types import Observation

__all__ = ["PARITY_NAME", "read_observations", "write_observations"]

PARITY_NAME = "parity.safetensors"
"""Pictures, states, joints and sentences of the comparison that the export made."""


def write_observations(folder: Path, observations: Sequence[Observation]) -> Path:
    """Writes observations into a bundle's folder and returns the file."""
    from safetensors.numpy import save_file

    cameras = sorted(observations[0].images)
    tensors = {f"image.{name}": np.stack([one.images[name] for one in observations]) for name in cameras}
    tensors["state"] = np.stack([one.state for one in observations]).astype(np.float32)
    tensors["joint_pos_rad"] = np.stack([one.joint_pos_rad for one in observations]).astype(np.float32)
    path = folder / PARITY_NAME
    save_file(tensors, path, metadata={"instructions": json.dumps([one.instruction for one in observations])})
    return path


def read_observations(bundle: Bundle) -> list[Observation]:
    """Returns the observations of a verified bundle; one without them is a BundleError."""
    from safetensors import SafetensorError, safe_open

    if PARITY_NAME not in bundle.manifest.files:
        raise BundleError(
            f"bundle {bundle.path} has no {PARITY_NAME} to compare engines on; export it again with this version"
        )
    path = bundle.file(PARITY_NAME)
    try:
        with safe_open(path, framework="numpy") as file:
            sentences = json.loads(file.metadata()["instructions"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, KeyError, TypeError, ValueError) as err:
        raise BundleError(f"{path} cannot be read ({err}); export the bundle again") from err
    cameras = {name.removeprefix("image."): value for name, value in tensors.items() if name.startswith("image.")}
    return [
        Observation(
            images={name: value[index] for name, value in cameras.items()},
            state=tensors["state"][index],
            joint_pos_rad=tensors["joint_pos_rad"][index],
            instruction=sentence,
            time_s=0.0,
        )
        for index, sentence in enumerate(sentences)
    ]
