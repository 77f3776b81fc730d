"""Measures the control loop beside a policy's process: lateness under load, transport, memory.

    python benchmarks/control_loop.py tick --rounds 5 --ticks 1000     # all designs, interleaved
    python benchmarks/control_loop.py tick --designs product --ticks 100000 --rounds 1
    python benchmarks/control_loop.py transport                       # two VGA pictures to an echo policy
    python benchmarks/control_loop.py memory                          # 100,000 periods on a fake clock

`tick` runs 100 Hz beside the shipped SO-101 policy, which computes without a pause. Designs: `product` is ours with
what the system grants; `product-normal` is ours without real-time priority; `thread` computes in a thread of the
control process with absolute deadlines, the pattern of the runtimes that we know (LeRobot's rtc.py); `thread-torch`
the same with PyTorch instead of onnxruntime. A reference timer of a higher real-time priority, in a process of its
own, waits for the same deadlines on the same processor: where it is late too, the machine was. Needs root for both.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import nullcontext
from pathlib import Path

import control_parts as parts
import numpy as np
from array_count import check, count_arrays

from roboalign.sdk.control.channels import Channels
from roboalign.sdk.control.chunk_writer import ChunkWriter
from roboalign.sdk.control.clock import FakeClock, MonotonicClock
from roboalign.sdk.control.policy_process import PolicyProcess, PolicyRecipe
from roboalign.sdk.control.realtime import real_time
from roboalign.sdk.control.records import CHUNK, fields_of
from roboalign.sdk.control.rings import share, shared_memory
from roboalign.sdk.control.tick import LoopSettings, RealTimeLoop
from roboalign.sdk.control.watchdog import Guard, WatchSettings

OUT = Path(__file__).resolve().parent / "evidence" / "control_loop.json"
DESIGNS = ("product", "product-normal", "thread", "thread-torch")
REFERENCE_PRIORITY = 50
CORE = max(os.sched_getaffinity(0))
"""Where the reference and a loop of real-time priority wait, so that what stalls this processor stalls both."""
STALL_S = 1e-3


class Reference:
    """A timer of a higher priority that waits for the same deadlines."""

    def __init__(self, ticks: int) -> None:
        self.ticks = ticks
        self._fd = share(_times(ticks).itemsize)
        self.memory = shared_memory(self._fd, _times(ticks))
        self.memory["late_s"][0][:] = np.nan
        code = f"import control_loop; control_loop.keep_time({self._fd}, {ticks})"
        here = Path(__file__).resolve().parent
        self.process = subprocess.Popen([sys.executable, "-c", code], pass_fds=(self._fd,), cwd=here)

        while not self.memory["is_ready"][0]:
            time.sleep(0.01)

    def start(self, start_s: float) -> None:
        """Says when the first deadline was."""
        self.memory["start_s"][0] = start_s

    def late_s(self) -> np.ndarray:
        """Waits for the last deadline and returns how late each one was."""
        self.process.wait()
        return np.array(self.memory["late_s"][0])


def _times(ticks: int) -> np.dtype[np.void]:
    return np.dtype([("is_ready", "<u8"), ("start_s", "<f8"), ("late_s", "<f8", (ticks,))])


def keep_time(fd: int, ticks: int) -> None:
    """The reference's process."""
    memory = shared_memory(fd, _times(ticks))
    os.sched_setaffinity(0, {CORE})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REFERENCE_PRIORITY))
    gc.disable()
    parent = os.getppid()
    memory["is_ready"][0] = 1
    while memory["start_s"][0] == 0.0:
        time.sleep(0.001)
        if os.getppid() != parent:
            return
    start_s, late_s = float(memory["start_s"][0]), memory["late_s"][0]
    for tick in range(ticks):
        due_s = start_s + tick / parts.RATE_HZ
        left_s = due_s - time.monotonic()
        if left_s > 0:
            time.sleep(left_s)
        late_s[tick] = time.monotonic() - due_s
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # its end must not take the processor from the loop


