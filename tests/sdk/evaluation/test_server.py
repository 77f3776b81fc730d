import http.client
import json
import socket
import threading
from urllib.parse import urlsplit

import numpy as np
import pytest
from evaluation_fakes import LineEnv, LineScene, WalkPolicy, WalkSetup

from roboalign.sdk.errors import BackendError, ConfigError, DataError
from roboalign.sdk.evaluation import server as server_module
from roboalign.sdk.evaluation.contenders import PolicyRef
from roboalign.sdk.evaluation.remote import RemotePolicy, server_health
from roboalign.sdk.evaluation.rollouts import EvalConfig, evaluate
from roboalign.sdk.evaluation.server import CONTENT_TYPE, PolicyServer, is_loopback
from roboalign.sdk.evaluation.wire import MAX_BODY_BYTES
from roboalign.sdk.types import ActionChunk


class Moody(WalkPolicy):
    """Answers as it is told: fails, or with a number of its own."""

    def act(self, observation):
        if observation.instruction == "fail":
            raise BackendError("the model is out of memory")
        if observation.instruction == "bug":
            raise KeyError("oops")
        return super().act(observation)


def _has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture
def served():
    """A running server, and the policies that it opened."""
    policies = []

    def make():
        policies.append(Moody())
        return policies[-1]

    server = PolicyServer(make, {"name": "walk"}, port=0, max_sessions=2).open()
    thread = threading.Thread(target=server.serve)
    thread.start()
    yield server, policies
    server.close()
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.fixture
def connect(served):
    """Makes clients, and closes them at the end."""
    clients = []

    def make():
        clients.append(RemotePolicy(served[0].url))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def observe(instruction="go", x=0.0):
    env = LineEnv()
    env.reset(seed=4, options={"task": "place"})
    env.sentence, env.x = instruction, x
    return env.observe(with_image=True)


def request(server, method, path, body=b"", headers=None):
    link = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=5)
    link.request(method, path, body, headers or {"Content-Type": CONTENT_TYPE})
    try:
        response = link.getresponse()
        return response.status, json.loads(response.read())
    finally:
        link.close()


def test_a_served_policy_answers_as_it_does_here(connect):
    remote, here = connect(), WalkPolicy()
    remote.reset()
    ours, theirs = here.act(observe()), remote.act(observe())
    np.testing.assert_array_equal(theirs.actions, ours.actions)
    assert (theirs.source, theirs.thought, theirs.latency_s) == (ours.source, ours.thought, ours.latency_s)
    remote.close()


def test_a_served_policy_sees_what_is_sent(served, connect):
    seen = []
    policies = served[1]
    remote = connect()
    remote.reset()
    policies[0].act = lambda observation: seen.append(observation) or ActionChunk.hold("seen", rate_hz=10.0)
    sent = observe("put it there", x=0.3)
    assert remote.act(sent).reason == "seen"
    np.testing.assert_array_equal(seen[0].images["front"], sent.images["front"])
    np.testing.assert_array_equal(seen[0].state, sent.state)
    assert (seen[0].instruction, seen[0].time_s) == (sent.instruction, sent.time_s)


def test_clients_do_not_disturb_one_another(connect):
    one, two = connect(), connect()
    one.reset(), two.reset()
    one.act(observe()), one.act(observe())
    assert two.act(observe()).thought == "move 1"
    one.reset()
    assert one.act(observe()).thought == "move 1"


def test_an_evaluation_over_http_gives_the_same_episodes(served, tmp_path):
    config = EvalConfig(out=tmp_path / "remote", episodes=6, films=0)
    remote = evaluate(config, PolicyRef(kind="remote", path=served[0].url), LineScene())
    here = evaluate(EvalConfig(out=tmp_path / "here", episodes=6, films=0), WalkSetup(), LineScene())
    assert (remote.successes, remote.state_hashes) == (here.successes, here.state_hashes)
    assert remote.policy["served"] == {"name": "walk"}


def test_a_broken_connection_is_opened_again_and_the_policy_is_asked_once(served, connect):
    policies = served[1]
    remote = connect()
    remote.reset()
    remote.act(observe())
    remote._link._connection.sock.shutdown(socket.SHUT_RDWR)
    assert remote.act(observe()).thought == "move 2"
    assert policies[0].calls == 2


def test_a_repeated_call_gets_the_same_answer(served, connect):
    """The answer may have been lost on its way; asking again must not make the policy go on."""
    policies = served[1]
    remote = connect()
    remote.reset()
    first = remote.act(observe())
    remote._num_calls -= 1
    assert remote.act(observe()).thought == first.thought
    assert policies[0].calls == 1


def test_a_session_of_a_server_that_was_started_anew_begins_at_the_next_episode(served, connect):
    server, _ = served
    remote = connect()
    remote.reset()
    server.close_session(remote._session)
    with pytest.raises(BackendError, match="no such session"):
        remote.act(observe())
    remote.reset()
    assert remote.act(observe()).thought == "move 1"


