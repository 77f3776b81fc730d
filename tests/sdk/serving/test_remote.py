import signal
import socket
import subprocess
import sys
import threading

import msgpack
import numpy as np
import pytest
from evaluation_fakes import SPEC, LineEnv, LineScene, WalkPolicy, WalkSetup
from websockets.sync.server import serve

from roboalign import sdk
from roboalign.sdk.bundle import read_bundle, shipped_bundle_path
from roboalign.sdk.errors import BackendError, BundleError, ConfigError, DataError
from roboalign.sdk.evaluation.contenders import PolicyRef
from roboalign.sdk.evaluation.controls import RandomPolicy
from roboalign.sdk.evaluation.rollouts import EvalConfig, evaluate
from roboalign.sdk.serving.remote import RemotePolicy, served_policy
from roboalign.sdk.serving.server import ServerConfig
from roboalign.sdk.types import ActionChunk, Observation

TOKEN = "0123456789abcdef"
HERE = ServerConfig(port=0, max_sessions=2, max_rate_hz=1e6)


def observe(instruction="go", x=0.0):
    env = LineEnv()
    env.reset(seed=4, options={"task": "place"})
    env.sentence, env.x = instruction, x
    return env.observe(with_image=True)


@pytest.fixture
def walking(run_server):
    """A server of `WalkPolicy`, and the copies that it made."""
    policies = []

    def make():
        policies.append(WalkPolicy(hold_every=3))
        return policies[-1]

    return run_server(make, {"name": "walk"}, SPEC, HERE), policies


def test_it_is_a_policy_of_the_sdk():
    assert sdk.RemotePolicy is RemotePolicy
    local = ("load", "actions", "thinking", "think_on", "listen")
    public = [name for name in vars(sdk.Policy) if not name.startswith("_") and name not in local]
    assert {"spec", "act", "reset", "close"} == set(public)
    assert set(public) <= set(vars(RemotePolicy))


def test_a_served_policy_answers_as_it_does_here(walking):
    here = WalkPolicy(hold_every=3)
    with RemotePolicy(walking[0].url) as remote:
        remote.reset()
        for _ in range(4):
            ours, theirs = here.act(observe()), remote.act(observe())
            np.testing.assert_array_equal(theirs.actions, ours.actions)
            for name in ("source", "thought", "reason", "latency_s", "rate_hz"):
                assert getattr(theirs, name) == getattr(ours, name)


def test_a_served_policy_sees_what_is_sent(walking):
    seen = []
    with RemotePolicy(walking[0].url) as remote:
        remote.reset()
        walking[1][0].act = lambda observation: seen.append(observation) or ActionChunk.hold("seen", rate_hz=10.0)
        sent = observe("put it there", x=0.3)
        assert remote.act(sent).reason == "seen"
    np.testing.assert_array_equal(seen[0].images["front"], sent.images["front"])
    np.testing.assert_array_equal(seen[0].state, sent.state)
    np.testing.assert_array_equal(seen[0].joint_pos_rad, sent.joint_pos_rad)
    assert (seen[0].instruction, seen[0].time_s) == (sent.instruction, sent.time_s)


def test_an_evaluation_over_the_websocket_gives_the_same_episodes(walking, tmp_path):
    config = EvalConfig(out=tmp_path / "remote", episodes=6, films=0)
    remote = evaluate(config, PolicyRef(kind="remote", path=walking[0].url), LineScene())
    here = evaluate(EvalConfig(out=tmp_path / "here", episodes=6, films=0), WalkSetup(hold_every=3), LineScene())
    assert (remote.successes, remote.state_hashes) == (here.successes, here.state_hashes)
    assert remote.policy["served"] == {"name": "walk"}


def test_a_policy_that_draws_gets_the_seed_of_the_episode_and_no_pictures(run_server):
    server = run_server(lambda: RandomPolicy(SPEC, 0), {}, SPEC, HERE)
    here = RandomPolicy(SPEC, 0)
    here.seed_episode(7)
    here.reset()
    with RemotePolicy(server.url) as remote:
        remote.seed_episode(7)
        remote.reset()
        assert not remote.needs_image
        np.testing.assert_array_equal(remote.act(observe()).actions, here.act(observe()).actions)


def test_a_broken_connection_is_said_and_the_next_call_opens_another(walking):
    server, policies = walking
    with RemotePolicy(server.url) as remote:
        remote.act(observe()), remote.act(observe())
        remote._link.socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises(BackendError, match="closed the connection"):
            remote.act(observe())
        assert remote.act(observe()).thought == "move 1"
        assert len(policies) == 2


def test_an_error_over_there_is_an_error_of_its_kind_here(walking):
    with RemotePolicy(walking[0].url) as remote:
        with pytest.raises(DataError, match=r"the policy server at ws://.*: state has shape \[4\]"):
            remote.act(_wrong())
        assert remote.act(observe()).thought == "move 1"


def _wrong():
    wrong = observe()
    object.__setattr__(wrong, "state", np.zeros(4, np.float32))
    return wrong


def test_a_policy_that_is_no_model_has_no_spec(walking):
    with RemotePolicy(walking[0].url) as remote, pytest.raises(BundleError, match="is no model"):
        _ = remote.spec


