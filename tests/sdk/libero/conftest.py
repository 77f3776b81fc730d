import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roboalign.sdk.libero.client import LiberoClient
from roboalign.sdk.libero.env import LiberoEnv

FAKE = Path(__file__).with_name("fake_benchmark.py")


def fake_client(misbehaviour: str = "", timeout_s: float = 20.0) -> LiberoClient:
    command = [sys.executable, str(FAKE), *([misbehaviour] if misbehaviour else [])]
    return LiberoClient(command, request_timeout_s=timeout_s, env={"PYTHONPATH": os.pathsep.join(sys.path)})


@pytest.fixture
def make_client() -> Iterator[Callable[..., LiberoClient]]:
    made: list[LiberoClient] = []

    def make(misbehaviour: str = "", timeout_s: float = 20.0) -> LiberoClient:
        made.append(fake_client(misbehaviour, timeout_s))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    with LiberoEnv("libero_object", image_size_px=24, make_client=fake_client) as opened:
        yield opened
