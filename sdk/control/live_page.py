"""The live page of a run: camera, thought, joints, latency and a stop button, in any browser, without the network.

    GET  /               the page
    GET  /events         what `LiveState.snapshot` returns, ten times a second (server-sent events)
    GET  /camera/NAME    the newest picture, as JPEG
    POST /stop           the arm holds until the run ends; needs the header `X-Roboalign: stop`

It listens to this machine alone unless a token is given, which the address must then carry (`?token=...`); there is no
encryption. A request for another host is refused, so that no page from elsewhere can speak for this one, and so is a
stop without the header, which such a page cannot send.
"""

from __future__ import annotations

import hmac
import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from urllib.parse import parse_qs, quote, unquote, urlsplit

from roboalign.sdk.control.live_state import LiveState
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.serving.server import ServerConfig, is_loopback

__all__ = ["LivePage", "PageConfig"]

_EVERY_S = 0.1
_TIMEOUT_S = 10.0
_MAX_READERS = 8
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PageConfig:
    """Where the page is served."""

    host: str = "127.0.0.1"
    """Address to listen at; anything but this machine's own needs a token."""
    port: int = 8360
    """Port; 0 lets the system choose one."""
    token: str | None = None
    """What the address must carry; None lets everybody in who reaches it."""

    def __post_init__(self) -> None:
        ServerConfig(host=self.host, port=self.port, token=self.token)  # the same rules as for a served policy


class LivePage:
    """Serves the page from threads of this process until `close`."""

    def __init__(self, state: LiveState, config: PageConfig) -> None:
        """Binds the port.

        Raises:
            ConfigError: It is taken.
        """
        self._config = config

        class Handler(_Handler):
            pass

        Handler.state, Handler.config, Handler.readers = state, config, threading.BoundedSemaphore(_MAX_READERS)
        try:
            self._server = ThreadingHTTPServer((config.host, config.port), Handler)
        except OSError as err:
            raise ConfigError(
                f"the live page cannot be served at {config.host}:{config.port} ({err.strerror}); choose another --page"
            ) from err
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Address for a browser."""
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        query = "" if self._config.token is None else f"?token={quote(self._config.token)}"
        return f"http://{host}:{self._server.server_address[1]}/{query}"

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    state: LiveState
    config: PageConfig
    readers: threading.BoundedSemaphore
    server_version = "roboalign"
    sys_version = ""
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        """Answers a page, its events or a picture."""
        path = self._admitted()
        if path == "/":
            self._send(_page(), "text/html; charset=utf-8")
        elif path == "/events":
            self._stream()
        elif path is not None and path.startswith("/camera/"):
            picture = self.state.picture(unquote(path.removeprefix("/camera/")))
            if picture is None:
                self.send_error(HTTPStatus.NOT_FOUND)
            else:
                self._send(picture, "image/jpeg")
        elif path is not None:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """Takes a stop."""
        path = self._admitted()
        if path is None:
            return
        if path != "/stop" or self.headers.get("X-Roboalign") != "stop":
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        self.state.stop()
        self._send(b"stopped", "text/plain")

    def _admitted(self) -> str | None:
        """Returns the path of a request that may be answered; answers every other."""
        parts = urlsplit(self.path)
        host = urlsplit("//" + self.headers.get("Host", "")).hostname or ""
        if self.config.token is not None:
            given = parse_qs(parts.query).get("token", [""])[0]
            if not hmac.compare_digest(given.encode(), self.config.token.encode()):
                self.send_error(HTTPStatus.UNAUTHORIZED)
                return None
        elif not is_loopback(host):
            self.send_error(HTTPStatus.FORBIDDEN)
            return None
        return parts.path

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body)

    def _stream(self) -> None:
        if not self.readers.acquire(blocking=False):
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        try:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            while True:
                self.wfile.write(f"data: {json.dumps(self.state.snapshot())}\n\n".encode())
                time.sleep(_EVERY_S)
        except OSError:
            return
        finally:
            self.readers.release()

    def log_message(self, *arguments: object) -> None:
        """Says nothing: the terminal belongs to the run."""


def _page() -> bytes:
    return resources.files("roboalign.sdk.control").joinpath("live.html").read_bytes()
