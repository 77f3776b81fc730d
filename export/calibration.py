"""What a policy's layers are given: observations of the user's own dataset, and the moments of the layers' inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from roboalign.export.gptq import Moments
from roboalign.export.parity import simulated_observations
from roboalign.export.rounding import quantizable
from roboalign.export.sensitivity import answers, modules_of
from roboalign.sdk.bundle import PolicySpec
from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.errors import DataError
from roboalign.sdk.types import COMMANDED_STATE_NAMES, Observation
from roboalign.trainer.backend import TorchBackend

__all__ = ["Inputs", "dataset_inputs", "given_inputs", "input_moments", "simulated_inputs"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """Observations for calibration and others for every check, which do not overlap."""

    calibration: tuple[Observation, ...]
    """What weights are rounded by."""
    checks: tuple[Observation, ...]
    """What losses and parity are measured on."""
    source: str
    """Where they come from, for the record."""


def simulated_inputs(num_checks: int, num_calibration: int, robot: str = "", camera: str = "front") -> Inputs:
    """Returns observations in held-out simulated scenes of an arm; see `simulated_observations`.

    The simulated picture is given under the name of the policy's camera.
    """
    found = [
        replace(seen, images={camera: next(iter(seen.images.values()))})
        for seen in simulated_observations(num_checks + num_calibration, robot)
    ]
    return Inputs(
        checks=tuple(found[:num_checks]),
        calibration=tuple(found[num_checks:]),
        source="held-out simulated scenes",
    )


def given_inputs(observations: Sequence[Observation]) -> Inputs:
    """Returns what a caller gave: every second observation calibrates, and parity is about all of them."""
    return Inputs(checks=tuple(observations), calibration=tuple(observations[::2]), source="given by the caller")


def dataset_inputs(path: Path, spec: PolicySpec, num_checks: int, num_calibration: int, robot: str = "") -> Inputs:
    """Returns moments of a LeRobotDataset, spread evenly; episodes that calibrate do not check.

    Raises:
        DataError: the dataset is not of this policy's robot, states and cameras, or has fewer than two episodes or too
            few pictures.
    """
    dataset = LeRobotDataset(path)
    if robot and dataset.info.robot_type not in (None, robot):
        raise DataError(
            f"{path} was recorded with the robot {dataset.info.robot_type}, the policy was trained for {robot}; give a "
            "dataset of that one"
        )
    if dataset.info.state_names != spec.state_names:
        raise DataError(
            f"{path} records the state {', '.join(dataset.info.state_names)}, expected {', '.join(spec.state_names)}"
        )
    frames = dataset.frames_with_images(spec.camera_names[0])
    episodes = dataset.episode_of_frame()[frames]
    is_check = episodes % 2 == 0
    chosen = [
        _spread(part, count, path)
        for part, count in ((frames[is_check], num_checks), (frames[~is_check], num_calibration))
    ]
    checks, calibration = (_observations(dataset, spec, part) for part in chosen)
    return Inputs(checks=checks, calibration=calibration, source=f"the dataset {path.resolve().name}")


def input_moments(backend: TorchBackend, observations: Sequence[Observation]) -> dict[str, dict[str, Moments]]:
    """Returns the moments of the inputs of every linear layer that can be rounded, by weight file and weight.

    They are summed over all that a policy computes while it answers the observations: prompt and picture, each token of
    thought, each step of the flow.
    """
    found: dict[str, dict[str, Moments]] = {}
    modules = modules_of(backend)
    with _watching(modules, found):
        answers(backend, observations)
    return found


def _spread(frames: NDArray[np.int64], count: int, path: Path) -> NDArray[np.int64]:
    if len(frames) < count:
        raise DataError(
            f"{path} has {len(frames)} pictures in every second episode, expected {count} or more; give a larger "
            "dataset"
        )
    return frames[np.linspace(0, len(frames) - 1, count).round().astype(np.int64)]


def _observations(dataset: LeRobotDataset, spec: PolicySpec, frames: NDArray[np.int64]) -> tuple[Observation, ...]:
    states = dataset.states()
    episodes = dataset.episode_of_frame()
    pictures = {name: dataset.images(frames, name) for name in spec.camera_names}
    return tuple(
        Observation(
            images={name: pictures[name][index] for name in pictures},
            state=states[frame],
            joint_pos_rad=np.zeros(0, np.float32),
            instruction=dataset.tasks[episodes[frame]],
            time_s=0.0,
            commanded=states[frame, :4] if spec.state_names == COMMANDED_STATE_NAMES else None,
        )
        for index, frame in enumerate(frames)
    )


@contextmanager
def _watching(modules: Mapping[str, torch.nn.Module], found: dict[str, dict[str, Moments]]) -> Iterator[None]:
    handles = []
    for file, module in modules.items():
        sums = found.setdefault(file, {})
        for name, layer in quantizable(module).items():
            if isinstance(layer, torch.nn.Linear):
                handles.append(layer.register_forward_pre_hook(_adder(sums, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adder(sums: dict[str, Moments], name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
    def add(_layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double().numpy()
        sums[name] = sums.get(name, 0.0) + rows.T @ rows

    return add