def run_product(ticks: int, *, is_real_time: bool) -> dict[str, object]:
    """Our loop beside the policy's process."""
    spec = parts.arm_spec()
    channels = Channels(spec)
    policy = PolicyProcess(PolicyRecipe(factory="control_parts:BusyPolicy"), channels)
    policy.open("put the red block in the blue bowl")
    reference = Reference(ticks)
    time.sleep(1.0)
    late_s, wake_s = np.full(ticks, np.nan), np.full(ticks, np.nan)
    loop = RealTimeLoop(
        Guard(parts.MemoryArm(spec)),
        policy,
        channels,
        LoopSettings(park_after_s=1e9, early_s=5e-4, watch=WatchSettings()),
    )
    row = np.zeros(1, channels.ticks.record)

    def note() -> bool:
        """Keeps the newest period; the first tells where the deadlines lie."""
        channels.ticks.copy(row)
        due = int(row["due"][0])
        if due == 0:
            reference.start(float(row["time_s"][0] - row["stages_s"][0][2] - row["lateness_s"][0]))
        if due < ticks:
            late_s[due], wake_s[due] = row["lateness_s"][0], row["stages_s"][0][0]
        return False

    granted = "nothing was asked for"
    if is_real_time:
        os.sched_setaffinity(0, {CORE})
    with real_time() if is_real_time else nullcontext() as got:
        granted = str(got) if got is not None else granted
        report = loop.run("lift", max_ticks=ticks, until=note, granted=granted)
    policy.close()
    channels.close()
    busy = report.answer_s.p50 * report.chunks / report.duration_s
    reference_s = reference.late_s()
    return _judged(late_s, reference_s, granted) | {
        "wake": _percentiles(wake_s),
        "wake_over_reference": _percentiles(np.maximum(0.0, wake_s - np.maximum(reference_s, 0.0))),
        "misses": report.misses,
        "busy": round(busy, 3),
        "moved": report.moved,
        "reasons": dict(report.reasons),
    }


def run_thread(ticks: int, backend: str) -> dict[str, object]:
    """The policy in a thread of the control process, absolute deadlines, normal priority."""
    policy = parts.BusyPolicy(backend)
    spec = parts.arm_spec()
    arm = parts.MemoryArm(spec)
    newest, is_over, answers = [parts.swing(16)], threading.Event(), [0]

    def compute() -> None:
        while not is_over.is_set():
            newest[0] = policy.act(arm.observe("put the red block in the blue bowl")).actions
            answers[0] += 1

    compute_ = threading.Thread(target=compute)
    reference = Reference(ticks)
    time.sleep(1.0)
    compute_.start()
    time.sleep(0.5)
    late_s = np.full(ticks, np.nan)
    start_s = time.monotonic() + 0.05
    reference.start(start_s)
    tick, misses = 0, 0
    while tick < ticks:
        due_s = start_s + tick / parts.RATE_HZ
        left_s = due_s - time.monotonic()
        if left_s > 0:
            time.sleep(left_s)
        action = newest[0][tick % 16]
        late_s[tick] = time.monotonic() - due_s
        arm.act(action)
        behind = int((time.monotonic() - start_s) * parts.RATE_HZ) - tick
        misses += max(0, behind)
        tick += 1 + max(0, behind)
    is_over.set()
    compute_.join()
    return _judged(late_s, reference.late_s(), "nothing was asked for") | {"misses": misses, "answers": answers[0]}


def _judged(late_s: np.ndarray, reference_s: np.ndarray, granted: str) -> dict[str, object]:
    over_s = np.maximum(0.0, late_s - np.maximum(reference_s, 0.0))
    is_stalled = np.convolve(reference_s > STALL_S, np.ones(3), "same") > 0  # a stall reaches its neighbours
    is_late = late_s > STALL_S
    return {
        "granted": granted,
        "ticks": len(late_s),
        "late": _percentiles(late_s),
        "reference": _percentiles(reference_s),
        "over_reference": _percentiles(over_s),
        "above_1_ms": int(np.nansum(is_late)),
        "above_1_ms_without_stall": int(np.nansum(is_late & ~is_stalled)),
        "reference_above_1_ms": int(np.nansum(reference_s > STALL_S)),
    }


