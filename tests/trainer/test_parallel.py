"""Two processes against one; the runs are in `two_processes.py`, since each needs an interpreter of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from roboalign.sdk.errors import ConfigError
from roboalign.trainer.launch import launch_command
from roboalign.trainer.parallel import Parallel, Trained, all_processes

SCRIPT = str(Path(__file__).with_name("two_processes.py"))
TOLERANCE = 1e-5
"""Sums in another order, over six updates; weights are of the order of 1."""


def run(folder: Path, *arguments: str, processes: int, code: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    command = (
        [sys.executable, SCRIPT] if processes == 1 else launch_command([SCRIPT], processes=processes, is_gpu=False)
    )
    done = subprocess.run([*command, str(folder), *arguments], capture_output=True, text=True, timeout=600)
    assert (done.returncode != 0) == (code != 0), done.stderr[-3000:]
    return folder


def losses(folder: Path) -> np.ndarray:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(6))
    return np.array([line.get("loss", line.get("held_loss")) for line in lines])


def assert_same(one: Path, other: Path, tolerance: float) -> None:
    np.testing.assert_allclose(losses(one), losses(other), atol=tolerance)
    for file in ("final.safetensors", "state/weights.safetensors", "state/optimizer.safetensors"):
        first, second = load_file(one / file), load_file(other / file)
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            np.testing.assert_allclose(second[name], tensor, atol=tolerance, err_msg=f"{file}: {name}")


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "single", processes=1)


@pytest.mark.slow
def test_two_sharded_processes_learn_what_one_does(single, tmp_path) -> None:
    assert_same(single, run(tmp_path / "two", processes=2), TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_stopped_sharded_run_goes_on_in_as_many_processes_as_there_are(single, tmp_path, processes) -> None:
    run(tmp_path / "two", "5", processes=2, code=3)
    assert not (tmp_path / "two" / "final.safetensors").exists()
    assert_same(single, run(tmp_path / "two", processes=processes), TOLERANCE)


def test_one_process_trains_the_very_same_object() -> None:
    parallel, trained = Parallel(), Trained({"model": torch.nn.Linear(2, 2)})
    parallel.shard(trained, [])
    assert parallel.gather(trained) is trained
    assert parallel.share([1, 2, 3]) == [1, 2, 3]
    assert parallel.total(0.25) == 0.25


def test_a_batch_that_does_not_divide_is_refused() -> None:
    parallel = Parallel()
    parallel.size = 2
    with pytest.raises(ConfigError, match=r"batch_size is 3, expected a multiple of the number of processes \(2\)"):
        parallel.share([1, 2, 3])


def test_processes_without_sharding_are_refused(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    with pytest.raises(ConfigError, match="2 processes were started without FSDP2; start them with"), all_processes():
        pass


def test_a_single_process_joins_nobody() -> None:
    assert "WORLD_SIZE" not in os.environ
    with all_processes():
        assert not torch.distributed.is_initialized()
