"""The dialogue of vla-eval's client, with messages as `vla_eval.protocol` packs them."""

import msgpack
import numpy as np
import pytest
from evaluation_fakes import SPEC, WalkPolicy
from websockets.sync.client import connect

from roboalign.sdk.errors import BackendError, DataError
from roboalign.sdk.serving.observations import Needs
from roboalign.sdk.serving.server import ServerConfig
from roboalign.sdk.serving.vla_eval import VlaEvalDialogue
from roboalign.sdk.serving.wire import pack, unpack_map

NEEDS = Needs(camera_names=("front",), image_size_px=6, has_images=True, rate_hz=10.0, spec=None)
PAYLOAD = {
    "images": {"front": np.zeros((6, 6, 3), np.uint8)},
    "state": np.arange(5, dtype=np.float32),
    "task_description": "go",
}


@pytest.fixture
def dialogue():
    policy = WalkPolicy(hold_every=3)
    return VlaEvalDialogue(lambda: policy, NEEDS)


def message(kind, payload, seq=7):
    return pack({"type": kind, "payload": payload, "seq": seq, "timestamp": 1.0}, has_text_names=True)


def ask(dialogue, kind, payload, seq=7):
    return unpack_map(dialogue.answer(message(kind, payload, seq)))


def test_it_says_what_it_takes_and_gives(dialogue):
    reply = ask(dialogue, "hello", {"harness_version": "0.8.0"}, seq=1)
    assert (reply["type"], reply["seq"], reply["payload"]["protocol_version"]) == ("hello", 1, 1)
    assert sum(row["dims"] for row in reply["payload"]["action_spec"].values()) == 5
    assert set(reply["payload"]["observation_spec"]) == {"front", "language", "state"}


def test_a_chunk_is_handed_out_action_by_action_and_an_episode_starts_anew(dialogue):
    policy = dialogue._policy()
    assert dialogue.answer(message("episode_start", {"task": {"name": "go"}})) is None
    for number in range(5):
        reply = ask(dialogue, "observation", PAYLOAD, seq=number)
        assert (reply["type"], reply["seq"], reply["payload"]["actions"].shape) == ("action", number, (5,))
    assert policy.calls == 2
    assert dialogue.answer(message("episode_end", {"metrics": {}})) is None
    assert dialogue.answer(message("episode_start", {})) is None
    ask(dialogue, "observation", PAYLOAD)
    assert policy.calls == 1


def test_a_hold_is_an_error_and_no_action(dialogue):
    for _ in range(8):
        ask(dialogue, "observation", PAYLOAD)
    with pytest.raises(BackendError, match="hold: nothing to say"):
        dialogue.answer(message("observation", PAYLOAD))


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (message("observation", {**PAYLOAD, "state": np.zeros(8, np.float32)}), r"state has shape \[8\], expected 5"),
        (
            message("observation", {**PAYLOAD, "images": {"agentview": np.zeros((6, 6, 3), np.uint8)}}),
            "cameras are fro",
        ),
        (message("observation", {**PAYLOAD, "images": 3}), "images is int"),
        (message("observation", {"state": PAYLOAD["state"]}), "prompt is NoneType"),
        (message("observation", 3), "payload of a message is int"),
        (message("shutdown", {}), "type 'shutdown' came"),
        (message("hello", {}, seq="x"), r"\(seq\) is 'x'"),
        (msgpack.packb({"type": "hello"}), r"\(seq\) is None"),
    ],
)
def test_what_it_cannot_take_is_explained(dialogue, body, problem):
    with pytest.raises(DataError, match=problem):
        dialogue.answer(body)


def test_its_path_on_the_server_speaks_it_and_errors_carry_the_number(run_server):
    server = run_server(WalkPolicy, {}, SPEC, ServerConfig(port=0))
    with connect(server.url + "/vla-eval", compression=None, proxy=None) as link:
        link.send(message("hello", {}))
        assert unpack_map(link.recv(timeout=10))["type"] == "hello"
        link.send(message("observation", {}, seq=9))
        reply = unpack_map(link.recv(timeout=10))
        assert (reply["type"], reply["seq"]) == ("error", 9)
        assert reply["payload"]["error"].startswith("DataError: ")
        link.send(message("observation", {**PAYLOAD, "images": {}}))
        assert unpack_map(link.recv(timeout=10))["type"] == "action"