def _percentiles(values_s: np.ndarray) -> dict[str, float]:
    found = values_s[np.isfinite(values_s)] * 1e3
    names = {"min_ms": 0, "p50_ms": 50, "p99_ms": 99, "p999_ms": 99.9, "max_ms": 100}
    return {name: round(float(np.percentile(found, at)), 4) for name, at in names.items()} | {"count": len(found)}


def measure_tick(designs: list[str], rounds: int, ticks: int, name: str) -> None:
    """Runs the designs in turn, each in a process of its own, and compares medians over rounds."""
    results: dict[str, list[dict[str, object]]] = {design: [] for design in designs}
    for number in range(rounds):
        for design in designs[number % len(designs) :] + designs[: number % len(designs)]:
            command = [sys.executable, __file__, "one", "--designs", design, "--ticks", str(ticks)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[design].append(json.loads(done.stdout.splitlines()[-1]))
            print(number, design, done.stdout.splitlines()[-1], file=sys.stderr)
    p99 = {d: [r["late"]["p99_ms"] for r in each] for d, each in results.items()}  # type: ignore[index]
    base = designs[0]
    ratios = {
        design: sorted(round(a / b, 4) for a, b in zip(p99[base], p99[design], strict=True))
        for design in designs
        if design != base
    }
    normal = {}
    if "product-normal" in designs and "thread" in designs:
        normal = {
            design: sorted(round(a / b, 4) for a, b in zip(p99["product-normal"], p99[design], strict=True))
            for design in designs
            if design.startswith("thread")
        }
    medians = {design: statistics.median(each) for design, each in p99.items()}
    summary = {"p99_ms_median": medians, f"p99_of_{base}_over": ratios, "p99_of_product-normal_over": normal}
    parts.write(OUT, name, {"summary": summary, "rounds": results})


def measure_transport(calls: int) -> None:
    """An observation with two VGA pictures to an echo policy and its chunk back; beside a pipe that pickles.

    From where the robot was read: `in place`, when the cameras have written their pictures into lent places already;
    `copied`, when the control process copies them first. As in `RealTimeLoop`, the question is announced before the
    wait for the deadline, the command and the reading; `unannounced` leaves that out. Once as it runs, where nothing is
    announced; once with the control process in real-time priority, as in a run; and once with all three processes in
    it, where other load on the machine is out.
    """
    cameras, size = ("front", "wrist"), 554  # 2 x 554 x 554 x 3 bytes are those of two 640 x 480 pictures
    spec = parts.arm_spec(cameras=cameras, size_px=size)
    channels = Channels(spec)
    settings = {"cameras": list(cameras), "size_px": size}
    policy = PolicyProcess(PolicyRecipe(factory="control_parts:EchoPolicy", settings=settings), channels)
    policy.open("lift")
    ours, theirs = multiprocessing.Pipe()
    peer = multiprocessing.get_context("fork").Process(target=_answer_pickled, args=(theirs,))
    peer.start()
    trips = RoundTrips(channels, policy, ours)
    found = {"as it runs": trips.measure(calls)}
    with real_time():
        found["control in real-time priority"] = trips.measure(calls)
    for pid in (policy.pid, peer.pid):
        os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))
    with real_time():
        found["in real-time priority"] = trips.measure(calls)
    ours.send(None)
    peer.join()
    policy.close()
    channels.close()
    parts.write(OUT, "transport", {"bytes": 2 * size * size * 3, **found})


