"""One simulation shared by a module's tests, for those that play."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from roboalign.sdk.sim.env import SimEnv


@pytest.fixture(scope="module")
def env() -> Iterator["SimEnv"]:
    pytest.importorskip("pybullet")
    from roboalign.sdk.sim.env import SimEnv

    made = SimEnv()
    yield made
    made.close()
