"""One simulation shared by a module's tests: building a client costs more than an episode's reset."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pybullet")
pytest.importorskip("gymnasium")

from roboalign.sdk.sim.env import SimEnv

sys.path.insert(0, str(Path(__file__).parent))  # for `fixture_scenes`


@pytest.fixture(scope="module")
def env() -> Iterator[SimEnv]:
    made = SimEnv()
    yield made
    made.close()
