"""The server against a client as openpi's is: the websocket of `websockets`, arrays as openpi packs them."""

import contextlib
import http.client
import logging
import random
import socket
import threading
from urllib.parse import urlsplit

import msgpack
import numpy as np
import pytest
from evaluation_fakes import SPEC, WalkPolicy
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from roboalign.sdk.errors import BackendError, ConfigError
from roboalign.sdk.serving import server as server_module
from roboalign.sdk.serving.server import PolicyServer, ServerConfig, is_loopback
from roboalign.sdk.serving.wire import MAX_MESSAGE_BYTES, unpack_map
from roboalign.sdk.types import ActionChunk

TOKEN = "0123456789abcdef"
HERE = ServerConfig(port=0, max_sessions=2, max_rate_hz=1000.0)


class Moody(WalkPolicy):
    """Answers as it is told: fails, holds, or walks."""

    def act(self, observation):
        if observation.instruction == "fail":
            raise BackendError("the model is out of memory")
        if observation.instruction == "bug":
            raise KeyError("oops")
        if observation.instruction == "hold":
            return ActionChunk.hold("nothing to say", rate_hz=10.0)
        return super().act(observation)


@pytest.fixture
def served(run_server):
    """A running server, and the policies that it opened."""
    policies = []

    def make():
        policies.append(Moody())
        return policies[-1]

    return run_server(make, {"name": "walk"}, SPEC, HERE), policies


def packed(value):
    def as_openpi_does(item):
        return {b"__ndarray__": True, b"data": item.tobytes(), b"dtype": item.dtype.str, b"shape": item.shape}

    return msgpack.packb(value, default=as_openpi_does)


def observation(prompt="go", **more):
    state = np.array([0.4, 0.0, 0.2, 0.0, 0.08])
    return {"observation/image": np.zeros((96, 96, 3), np.uint8), "observation/state": state, "prompt": prompt, **more}


class Client:
    """What `openpi_client.WebsocketClientPolicy` does, and messages of any kind."""

    def __init__(self, url, **options):
        self.stack = contextlib.ExitStack()
        self.link = self.stack.enter_context(connect(url, compression=None, max_size=None, proxy=None, **options))
        self.metadata = unpack_map(self.link.recv(timeout=10))

    def send(self, body):
        self.link.send(body)
        return self.link.recv(timeout=10)

    def infer(self, row):
        reply = self.send(packed(row))
        if isinstance(reply, str):
            raise RuntimeError(reply)
        return unpack_map(reply)


