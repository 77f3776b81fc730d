"""Measures our bus against the vendors' packages and LeRobot on the same pseudo-terminal servos, and soaks it.

    python benchmarks/bus.py                          # no wire time, then a calibrated 1 Mbaud wire
    python benchmarks/bus.py --busy 2                 # the same beside two processes that never pause
    python benchmarks/bus.py --busy 2 --as-owner      # ours in the priority that the bus process of an arm asks for
    python benchmarks/bus.py --lerobot VENV/bin/python   # LeRobot too; needs its own Python 3.12
    python benchmarks/bus.py --soak 1000000           # in memory, one answer in a hundred spoiled

Each client reads `present_position` of 6 servos by sync read, in a process and on a port of its own; all ports are
served by one process. Rounds of `--block` calls go round robin, so that whatever else the machine does hits all alike.
Ratios are of the same round; the spread is the 10th to the 90th percentile of rounds. CPU is the client's
`process_time`. With `--busy 0` the machine is as busy as it is: /proc/loadavg is printed with the result.

Servos do not wait for the host's processor: the server has real-time priority where it may (root), else it competes.
Every register that is read holds the time at which the server saw the question, so that an old answer shows: `stale`.

The wire of 1 Mbaud delivers all answers in one piece after the time that question and answers take, without return
delay, as a USB adapter does; the server sleeps up to the calibrated overshoot of its sleep, then spins.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import statistics
import subprocess
import sys
import time
import tty
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import ModuleType
from typing import TextIO

IDS = (1, 2, 3, 4, 5, 6)
FEETECH_PLACE, DYNAMIXEL_PLACE = (56, 2), (132, 4)
OURS = ("ours-feetech", "ours-dynamixel", "ours-fast")
RIVALS = {"scservo_sdk": "ours-feetech", "lerobot": "ours-feetech", "dynamixel_sdk": "ours-dynamixel"}
BYTE_S = 1e-5


def protocol_of(client: str) -> str:
    """Returns what a client speaks."""
    return "dynamixel" if "dynamixel" in client or client == "ours-fast" else "feetech"


def serve(clients: Sequence[str], byte_s: float) -> None:
    """Opens a pseudo-terminal for each client, prints their names, and answers until stdin ends."""
    from roboalign.drivers.bus.dynamixel import Dynamixel
    from roboalign.drivers.bus.feetech import Feetech
    from roboalign.drivers.bus.memory import MemoryServos

    lines, names, keep, feetech = {}, [], [], set()
    for client in clients:
        servos = MemoryServos(Feetech() if protocol_of(client) == "feetech" else Dynamixel(), IDS)
        master, slave = os.openpty()
        tty.setraw(slave)
        lines[master] = servos
        if protocol_of(client) == "feetech":
            feetech.add(master)
        names.append(os.ttyname(slave))
        keep.append(slave)
    with suppress(PermissionError):  # servos do not wait for the host's processor
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print(json.dumps(names), flush=True)
    overshoot_s = calibrate() if byte_s else 0.0
    while True:
        ready = select.select([sys.stdin, *lines], [], [])[0]
        if sys.stdin in ready:
            return
        for fd in ready:
            asked = os.read(fd, 4096)
            start_s = time.perf_counter()
            now, place = ticks().to_bytes(2, "little"), FEETECH_PLACE if fd in feetech else DYNAMIXEL_PLACE
            for table in lines[fd].tables.values():
                table[place[0] : place[0] + 2] = now
            answer = b"".join(data for _, data in lines[fd](asked))
            if answer and byte_s:
                wait_until(start_s + byte_s * (len(asked) + len(answer)), overshoot_s)
            if answer:
                os.write(fd, answer)


def calibrate() -> float:
    """Returns how much longer than asked a sleep takes here, in the median."""
    overshoots = []
    for _ in range(200):
        start_s = time.perf_counter()
        time.sleep(2e-4)
        overshoots.append(time.perf_counter() - start_s - 2e-4)
    return statistics.median(overshoots)


def wait_until(due_s: float, overshoot_s: float) -> None:
    """Sleeps as long as that is safe, then spins."""
    left_s = due_s - time.perf_counter() - overshoot_s
    if left_s > 0:
        time.sleep(left_s)
    while time.perf_counter() < due_s:
        pass


@dataclass(frozen=True, slots=True)
class Client:
    """One way to read all servos."""

    read: Callable[[], Sequence[int] | None]
    """Reads once; None when not all answered."""
    flush: Callable[[], object]
    """Throws away what waits in the port. Ours needs none."""


def connect(client: str, port: str) -> Client:
    """Returns a client on a port."""
    if client in OURS:
        return connect_ours(client, port)
    if client == "scservo_sdk":
        return connect_scservo(port)
    if client == "dynamixel_sdk":
        return connect_dynamixel(port)
    return connect_lerobot(port)


def connect_ours(client: str, port: str) -> Client:
    """Our bus, with normal or fast sync reads."""
    from roboalign.drivers.bus.bus import Bus, BusSettings
    from roboalign.drivers.bus.dynamixel import Dynamixel
    from roboalign.drivers.bus.dynamixel_table import DYNAMIXEL_REGISTERS
    from roboalign.drivers.bus.feetech import Feetech
    from roboalign.drivers.bus.feetech_table import FEETECH_REGISTERS
    from roboalign.drivers.bus.transport import SerialTransport
    from roboalign.drivers.bus.types import Reply

    is_feetech = protocol_of(client) == "feetech"
    register = (FEETECH_REGISTERS if is_feetech else DYNAMIXEL_REGISTERS)["present_position"]
    settings = BusSettings(has_fast_read=client == "ours-fast")
    bus = Bus(SerialTransport(port), Feetech() if is_feetech else Dynamixel(), settings=settings)
    bus.open()

    def read() -> list[int] | None:
        answers = bus.sync_read(register, IDS).values()
        values = [register.decode(answer.data) for answer in answers if isinstance(answer, Reply)]
        return values if len(values) == len(IDS) else None

    return Client(read, lambda: None)


def connect_scservo(port: str) -> Client:
    """Feetech's package."""
    import scservo_sdk as sdk

    return connect_vendor(sdk, sdk.PacketHandler(0), port, FEETECH_PLACE)


