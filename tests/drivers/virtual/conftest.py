"""A virtual bus on a pseudo-terminal, served by a thread."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roboalign.drivers.virtual import VirtualBusConfig, VirtualBusServer, build_line

Serve = Callable[[VirtualBusConfig], VirtualBusServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers that end with the test, one at a time a port."""
    with contextlib.ExitStack() as stack:

        def start(config: VirtualBusConfig) -> VirtualBusServer:
            link = tmp_path / f"port{len(list(tmp_path.glob('*.ctl')))}"
            server = stack.enter_context(VirtualBusServer(build_line(config), link))
            thread = threading.Thread(target=server.serve, daemon=True)
            thread.start()
            stack.callback(thread.join, 10.0)
            stack.callback(server.stop)
            return server

        yield start