def test_the_token_comes_from_the_argument_or_the_environment(run_server, monkeypatch):
    server = run_server(WalkPolicy, {"name": "walk"}, SPEC, ServerConfig(port=0, token=TOKEN))
    with pytest.raises(BackendError, match="the token is missing or wrong; set ROBOALIGN_TOKEN"):
        served_policy(server.url)
    with RemotePolicy(server.url, token=TOKEN) as remote:
        assert remote.metadata["policy"] == {"name": "walk"}
    monkeypatch.setenv("ROBOALIGN_TOKEN", TOKEN)
    assert served_policy(server.url) == {"name": "walk"}


def test_a_full_server_says_so(walking):
    with RemotePolicy(walking[0].url) as one, RemotePolicy(walking[0].url) as two:
        one.reset(), two.reset()
        with pytest.raises(BackendError, match="all 2 places are taken"):
            RemotePolicy(walking[0].url).reset()


def test_nobody_at_the_address_is_said_with_what_to_do():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(BackendError, match=f"no policy server at .*{port}.*roboalign serve --port {port}"):
        served_policy(f"ws://127.0.0.1:{port}")


def test_a_server_that_does_not_answer_is_given_up():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(BackendError, match=r"did not answer within 0\.[2-9] s"):
            served_policy(f"ws://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)


def test_a_late_answer_is_never_taken_for_the_next_one(run_server):
    may_answer = threading.Event()

    class Slow(WalkPolicy):
        def act(self, observation):
            if observation.instruction == "slow":
                may_answer.wait(10)
            return super().act(observation)

    server = run_server(Slow, {}, SPEC, HERE)
    with RemotePolicy(server.url, timeout_s=0.5) as remote:
        remote.act(observe())
        with pytest.raises(BackendError, match="did not answer within"):
            remote.act(observe("slow"))
        may_answer.set()
        assert remote.act(observe()).thought == "move 1"


@pytest.fixture
def other_server():
    """Serves a first message of somebody else."""
    running = []

    def run(first):
        server = serve(lambda link: (link.send(first), link.wait_closed()), "127.0.0.1", 0)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        running.append((server, thread))
        return f"ws://127.0.0.1:{server.socket.getsockname()[1]}"

    yield run
    for server, thread in running:
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (msgpack.packb({"robot": "aloha"}), "not a policy server of roboalign"),
        (msgpack.packb({"protocol": "roboalign", "version": 99}), "speaks version 99"),
        (b"\xc1", "not msgpack"),
        (msgpack.packb(3), "expected a map"),
    ],
)
def test_another_server_or_version_is_told_apart(other_server, first, message):
    with pytest.raises(DataError, match=message):
        served_policy(other_server(first))


@pytest.mark.parametrize("reply", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"SSH-2.0-OpenSSH_9\r\n"])
def test_a_server_of_another_kind_is_told_apart(reply):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def answer():
            link, _ = other.accept()
            link.recv(4096)
            link.sendall(reply)
            link.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DataError, match="not a policy server"):
            served_policy(f"ws://127.0.0.1:{other.getsockname()[1]}")
        thread.join()


@pytest.mark.parametrize(
    "url", ["ws://", "http://host:1", "ws://host:99999", "ws://host:1/path", "ws://host", "ws://me:word@host:1"]
)
def test_a_wrong_address_is_refused(url):
    with pytest.raises(ConfigError, match="ws://host:port"):
        RemotePolicy(url)


def test_a_time_to_wait_is_more_than_nothing():
    with pytest.raises(ConfigError, match="timeout_s is 0"):
        RemotePolicy("ws://host:1", timeout_s=0.0)


def test_the_command_serves_the_shipped_bundle_as_it_acts_here():
    """The whole way: the command, its first line, the model over the websocket, and an end by Ctrl-C."""
    size = read_bundle(shipped_bundle_path()).manifest.policy.image_size_px
    rng = np.random.default_rng(3)
    seen = [
        Observation(
            images={"front": rng.integers(0, 256, (size, size, 3), np.uint8)},
            state=np.array([0.5, 0.02 * number, 0.2, 0.1, 0.08], np.float32),
            joint_pos_rad=np.zeros(7, np.float32),
            instruction="put the red block in the blue bowl",
            time_s=0.0,
        )
        for number in range(2)
    ]
    with sdk.Policy.load() as policy:
        here = [policy.act(observation) for observation in seen]
        spec = policy.spec
    command = [sys.executable, "-m", "roboalign", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as served:
        try:
            url = served.stdout.readline().strip()
            with RemotePolicy(url) as remote:
                there = [remote.act(observation) for observation in seen]
                assert remote.spec == spec
                assert remote.metadata["policy"]["kind"] == "bundle"
                served.send_signal(signal.SIGINT)
                _, err = served.communicate(timeout=60)
        finally:
            served.kill()
    assert served.returncode == 0
    assert err.splitlines()[-1] == "stopped"
    for ours, theirs in zip(here, there, strict=True):
        np.testing.assert_array_equal(theirs.actions, ours.actions)
        assert (theirs.thought, theirs.tokens, theirs.source) == (ours.thought, ours.tokens, ours.source)
        assert set(theirs.latency_s) == set(ours.latency_s)
