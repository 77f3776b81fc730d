"""A policy served over HTTP, for evaluations and robots that run in another process or on another machine.

    GET    /v1/health                who is served, ready or not, free places
    POST   /v1/sessions              opens a session: a copy of the policy of its own
    POST   /v1/sessions/<id>/reset   starts an episode; the body may be {"seed": 5}
    POST   /v1/sessions/<id>/act     an observation comes, an answer goes (`wire.py`)
    DELETE /v1/sessions/<id>         closes it

Every client has a copy of the policy, so clients do not disturb one another. A call that is repeated with the same
number gets the same answer without asking the policy again: a client may repeat it when the connection breaks. There
is no password and no encryption; the server listens to this machine alone unless told otherwise.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from roboalign import __version__
from roboalign.sdk.errors import BackendError, ConfigError, DataError, RoboalignError
from roboalign.sdk.evaluation.episodes import EpisodePolicy, SeededPolicy
from roboalign.sdk.evaluation.wire import (
    MAX_BODY_BYTES,
    PROTOCOL_VERSION,
    chunk_to_bytes,
    observation_from_bytes,
)
from roboalign.sdk.types import RobotSpec

__all__ = ["CONTENT_TYPE", "PolicyServer", "is_loopback", "robot_spec"]

CONTENT_TYPE = "application/x-roboalign"
"""Type of observations and answers. A web page cannot send it to this machine without being asked first."""
_IDLE_S = 600.0
"""A session unused for so long gives up its place when another client needs it."""
_READ_TIMEOUT_S = 60.0
"""A connection on which nothing arrives for so long is closed; clients open another one."""


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which nobody else can reach."""
    return host in ("localhost", "::1") or host.startswith("127.")


def robot_spec(robot: str, image_size_px: int = 96) -> RobotSpec:
    """Returns names, limits and rates of a simulated arm; raises ConfigError, which lists them, for an unknown one."""
    from roboalign.sdk.sim.robots import find_robot

    return find_robot(robot).spec(image_size_px)


class _SessionError(RoboalignError):
    """The session is not there, or there is no place for it."""


class _Session:
    """A copy of the policy, and the last answer it gave."""

    def __init__(self, policy: EpisodePolicy) -> None:
        self.policy = policy
        self.lock = threading.Lock()
        self.used_s = time.monotonic()
        self.last: tuple[int, bytes] | None = None

    def reset(self, seed: int | None) -> None:
        with self.lock:
            if seed is not None and isinstance(self.policy, SeededPolicy):
                self.policy.seed_episode(seed)
            self.policy.reset()
            self.last = None

    def act(self, body: bytes) -> bytes:
        observation, call = observation_from_bytes(body)
        with self.lock:
            if self.last is None or self.last[0] != call:
                self.last = call, chunk_to_bytes(self.policy.act(observation))
            return self.last[1]

    def close(self) -> None:
        with self.lock:
            self.policy.close()