def connect_dynamixel(port: str) -> Client:
    """Robotis' package."""
    import dynamixel_sdk as sdk

    return connect_vendor(sdk, sdk.PacketHandler(2.0), port, DYNAMIXEL_PLACE)


def connect_vendor(sdk: ModuleType, packets: object, port: str, place: tuple[int, int]) -> Client:
    """Both packages have the same ancestor."""
    handler = sdk.PortHandler(port)
    handler.openPort()
    handler.setBaudRate(1_000_000)
    reader = sdk.GroupSyncRead(handler, packets, *place)
    for servo in IDS:
        reader.addParam(servo)

    def read() -> list[int] | None:
        return [reader.getData(servo, *place) for servo in IDS] if reader.txRxPacket() == 0 else None

    return Client(read, handler.ser.reset_input_buffer)


class Nothing(ModuleType):
    """Stands for a package of which only names are needed."""

    __path__: list[str] = []  # noqa: RUF012 - a module's own attribute

    def __getattr__(self, name: str) -> type:
        """Returns an empty class for any name."""
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def connect_lerobot(port: str) -> Client:
    """LeRobot's bus, which stands on Feetech's package. Its import needs torch by name only."""
    try:
        import torch  # noqa: F401
    except ImportError:
        sys.modules.update({name: Nothing(name) for name in ("torch", "torch.nn", "torch.utils", "torch.utils.data")})
    from lerobot.motors import Motor, MotorNormMode
    from lerobot.motors.feetech import FeetechMotorsBus

    motors = {f"m{servo}": Motor(servo, "sts3215", MotorNormMode.DEGREES) for servo in IDS}
    bus = FeetechMotorsBus(port, motors)
    bus.connect(handshake=False)

    def read() -> list[int] | None:
        try:
            return list(bus.sync_read("Present_Position", normalize=False).values())
        except ConnectionError:
            return None

    return Client(read, bus.port_handler.ser.reset_input_buffer)


def ticks() -> int:
    """Returns the machine's monotonic time in tenths of a millisecond, as far as 15 bits go."""
    return int(time.monotonic() * 1e4) & 0x7FFF


