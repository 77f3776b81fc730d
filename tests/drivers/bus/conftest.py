"""Buses on servos in memory, one of each protocol."""

import pytest
from tests.drivers.bus.bench import Bench

from roboalign.drivers.bus.dynamixel import Dynamixel
from roboalign.drivers.bus.feetech import Feetech


@pytest.fixture(params=["feetech", "dynamixel"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(Feetech() if request.param == "feetech" else Dynamixel())


@pytest.fixture
def feetech() -> Bench:
    return Bench(Feetech())


@pytest.fixture
def dynamixel() -> Bench:
    return Bench(Dynamixel())