class PolicyServer:
    """Serves copies of a policy. `open` binds the port, `serve` blocks until `close` or Ctrl-C."""

    def __init__(
        self,
        make_policy: Callable[[], EpisodePolicy],
        describe: Mapping[str, object],
        *,
        host: str = "127.0.0.1",
        port: int = 8350,
        max_sessions: int = 4,
    ) -> None:
        """Stores the arguments.

        Args:
            make_policy: Returns another copy of the policy.
            describe: Says who is served, ready for JSON.
            host: Address to listen at; anything but this machine's own lets everybody on the network in.
            port: Port; 0 lets the system choose one.
            max_sessions: Clients at a time; each costs the memory of a policy.
        """
        if not 0 <= port <= 65535:
            raise ConfigError(f"port is {port}, expected 0 to 65535")
        if max_sessions < 1:
            raise ConfigError(f"max_sessions is {max_sessions}, expected at least 1")
        self._make_policy, self._describe = make_policy, dict(describe)
        self._host, self._port, self._max_sessions = host, port, max_sessions
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.Lock()
        self._http: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Address for clients; known once the server is open."""
        if self._http is None:
            raise BackendError("the policy server is not open; call open() first")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._http.server_address[1]}"

    def open(self) -> PolicyServer:
        """Binds the port.

        Raises:
            BackendError: The address cannot be used, e.g. because another server has it.
        """
        handler = type("_BoundHandler", (_Handler,), {"policy_server": self})
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        server = type("_BoundServer", (ThreadingHTTPServer,), {"address_family": family})
        try:
            self._http = server((self._host, self._port), handler)
        except OSError as err:
            raise BackendError(
                f"cannot listen at {self._host} port {self._port} ({err.strerror or err}); choose another host or port"
            ) from err
        self._http.daemon_threads = True
        return self

    def serve(self) -> None:
        """Answers until `close` is called from another thread, or until Ctrl-C, which is passed on."""
        assert self._http is not None, "open() comes first"
        try:
            self._http.serve_forever(poll_interval=0.2)
        finally:
            self._http.server_close()
            for session in self._take_all():
                session.close()

    def close(self) -> None:
        """Makes `serve` return; safe to call twice."""
        if self._http is not None:
            self._http.shutdown()

    def health(self) -> dict[str, object]:
        """Returns what the health page shows."""
        with self._lock:
            num = len(self._sessions)
        return {
            "version": PROTOCOL_VERSION,
            "roboalign": __version__,
            "policy": self._describe,
            "ready": True,
            "sessions": num,
            "max_sessions": self._max_sessions,
        }

    def open_session(self) -> dict[str, object]:
        """Opens a session and returns its id, and whether its policy looks at pictures."""
        self._make_room()
        policy = self._make_policy()
        session_id = secrets.token_hex(16)
        with self._lock:
            is_full = len(self._sessions) >= self._max_sessions
            if not is_full:
                self._sessions[session_id] = _Session(policy)
        if is_full:
            policy.close()
            raise _SessionError(self._full_text())
        return {
            "version": PROTOCOL_VERSION,
            "session": session_id,
            "needs_image": bool(getattr(policy, "needs_image", True)),
        }

    def session(self, session_id: str) -> _Session:
        """Returns an open session."""
        with self._lock:
            session = self._sessions.get(session_id)
        if session is None:
            raise _SessionError("there is no such session: the server was started anew, or gave its place away")
        session.used_s = time.monotonic()
        return session

    def close_session(self, session_id: str) -> None:
        """Closes a session; does nothing when there is none."""
        with self._lock:
            session = self._sessions.pop(session_id, None)
        if session is not None:
            session.close()

    def _make_room(self) -> None:
        with self._lock:
            if len(self._sessions) < self._max_sessions:
                return
            oldest = min(self._sessions, key=lambda key: self._sessions[key].used_s)
            if time.monotonic() - self._sessions[oldest].used_s < _IDLE_S:
                raise _SessionError(self._full_text())
            session = self._sessions.pop(oldest)
        session.close()

    def _full_text(self) -> str:
        return f"all {self._max_sessions} places are taken; close a client, or start the server with more --sessions"

    def _take_all(self) -> list[_Session]:
        with self._lock:
            sessions = list(self._sessions.values())
            self._sessions.clear()
        return sessions


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    policy_server: PolicyServer
    protocol_version = "HTTP/1.1"
    server_version = f"roboalign/{__version__}"
    sys_version = ""
    timeout = _READ_TIMEOUT_S
    # A small answer must not wait for the acknowledgement of the one before.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        """Keeps quiet: an evaluation makes thousands of calls."""

    def do_GET(self) -> None:
        """Answers the health page."""
        self._handle("GET")

    def do_POST(self) -> None:
        """Opens a session, resets it, or asks its policy."""
        self._handle("POST")

    def do_DELETE(self) -> None:
        """Closes a session."""
        self._handle("DELETE")

    def _handle(self, method: str) -> None:
        try:
            body = self._body()
            reply = self._answer(method, self.path.strip("/").split("/"), body)
        except _SessionError as err:
            is_full = "places are taken" in str(err)
            self._send_error(503 if is_full else 404, err)
        except (DataError, ConfigError) as err:
            self._send_error(400, err)
        except RoboalignError as err:
            self._send_error(500, err)
        except ConnectionError:
            self.close_connection = True
        except Exception as err:
            self._send_error(500, BackendError(f"a bug in the policy: {type(err).__name__}: {err}"))
            raise
        else:
            if reply is None:
                self._send_error(404, ConfigError(f"there is nothing at {method} {self.path[:80]}"))
            else:
                self._send(200, reply)

    def _answer(self, method: str, parts: list[str], body: bytes) -> bytes | None:
        server = self.policy_server
        match (method, parts):
            case ("GET", ["v1", "health"]):
                return _json(server.health())
            case ("POST", ["v1", "sessions"]):
                return _json(server.open_session())
            case ("POST", ["v1", "sessions", session_id, "reset"]):
                server.session(session_id).reset(_seed(body))
                return _json({"version": PROTOCOL_VERSION})
            case ("POST", ["v1", "sessions", session_id, "act"]):
                return server.session(session_id).act(body)
            case ("DELETE", ["v1", "sessions", session_id]):
                server.close_session(session_id)
                return _json({"version": PROTOCOL_VERSION})
        return None

    def _body(self) -> bytes:
        """Reads the body; whatever makes its end uncertain closes the connection."""
        length = self.headers.get("Content-Length", "0")
        if self.headers.get("Origin") is not None:
            self.close_connection = True
            raise DataError("requests of web pages are not answered")
        if "Transfer-Encoding" in self.headers or not length.isdecimal() or len(length) > 12:
            self.close_connection = True
            raise DataError("a request must say its length in Content-Length")
        if int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            raise DataError(f"a request of {length} bytes came, at most {MAX_BODY_BYTES} are accepted")
        try:
            body = self.rfile.read(int(length))
        except TimeoutError as err:
            raise ConnectionError("the client sends nothing more") from err
        if len(body) < int(length):
            raise ConnectionError("the client went away")
        return body

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if body[:1] == b"{" else CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        try:
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True

    def _send_error(self, status: int, err: RoboalignError) -> None:
        self._send(status, _json({"version": PROTOCOL_VERSION, "error": type(err).__name__, "message": str(err)}))


def _json(row: Mapping[str, object]) -> bytes:
    return json.dumps(row).encode()


def _seed(body: bytes) -> int | None:
    if not body:
        return None
    try:
        seed = json.loads(body).get("seed")
    except (ValueError, AttributeError, RecursionError) as err:
        raise DataError("the body of a reset must be empty or a JSON object with a seed") from err
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise DataError(f"the seed of a reset is {seed!r:.40}, expected a whole number from 0 on")
    return seed
