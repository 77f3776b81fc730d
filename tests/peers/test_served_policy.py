"""`roboalign serve` with the shipped bundle, asked by PyPI's `openpi-client` 0.1.2 and by vla-eval 0.8.0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roboalign.sdk import Observation, Policy
from roboalign.sdk.types import ActionChunk

pytestmark = pytest.mark.peers

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("ROBOALIGN_SERVING_PYTHON", ROOT / ".venv-serving" / "bin" / "python"))
SENTENCE = "put the red block in the blue bowl"
TOKEN = "0123456789abcdef"


@contextmanager
def served(**environment: str) -> Iterator[str]:
    command = [sys.executable, "-m", "roboalign", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()
    assert server.returncode == 0


@pytest.fixture(scope="module")
def seen() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    states = np.array([(0.5, 0.02, 0.2, 0.1, 0.08), (0.45, -0.1, 0.1, -0.2, 0.03)])
    return {"images": rng.integers(0, 256, (2, 96, 96, 3), np.uint8), "states": states}


@pytest.fixture(scope="module")
def here(seen: dict[str, np.ndarray]) -> list[ActionChunk]:
    """What the policy answers without a wire between."""
    with Policy.load() as policy:
        return [
            policy.act(
                Observation(
                    images={"front": image},
                    state=state.astype(np.float32),
                    joint_pos_rad=np.zeros(7, np.float32),
                    instruction=SENTENCE,
                    time_s=0.0,
                )
            )
            for image, state in zip(seen["images"], seen["states"], strict=True)
        ]


def ask(client: str, url: str, folder: Path, seen: dict[str, np.ndarray], **environment: str) -> dict[str, Any]:
    assert PYTHON.is_file(), f"there is no {PYTHON}: run tests/peers/serving_env.sh"
    np.savez(folder / "seen.npz", **seen)
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(PYTHON), str(Path(__file__).with_name("serving_side.py")), client, url, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**inherited, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return answer


def test_openpi_client_gets_what_the_policy_answers_here(
    tmp_path: Path, seen: dict[str, np.ndarray], here: list[ActionChunk]
) -> None:
    with served(ROBOALIGN_TOKEN=TOKEN) as url:
        answer = ask("openpi", url, tmp_path, seen, ROBOALIGN_TOKEN=TOKEN)
    np.testing.assert_array_equal(np.load(tmp_path / "actions.npy"), np.stack([chunk.actions for chunk in here]))
    np.testing.assert_array_equal(np.load(tmp_path / "singles.npy"), here[0].actions)
    assert answer["dtype"] == "float32"
    assert answer["thoughts"] == [chunk.thought for chunk in here]
    assert answer["timing"] == ["infer_ms"]
    assert answer["metadata"]["camera_names"] == ["front"]
    assert answer["after"] == list(here[0].actions.shape)
    wanted = ["state is not finite", "uint8[480, 640, 3], expected uint8[96, 96, 3]", "wrist_image", "prompt is int"]
    assert len(answer["errors"]) == len(wanted)
    for found, part in zip(answer["errors"], wanted, strict=True):
        assert found.startswith("Error in inference server:\nDataError: ")
        assert part in found


def test_openpi_client_without_the_token_is_refused(tmp_path: Path, seen: dict[str, np.ndarray]) -> None:
    with served(ROBOALIGN_TOKEN=TOKEN) as url, pytest.raises(AssertionError, match="HTTP 401"):
        ask("openpi", url, tmp_path, seen, ROBOALIGN_TOKEN="another0123456789")


def test_vla_eval_plays_a_benchmark_with_the_policy(
    tmp_path: Path, seen: dict[str, np.ndarray], here: list[ActionChunk]
) -> None:
    with served() as url:
        answer = ask("vla-eval", url + "/vla-eval", tmp_path, seen)
    taken = np.load(tmp_path / "actions.npy").reshape(2, 12, 5)
    horizon = len(here[0].actions)
    assert horizon < 12
    for episode in taken:
        np.testing.assert_array_equal(episode[:horizon], here[0].actions)
        np.testing.assert_array_equal(episode[horizon:], here[1].actions[: 12 - horizon])
    assert answer["action"] == here[0].actions[0].tolist()
    assert (answer["success"], answer["episodes"]) == (1.0, 2)
    assert answer["server"]["model_server"] == "roboalign"
    assert "camera 'agentview' is unknown" in answer["error"]
