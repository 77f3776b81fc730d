"""The bundle that the examples act with here: a tiny random one, because what they show does not need a good one."""

from pathlib import Path

import pytest
from tests.bundles import tiny_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.getbasetemp())
