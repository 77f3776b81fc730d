"""A run is recorded for rerun by the recorder's process, and rerun's own reader finds everything of it again."""

import json
import os
import resource
import signal
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tests.sdk.control.fake_process import Bench

from roboalign.sdk.control import rerun_file
from roboalign.sdk.control.recorder import Recorder, RecorderConfig
from roboalign.sdk.control.session import SessionConfig
from roboalign.sdk.control.trace import PARTIAL, read_trace
from roboalign.sdk.errors import BackendError, ConfigError, RobotTimeout

needs_rerun = pytest.mark.rerun


@pytest.fixture
def bench(spec):
    bench = Bench(spec)
    yield bench
    bench.close()


def recorded(bench, path, ticks=150, **config):
    recorder = Recorder(bench.channels, RecorderConfig(policy="numbers", rerun=path, is_spoken=False, **config))
    recorder.open("push the cup", 10.0)
    report = bench.run(ticks, is_shown=True, is_traced=True)
    return report, *recorder.finish(report)


def rows(path, entity: str, component: str) -> list[tuple[float, int | None, object]]:
    """Seconds, period and value of each row, by rerun's reader."""
    from rerun.chunk import RrdReader

    found = []
    for chunk in RrdReader(path).stream():
        if chunk.entity_path == f"/{entity}" and not chunk.is_static:
            batch = chunk.to_record_batch().to_pydict()
            values = next(batch[name] for name in batch if name.endswith(component))
            periods = batch.get("period", [None] * len(values))
            found += [
                (time.total_seconds(), period, value)
                for time, period, value in zip(batch["run"], periods, values, strict=True)
            ]
    return sorted(found, key=lambda row: row[0])


def test_the_missing_package_is_refused_before_anything_is_started(monkeypatch, tmp_path):
    monkeypatch.setattr(rerun_file, "find_spec", lambda name: None)
    with pytest.raises(BackendError) as refused:
        SessionConfig(rerun=tmp_path / "run.rrd")
    assert str(refused.value) == (
        "--rerun needs the package 'rerun-sdk', which is not installed: pip install 'roboalign[rerun]'"
    )


def test_a_file_that_no_viewer_would_open_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(rerun_file, "find_spec", lambda name: "there")
    with pytest.raises(ConfigError, match=r"run\.jsonl, expected a file that ends in \.rrd"):
        SessionConfig(rerun=tmp_path / "run.jsonl")


def test_a_session_with_a_recording_reads_joints_and_pictures_all_the_time(monkeypatch, tmp_path):
    monkeypatch.setattr(rerun_file, "find_spec", lambda name: "there")
    config = SessionConfig(rerun=tmp_path / "run.rrd")
    assert (config.is_watched, config.is_written) == (True, True)
    assert (SessionConfig().is_watched, SessionConfig().is_written) == (False, False)


@needs_rerun
def test_what_is_recorded_is_what_the_trace_has(bench, tmp_path):
    path, read = tmp_path / "new" / "run.rrd", bench.robot.observe
    bench.robot.observe = lambda *args, **more: replace(
        read(*args, **more), joint_pos_rad=bench.robot.target + np.float32(0.05)
    )
    report, lost, problem = recorded(bench, path, trace=tmp_path / "run.jsonl")
    assert (lost, problem) == (0, "")
    assert not path.with_name(f"run.rrd{PARTIAL}").exists()
    trace = read_trace(tmp_path / "run.jsonl")
    times = [tick["time_s"] - 100.0 for tick in trace.ticks]
    for entity, field in (("joints/commanded_rad", "targets"), ("joints/measured_rad", "measured")):
        found = rows(path, entity, "scalars")
        assert [row[1] for row in found] == list(range(150))
        assert [row[0] for row in found] == pytest.approx(times, abs=1e-5)
        assert np.array([row[2] for row in found]) == pytest.approx(np.array([t[field] for t in trace.ticks]))
    late = rows(path, "latency_ms/late", "scalars")
    assert [row[2][0] for row in late] == pytest.approx([1e3 * t["lateness_s"] for t in trace.ticks], abs=1e-3)
    answers = rows(path, "latency_ms/answer", "scalars")
    assert len(answers) == len(trace.chunks) == report.chunks
    assert [row[2][0] for row in answers] == pytest.approx(
        [1e3 * (chunk["computed_s"] - chunk["observed_s"]) for chunk in trace.chunks]
    )
    thoughts = [row[2][0] for row in rows(path, "thought", "text")]
    assert thoughts == [chunk["thought"] for chunk in trace.chunks]