class RoundTrips:
    """The control process's side of what is measured, as `RealTimeLoop` and `Answers` do it."""

    def __init__(self, channels: Channels, policy: PolicyProcess, pipe) -> None:  # type: ignore[no-untyped-def]
        self._channels, self._policy, self._pipe = channels, policy, pipe
        self._arm, self._action, self._clock = parts.MemoryArm(channels.spec), parts.swing(16)[0], MonotonicClock()
        self._early_s = LoopSettings.for_policy(parts.policy_spec(parts.RATE_HZ, (), 96), 0.0).early_s
        self._pictures = tuple(enumerate(channels.pictures.values()))
        self._named = {id(record): fields_of(record) for record in channels.observations.records}
        self._question, self._chunk = channels.board["question"], np.zeros(1, CHUNK)
        self._bytes = self._chunk.view(np.uint8)
        size = channels.spec.image_size_px
        self._seen = [np.full((size, size, 3), index, np.uint8) for index, _ in self._pictures]

    def measure(self, calls: int) -> dict[str, object]:
        """Takes the ways in turn."""
        names = ("in place", "in place, unannounced", "copied", "of it copying", "pipe_and_pickle")
        taken_s: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(calls):
            taken_s["in place"].append(self._ask(self._written()))
            taken_s["in place, unannounced"].append(self._ask(self._written(), is_announced=False))
            taken_s["copied"].append(self._ask(self._seen))
            taken_s["of it copying"].append(self._copied_s)
            start_s = time.perf_counter()
            self._pipe.send({"images": self._seen, "state": np.zeros(5, np.float32)})
            self._pipe.recv()
            taken_s["pipe_and_pickle"].append(time.perf_counter() - start_s)
            time.sleep(0.002)
        ratio = statistics.median(taken_s["pipe_and_pickle"]) / statistics.median(taken_s["in place"])
        return {name: _percentiles(np.array(each)) for name, each in taken_s.items()} | {
            "ratio_of_medians": round(ratio, 2)
        }

    def _written(self) -> list[np.ndarray | None]:
        """Pictures that a camera has written where they are read; a picture a period, as they come."""
        seen = [ring.look(ring.put(self._seen[index])) for index, ring in self._pictures]
        time.sleep(0.002)
        return seen

    def _ask(self, images: list[np.ndarray | None], *, is_announced: bool = True) -> float:
        channels, chunks = self._channels, self._channels.chunks
        before = chunks.newest
        if is_announced:
            self._policy.announce()
        self._clock.spin_until(self._clock.now() + self._early_s)
        self._arm.act(self._action)
        self._arm.observe("lift", with_images=False)
        start_s = time.perf_counter()
        record = channels.observations.begin()
        row = self._named[id(record)]
        row["time_s"][0] = time.monotonic()
        for index, ring in self._pictures:
            row["pictures"][index] = ring.put(images[index])
        sequence = channels.observations.commit()
        self._copied_s = time.perf_counter() - start_s
        self._question[0] = sequence
        self._policy.ask()
        while chunks.newest == before:
            pass
        assert chunks.copy(self._bytes)
        taken_s = time.perf_counter() - start_s
        assert self._chunk["observation"][0] == sequence
        assert self._chunk["steps"][0] == 16, "answered, and not held"
        time.sleep(0.002)
        return taken_s


def _answer_pickled(pipe: object) -> None:
    while pipe.recv() is not None:  # type: ignore[attr-defined]
        pipe.send(parts.swing(16))  # type: ignore[attr-defined]


class InlinePolicy(FakeClock):
    """A clock with a policy that answers 20 ms after it was asked; keeps nothing."""

    is_alive = True

    def __init__(self, channels: Channels) -> None:
        super().__init__(100.0)
        self._channels, self._due_s = channels, float("inf")
        self._chunk = parts.EchoPolicy().act(None)  # type: ignore[arg-type]
        self._seen = np.zeros(1, channels.observations.record)
        self._chunks = ChunkWriter(channels.chunks)

    def announce(self) -> None:
        """Needs no time to get ready."""

    def ask(self) -> None:
        """Is asked."""
        self._due_s = self.now() + 0.02

    def sleep_until(self, time_s: float) -> None:
        """Moves the clock, and answers when the time has come."""
        super().sleep_until(time_s)
        self._channels.board["policy_beat_s"][0] = self.now()
        if time_s >= self._due_s:
            self._due_s = float("inf")
            sequence = self._channels.observations.copy(self._seen)
            self._chunks.put(self._chunk, sequence, self._seen)
            self._channels.board["answered"][0] = sequence


