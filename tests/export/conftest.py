"""The tiny random policy of `tests.bundles`, as fixtures."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.bundles import some_observations, tiny_bundle, tiny_run, write_run

from roboalign.export import ExportConfig, export
from roboalign.sdk.types import Observation


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Writes a checkpoint; `stage="sft"` has no head, `stage="base"` no codec either."""
    return write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def observations() -> list[Observation]:
    return some_observations()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny policy; read only."""
    return tiny_bundle(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def half_export(tmp_path_factory: pytest.TempPathFactory, run: Path) -> tuple[Path, list[str]]:
    """A portable bundle for boards, whose graphs compute in float16, and what its export said; read only."""
    folder, lines = tmp_path_factory.mktemp("half"), []
    config = ExportConfig(run=run, target="jetson", out=folder / "jetson")
    return export(config, observations=some_observations(), say=lines.append, root=folder), lines
