"""Soaks a virtual arm on its pseudo-terminal: transactions a second, CPU a transaction, and whether memory grows.

    python benchmarks/virtual_arm.py --transactions 1000000                  without physics
    python benchmarks/virtual_arm.py --transactions 100000 --physics         with PyBullet
    python benchmarks/virtual_arm.py --transactions 1000000 --memory         no process, no pseudo-terminal
    python benchmarks/virtual_arm.py --transactions 600 --physics --repeat   two runs, compared bit by bit

A transaction is a sync read of 15 bytes of six servos in lockstep, so each is a control step; before every tenth one
goals are written. The host is a plain file descriptor, so that what is measured is the virtual arm. Memory is the
server's resident set, after a tenth of the transactions and at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import select
import tempfile
import termios
import time
import tty
from collections.abc import Callable
from pathlib import Path

from roboalign.drivers.bus.dynamixel import Dynamixel
from roboalign.drivers.bus.feetech import Feetech
from roboalign.drivers.virtual import VirtualBus, VirtualBusConfig, VirtualPort, build_line

IDS = (1, 2, 3, 4, 5, 6)
TIMEOUT_S = 60.0
PLACES = {"feetech": (Feetech(), 56, 15, 42, 2), "dynamixel": (Dynamixel(), 124, 23, 116, 4)}

Exchange = Callable[[bytes, int], bytes]


def soak(exchange: Exchange, protocol: str, count: int, on_tenth: Callable[[], None]) -> str:
    """Runs the transactions and returns the SHA-256 of all answers."""
    codec, address, size, goal_address, goal_size = PLACES[protocol]
    request = codec.sync_read(address, size, IDS)
    check = codec.replies(IDS, size)
    digest = hashlib.sha256()
    for number in range(count):
        written = b""
        if number % 10 == 0:
            goal = 2048 + 150 * (1 if number % 1000 < 500 else -1)
            written = codec.sync_write(goal_address, dict.fromkeys(IDS, goal.to_bytes(goal_size, "little")))
        answer = exchange(written + request, check.num_bytes)
        if check.match(answer) is None:
            raise SystemExit(f"transaction {number} was answered with {answer.hex()}")
        digest.update(answer)
        if number == count // 10:
            on_tenth()
    return digest.hexdigest()


def open_raw(path: str) -> int:
    """Opens a port as a serial library does: raw, at 1 Mbaud."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    tty.setraw(descriptor)
    attributes = termios.tcgetattr(descriptor)
    attributes[4] = attributes[5] = termios.B1000000
    termios.tcsetattr(descriptor, termios.TCSANOW, attributes)
    return descriptor


def exchange_on(descriptor: int) -> Exchange:
    """Returns the function that sends a request and waits for so many bytes."""

    def exchange(request: bytes, num_bytes: int) -> bytes:
        os.write(descriptor, request)
        found = b""
        while len(found) < num_bytes and select.select([descriptor], (), (), TIMEOUT_S)[0]:
            found += os.read(descriptor, 4096)
        return found

    return exchange


def facts_of(pid: int) -> tuple[float, float]:
    """Returns a process's resident set in MB and its CPU seconds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(config: VirtualBusConfig, count: int, is_in_memory: bool) -> dict[str, object]:
    """Soaks one arm and returns what was measured."""
    early: list[float] = []
    protocol = config.chosen_protocol
    with tempfile.TemporaryDirectory() as folder:
        if is_in_memory:
            port = VirtualPort(build_line(config))
            port.open()
            pid = os.getpid()

            def exchange(request: bytes, num_bytes: int) -> bytes:
                port.write(request, 1e9)
                return port.read(port.clock.now() + 1.0)[:num_bytes]

            start_s, cpu_s = time.monotonic(), facts_of(pid)[1]
            digest = soak(exchange, protocol, count, lambda: early.append(facts_of(pid)[0]))
            wall_s, (end_mb, end_cpu_s) = time.monotonic() - start_s, facts_of(pid)
            port.line.arm.plant.close()
        else:
            with VirtualBus(Path(folder) / "arm", config) as bus:
                pid = bus.pid
                descriptor = open_raw(bus.port)
                start_s, cpu_s = time.monotonic(), facts_of(pid)[1]
                digest = soak(exchange_on(descriptor), protocol, count, lambda: early.append(facts_of(pid)[0]))
                wall_s, (end_mb, end_cpu_s) = time.monotonic() - start_s, facts_of(pid)
                os.close(descriptor)
    return {
        "transactions": count,
        "rate_hz": round(count / wall_s, 1),
        "server_cpu_us": round((end_cpu_s - cpu_s) / count * 1e6, 1),
        "memory_after_a_tenth_mb": round(early[0], 2),
        "memory_at_the_end_mb": round(end_mb, 2),
        "answers_sha256": digest,
    }


def main() -> None:
    """Reads the options and prints one JSON object a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transactions", type=int, default=20_000)
    parser.add_argument("--robot", default="so101")
    parser.add_argument("--protocol", choices=sorted(PLACES))
    parser.add_argument("--physics", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--repeat", action="store_true")
    args = parser.parse_args()
    config = VirtualBusConfig(robot=args.robot, protocol=args.protocol, has_physics=args.physics)
    results = [run(config, args.transactions, args.memory) for _ in range(1 + args.repeat)]
    for result in results:
        print(json.dumps(result))
    if args.repeat and results[0]["answers_sha256"] != results[1]["answers_sha256"]:
        raise SystemExit("the two runs differ")


if __name__ == "__main__":
    main()
