"""What a virtual bus is made of, as one set of settings, and the line that they describe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from roboalign.drivers.virtual.bullet import BulletPlant
from roboalign.drivers.virtual.dialects import dialect_of
from roboalign.drivers.virtual.faults import read_faults
from roboalign.drivers.virtual.line import VirtualLine
from roboalign.drivers.virtual.physics import JointPlant
from roboalign.drivers.virtual.robots import VIRTUAL_ROBOTS, make_arm, make_plant
from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.randomization.hidden import read_hidden

__all__ = ["VirtualBusConfig", "build_line"]

_START_S = 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class VirtualBusConfig:
    """One virtual bus."""

    robot: str = "so101"
    """Key of `VIRTUAL_ROBOTS`."""
    protocol: str | None = None
    """`feetech` or `dynamixel`; None is the robot's own."""
    is_lockstep: bool = True
    """True: each sync read of the present position lets one control step pass, and nothing else does."""
    rate_hz: float = 50.0
    """Control steps per second of the arm's time in lockstep."""
    has_byte_time: bool = False
    """Bytes take their time, and devices their return delay; see `VirtualLine`."""
    has_physics: bool = True
    """False: joints without gravity, contacts and pictures, which need no PyBullet."""
    faults: Path | None = None
    """File of faults, TOML or JSON."""
    task: str | None = None
    """What stands on the table: the scene of this task; None: nothing."""
    seed: int = 0
    """Chooses the scene of `task`."""
    hidden: str | None = None
    """Hidden dynamics: a file of a drawn sample, or a randomisation by file or preset; None: none."""
    hidden_seed: int | None = None
    """Draws the sample, when `hidden` is a randomisation."""
    horn_seed: int | None = None
    """None: encoders are at their middle when joints are at zero; else the horns are mounted at random."""

    def __post_init__(self) -> None:
        if self.robot not in VIRTUAL_ROBOTS:
            raise ConfigError(unknown_name("robot", self.robot, VIRTUAL_ROBOTS))
        if self.has_physics and not VIRTUAL_ROBOTS[self.robot].has_body:
            raise ConfigError(f"there is no simulated body for {self.robot}; use it without physics (--no-physics)")
        if not 10 <= self.rate_hz <= 1000:
            raise ConfigError(f"rate_hz is {self.rate_hz}, expected 10 to 1000")
        if self.task is not None and not self.has_physics:
            raise ConfigError(f"task is {self.task!r}, but without physics there is no table")
        if self.hidden is not None and not self.has_physics:
            raise ConfigError(f"hidden is {self.hidden!r}, but without physics there are no such dynamics")
        if self.hidden is None and self.hidden_seed is not None:
            raise ConfigError(f"hidden_seed is {self.hidden_seed}, but there is nothing to draw from; give hidden too")

    @property
    def chosen_protocol(self) -> str:
        """The protocol on the line."""
        return self.protocol or VIRTUAL_ROBOTS[self.robot].protocol


def build_line(config: VirtualBusConfig) -> VirtualLine:
    """Returns the line with its arm; the caller closes `line.arm.plant`.

    Raises:
        ConfigError: A file or name is wrong.
    """
    dialect = dialect_of(config.chosen_protocol)
    faults = None if config.faults is None else read_faults(config.faults)
    start_s = 0.0 if config.is_lockstep else _START_S  # in lockstep no time would pass while a host waits
    arm = make_arm(config.robot, config.protocol, _plant(config), horn_seed=config.horn_seed, start_s=start_s)
    return VirtualLine(
        arm,
        dialect,
        faults=faults,
        step_s=1.0 / config.rate_hz if config.is_lockstep else None,
        has_byte_time=config.has_byte_time,
    )


def _plant(config: VirtualBusConfig) -> JointPlant:
    if not config.has_physics:
        return make_plant(config.robot)
    domain = None if config.hidden is None else read_hidden(config.hidden, config.hidden_seed)
    if config.task is None:
        return BulletPlant(domain=domain).open()
    from roboalign.sdk.sim.tasks import scene_for

    return BulletPlant(scene_for(config.seed, config.task, robot="so101"), domain=domain).open()
