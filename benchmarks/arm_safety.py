"""Measures what a serial arm does when something breaks: one line a bar, with the figure that was found.

    python benchmarks/arm_safety.py                      # in memory, without time: under a minute
    python benchmarks/arm_safety.py --kills 100 --noise 30000 --fuzz 1000000      # the bars at full size
    python benchmarks/arm_safety.py --process-kills 10   # real processes on a pseudo-terminal, in real time
    python benchmarks/arm_safety.py --physics            # PyBullet joints for the kills

In memory means: the real bus, codec, owner and robot in one process, in front of the virtual arm, on a clock that moves
only when somebody waits. Times are of that clock, so they leave out the operating system; `--process-kills` has it in,
and depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.drivers.arm import test_safety as safety
from tests.drivers.arm.fuzz import fuzz
from tests.drivers.arm.policies import Stage
from tests.drivers.arm.rig import Rig, make_rig

from roboalign.drivers.arm.states import State
from roboalign.drivers.virtual.bullet import BulletPlant

FAULTS = (
    ("dead servo", "dead", {"id": 3}),
    ("overload", "overload", {"id": 3}),
    ("67 C", "hot", {"id": 3, "celsius": 67.0}),
    ("90 C", "hot", {"id": 3, "celsius": 90.0}),
    ("brown-out", "brownout", {"id": 3, "delay_s": 0.05}),
    ("supply at 5 V", "voltage", {"volts": 5.0}),
)


def show(what: str, bar: str, found: str) -> None:
    """Prints one row."""
    print(f"{what:<46} {bar:<28} {found}", flush=True)


def a_rig(plant: BulletPlant | None = None) -> Rig:
    """An arm at home that follows commands."""
    rig = make_rig(Path(tempfile.mkdtemp(prefix="arm-safety-")), plant=plant)
    rig.robot.connect()
    rig.robot.go_home()
    return rig


def measure_kills(count: int, has_physics: bool) -> None:
    """The policy's process is lost at random moments."""
    dice, found = np.random.default_rng(1), []
    for _ in range(count):
        rig = a_rig(BulletPlant().open() if has_physics else None)
        found.append(safety.check_kill(rig, float(dice.uniform(0.2, 2.0))))
        rig.plant.close()
    held, parked, fell = (max(column) for column in zip(*found, strict=True))
    joints = "PyBullet" if has_physics else "kinematic"
    show(f"policy lost, {count} moments, {joints}: held", "<= 100 ms", f"worst {1000 * held:.0f} ms")
    show(f"policy lost, {count} moments, {joints}: parked", "<= 3 s", f"worst {parked:.2f} s")
    show(f"policy lost, {count} moments, {joints}: hand fell", "<= 2 cm", f"worst {100 * fell:.2f} cm")


def measure_process_kills(count: int, has_physics: bool) -> None:
    """Real policies are killed with SIGKILL."""
    dice, deaths = np.random.default_rng(2), []
    stage = Stage(Path(tempfile.mkdtemp(prefix="arm-safety-")), has_physics=has_physics)
    with stage.bus:
        for _ in range(count):
            deaths.append(stage.kill(float(dice.uniform(0.05, 2.0))))
    for name, bar, unit, values in (
        ("held", "<= 0.1 s", "s", [death.held_s for death in deaths]),
        ("parked", "<= 3 s", "s", [death.parked_s for death in deaths]),
        ("hand fell", "<= 0.02 m", "m", [death.fell_m for death in deaths]),
    ):
        found = f"median {np.median(values):.3f}, worst {max(values):.3f} {unit}"
        show(f"kill -9, {count} processes: {name}", bar, found)


def measure_faults() -> None:
    """A servo fails in motion."""
    for name, kind, values in FAULTS:
        rig = a_rig()
        safety.in_motion(rig)
        rig.suffer(kind, **values)
        cycles = 0
        while rig.core.machine.state is State.ACTIVE and cycles < 10:
            rig.core.step()
            rig.clock.advance(0.01)
            cycles += 1
        torque = sum(rig.torques()[:2] + rig.torques()[3:])
        found = f"{cycles} cycles, {rig.core.machine.state.value}, {torque} of 5 others have torque"
        show(f"{name} in motion", "<= 2 cycles, others hold", found)


