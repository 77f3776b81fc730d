"""Breaks what runs beside the control loop, many times, and measures how soon the arm is held and what is reported.

    python benchmarks/control_faults.py --runs 20
    python benchmarks/control_faults.py --runs 200 --kinds killed,stopped

The arm is the SO-101's kinematics and limiter at 100 Hz, without a bus; commands are judged here, not by the limiter.
`held_ms` is the time from the fault to the first hold. Where a policy hangs or stalls inside an answer, or answers
numbers that are none, the actions that came before are still right: there it is the time from the last of them to the
hold. `clock-wall` and `clock-all` need libfaketime (apt install libfaketime): an hour ahead, the wall clock alone or
all clocks of the control process and its children. `disk` needs root, to mount a disk of 64 KiB.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import control_parts as parts
import numpy as np

from roboalign.sdk.control.channels import Channels
from roboalign.sdk.control.policy_process import PolicyProcess, PolicyRecipe
from roboalign.sdk.control.realtime import real_time
from roboalign.sdk.control.recorder import Recorder, RecorderConfig
from roboalign.sdk.control.tick import LoopSettings, RealTimeLoop
from roboalign.sdk.control.watchdog import Guard, WatchSettings

OUT = Path(__file__).resolve().parent / "evidence" / "control_faults.json"
KINDS = ("killed", "stopped", "hung", "nan", "stall", "camera", "disk", "clock-wall", "clock-all")
WANTED = {
    "killed": "watchdog",
    "stopped": "watchdog",
    "hung": "exhausted",
    "nan": "limiter",
    "stall": "exhausted",
    "camera": "stale_camera",
    "clock-all": "watchdog",
}
"""The reason that each fault must be given; the others must cost no motion."""
PICTURE_LIMIT_S = 0.08
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
TICKS = 220


def run_once(kind: str) -> dict[str, object]:
    """Runs for two seconds, with a fault after about 0.7 s."""
    spec = parts.arm_spec()
    channels = Channels(spec)
    arm = parts.MemoryArm(spec)
    do = {"hung": "hang", "nan": "nan", "stall": "stall"}.get(kind, "nothing")
    policy = PolicyProcess(PolicyRecipe(factory="control_parts:FaultyPolicy", settings={"do": do}), channels)
    policy.open("lift")
    pid = policy.pid
    watch = WatchSettings(max_picture_age_s=PICTURE_LIMIT_S if kind == "camera" else 0.5)
    loop = RealTimeLoop(Guard(arm), policy, channels, LoopSettings(park_after_s=60.0, watch=watch))
    fault_s = [float("nan")]

    def happen() -> None:
        time.sleep(0.7)
        fault_s[0] = time.monotonic()
        if kind in ("killed", "stopped"):
            os.kill(pid, signal.SIGKILL if kind == "killed" else signal.SIGSTOP)
        elif kind == "camera":
            arm.frozen_s = fault_s[0]
        elif kind.startswith("clock"):
            Path(os.environ["FAKETIME_TIMESTAMP_FILE"]).write_text("+3600\n")

    disturber = threading.Thread(target=happen)
    disturber.start()
    try:
        with real_time():
            report = loop.run("lift", max_ticks=TICKS)
    finally:
        disturber.join()
        policy.close()
        channels.close()
    return _judged(kind, arm, fault_s[0]) | {
        "reasons": dict(report.reasons),
        "refused": dict(report.chunks_refused),
        "misses": report.misses,
        "clock_jumps": report.clock_jumps,
        "is_said": report.reasons.get(WANTED[kind], 0) > 0 if kind in WANTED else True,
    }


def _judged(kind: str, arm: parts.MemoryArm, fault_s: float) -> dict[str, object]:
    acts = np.array([at_s for at_s, is_act, _ in arm.commands if is_act])
    holds = np.array([at_s for at_s, is_act, _ in arm.commands if not is_act])
    held_ms = None
    if kind in ("killed", "stopped", "camera"):
        held_ms = 1e3 * float(holds[holds >= fault_s][0] - fault_s)
        after = acts[acts > fault_s + held_ms / 1e3]
        held_ms = 1e3 * float(after[-1] - fault_s) if len(after) and kind != "camera" else held_ms
    elif kind in ("hung", "nan", "stall"):
        begins = [h for h in holds if len(acts) and h > acts[0]]
        last = acts[acts < begins[0]][-1]
        held_ms = 1e3 * float(begins[0] - last)
    return {"held_ms": held_ms, "outside_limits": arm.problems(), "commands": len(arm.commands)}


def run_disk() -> dict[str, object]:
    """Writes a trace to a disk that is full after half a second."""
    spec = parts.arm_spec()
    channels = Channels(spec)
    arm = parts.MemoryArm(spec)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
        try:
            policy = PolicyProcess(PolicyRecipe(factory="control_parts:FaultyPolicy"), channels)
            policy.open("lift")
            config = RecorderConfig(trace=Path(folder) / "run.jsonl", is_spoken=False)
            recorder = Recorder(channels, config)
            recorder.open("lift", parts.RATE_HZ)
            loop = RealTimeLoop(Guard(arm), policy, channels, LoopSettings(park_after_s=60.0))
            with real_time():
                report = loop.run("lift", max_ticks=TICKS)
            lost, problem = recorder.finish(report)
            policy.close()
        finally:
            subprocess.run(["umount", folder], check=True)
    channels.close()
    return {
        "held_ms": None,
        "outside_limits": arm.problems(),
        "commands": len(arm.commands),
        "reasons": dict(report.reasons),
        "misses": report.misses,
        "lost": lost,
        "is_said": "No space left" in problem,
    }


def run_clock(kind: str) -> dict[str, object]:
    """Runs in a process whose clock leaps."""
    with tempfile.TemporaryDirectory() as folder:
        stamp = Path(folder) / "stamp"
        stamp.write_text("+0\n")
        environment = os.environ | {
            "LD_PRELOAD": FAKETIME,
            "FAKETIME_TIMESTAMP_FILE": str(stamp),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1" if kind == "clock-wall" else "0",
        }
        command = [sys.executable, __file__, "--one", kind]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
        found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return found


def main() -> None:
    """Runs each kind in turn and sums up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--name", default="faults")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    parts.here()
    if given.one is not None:
        print(json.dumps(run_once(given.one)))
        return
    results: dict[str, list[dict[str, object]]] = {kind: [] for kind in given.kinds.split(",")}
    for number in range(given.runs):
        for kind, found in results.items():
            make = run_disk if kind == "disk" else partial(run_clock if "clock" in kind else run_once, kind)
            found.append(make())
            print(number, kind, json.dumps(found[-1]), file=sys.stderr)
    parts.write(OUT, given.name, {kind: _summary(found) for kind, found in results.items()})


def _summary(found: list[dict[str, object]]) -> dict[str, object]:
    held = [float(str(run["held_ms"])) for run in found if run["held_ms"] is not None]
    reasons: Counter[str] = Counter()
    for run in found:
        reasons.update(run["reasons"])  # type: ignore[arg-type]
    return {
        "runs": len(found),
        "held_ms": {"p50": round(float(np.median(held)), 2), "max": round(max(held), 2)} if held else None,
        "held_above_100_ms": sum(value > 100.0 for value in held),
        "commands": sum(int(str(run["commands"])) for run in found),
        "commands_outside_limits": sum(int(str(run["outside_limits"])) for run in found),
        "runs_with_the_reason": sum(bool(run["is_said"]) for run in found),
        "deadlines_missed": sum(int(str(run["misses"])) for run in found),
        "reasons": dict(reasons),
    }


if __name__ == "__main__":
    main()