def work(name: str, port: str, *, as_owner: bool) -> None:
    """Reads numbers of calls from stdin, makes them, and prints what they took.

    An answer that is older than its question is stale. After one that is stale or missing, the port is emptied outside
    the measured time, or a rival would answer one call late from then on.
    """
    if as_owner:
        from roboalign.sdk.control.realtime import raise_priority

        raise_priority()
    client = connect(name, port)
    for _ in range(20):
        client.read()
    print("ready", flush=True)
    for line in sys.stdin:
        times_s, cpu_s, num_failed, num_stale = [], 0.0, 0, 0
        for _ in range(int(line)):
            asked = ticks()
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            values = client.read()
            cpu_s += time.process_time() - start_cpu_s
            times_s.append(time.perf_counter() - start_s)
            is_stale = values is not None and any((value - asked & 0x7FFF) > 0x4000 for value in values)
            num_failed += values is None
            num_stale += is_stale
            if values is None or is_stale:
                time.sleep(0.05)
                client.flush()
        result = {"times_s": times_s, "cpu_s": cpu_s, "failed": num_failed, "stale": num_stale}
        print(json.dumps(result), flush=True)


def start(python: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts this file in another process, spoken to by lines."""
    command = [python, __file__, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def pipe(stream: TextIO | None) -> TextIO:
    """Returns a pipe that is there."""
    assert stream is not None
    return stream


def compare(
    clients: Sequence[str], byte_s: float, rounds: int, block: int, lerobot: str, *, as_owner: bool
) -> dict[str, object]:
    """Runs all clients round robin and returns their figures and the ratios of ours to the rivals'."""
    server = start(sys.executable, "--serve", *clients, "--byte-s", str(byte_s))
    ports = json.loads(pipe(server.stdout).readline())
    workers = {}
    for client, port in zip(clients, ports, strict=True):
        options = ["--as-owner"] if as_owner and client in OURS else []
        python = lerobot if client == "lerobot" else sys.executable
        workers[client] = start(python, "--work", client, port, *options)
        assert pipe(workers[client].stdout).readline() == "ready\n", f"{client} does not start"
    results: dict[str, list[dict[str, object]]] = {client: [] for client in clients}
    for number in range(rounds):
        for shift in range(len(clients)):
            client = clients[(number + shift) % len(clients)]
            pipe(workers[client].stdin).write(f"{block}\n")
            pipe(workers[client].stdin).flush()
            results[client].append(json.loads(pipe(workers[client].stdout).readline()))
    for process in (*workers.values(), server):
        process.communicate(timeout=10)
    return {
        "clients": {client: figures(results[client], block) for client in clients},
        "ratios": {
            f"{ours} / {rival}": ratios(results[ours], results[rival])
            for rival, ours in RIVALS.items()
            if rival in clients and ours in clients
        },
    }


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the smallest value that so many are not above."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def figures(results: list[dict[str, object]], block: int) -> dict[str, float]:
    """Returns the figures of one client over all its calls."""
    times_s = [value for result in results for value in result["times_s"]]  # type: ignore[attr-defined]
    return {
        **{f"p{share:g}_ms": round(1e3 * percentile(times_s, share / 100), 4) for share in (50, 95, 99)},
        "rate_hz": round(len(times_s) / sum(times_s), 1),
        "cpu_ms": round(1e3 * sum(result["cpu_s"] for result in results) / len(results) / block, 4),  # type: ignore[misc]
        "failed": sum(result["failed"] for result in results),  # type: ignore[misc]
        "stale": sum(result["stale"] for result in results),  # type: ignore[misc]
    }


def ratios(ours: list[dict[str, object]], rivals: list[dict[str, object]]) -> dict[str, str]:
    """Returns ratios over all calls, each with the 10th and 90th percentile of the rounds."""
    measures: dict[str, Callable[[list[dict[str, object]]], float]] = {
        "p50": lambda rounds: percentile([t for r in rounds for t in r["times_s"]], 0.50),  # type: ignore[attr-defined]
        "p95": lambda rounds: percentile([t for r in rounds for t in r["times_s"]], 0.95),  # type: ignore[attr-defined]
        "p99": lambda rounds: percentile([t for r in rounds for t in r["times_s"]], 0.99),  # type: ignore[attr-defined]
        "rate": lambda rounds: 1 / sum(t for r in rounds for t in r["times_s"]),  # type: ignore[attr-defined]
        "cpu": lambda rounds: sum(r["cpu_s"] for r in rounds),  # type: ignore[misc]
    }
    found = {}
    for name, measure in measures.items():
        each = [measure([a]) / measure([b]) for a, b in zip(ours, rivals, strict=True)]
        whole = measure(ours) / measure(rivals)
        found[name] = f"{whole:.3f} ({percentile(each, 0.1):.3f} to {percentile(each, 0.9):.3f})"
    return found


def soak(num: int) -> dict[str, object]:
    """Makes transactions in memory, one answer in a hundred spoiled; returns rate, wrong answers and memory."""
    from roboalign.drivers.bus.bus import Bus
    from roboalign.drivers.bus.feetech import Feetech
    from roboalign.drivers.bus.feetech_table import FEETECH_REGISTERS, FEETECH_TELEMETRY
    from roboalign.drivers.bus.memory import MemoryServos, MemoryTransport
    from roboalign.drivers.bus.types import Reply
    from roboalign.sdk.control.clock import FakeClock

    rng, clock, servos = Random(0), FakeClock(), MemoryServos(Feetech(), IDS)
    goal, position = FEETECH_REGISTERS["goal_position"], FEETECH_REGISTERS["present_position"]

    def line(packet: bytes) -> list[tuple[float, bytes]]:
        answers = servos(packet)
        if answers and rng.random() < 0.01:
            at, kind = rng.randrange(len(answers)), rng.randrange(4)
            data = answers[at][1]
            answers[at] = (
                (0.0, b""),
                (rng.uniform(0.01, 0.2), data),
                (0.0, data[:-2] + bytes((data[-2] ^ 1,)) + data[-1:]),
                (0.0, rng.randbytes(3) + data),
            )[kind]
        return answers

    bus = Bus(MemoryTransport(line, clock), Feetech(), clock=clock)
    bus.open()
    wrong = faults = 0
    rss_kb = [rss()]
    start_s, cpu_s = time.monotonic(), time.process_time()
    while bus.stats.transactions < num:
        value = bus.stats.transactions & 0x7FFF
        bus.sync_write(goal, dict.fromkeys(IDS, value))
        for table in servos.tables.values():
            table[56:58] = table[42:44]
        for answer in bus.sync_read(FEETECH_TELEMETRY, IDS).values():
            if isinstance(answer, Reply):
                wrong += position.decode(answer.data) != value
            else:
                faults += 1
        clock.advance(0.01)
        if len(rss_kb) < 11 and bus.stats.transactions >= len(rss_kb) * num // 10:
            rss_kb.append(rss())
    wall_s = time.monotonic() - start_s
    return {
        "transactions": bus.stats.transactions,
        "wrong": wrong,
        "faults": faults,
        "rate_hz": round(bus.stats.transactions / wall_s),
        "cpu_us": round(1e6 * (time.process_time() - cpu_s) / bus.stats.transactions, 1),
        "rss_kb": rss_kb,
        "stats": {
            name: getattr(bus.stats, name) for name in ("timeouts", "corrupt", "fences", "retries", "stale_bytes")
        },
    }


def rss() -> int:
    """Returns the resident kilobytes of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() // 1024


def main() -> None:
    """Parses, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--block", type=int, default=20)
    parser.add_argument("--busy", type=int, default=0, help="processes that never pause, beside it")
    parser.add_argument(
        "--as-owner", action="store_true", help="ours with the priority that an arm's bus process takes"
    )
    parser.add_argument("--wire", choices=("none", "1M", "both"), default="both")
    parser.add_argument("--lerobot", default="", help="a Python that has lerobot")
    parser.add_argument("--soak", type=int, default=0, help="make so many transactions in memory instead")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--byte-s", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.serve:
        serve(settings.serve, settings.byte_s)
    elif settings.work:
        work(*settings.work, as_owner=settings.as_owner)
    elif settings.soak:
        print(json.dumps(soak(settings.soak), indent=1))
    else:
        clients = [*OURS, "scservo_sdk", "dynamixel_sdk", *(["lerobot"] if settings.lerobot else [])]
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(settings.busy)]
        try:
            for wire in ("none", "1M") if settings.wire == "both" else (settings.wire,):
                byte_s = BYTE_S if wire == "1M" else 0.0
                found = compare(
                    clients, byte_s, settings.rounds, settings.block, settings.lerobot, as_owner=settings.as_owner
                )
                load = Path("/proc/loadavg").read_text(encoding="ascii").strip()
                print(
                    json.dumps(
                        {"wire": wire, "busy": settings.busy, "as_owner": settings.as_owner, "loadavg": load, **found},
                        indent=1,
                    ),
                    flush=True,
                )
        finally:
            for process in busy:
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()
