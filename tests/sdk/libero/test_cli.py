import json
from pathlib import Path

import pytest

from roboalign.cli.main import main
from roboalign.sdk.data.lerobot import LeRobotDataset
from roboalign.sdk.libero import demonstrations, replay
from roboalign.sdk.libero.env import LiberoEnv


@pytest.fixture
def made_up_world(env: LiberoEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the verbs open the made-up world; closing it is left to the fixture."""
    monkeypatch.setattr(env, "close", lambda: None)
    for module in (demonstrations, replay):
        monkeypatch.setattr(module, "open_env", lambda *args, **settings: env)


@pytest.mark.usefixtures("made_up_world")
def test_demonstrations_of_all_ten_tasks_are_recorded_and_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demos"
    assert main(["libero", "collect", "--episodes", "1", "--image-every", "0", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert LeRobotDataset(out).num_episodes == 10
    assert main(["libero", "replay", str(out), "--every", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["share"] == 1.0


def test_tasks_are_listed_without_the_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["libero", "tasks", "--suite", "libero_spatial"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_without_the_benchmark_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROBOALIGN_LIBERO", str(tmp_path))
    assert main(["libero", "collect", "--tasks", "milk", "--out", str(tmp_path / "demos")]) == 2
    assert "run 'roboalign libero setup'" in capsys.readouterr().err
