"""A policy served over a websocket, so that PyPI's `openpi-client` and vla-eval work unchanged.

    GET /healthz     200 when the policy has answered once, 503 before
    ws  /            openpi's protocol (`openpi.py`)
    ws  /vla-eval    the protocol of vla-eval's model servers (`vla_eval.py`)

Every connection has a copy of the policy, so clients do not disturb one another, and an episode starts with it. What is
wrong with a message is answered in the words of the protocol, and the connection stays. Without a token the server
listens to this machine alone; there is no encryption. Pages of a browser are refused.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

import numpy as np

from roboalign import __version__
from roboalign.sdk.errors import BackendError, ConfigError, DataError, RoboalignError, missing_extra
from roboalign.sdk.serving.observations import Needs, needs_of
from roboalign.sdk.serving.openpi import OpenPiDialogue
from roboalign.sdk.serving.vla_eval import VlaEvalDialogue
from roboalign.sdk.serving.wire import MAX_MESSAGE_BYTES, TOKEN_VARIABLE, import_msgpack
from roboalign.sdk.types import Observation, RobotSpec

if TYPE_CHECKING:
    from websockets.http11 import Request as HttpRequest
    from websockets.http11 import Response
    from websockets.sync.server import Server, ServerConnection

    from roboalign.sdk.evaluation.episodes import EpisodePolicy

__all__ = ["Dialogue", "PolicyServer", "ServerConfig", "is_loopback"]

MIN_TOKEN_LENGTH = 16
VLA_EVAL_PATH = "/vla-eval"
_logger = logging.getLogger(__name__)
_OPEN_TIMEOUT_S = 10.0
_SILENT_TIMEOUT_S = 60.0
"""A client that does not answer a ping for so long has gone, and gives its place away."""
_GOING_AWAY, _TRY_LATER = 1001, 1013
_WARM_SENTENCE = "put the red block in the blue bowl"


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which nobody else can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Where a policy is served, and what clients may ask of it."""

    host: str = "127.0.0.1"
    """Address to listen at; anything but this machine's own needs a token."""
    port: int = 8350
    """Port; 0 lets the system choose one."""
    max_sessions: int = 4
    """Clients at a time; each costs the memory of a policy."""
    max_rate_hz: float = 200.0
    """Messages of a client in a second; what comes faster is answered with an error."""
    token: str | None = None
    """What clients must send as `Authorization: Api-Key TOKEN`; None lets everybody in who reaches the address."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}, expected 0 to 65535")
        if self.max_sessions < 1:
            raise ConfigError(f"max_sessions is {self.max_sessions}, expected at least 1")
        if not self.max_rate_hz >= 1.0:
            raise ConfigError(f"max_rate_hz is {self.max_rate_hz}, expected at least 1")
        if self.token is None and not is_loopback(self.host):
            raise ConfigError(
                f"{self.host} can be reached by others, so clients need a token; set {TOKEN_VARIABLE} here and there, "
                f"e.g. export {TOKEN_VARIABLE}=$(openssl rand -hex 16)"
            )
        if self.token is not None and (len(self.token) < MIN_TOKEN_LENGTH or not _is_plain(self.token)):
            raise ConfigError(
                f"the token has {len(self.token)} characters, expected at least {MIN_TOKEN_LENGTH}, all of them "
                "visible ASCII, e.g. $(openssl rand -hex 16)"
            )


class Dialogue(Protocol):
    """A protocol as one client speaks it; what `answer` raises is sent as `error`."""

    def answer(self, body: bytes) -> bytes | str | None:
        """Returns the answer to a message; None where none is expected."""

    def error(self, text: str) -> bytes | str:
        """Returns what goes in the place of an answer."""


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


class PolicyServer:
    """Serves copies of a policy. `open` binds the port, `serve` blocks until `close` or Ctrl-C."""

    def __init__(
        self,
        make_policy: Callable[[], EpisodePolicy],
        describe: Mapping[str, object],
        robot: RobotSpec,
        config: ServerConfig | None = None,
    ) -> None:
        """Stores the arguments.

        Args:
            make_policy: Returns another copy of the policy.
            describe: Says who is served, ready for JSON.
            robot: The arm that clients have: what the policy is warmed up with, and its cameras where it names none.
            config: Address and limits.
        """
        self._make_policy, self._describe, self._robot = make_policy, dict(describe), robot
        self._config = ServerConfig() if config is None else config
        self._places = threading.BoundedSemaphore(self._config.max_sessions)
        self._is_decided = threading.Event()
        self._needs: Needs | None = None
        self._spare: EpisodePolicy | None = None
        self._lock = threading.Lock()
        self._links: set[ServerConnection] = set()
        self._is_stopping = False
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """Address for clients; known once the server is open."""
        if self._server is None:
            raise BackendError("the policy server is not open; call open() first")
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        return f"ws://{host}:{self._server.socket.getsockname()[1]}"

    def open(self) -> PolicyServer:
        """Binds the port.

        Raises:
            BackendError: The address cannot be used, e.g. because another server has it, or a package is missing.
        """
        import_msgpack()
        try:
            from websockets.sync.server import serve
        except ImportError as err:
            raise missing_extra("websockets", "serve", "a policy server") from err
        quiet = logging.getLogger(f"{__name__}.websockets")
        quiet.setLevel(logging.CRITICAL)  # a stranger's half request is no news
        self._server = serve(
            self._handle,
            sock=self._bind(),
            origins=[None],
            compression=None,
            process_request=self._greet,
            server_header=f"roboalign/{__version__}",
            open_timeout=_OPEN_TIMEOUT_S,
            ping_timeout=_SILENT_TIMEOUT_S,
            max_size=MAX_MESSAGE_BYTES,
            max_queue=2,
            logger=quiet,
        )
        return self

    def serve(self, when_warm: Callable[[], None] = lambda: None) -> None:
        """Warms the policy up, then answers until `close` is called from another thread, or until Ctrl-C.

        Args:
            when_warm: Called once, when the policy has answered and clients are served.

        Raises:
            RoboalignError: The policy cannot be opened, or does not answer.
        """
        assert self._server is not None, "open() comes first"
        thread = threading.Thread(target=self._accept)
        thread.start()
        try:
            self._warm_up()
            when_warm()
            thread.join()
        finally:
            self.close()
            thread.join()
            for _ in range(self._config.max_sessions):
                self._places.acquire()  # every client's copy of the policy is closed
            if self._spare is not None:
                self._spare.close()

    def _accept(self) -> None:
        assert self._server is not None
        with contextlib.suppress(OSError, ValueError):  # closed already: websockets before version 17 raises
            self._server.serve_forever()

    def close(self) -> None:
        """Makes `serve` return; safe to call twice."""
        self._is_stopping = True
        self._is_decided.set()
        with self._lock:
            links = list(self._links)
        for link in links:  # before version 17, `shutdown` of websockets leaves them open
            link.close(_GOING_AWAY)
        if self._server is not None:
            self._server.shutdown()

    def _bind(self) -> socket.socket:
        host, port = self._config.host, self._config.port
        try:
            return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as err:
            raise BackendError(
                f"cannot listen at {host} port {port} ({err.strerror or err}); choose another host or port"
            ) from err

    def _warm_up(self) -> None:
        """Lets a copy of the policy answer once about a black picture; the first client gets that copy."""
        policy = self._make_policy()
        try:
            needs = needs_of(policy, self._robot)
            policy.reset()
            policy.act(_blank(needs, self._robot))
            policy.reset()
        except BaseException:
            policy.close()
            raise
        self._spare, self._needs = policy, needs
        self._is_decided.set()

    def _greet(self, link: ServerConnection, request: HttpRequest) -> Response | None:
        """Answers plain requests, and refuses what must not become a websocket."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            is_warm = self._needs is not None
            status = HTTPStatus.OK if is_warm else HTTPStatus.SERVICE_UNAVAILABLE
            return link.respond(status, "OK\n" if is_warm else "warming up\n")
        if path not in ("/", VLA_EVAL_PATH):
            return link.respond(HTTPStatus.NOT_FOUND, f"there is nothing at {path[:80]!r}\n")
        if not self._has_token(request.headers.get_all("Authorization")):
            return link.respond(HTTPStatus.UNAUTHORIZED, f"the token is missing or wrong; set {TOKEN_VARIABLE}\n")
        return None

    def _has_token(self, headers: list[str]) -> bool:
        if self._config.token is None:
            return True
        if len(headers) != 1:
            return False
        kind, _, token = headers[0].partition(" ")
        is_same = hmac.compare_digest(token.strip().encode(errors="surrogateescape"), self._config.token.encode())
        return kind.lower() in ("api-key", "bearer") and is_same

    def _handle(self, link: ServerConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        if not self._places.acquire(blocking=False):
            num = self._config.max_sessions
            link.close(_TRY_LATER, f"all {num} places are taken; close a client, or serve with more --sessions")
            return
        with self._lock:
            self._links.add(link)
        try:
            self._is_decided.wait()
            needs = self._needs
            if needs is None or self._is_stopping:
                link.close(_GOING_AWAY)
                return
            with _Place(self._take_policy, self._config.max_rate_hz) as place:
                self._converse(link, place, needs)
        except ConnectionClosed:
            pass
        finally:
            with self._lock:
                self._links.discard(link)
            self._places.release()

    def _converse(self, link: ServerConnection, place: _Place, needs: Needs) -> None:
        path = "/" if link.request is None else link.request.path
        dialogue: Dialogue
        if path.startswith(VLA_EVAL_PATH):
            dialogue = VlaEvalDialogue(place.policy, needs)
        else:
            dialogue = OpenPiDialogue(place.policy, needs)
            link.send(dialogue.greeting(self._describe))
        for body in link:
            try:
                place.count()
                reply = dialogue.answer(_binary(body))
            except RoboalignError as err:
                reply = dialogue.error(f"{type(err).__name__}: {err}")
            except Exception as err:
                _logger.exception("a bug in the policy; its client has to connect again")
                link.send(dialogue.error(f"{BackendError.__name__}: a bug in the policy: {type(err).__name__}: {err}"))
                raise
            if reply is not None:
                link.send(reply)

    def _take_policy(self) -> EpisodePolicy:
        with self._lock:
            policy, self._spare = self._spare, None
        return self._make_policy() if policy is None else policy


class _Place:
    """One client's copy of the policy, opened with its first message, and how fast its messages come."""

    def __init__(self, take_policy: Callable[[], EpisodePolicy], max_rate_hz: float) -> None:
        self._take_policy, self._rate_hz = take_policy, max_rate_hz
        self._policy: EpisodePolicy | None = None
        self._left, self._seen_s = max_rate_hz, time.monotonic()

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._policy is not None:
            self._policy.close()

    def policy(self) -> EpisodePolicy:
        """Returns the copy."""
        if self._policy is None:
            self._policy = self._take_policy()
        return self._policy

    def count(self) -> None:
        """Counts a message; raises DataError when they come too fast. One second's worth may come at once."""
        now_s = time.monotonic()
        self._left = min(self._rate_hz, self._left + (now_s - self._seen_s) * self._rate_hz)
        self._seen_s = now_s
        if self._left < 1.0:
            raise DataError(f"more than {self._rate_hz:g} messages a second came; send fewer, or serve with --max-rate")
        self._left -= 1.0


def _binary(body: bytes | str) -> bytes:
    if isinstance(body, str):
        raise DataError("text came, expected a binary message in msgpack")
    return body


def _blank(needs: Needs, robot: RobotSpec) -> Observation:
    size = needs.image_size_px or robot.image_size_px
    middle_m = 0.5 * (np.array(robot.workspace_lower_m) + np.array(robot.workspace_upper_m))
    return Observation(
        images={name: np.zeros((size, size, 3), np.uint8) for name in needs.camera_names if needs.has_images},
        state=np.array((*middle_m, 0.0, robot.gripper_max_width_m), np.float32),
        joint_pos_rad=np.array(robot.home_joint_pos_rad, np.float32),
        instruction=_WARM_SENTENCE,
        time_s=0.0,
        commanded=np.array((*middle_m, 0.0), np.float32),
    )