@needs_rerun
def test_pictures_and_the_tool_are_recorded_when_they_were_seen(bench, tmp_path):
    read = bench.robot.observe

    def observe(instruction="", with_images=True):
        seen = read(instruction, with_images)
        seen.state[:] = 0.5
        seen.images["front"][:] = 200
        return seen

    bench.robot.observe = observe
    recorded(bench, tmp_path / "run.rrd", ticks=20)
    tool, pictures = rows(tmp_path / "run.rrd", "tool", "scalars"), rows(tmp_path / "run.rrd", "cameras/front", "blob")
    assert all(0.0 <= time_s < 2.0 and period is None for time_s, period, _ in tool)
    assert all(row[2] == [0.5] * 5 for row in tool)
    assert [row[0] for row in pictures] == [row[0] for row in tool]
    assert len(pictures) >= 2
    for _, _, blob in pictures:
        image = np.asarray(Image.open(BytesIO(bytes(blob[0]))))
        assert image.shape == (16, 16, 3)
        assert np.abs(image.astype(int) - 200).max() <= 3


@needs_rerun
def test_a_picture_that_is_seen_twice_is_recorded_once(bench, tmp_path):
    """A camera is slower than the policy's questions."""
    ring, read = bench.channels.pictures["front"], bench.robot.observe
    ring.lend()[:] = 7
    shown = ring.show()
    bench.robot.observe = lambda *args, **more: replace(read(*args, **more), images={"front": shown})
    recorded(bench, tmp_path / "run.rrd", ticks=20)
    assert len(rows(tmp_path / "run.rrd", "tool", "scalars")) > 1
    assert len(rows(tmp_path / "run.rrd", "cameras/front", "blob")) == 1


@needs_rerun
def test_reasons_are_recorded_with_their_type_when_they_change(bench, tmp_path):
    bench.process.at(1.0, lambda: bench.robot.broken.update(observe=RobotTimeout("no joints")))
    bench.process.at(2.0, lambda: bench.robot.broken.clear())
    recorded(bench, tmp_path / "run.rrd", ticks=40)
    reasons = rows(tmp_path / "run.rrd", "reason", "text")
    texts = [row[2][0] for row in reasons]
    assert texts[:2] == ["warming: the policy has not answered yet", "moving"]
    assert "disconnected: no joints" in texts
    assert texts[-1] == "moving"
    assert reasons[0][1] == 0
    levels = [row[2][0] for row in rows(tmp_path / "run.rrd", "reason", "level")]
    assert [level == "INFO" for level in levels] == [text.startswith("moving") for text in texts]


@needs_rerun
def test_a_recording_that_cannot_be_opened_is_refused_before_anything_moves(bench, tmp_path):
    (tmp_path / "file").write_text("")
    recorder = Recorder(bench.channels, RecorderConfig(rerun=tmp_path / "file" / "run.rrd"))
    with pytest.raises(ConfigError, match="the rerun recording cannot be written"):
        recorder.open("lift", 10.0)


@needs_rerun
def test_a_full_disk_is_said_and_the_file_keeps_its_temporary_name(bench, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        recorder = Recorder(bench.channels, RecorderConfig(rerun=tmp_path / "run.rrd", is_spoken=False))
        recorder.open("push the cup", 10.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    report = bench.run(800, is_shown=True)
    _, problem = recorder.finish(report)
    assert report.ticks == 800
    assert f"run.rrd{PARTIAL}" in problem
    assert [file.name for file in tmp_path.iterdir()] == [f"run.rrd{PARTIAL}"]


@needs_rerun
def test_a_killed_recorder_leaves_the_temporary_name(bench, tmp_path):
    recorder = Recorder(bench.channels, RecorderConfig(rerun=tmp_path / "run.rrd"))
    recorder.open("push the cup", 10.0)
    bench.process.at(1.0, lambda: os.kill(recorder.pid, signal.SIGKILL))
    report = bench.run(40)
    assert report.ticks == 40
    assert "ended without a word" in recorder.finish(report)[1]
    assert [file.name for file in tmp_path.iterdir()] == [f"run.rrd{PARTIAL}"]


@needs_rerun
def test_who_did_what_is_in_the_recording(bench, tmp_path):
    from rerun.chunk import RrdReader

    recorded(bench, tmp_path / "run.rrd", ticks=10)
    text = json.dumps(
        [chunk.to_record_batch().to_pydict() for chunk in RrdReader(tmp_path / "run.rrd").stream()], default=str
    )
    for expected in ("push the cup", "numbers", "max_ticks", "tool_x_m"):
        assert expected in text
