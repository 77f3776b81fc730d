"""Trace, words and page of a run come from a process of their own; a full disk is said and costs no command."""

import dataclasses
import json
import os
import resource
import signal
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from tests.sdk.control.fake_process import Bench

from roboalign.sdk.control.live_page import PageConfig
from roboalign.sdk.control.loop_report import RunReport
from roboalign.sdk.control.policy_process import write_words
from roboalign.sdk.control.recorder import Recorder, RecorderConfig
from roboalign.sdk.control.run_page import write_run_page
from roboalign.sdk.control.session import page_config
from roboalign.sdk.control.trace import PARTIAL, TraceFile, read_trace
from roboalign.sdk.errors import ConfigError, DataError


@pytest.fixture
def bench(spec):
    bench = Bench(spec)
    yield bench
    bench.close()


def recorded(bench, ticks=60, **config) -> tuple[RunReport, int, str]:
    """Runs the loop on its fake clock beside a real recorder."""
    recorder = Recorder(bench.channels, RecorderConfig(policy="numbers", **config))
    recorder.open("push the cup", 10.0)
    report = bench.run(ticks)
    return report, *recorder.finish(report)


def test_every_period_and_every_chunk_is_in_the_trace(bench, tmp_path):
    report, lost, problem = recorded(bench, trace=tmp_path / "run.jsonl")
    trace = read_trace(tmp_path / "run.jsonl")
    assert (lost, problem, trace.lost) == (0, "", 0)
    assert [tick["tick"] for tick in trace.ticks] == list(range(60))
    assert [tick["reason"] for tick in trace.ticks].count("moving") == report.moved
    assert trace.ticks[0]["note"] == "the policy has not answered yet"
    assert len(trace.chunks) == report.chunks
    moved = [tick for tick in trace.ticks if tick["reason"] == "moving"]
    by_number = {chunk["answer"]: chunk for chunk in trace.chunks}
    assert all(tick["requested"] == by_number[tick["chunk"]]["actions"][tick["step"]] for tick in moved)
    assert trace.chunks[0]["thought"] == "thought 1"
    assert trace.report["moved"] == report.moved
    assert trace.spec == bench.robot.spec
    assert not (tmp_path / f"run.jsonl{PARTIAL}").exists()