@pytest.fixture
def join(served):
    clients = []

    def make(path="", **options):
        clients.append(Client(served[0].url + path, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.stack.close()


def get(server, path="/healthz", headers=None):
    link = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=5)
    link.request("GET", path, headers=headers or {})
    try:
        response = link.getresponse()
        return response.status, response.read()
    finally:
        link.close()


def test_metadata_come_first_then_actions_with_their_thought(join):
    client = join()
    assert (client.metadata["policy"], client.metadata["camera_names"]) == ({"name": "walk"}, ["front"])
    reply = client.infer(observation())
    assert (reply["actions"].shape, reply["actions"].dtype) == ((4, 5), np.float32)
    assert (reply["thought"], reply["source"], reply["reason"]) == ("move 1", "flow", None)
    assert reply["latency_s"] == {"total": 0.01, "thought": 0.004}
    assert reply["server_timing"]["infer_ms"] >= 0.0


def test_health_is_503_until_the_policy_has_answered_once(run_server):
    may_answer = threading.Event()

    class Slow(WalkPolicy):
        def act(self, observation):
            may_answer.wait(10)
            return super().act(observation)

    server = run_server(Slow, {}, SPEC, HERE, is_warm=False)
    assert get(server) == (503, b"warming up\n")
    with connect(server.url, compression=None, proxy=None) as early:
        with pytest.raises(TimeoutError):
            early.recv(timeout=0.2)
        may_answer.set()
        assert unpack_map(early.recv(timeout=10))["protocol"] == "roboalign"
    assert get(server) == (200, b"OK\n")


def test_the_copy_that_was_warmed_up_is_the_first_clients_and_begins_anew(served, join):
    _, policies = served
    assert join().infer(observation())["thought"] == "move 1"
    assert len(policies) == 1
    join().infer(observation())
    assert len(policies) == 2


def test_a_policy_that_cannot_answer_ends_the_server_with_its_error():
    class Broken(Moody):
        def act(self, observation):
            raise BackendError("the model is out of memory")

    with pytest.raises(BackendError, match="out of memory"):
        PolicyServer(Broken, {}, SPEC, HERE).open().serve()


def test_clients_do_not_disturb_one_another_and_episodes_start_anew(join):
    one, two = join(), join()
    one.infer(observation()), one.infer(observation())
    assert two.infer(observation())["thought"] == "move 1"
    assert one.infer({"reset": True}) == {"reset": True}
    assert one.infer(observation())["thought"] == "move 1"


def test_a_hold_is_an_error_unless_the_client_knows_holds(join):
    client = join()
    with pytest.raises(RuntimeError, match="hold: nothing to say"):
        client.infer(observation("hold"))
    reply = client.infer(observation("hold", holds=True))
    assert (reply["source"], reply["reason"], reply["actions"].shape) == ("hold", "nothing to say", (0, 5))


def test_an_error_of_the_policy_is_told_and_the_client_goes_on(join):
    client = join()
    with pytest.raises(RuntimeError, match="BackendError: the model is out of memory"):
        client.infer(observation("fail"))
    assert client.infer(observation())["thought"] == "move 1"


def test_a_bug_in_the_policy_is_told_and_ends_the_connection_alone(join, caplog):
    client = join()
    with pytest.raises(RuntimeError, match="a bug in the policy: KeyError"):
        client.infer(observation("bug"))
    assert "oops" in caplog.text
    with pytest.raises(ConnectionClosedError):
        client.infer(observation())
    assert join().infer(observation())["thought"] == "move 1"


WRONG = {
    "nothing": b"",
    "a byte that msgpack never uses": b"\xc1",
    "a map of four thousand million": b"\xdf\xff\xff\xff\xff",
    "nested lists": b"\x91" * 5000,
    "a list": packed([1, 2]),
    "a sentence alone": packed({"prompt": "go"}),
    "a pickle": packed({"pickle": b"cos\nsystem\n(S'true'\ntR."}),
    "an unknown camera": packed({**observation(), "overhead_image": np.zeros((96, 96, 3), np.uint8)}),
    "objects": msgpack.packb({"state": {b"__ndarray__": True, b"data": b"x" * 40, b"dtype": "|O", b"shape": (5,)}}),
    "a state that is not finite": packed({**observation(), "observation/state": np.full(5, np.nan)}),
    "text": "text",
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_message_is_answered_with_what_is_wrong_and_the_next_one_as_ever(join, body):
    client = join()
    reply = client.send(body)
    assert isinstance(reply, str)
    assert reply.startswith("DataError: ")
    assert client.infer(observation())["thought"] == "move 1"


def test_thousands_of_damaged_messages_do_not_stop_the_server(join):
    client, rng = join(), random.Random(0)
    good = packed(observation())
    for number in range(600):
        body = bytearray(good if number % 2 else rng.randbytes(rng.randrange(60)))
        for _ in range(rng.randrange(1, 6) if body else 0):
            body[rng.randrange(min(len(body), 120))] = rng.randrange(256)
        reply = client.send(bytes(body[: rng.randrange(len(body) + 1)] if number % 3 == 0 else body))
        assert isinstance(reply, bytes) or reply.startswith("DataError: "), reply
    assert "actions" in client.infer(observation())


def test_a_message_that_is_too_large_closes_its_connection_alone(join):
    client, other = join(), join()
    with pytest.raises(ConnectionClosedError, match="1009"):
        client.send(b"\x00" * (MAX_MESSAGE_BYTES + 1))
    assert other.infer(observation())["thought"] == "move 1"


def test_messages_that_come_too_fast_are_refused_and_later_ones_answered(run_server, monkeypatch):
    now_s = [0.0]
    server = run_server(Moody, {}, SPEC, ServerConfig(port=0, max_rate_hz=3.0))
    monkeypatch.setattr(server_module.time, "monotonic", lambda: now_s[0])
    client = Client(server.url)
    replies = [client.send(packed(observation())) for _ in range(5)]
    assert [isinstance(reply, bytes) for reply in replies] == [True, True, True, False, False]
    assert replies[3].startswith("DataError: more than 3 messages a second came")
    now_s[0] += 0.5
    assert client.infer(observation())["thought"] == "move 4"
    client.stack.close()


def test_places_are_limited_and_freed(served, join):
    one = join()
    one.infer(observation())
    join()
    with pytest.raises(ConnectionClosedError, match="all 2 places are taken"):
        join()
    one.stack.close()
    policies = served[1]
    for _ in range(100):
        if policies[0].is_closed:
            break
        threading.Event().wait(0.05)
    assert policies[0].is_closed
    assert join().infer(observation())["thought"] == "move 1"


@pytest.fixture
def guarded(run_server):
    return run_server(Moody, {}, SPEC, ServerConfig(port=0, token=TOKEN))


@pytest.mark.parametrize("kind", ["Api-Key", "Bearer", "api-key"])
def test_the_token_lets_in(guarded, kind):
    client = Client(guarded.url, additional_headers={"Authorization": f"{kind} {TOKEN}"})
    assert "actions" in client.infer(observation())
    client.stack.close()


@pytest.mark.parametrize(
    "header", [None, f"Api-Key {TOKEN}x", "Api-Key ", f"Basic {TOKEN}", TOKEN, f"Api-Key {TOKEN[:-1]}", "Api-Key \xe9"]
)
@pytest.mark.parametrize("path", ["/", "/vla-eval"])
def test_without_the_token_nobody_comes_in(guarded, header, path):
    headers = {} if header is None else {"Authorization": header}
    with pytest.raises(InvalidStatus, match="401"), connect(guarded.url + path, additional_headers=headers, proxy=None):
        pass
    assert get(guarded)[0] == 200


def test_two_tokens_are_none(guarded):
    headers = [("Authorization", f"Api-Key {TOKEN}"), ("Authorization", f"Api-Key {TOKEN}")]
    with pytest.raises(InvalidStatus, match="401"), connect(guarded.url, additional_headers=headers, proxy=None):
        pass


@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
def test_pages_of_a_browser_are_refused(served, origin):
    with pytest.raises(InvalidStatus, match="403"), connect(served[0].url, origin=origin, proxy=None):
        pass


def test_other_paths_and_plain_requests_are_refused(served):
    assert get(served[0], "/v1/sessions")[0] == 404
    assert get(served[0], "/")[0] == 426


def test_bytes_that_are_no_request_make_no_noise(served, caplog):
    caplog.set_level(logging.DEBUG)
    address = urlsplit(served[0].url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
        client.recv(1000)
    assert get(served[0])[0] == 200
    assert caplog.text == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "127.evil.example", "board"])
def test_others_are_not_served_without_a_token(host):
    with pytest.raises(ConfigError, match="clients need a token; set ROBOALIGN_TOKEN"):
        ServerConfig(host=host)
    assert ServerConfig(host=host, token=TOKEN).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_this_machine_needs_no_token(host):
    assert is_loopback(host)
    assert ServerConfig(host=host).token is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"token": "short"}, "the token has 5 characters, expected at least 16"),
        ({"token": "with a space in it"}, "visible ASCII"),
        ({"token": "0123456789abcde\xe9"}, "visible ASCII"),
        ({"port": 70000}, "port is 70000"),
        ({"max_sessions": 0}, "max_sessions is 0"),
        ({"max_rate_hz": 0.0}, r"max_rate_hz is 0\.0"),
        ({"max_rate_hz": float("nan")}, "max_rate_hz is nan"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        ServerConfig(**wrong)


def test_a_port_in_use_is_named(served):
    port = urlsplit(served[0].url).port
    with pytest.raises(BackendError, match=f"port {port}"):
        PolicyServer(Moody, {}, SPEC, ServerConfig(port=port)).open()


def _has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
def test_an_address_of_the_new_kind_can_be_served(run_server):
    server = run_server(Moody, {"name": "walk"}, SPEC, ServerConfig(host="::1", port=0))
    client = Client(server.url)
    assert client.metadata["policy"] == {"name": "walk"}
    client.stack.close()


def test_a_client_that_is_connected_does_not_hold_up_the_end(run_server):
    server = run_server(Moody, {}, SPEC, HERE)
    client = Client(server.url)
    server.close()
    with pytest.raises(ConnectionClosed, match="1001"):
        client.send(packed(observation()))
