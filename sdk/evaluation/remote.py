"""`RemotePolicy`: a policy that `roboalign serve` serves elsewhere, with the methods of one that is loaded here."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from roboalign.sdk import errors
from roboalign.sdk.errors import BackendError, ConfigError, DataError, RoboalignError
from roboalign.sdk.evaluation.server import CONTENT_TYPE
from roboalign.sdk.evaluation.wire import (
    MAX_BODY_BYTES,
    check_version,
    chunk_from_bytes,
    observation_to_bytes,
)
from roboalign.sdk.types import ActionChunk, Observation

__all__ = ["RemotePolicy", "is_address", "server_health"]

CONNECT_TIMEOUT_S = 5.0
"""Time a server gets to accept a connection."""
ACT_TIMEOUT_S = 60.0
"""Time a server gets to answer: a large model that thinks takes seconds."""


def is_address(text: str) -> bool:
    """Whether the text is the address of a server."""
    return text.startswith(("http://", "https://"))


def server_health(url: str, *, timeout_s: float = CONNECT_TIMEOUT_S) -> Mapping[str, object]:
    """Returns what a policy server says about itself.

    Raises:
        BackendError: Nobody answers there.
        DataError: Somebody else answers, or a server of another protocol version.
    """
    link = _Link(url, timeout_s)
    try:
        return link.ask_json("GET", "/v1/health", b"")
    finally:
        link.close()


class RemotePolicy:
    """A policy on a server. Connects at the first use; a connection that broke is opened again once for each call."""

    def __init__(self, url: str, *, timeout_s: float = ACT_TIMEOUT_S) -> None:
        """Stores the address, e.g. `http://127.0.0.1:8350`, and the time an answer may take."""
        self._link = _Link(url, timeout_s)
        self._session: str | None = None
        self._seed: int | None = None
        self._num_calls = 0
        self.needs_image = True

    def seed_episode(self, seed: int) -> None:
        """Keeps the seed for the next `reset`."""
        self._seed = seed

    def reset(self) -> None:
        """Starts an episode; opens a session when there is none, or when the server was started anew."""
        body = json.dumps({} if self._seed is None else {"seed": self._seed}).encode()
        if self._session is not None:
            try:
                self._link.ask_json("POST", f"/v1/sessions/{self._session}/reset", body)
                return
            except _NoSessionError:
                self._session = None
        self._open_session()
        self._link.ask_json("POST", f"/v1/sessions/{self._session}/reset", body)

    def act(self, observation: Observation) -> ActionChunk:
        """Returns the server's answer. Blocks.

        Raises:
            BackendError: The server does not answer in time, is gone, or its policy failed.
            DataError: The server does not accept the observation, or its answer is not one.
        """
        if self._session is None:
            self._open_session()
        self._num_calls += 1
        body = observation_to_bytes(observation, call=self._num_calls)
        return chunk_from_bytes(self._link.ask("POST", f"/v1/sessions/{self._session}/act", body))

    def close(self) -> None:
        """Closes the session, if the server can still be reached; may be called twice."""
        if self._session is not None:
            with contextlib.suppress(RoboalignError):  # the server closes what nobody uses
                self._link.ask_json("DELETE", f"/v1/sessions/{self._session}", b"")
        self._session = None
        self._link.close()

    def _open_session(self) -> None:
        row = self._link.ask_json("POST", "/v1/sessions", b"")
        session = row.get("session")
        if not isinstance(session, str) or not session.isalnum():
            raise DataError(f"{self._link.url} opened a session without a name; is it a policy server?")
        self._session, self.needs_image = session, bool(row.get("needs_image", True))


class _NoSessionError(BackendError):
    """The server does not know the session."""


class _Link:
    """One connection that is kept open, and opened again once when it broke."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme != "http" or not parts.hostname or port == -1 or parts.path.strip("/") or parts.query:
            raise ConfigError(f"{url!r} is not the address of a policy server; give it as http://host:port")
        if not timeout_s > 0.0:
            raise ConfigError(f"timeout_s is {timeout_s}, expected more than 0")
        self.url = url.rstrip("/")
        self._host, self._port, self._timeout_s = parts.hostname, port or 80, timeout_s
        self._connection: http.client.HTTPConnection | None = None

    def ask_json(self, method: str, path: str, body: bytes) -> Mapping[str, object]:
        """Returns the JSON object of an answer."""
        reply = self.ask(method, path, body)
        try:
            row = json.loads(reply)
            version = row.get("version")
        except (ValueError, AttributeError, RecursionError) as err:
            raise DataError(f"what answers at {self.url} is not a policy server of roboalign") from err
        check_version(version)
        return dict(row)

    def ask(self, method: str, path: str, body: bytes) -> bytes:
        """Returns the body of an answer; raises the error that the server names."""
        try:
            status, reply = self._exchange(method, path, body)
        except (http.client.HTTPException, ConnectionError):
            self.close()
            try:
                status, reply = self._exchange(method, path, body)
            except (http.client.HTTPException, ConnectionError) as err:
                raise self._unreachable(err) from err
        if status != 200:
            raise self._named_error(status, reply)
        return reply

    def close(self) -> None:
        """Closes the connection; the next call opens another one."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _exchange(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection(
                    self._host, self._port, timeout=min(CONNECT_TIMEOUT_S, self._timeout_s)
                )
                self._connection.connect()
                self._connection.sock.settimeout(self._timeout_s)
            self._connection.request(method, path, body, {"Content-Type": CONTENT_TYPE})
            response = self._connection.getresponse()
            reply = response.read(MAX_BODY_BYTES + 1)
        except TimeoutError as err:
            self.close()
            raise BackendError(
                f"the policy server at {self.url} did not answer within {self._timeout_s:g} s; it may be overloaded"
            ) from err
        except (ConnectionError, http.client.HTTPException):
            self.close()
            raise
        except OSError as err:
            self.close()
            raise self._unreachable(err) from err
        if len(reply) > MAX_BODY_BYTES:
            raise DataError(f"{self.url} answered with more than {MAX_BODY_BYTES} bytes")
        return response.status, reply

    def _unreachable(self, err: Exception) -> BackendError:
        what = getattr(err, "strerror", None) or str(err) or type(err).__name__
        return BackendError(
            f"there is no policy server at {self.url} ({what}); start one with `roboalign serve --port {self._port}`"
        )

    def _named_error(self, status: int, reply: bytes) -> RoboalignError:
        try:
            row = json.loads(reply)
            version, name, message = row["version"], str(row["error"]), str(row["message"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return DataError(f"what answers at {self.url} is not a policy server of roboalign (status {status})")
        check_version(version)
        text = f"the policy server at {self.url}: {message}"
        if status == 404 and name == "_SessionError":
            return _NoSessionError(text)
        kind = getattr(errors, name, BackendError) if name in errors.__all__ else BackendError
        is_error = isinstance(kind, type) and issubclass(kind, RoboalignError)
        return kind(text) if is_error else BackendError(text)
