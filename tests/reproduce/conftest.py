"""Evaluations for the fake program to hand out, and a study in a folder of the test."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "sdk" / "evaluation"))

from evaluation_fakes import LineScene, WalkSetup
from small_study import SCENES, Study

from roboalign.sdk.evaluation.rollouts import EvalConfig, evaluate

ROOM_HASH = "roboalign.reproduce.cache._room_hash"
"""Reads a whole room, seconds of CPU; `test_cache.py` looks at the real one."""


@pytest.fixture(scope="session", autouse=True)
def evaluations(tmp_path_factory: pytest.TempPathFactory):
    """What `roboalign eval` would write, for good and bad policies on the scenes of every seed."""
    root = tmp_path_factory.mktemp("evals")
    for name, step_m in (("good", 0.04), ("bad", 0.008)):
        for first in (0, SCENES):
            config = EvalConfig(out=root / f"{name}-{first}", episodes=SCENES, first_episode=first, films=0)
            evaluate(config, WalkSetup(step_m), LineScene())
    os.environ["FAKE_EVALS"] = str(root)
    yield
    del os.environ["FAKE_EVALS"]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    found = Study(tmp_path)
    monkeypatch.setenv("FAKE_LOG", str(found.log))
    monkeypatch.setattr(ROOM_HASH, str.upper)
    return found
