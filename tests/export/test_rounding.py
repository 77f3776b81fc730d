"""GPTQ costs less than rounding to the nearest, where inputs are correlated, and calibration sees what layers see."""

from pathlib import Path

import numpy as np
import pytest
import torch

from roboalign.export import ExportConfig, export
from roboalign.export.calibration import dataset_inputs, given_inputs, input_moments
from roboalign.export.gptq import round_with_moments
from roboalign.export.rounding import QuantizedWeight, quantizable, round_layers
from roboalign.sdk.bundle import PolicySpec, read_bundle
from roboalign.sdk.data.collect import collect
from roboalign.sdk.data.collect_config import CollectConfig
from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.errors import CheckFailed, ConfigError, DataError
from roboalign.sdk.quantized import dequantize, quantize_matrix
from roboalign.sdk.types import Observation
from roboalign.sdk.views.reference import REFERENCE_NAME, find_reference, read_reference
from roboalign.trainer.backend import TorchBackend

RNG = np.random.default_rng(5)
WEIGHT = RNG.normal(size=(96, 40)).astype(np.float32)


def _inputs(*, rank: int = 12) -> np.ndarray:
    """Inputs of a layer as they are: a few directions carry most."""
    return RNG.normal(size=(512, rank)) @ RNG.normal(size=(rank, 96)) + 0.1 * RNG.normal(size=(512, 96))


@pytest.mark.parametrize(("bits", "share"), [(4, 0.5), (8, 0.5)])
def test_gptq_at_least_halves_the_error_of_what_a_layer_computes(bits, share):
    seen, unseen = np.split(_inputs(), 2)
    errors = []
    for codes, scales, layout in (
        quantize_matrix(WEIGHT, bits),
        round_with_moments(WEIGHT, seen.T @ seen, bits),
    ):
        errors.append(np.linalg.norm(unseen @ (dequantize(codes, scales, layout) - WEIGHT)))
    assert errors[1] < share * errors[0]


def test_inputs_without_any_correlation_leave_nothing_to_take_back():
    nearest, gptq = quantize_matrix(WEIGHT, 4), round_with_moments(WEIGHT, 7.0 * np.eye(96), 4)
    assert np.array_equal(nearest[1], gptq[1])
    assert np.array_equal(nearest[0], gptq[0])
    assert nearest[2] == gptq[2]


def test_inputs_that_were_never_seen_are_rounded_to_the_nearest():
    seen = _inputs()
    seen[:, 32:64] = 0
    nearest, gptq = quantize_matrix(WEIGHT, 4), round_with_moments(WEIGHT, seen.T @ seen, 4)
    assert np.array_equal(nearest[0][32:64], gptq[0][32:64])
    assert not np.array_equal(nearest[0][:32], gptq[0][:32])


@pytest.mark.parametrize("moments", [np.eye(95), np.full((96, 96), np.nan)])
def test_moments_of_another_layer_or_none_are_refused(moments):
    with pytest.raises(ConfigError, match=r"\[96, 40\] cannot be rounded with moments"):
        round_with_moments(WEIGHT, moments, 4)


def test_calibration_sums_what_every_layer_is_given(run, observations):
    backend = TorchBackend.open(run)
    seen: list[torch.Tensor] = []
    moments = input_moments(backend, observations[:2])
    name, layer = next((n, m) for n, m in quantizable(backend.head).items() if isinstance(m, torch.nn.Linear))
    handle = layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0].reshape(-1, layer.in_features)))
    again = input_moments(backend, observations[:2])
    handle.remove()
    rows = torch.cat(seen).double().numpy()
    assert np.allclose(moments["head"][name], rows.T @ rows)
    assert np.array_equal(moments["head"][name], again["head"][name])
    for file, module in (("model", backend.backbone.model), ("head", backend.head)):
        linear = {n for n, m in quantizable(module).items() if isinstance(m, torch.nn.Linear)}
        assert set(moments[file]) == linear
    assert not any(m._forward_pre_hooks for m in backend.head.modules())


def test_a_layer_that_saw_nothing_is_not_rounded_blindly(run):
    layers = quantizable(TorchBackend.open(run).head)
    with pytest.raises(CheckFailed, match="was given no input by the observations; use --rounding nearest"):
        round_layers(layers, 4, {})
    assert all(isinstance(code, QuantizedWeight) for code in round_layers(layers, 4).values())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calibration") / "demos"
    return collect(CollectConfig(episodes=4, out=out, workers=1), show_progress=False)


def _spec(run: Path) -> PolicySpec:
    return TorchBackend.open(run).spec


def test_a_dataset_calibrates_and_checks_with_different_episodes(run, dataset):
    found = dataset_inputs(dataset, _spec(run), 3, 5)
    assert (len(found.checks), len(found.calibration)) == (3, 5)
    assert found.source == "the dataset demos"
    data = LeRobotDataset(dataset)
    states, episodes = data.states(), data.episode_of_frame()

    def episodes_of(observations: tuple[Observation, ...]) -> set[int]:
        rows = [int(np.flatnonzero((states == one.state).all(axis=1))[0]) for one in observations]
        assert all(one.instruction == data.tasks[episodes[row]] for one, row in zip(observations, rows, strict=True))
        return {int(episodes[row]) % 2 for row in rows}

    assert episodes_of(found.checks) == {0}
    assert episodes_of(found.calibration) == {1}
    assert found.checks[0].images["front"].any()


def test_a_dataset_that_is_too_small_is_refused(run, dataset):
    with pytest.raises(DataError, match=r"pictures in every second episode, expected 100000 or more"):
        dataset_inputs(dataset, _spec(run), 100_000, 5)


def test_a_dataset_of_another_robot_is_refused(run, dataset):
    with pytest.raises(DataError, match="was recorded with the robot panda, the policy was trained for so101"):
        dataset_inputs(dataset, _spec(run), 3, 5, "so101")
    assert dataset_inputs(dataset, _spec(run), 3, 5, "panda").checks


def test_an_export_on_data_remembers_how_its_pictures_look(run, dataset, tmp_path):
    said = []
    config = ExportConfig(run=run, out=tmp_path / "bundle", data=dataset, num_observations=8)
    out = export(config, say=said.append)
    reference = read_reference(find_reference(out))
    assert (reference.robot, list(reference.views)) == ("panda", ["front"])
    assert REFERENCE_NAME not in read_bundle(out).manifest.files, "it can be replaced on the robot"
    assert not any("--make-reference" in line for line in said)


def test_what_a_caller_gives_is_checked_whole(observations):
    found = given_inputs(observations)
    assert found.checks == tuple(observations)
    assert len(found.calibration) == len(observations) // 2