def measure_pressing() -> None:
    """A joint against an obstacle, a gripper on a block."""
    rig = a_rig()
    rig.suffer("block", joint="shoulder_pan", upper_rad=rig.plant.states()[0].position_rad + 0.1)
    pressed_s = safety.pressing_s(rig, 0, lambda share: share > 0.4, np.array((0.1, 0, 0, 0, 0, 0)))
    show("joint pressed: torque reduced after", "<= 300 ms", f"{1000 * pressed_s:.0f} ms")
    rig = a_rig()
    for _ in range(10):
        rig.robot.act(np.array((0, 0, 0, 0, 1), np.float32))
    rig.suffer("block", joint="gripper", lower_rad=0.2)
    pressed_s = safety.pressing_s(rig, 5, lambda share: share > 0.4, np.array((0, 0, 0, 0, 0, -0.3)))
    show("gripper on a block: torque reduced after", "<= 300 ms", f"{1000 * pressed_s:.0f} ms")


def measure_wild_commands() -> None:
    """Commands that must not reach the wire."""
    checks: tuple[tuple[str, Callable[[Rig], None]], ...] = (
        ("NaN, infinite, wrong length, 400 degrees", safety.test_nothing_wild_reaches_the_wire),
        ("1 kHz of random goals", safety.test_a_thousand_commands_a_second_are_no_faster_than_the_limits),
    )
    for name, check in checks:
        check(a_rig())
        show(name, "never on the wire", "0 goals outside sweep and speed limits")


def measure_noise(cycles: int) -> None:
    """A bad line at 50 Hz."""
    rig = make_rig(Path(tempfile.mkdtemp(prefix="arm-safety-")), control_rate_hz=50.0)
    rig.robot.connect()
    rig.robot.go_home()
    holds, worst_s = safety.check_noise(rig, cycles)
    found = f"0 exceptions, 0 wrong, {holds} held, oldest {worst_s:.2f} s"
    show(f"5 % drops, 10 % corruption, {cycles} actions", "no exception, 0 wrong", found)


def measure_fuzz(packets: int) -> None:
    """Damaged packets through codec and gate."""
    for kind in ("two bits", "random body"):
        found = fuzz(packets, kind)
        text = f"{found.outside} ({found.parsed} parsed, {found.believed} inside the gate)"
        show(f"Feetech, {packets} packets, {kind}: outside the gate", "0", text)


def measure_unplug() -> None:
    """The adapter is pulled out and put back."""
    rig = a_rig()
    safety.in_motion(rig)
    rig.suffer("unplug")
    fault_s = safety.run_until(rig, lambda: rig.core.machine.state is State.FAULT)
    show("unplug: fault after", "<= 100 ms", f"{1000 * fault_s:.0f} ms")
    rig.suffer("replug")
    wire = safety.Wire(rig)
    rig.link.wait(1.0)
    show("replug: goals sent before a re-arm", "0", str(len(wire.goals)))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="policies lost in memory")
    parser.add_argument(
        "--process-kills", type=int, default=0, help="policies killed in real time; nothing else is run"
    )
    parser.add_argument("--noise", type=int, default=1000, help="actions over a bad line")
    parser.add_argument("--fuzz", type=int, default=50_000, help="damaged packets of each kind")
    parser.add_argument("--physics", action="store_true", help="PyBullet joints for the kills")
    options = parser.parse_args()
    start_s = time.process_time()
    show("what", "bar", "found")
    if options.process_kills:
        measure_process_kills(options.process_kills, options.physics)
        return
    measure_kills(options.kills, options.physics)
    measure_faults()
    measure_pressing()
    measure_wild_commands()
    measure_unplug()
    measure_noise(options.noise)
    measure_fuzz(options.fuzz)
    print(f"{time.process_time() - start_s:.0f} CPU seconds")


if __name__ == "__main__":
    main()