def test_an_error_of_the_policy_reaches_the_client_by_its_kind(connect):
    remote = connect()
    remote.reset()
    with pytest.raises(BackendError, match="out of memory"):
        remote.act(observe("fail"))
    assert remote.act(observe()).thought == "move 1"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_the_policy_does_not_look_like_a_missing_server(connect):
    remote = connect()
    remote.reset()
    with pytest.raises(BackendError, match="KeyError"):
        remote.act(observe("bug"))


def test_places_are_limited_and_freed(served, connect):
    one, two, three = (connect() for _ in range(3))
    one.reset(), two.reset()
    with pytest.raises(BackendError, match="all 2 places are taken"):
        three.reset()
    one.close()
    three.reset()
    assert served[1][0].is_closed


def test_an_idle_client_gives_up_its_place(served, connect, monkeypatch):
    monkeypatch.setattr(server_module, "_IDLE_S", -1.0)
    clients = [connect() for _ in range(3)]
    for client in clients:
        client.reset()
    assert served[0].health()["sessions"] == 2


def test_the_health_page_says_who_is_served(served):
    row = server_health(served[0].url)
    assert (row["policy"], row["ready"], row["sessions"], row["max_sessions"]) == ({"name": "walk"}, True, 0, 2)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("GET", "/v1/nothing", b"", {}, 404),
        ("POST", "/v1/sessions/unknown/act", b"", {}, 404),
        ("GET", "/v1/health", b"", {"Origin": "http://evil"}, 400),
        ("POST", "/v1/sessions", b"", {"Content-Length": str(MAX_BODY_BYTES + 1)}, 400),
        ("POST", "/v1/sessions", b"", {"Content-Length": "-5"}, 400),
        ("POST", "/v1/sessions", b"", {"Transfer-Encoding": "chunked", "Content-Length": "0"}, 400),
    ],
)
def test_requests_that_are_wrong_are_refused(served, method, path, body, headers, status):
    assert request(served[0], method, path, body, headers)[0] == status


@pytest.mark.parametrize("body", [b"", b"\x00" * 40, b"\xff\xff\xff\xff{}", b"\x02\x00\x00\x00{}"])
def test_garbage_is_answered_with_what_was_wrong(served, body):
    server = served[0]
    session = request(server, "POST", "/v1/sessions")[1]["session"]
    status, row = request(server, "POST", f"/v1/sessions/{session}/act", body)
    assert (status, row["error"]) == (400, "DataError")


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"seed": -1}', b'{"seed": "x"}', b'{"seed": true}'])
def test_a_wrong_seed_is_refused(served, body):
    server = served[0]
    session = request(server, "POST", "/v1/sessions")[1]["session"]
    assert request(server, "POST", f"/v1/sessions/{session}/reset", body)[0] == 400


def test_nobody_at_the_address_is_said_with_what_to_do():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(BackendError, match=f"no policy server at .*{port}.*roboalign serve --port {port}"):
        server_health(f"http://127.0.0.1:{port}")


def test_a_server_that_does_not_answer_is_given_up():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(BackendError, match=r"did not answer within 0\.2 s"):
            server_health(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)


@pytest.mark.parametrize("reply", [b"<html>hello</html>", b'{"version": 99}', b"[]"])
def test_another_server_or_version_is_told_apart(reply):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()

        def answer():
            link, _ = other.accept()
            link.recv(4096)
            link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(reply) + reply)
            link.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DataError, match=r"not a policy server|speaks version 99"):
            server_health(f"http://127.0.0.1:{other.getsockname()[1]}")
        thread.join()


@pytest.mark.parametrize("url", ["http://", "https://host:1", "http://host:99999", "http://host:1/path"])
def test_a_wrong_address_is_refused(url):
    with pytest.raises(ConfigError, match="http://host:port"):
        RemotePolicy(url)


def test_a_client_that_falls_silent_is_left_without_noise(served, monkeypatch, capfd):
    """Half a body was answered as a bug in the policy, with a traceback on the server."""
    monkeypatch.setattr(server_module._Handler, "timeout", 0.2)
    address = urlsplit(served[0].url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as client:
        client.sendall(b"POST /v1/sessions HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
        assert client.recv(100) == b""
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
def test_an_address_of_the_new_kind_can_be_served():
    server = PolicyServer(Moody, {"name": "walk"}, host="::1", port=0).open()
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        assert server_health(server.url)["policy"] == {"name": "walk"}
    finally:
        server.close()
        thread.join(timeout=10)


def test_a_port_in_use_is_named(served):
    port = urlsplit(served[0].url).port
    with pytest.raises(BackendError, match=f"port {port}"):
        PolicyServer(WalkPolicy, {}, port=port).open()


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("10.0.0.5", False)],
)
def test_addresses_that_others_reach_are_known(host, expected):
    assert is_loopback(host) is expected