def test_the_page_says_what_is_being_thought_until_it_is_acted_on(bench):
    """The recorder reads the newest words alone; those of a thought that a chunk has are not being written any more."""
    recorder = Recorder(bench.channels, RecorderConfig(page=PageConfig(port=0), is_spoken=False))
    url = recorder.open("push the cup", 10.0)

    def shown(name: str, wanted: str) -> str:
        for _ in range(100):
            with urllib.request.urlopen(url + "events", timeout=5) as stream:
                now = json.loads(stream.readline().removeprefix(b"data: "))
            if now[name] == wanted:
                break
            time.sleep(0.05)
        return now[name]

    for number in range(40):
        write_words(bench.channels, "thought 1"[: 1 + number // 4])
    assert shown("writing", "thought 1") == "thought 1"
    write_words(bench.channels, "though")
    assert shown("writing", "though") == "though"
    report = bench.run(4)
    assert shown("thought", "thought 1") == "thought 1"
    assert shown("writing", "though") == "though", "another one is being written"
    write_words(bench.channels, "thought 1")
    assert shown("writing", "") == ""
    recorder.finish(report)


def test_thoughts_and_reasons_go_to_the_terminal(bench, capfd):
    recorded(bench, ticks=12)
    said = capfd.readouterr().err
    assert "   0  does not move, warming: the policy has not answered yet" in said
    assert "thought 1" in said


def test_a_full_disk_is_said_and_the_trace_keeps_whole_lines(bench, tmp_path, capfd):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        recorder = Recorder(bench.channels, RecorderConfig(trace=tmp_path / "run.jsonl"))
        recorder.open("push the cup", 10.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    report = bench.run(400)
    time.sleep(0.1)
    lost, problem = recorder.finish(report)
    assert report.ticks == 400
    assert lost > 300
    assert "No space left" in problem
    assert "the trace is not complete" in capfd.readouterr().err
    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines)


def test_a_trace_that_cannot_be_opened_is_refused_before_anything_moves(bench, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the trace cannot be written"):
        Recorder(bench.channels, RecorderConfig(trace=tmp_path / "file" / "run.jsonl")).open("lift", 10.0)


def test_a_killed_recorder_costs_no_command_and_is_said(bench, tmp_path):
    recorder = Recorder(bench.channels, RecorderConfig(trace=tmp_path / "run.jsonl"))
    recorder.open("push the cup", 10.0)
    bench.process.at(1.0, lambda: os.kill(recorder.pid, signal.SIGKILL))
    report = bench.run(40)
    assert report.ticks == 40
    assert report.reasons == {"warming": 2}
    assert "ended without a word" in recorder.finish(report)[1]
    assert (tmp_path / f"run.jsonl{PARTIAL}").exists()


def test_what_the_ring_could_not_hold_is_counted(bench, tmp_path):
    recorder = Recorder(bench.channels, RecorderConfig(trace=tmp_path / "run.jsonl"))
    recorder.open("push the cup", 10.0)
    os.kill(recorder.pid, signal.SIGSTOP)
    report = bench.run(3000)
    os.kill(recorder.pid, signal.SIGCONT)
    lost, problem = recorder.finish(report)
    assert 500 < lost < 1500
    assert problem == "the recorder could not keep up"
    assert len(read_trace(tmp_path / "run.jsonl").ticks) + lost == 3000


def test_a_write_that_fails_leaves_whole_lines(tmp_path, monkeypatch):
    file = TraceFile(tmp_path / "run.jsonl")
    assert file.write(["{}"])
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
    assert not file.write(['{"tick": 1}'])
    monkeypatch.undo()
    assert file.write(['{"tick": 2}'])
    assert "No space left" in file.problem
    file.close()
    assert (tmp_path / "run.jsonl").read_text() == '{}\n{"tick": 2}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found no version"),
        ('{"roboalign_trace": 9}\n', "found 9"),
        ('{"roboalign_trace": 1}\nnonsense\n{"tick": 0}\n', "line 2"),
        ("[1]\n{}\n", "line 1 is list"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path, text, message):
    (tmp_path / "run.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_trace(tmp_path / "run.jsonl")


def test_the_report_is_a_page_that_stands_alone(bench, tmp_path):
    report, _, _ = recorded(bench, trace=tmp_path / "run.jsonl")
    report = dataclasses.replace(report, granted="fifo, memory locked", trace_problem="disk full")
    page = write_run_page(tmp_path / "run.html", report, "<numbers>", trace=tmp_path / "run.jsonl").read_text()
    assert "&lt;numbers&gt;" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    for text in ("warming", "thought 1", "fifo, memory locked", "disk full", "p99.9", "joints, rad"):
        assert text in page, text


@pytest.mark.parametrize("text", ["", "x", "host:", "99999999"])
def test_a_wrong_address_of_the_page_is_refused(text):
    with pytest.raises(ConfigError, match="expected PORT or HOST:PORT"):
        page_config(text, None)


def test_the_page_is_for_this_machine_unless_there_is_a_token():
    assert page_config("8360", None) == PageConfig(port=8360)
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0 can be reached by others"):
        page_config("0.0.0.0:8360", None)
    assert page_config("0.0.0.0:8360", "a" * 16).host == "0.0.0.0"
    assert page_config("[::1]:8360", None).host == "::1"


def test_a_taken_port_is_refused(bench):
    first = Recorder(bench.channels, RecorderConfig(page=PageConfig(port=0), is_spoken=False))
    port = int(first.open("lift", 10.0).split(":")[2].strip("/"))
    with pytest.raises(ConfigError, match="Address already in use"):
        Recorder(bench.channels, RecorderConfig(page=PageConfig(port=port))).open("lift", 10.0)
    first.finish(bench.run(5))


def test_the_recorder_ends_when_the_control_process_is_gone(bench, tmp_path):
    recorder = Recorder(bench.channels, RecorderConfig(trace=tmp_path / "run.jsonl", is_spoken=False))
    recorder.open("push the cup", 10.0)
    bench.run(20)
    recorder._child._socket.close()
    assert recorder._child._process.wait(5) == 0
    trace = read_trace(tmp_path / "run.jsonl")
    assert (len(trace.ticks), trace.report) == (20, {})
    recorder._child._socket = None


def test_numbers_survive_the_trace_exactly(bench, tmp_path):
    odd = np.float32(0.1) / np.float32(3.0)
    bench.robot.target[:] = odd
    bench.robot.target[2] = 1.0
    recorded(bench, ticks=5, trace=tmp_path / "run.jsonl")
    assert np.float32(read_trace(Path(tmp_path / "run.jsonl")).ticks[0]["targets"][0]) == odd
