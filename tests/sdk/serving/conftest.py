"""Makes the fakes of the evaluation importable, and serves policies."""

import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))


@pytest.fixture
def run_server():
    """Starts servers, waits until they are warm unless told otherwise, and stops them at the end."""
    from roboalign.sdk.serving.server import PolicyServer

    running = []

    def run(*args, is_warm=True):
        server = PolicyServer(*args).open()
        thread = threading.Thread(target=server.serve)
        thread.start()
        running.append((server, thread))
        if is_warm:
            assert server._is_decided.wait(10)
        return server

    yield run
    for server, thread in running:
        server.close()
        thread.join(timeout=10)
        assert not thread.is_alive()
