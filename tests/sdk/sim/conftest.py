"""One simulation shared by a module's tests: building a client costs more than an episode's reset."""

from collections.abc import Iterator

import pytest

pytest.importorskip("pybullet")
pytest.importorskip("gymnasium")

from roboalign.sdk.sim.env import SimEnv


@pytest.fixture(scope="module")
def env() -> Iterator[SimEnv]:
    made = SimEnv()
    yield made
    made.close()