class StillArm(parts.MemoryArm):
    """Does without kinematics: the loop alone is measured."""

    def __init__(self, spec, clock) -> None:  # type: ignore[no-untyped-def]
        super().__init__(spec, clock)
        self._applied, self._seen = super().hold(), super().observe("lift")

    def act(self, action):  # type: ignore[no-untyped-def]
        """Stays."""
        return self._applied

    def hold(self):  # type: ignore[no-untyped-def]
        """Stays."""
        return self._applied

    def observe(self, instruction: str = "", with_images: bool = True):  # type: ignore[no-untyped-def]
        """Returns the same observation again, of now."""
        object.__setattr__(self._seen, "time_s", self._clock())
        return self._seen


def measure_memory(ticks: int) -> None:
    """Memory over many periods: what stays, and, over fewer, how much a period takes and gives back, and its arrays.

    Arrays are counted by file, from the making of the rings on (`rings.py`, `answers.py`: once, not a period); those of
    `policy_process.py` and `records.py` are the policy's, which answers in here.
    """
    check()
    found = {}
    for name, kind in (("loop", StillArm), ("loop and kinematics", parts.MemoryArm)):
        resident = _run_inline(kind, ticks, lambda: _resident())
        tracemalloc.start()
        transient = _run_inline(kind, 3000, _transient)
        tracemalloc.stop()
        with count_arrays() as places:
            _run_inline(kind, 3000, lambda: 0)
        found[name] = {
            "ticks": ticks,
            "grown_resident_bytes": int(resident[-1] - resident[ticks // 10]),
            "transient_bytes": {f"p{at}": int(np.percentile(transient[1000:], at)) for at in (50, 99, 100)},
            "arrays_a_period": {
                Path(place).name: count / 3000 for place, count in places.items() if "roboalign/sdk" in place
            },
            "a_picture_has_bytes": parts.arm_spec().image_size_px ** 2 * 3,
        }
    parts.write(OUT, "memory", found)


def _run_inline(kind, ticks: int, measure) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Runs on a fake clock and returns what was measured after each period."""
    channels = Channels(parts.arm_spec())
    policy = InlinePolicy(channels)
    arm = kind(channels.spec, policy.now)
    values, number = np.full(ticks, -1, np.int64), [0]  # every page touched: it must not grow while it is filled

    def note() -> bool:
        arm.commands.clear()
        values[number[0]] = measure()
        number[0] += 1
        return False

    loop = RealTimeLoop(Guard(arm), policy, channels, LoopSettings(park_after_s=1e9), policy)
    gc.collect()
    loop.run("lift", max_ticks=ticks, until=note)
    channels.close()
    return values


def _transient() -> int:
    current, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    return peak - current


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Measures what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tick", "one", "transport", "memory"))
    parser.add_argument("--designs", default=",".join(DESIGNS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ticks", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--name", default="tick")
    given = parser.parse_args()
    parts.here()
    designs = given.designs.split(",")
    if given.what == "tick":
        measure_tick(designs, given.rounds, given.ticks, given.name)
    elif given.what == "transport":
        measure_transport(given.calls)
    elif given.what == "memory":
        measure_memory(given.ticks if given.ticks != 1000 else 100_000)
    elif designs[0].startswith("product"):
        print(json.dumps(run_product(given.ticks, is_real_time=designs[0] == "product")))
    else:
        print(json.dumps(run_thread(given.ticks, "torch" if designs[0] == "thread-torch" else "cpu")))


if __name__ == "__main__":
    main()
