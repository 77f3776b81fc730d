"""Runs in the environment of the clients: asks a served policy with them, and writes what it answered.

    python serving_side.py openpi|vla-eval URL FOLDER

FOLDER has `seen.npz` (images, states) and gets `answer.json` and `actions.npy`. It is also the module of a benchmark
for vla-eval.
"""

import json
import os
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np

SENTENCE = "put the red block in the blue bowl"
FOLDER = Path(sys.argv[3]) if len(sys.argv) > 3 else Path(os.environ["SERVING_FOLDER"])
SEEN = np.load(FOLDER / "seen.npz")


def observation(number, **change):
    row = {"observation/image": SEEN["images"][number], "observation/state": SEEN["states"][number], "prompt": SENTENCE}
    return {**row, **change}


def ask_openpi(url):
    from openpi_client import action_chunk_broker, image_tools
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    host, _, port = url.removeprefix("ws://").rpartition(":")
    policy = WebsocketClientPolicy(host, int(port), api_key=os.environ.get("ROBOALIGN_TOKEN"))
    answers = [policy.infer(observation(number)) for number in range(len(SEEN["states"]))]
    policy.infer({"reset": True})
    broker = action_chunk_broker.ActionChunkBroker(policy, len(answers[0]["actions"]))
    singles = [broker.infer(observation(0))["actions"] for _ in answers[0]["actions"]]
    errors = []
    for change in (
        {"observation/state": np.full(5, np.nan)},
        {"observation/image": np.zeros((480, 640, 3), np.uint8)},
        {"observation/wrist_image": SEEN["images"][0]},
        {"prompt": 3},
    ):
        try:
            policy.infer(observation(0, **change))
        except RuntimeError as err:
            errors.append(str(err))
    wide = image_tools.resize_with_pad(np.zeros((480, 640, 3), np.uint8), *SEEN["images"].shape[1:3])
    after = policy.infer(observation(0, **{"observation/image": wide.transpose(2, 0, 1)}))
    np.save(FOLDER / "actions.npy", np.stack([answer["actions"] for answer in answers]))
    np.save(FOLDER / "singles.npy", np.stack(singles))
    return {
        "metadata": policy.get_server_metadata(),
        "dtype": str(answers[0]["actions"].dtype),
        "thoughts": [answer["thought"] for answer in answers],
        "timing": sorted(answers[0]["server_timing"]),
        "errors": errors,
        "after": list(after["actions"].shape),
    }


def ask_vla_eval(url):
    import anyio
    from vla_eval import api
    from vla_eval.connection import Connection

    async def once():
        async with Connection(url) as link:
            await link.start_episode({"task": {"name": SENTENCE}})
            try:
                await link.act(
                    {"images": {"agentview": SEEN["images"][0]}, "states": np.zeros(8), "task_description": "x"}
                )
            except RuntimeError as err:
                error = str(err)
            action = await link.act({**Replay().make_obs(0, {}), "states": SEEN["states"][0]})
            return {"server": link.server_info, "error": error, "action": action["actions"].tolist()}

    found = anyio.run(once)
    entry = {"benchmark": "serving_side:Replay", "episodes_per_task": 2, "max_steps": 12}
    results = api.run({"server": {"url": url}, "benchmarks": [entry]}, no_save=True, output_dir=FOLDER, docker=False)
    import serving_side

    np.save(FOLDER / "actions.npy", np.stack(serving_side.Replay.taken))
    return {**found, "success": results[0]["mean_success"], "episodes": len(serving_side.Replay.taken) // 12}


if "vla-eval" in sys.argv or "serving_side" in __name__:
    from vla_eval.benchmarks.base import StepBenchmark, StepResult

    class Replay(StepBenchmark):
        """Shows stored pictures, takes twelve actions, and has succeeded then."""

        render_backends = frozenset({"gpu", "cpu"})
        taken: ClassVar[list] = []

        def get_tasks(self):
            return [{"name": SENTENCE}]

        def reset(self, task):
            return 0

        def step(self, action):
            Replay.taken.append(action["actions"])
            number = self._last_result.obs + 1
            return StepResult(obs=number, reward=0.0, done=number == 12, info={})

        def make_obs(self, raw_obs, task):
            number = 0 if raw_obs == 0 else 1
            images = {"front": SEEN["images"][number]}
            return {"images": images, "state": SEEN["states"][number], "task_description": SENTENCE}

        def get_step_result(self, step_result):
            return {"success": step_result.done}


if __name__ == "__main__":
    os.environ["SERVING_FOLDER"] = str(FOLDER)
    sys.path.insert(0, str(Path(__file__).parent))
    answer = {"openpi": ask_openpi, "vla-eval": ask_vla_eval}[sys.argv[1]](sys.argv[2])
    (FOLDER / "answer.json").write_text(json.dumps(answer, default=str))
