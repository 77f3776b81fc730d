"""`RemotePolicy`: a policy that `roboalign serve` serves elsewhere, with the methods of one that is loaded here."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from roboalign import __version__
from roboalign.sdk import errors
from roboalign.sdk.bundle import PolicySpec, policy_spec_from_json
from roboalign.sdk.errors import BackendError, BundleError, ConfigError, DataError, RoboalignError, missing_extra
from roboalign.sdk.serving.openpi import chunk_from_map, observation_to_map
from roboalign.sdk.serving.wire import (
    MAX_MESSAGE_BYTES,
    PROTOCOL_VERSION,
    TOKEN_VARIABLE,
    import_msgpack,
    pack,
    unpack_map,
)
from roboalign.sdk.types import ActionChunk, Observation

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

__all__ = ["RemotePolicy", "is_address", "served_policy"]

CONNECT_TIMEOUT_S = 5.0
"""Time a server gets to accept a connection."""
ACT_TIMEOUT_S = 60.0
"""Time a server gets to answer: a large model that thinks takes seconds, and longer while it is loaded."""


def is_address(text: str) -> bool:
    """Whether the text is meant as the address of a server; `RemotePolicy` says which addresses can be used."""
    return text.startswith(("ws://", "wss://", "http://", "https://"))


def served_policy(url: str, *, timeout_s: float = ACT_TIMEOUT_S) -> object:
    """Returns what a server says about the policy that it serves.

    Raises:
        BackendError: Nobody answers there, or the token is wrong.
        DataError: Somebody else answers, or a server of another protocol version.
    """
    with RemotePolicy(url, timeout_s=timeout_s) as policy:
        return policy.metadata["policy"]


class RemotePolicy:
    """A policy on a server. Connects at the first use; after a connection broke, the next call opens another one.

    A copy of the policy belongs to the connection, so another connection begins where `reset` does. Not thread-safe.

    Example:
        with RemotePolicy("ws://workstation:8350") as policy:
            chunk = policy.act(robot.observe())
    """

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = ACT_TIMEOUT_S) -> None:
        """Stores the arguments.

        Args:
            url: `ws://host:port`, or `wss://host:port` behind a proxy that encrypts.
            token: of the server; None takes it from the environment variable ROBOALIGN_TOKEN, where it is set.
            timeout_s: longest time an answer may take.
        """
        _check_address(url)
        if not timeout_s > 0.0:
            raise ConfigError(f"timeout_s is {timeout_s}, expected more than 0")
        self._url, self._timeout_s = url.rstrip("/"), timeout_s
        self._token = token if token is not None else os.environ.get(TOKEN_VARIABLE) or None
        self._link: ClientConnection | None = None
        self._opened = contextlib.ExitStack()
        self._metadata: Mapping[str, object] = {}
        self._seed: int | None = None

    @property
    def metadata(self) -> Mapping[str, object]:
        """What the server said about itself and its policy. Connects."""
        self._connect()
        return self._metadata

    @property
    def spec(self) -> PolicySpec:
        """What the policy needs from the robot and promises to it. Connects.

        Raises:
            BundleError: No model is served, so there is nothing that it says it needs.
        """
        value = self.metadata.get("spec")
        if value is None:
            raise BundleError(f"the policy at {self._url} is no model, so it does not say what it needs")
        return policy_spec_from_json(value, f"the spec of {self._url}")

    @property
    def needs_image(self) -> bool:
        """Whether the policy looks at pictures; True until the server was asked."""
        return bool(self._metadata.get("needs_image", True))

    def seed_episode(self, seed: int) -> None:
        """Keeps the seed for the next `reset`."""
        self._seed = seed

    def reset(self) -> None:
        """Starts an episode. Connects, and blocks until the server has answered.

        Raises:
            BackendError: The server does not answer in time, is gone, or its policy failed.
        """
        self._connect()
        seed = {} if self._seed is None else {"seed": self._seed}
        self._ask({"reset": True, **seed})

    def act(self, observation: Observation) -> ActionChunk:
        """Returns the server's answer. Blocks.

        Raises:
            BackendError: The server does not answer in time, is gone, or its policy failed.
            DataError: The server does not accept the observation, or its answer is not one.
        """
        if self._link is None:
            self.reset()
        names = self._metadata.get("camera_names")
        cameras = tuple(str(name) for name in names) if isinstance(names, list) else ()
        return chunk_from_map(self._ask(observation_to_map(observation, cameras)))

    def close(self) -> None:
        """Closes the connection; may be called twice."""
        self._link = None
        self._opened.close()

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self) -> None:
        if self._link is not None:
            return
        self._link = self._open()
        try:
            self._metadata = self._checked(unpack_map(self._received()))
        except BaseException:
            self.close()
            raise

    def _open(self) -> ClientConnection:
        import_msgpack()
        try:
            from websockets.exceptions import InvalidStatus, WebSocketException
            from websockets.sync.client import connect
        except ImportError as err:
            raise missing_extra("websockets", "serve", "a served policy") from err
        headers = {} if self._token is None else {"Authorization": f"Api-Key {self._token}"}
        start_s = time.monotonic()
        try:
            opening = connect(
                self._url,
                additional_headers=headers,
                user_agent_header=f"roboalign/{__version__}",
                compression=None,
                open_timeout=min(CONNECT_TIMEOUT_S, self._timeout_s),
                ping_interval=None,
                close_timeout=1.0,
                max_size=MAX_MESSAGE_BYTES,
                proxy=None,
            )
            return self._opened.enter_context(opening)
        except InvalidStatus as err:
            status, text = err.response.status_code, (err.response.body or b"")[:200].decode("ascii", "replace").strip()
            if status == 401:
                raise BackendError(f"the policy server at {self._url}: {text}") from err
            raise self._stranger(f"status {status}") from err
        except TimeoutError as err:
            raise self._too_slow(time.monotonic() - start_s) from err
        except OSError as err:
            raise self._unreachable(err.strerror or str(err) or type(err).__name__) from err
        except WebSocketException as err:
            raise self._stranger(str(err)) from err

    def _checked(self, row: Mapping[str, object]) -> Mapping[str, object]:
        if row.get("protocol") != "roboalign":
            raise self._stranger("its first message is another")
        if row.get("version") != PROTOCOL_VERSION:
            raise DataError(
                f"the server at {self._url} speaks version {row.get('version')!r:.40} of the policy protocol, this "
                f"roboalign speaks {PROTOCOL_VERSION}; install the same version of roboalign on both sides"
            )
        return row

    def _ask(self, row: Mapping[str, object]) -> Mapping[str, object]:
        from websockets.exceptions import ConnectionClosed

        assert self._link is not None
        try:
            self._link.send(pack(row))
        except ConnectionClosed as err:
            raise self._broken(err) from err
        return unpack_map(self._received())

    def _received(self) -> bytes:
        """Returns the next message; raises the error that came in its place."""
        from websockets.exceptions import ConnectionClosed

        assert self._link is not None
        try:
            reply = self._link.recv(timeout=self._timeout_s)
        except TimeoutError as err:
            self.close()  # the answer may still come, and would be taken for the next one
            raise self._too_slow(self._timeout_s) from err
        except ConnectionClosed as err:
            raise self._broken(err) from err
        if isinstance(reply, str):
            raise self._named_error(reply)
        return bytes(reply)

    def _named_error(self, reply: str) -> RoboalignError:
        name, _, message = reply.partition(": ")
        kind = getattr(errors, name, None) if name in errors.__all__ else None
        text = f"the policy server at {self._url}: {message if kind else reply}"
        is_error = isinstance(kind, type) and issubclass(kind, RoboalignError)
        return kind(text) if is_error and kind is not None else BackendError(text)

    def _broken(self, err: Exception) -> BackendError:
        self.close()
        return BackendError(
            f"the policy server at {self._url} closed the connection ({err}); the next call opens another"
        )

    def _stranger(self, what: str) -> DataError:
        return DataError(f"what answers at {self._url} is not a policy server of roboalign ({what:.200})")

    def _too_slow(self, seconds: float) -> BackendError:
        return BackendError(
            f"the policy server at {self._url} did not answer within {seconds:.1f} s; it may be overloaded"
        )

    def _unreachable(self, what: str) -> BackendError:
        port = urlsplit(self._url).port
        return BackendError(
            f"there is no policy server at {self._url} ({what}); start one with `roboalign serve --port {port}`"
        )


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in ("ws", "wss") or not parts.hostname or port is None or extra:
        raise ConfigError(f"{url!r} is not the address of a policy server; give it as ws://host:port")
