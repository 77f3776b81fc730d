"""What a machine has to be like before a servo bus works: ports, rights, and the programs that get in the way.

Every check is given a `Machine`, whose root may be a folder of a test. Each cites what it saves somebody from.
"""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from roboalign.drivers.camera_sources import port_owners
from roboalign.drivers.setup.checks import Check

__all__ = ["FoundPort", "Machine", "check_machine", "check_port", "list_found_ports"]

_CHIPS = {
    ("1a86", "7523"): ("CH340", "ch341"),
    ("1a86", "5523"): ("CH341", "ch341"),
    ("1a86", "55d3"): ("CH343", "cdc_acm"),
    ("1a86", "55d4"): ("CH9102", "cdc_acm"),
    ("0403", "6001"): ("FT232R", "ftdi_sio"),
    ("0403", "6010"): ("FT2232", "ftdi_sio"),
    ("0403", "6014"): ("FT232H (U2D2)", "ftdi_sio"),
    ("0403", "6015"): ("FT230X", "ftdi_sio"),
    ("10c4", "ea60"): ("CP210x", "cp210x"),
    ("2f5d", "2202"): ("OpenRB-150", "cdc_acm"),
}
"""USB vendor and product of the adapters that servo boards carry: their chip and the kernel's module for it."""

_MAX_LATENCY_MS = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundPort:
    """A serial port of this machine."""

    device: str
    """Its present name, `/dev/ttyACM0`; changes with the order of plugging in."""
    stable_name: str | None
    """Its link under `/dev/serial/by-id`."""
    driver: str
    """Kernel driver, e.g. `cdc_acm`."""
    usb: tuple[str, str]
    """Vendor and product, four hexadecimal digits each; empty when it is no USB port."""
    serial: str
    """Serial number of the adapter; empty when it has none."""
    owners: tuple[str, ...]
    """Who has it open, `pid (name)`."""

    @property
    def chip(self) -> str:
        """Name of the adapter's chip, or its USB ids."""
        return _CHIPS[self.usb][0] if self.usb in _CHIPS else ":".join(self.usb)

    def __str__(self) -> str:
        owners = f", in use by {', '.join(self.owners)}" if self.owners else ""
        return f"{self.stable_name or self.device} ({self.chip or self.driver}{owners})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where to look: the root of the file system, and who asks."""

    root: Path = Path("/")
    """Folder that stands for `/`."""
    user: str = field(default_factory=lambda: _user_name())
    """Name of the user who wants to open ports."""
    may_open: Callable[[Path], bool] = lambda path: os.access(path, os.R_OK | os.W_OK)
    """Whether this process may read and write a device."""
    release: str = field(default_factory=platform.release)
    """Version of the running kernel."""
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free
    """How much can be written to the disk that a folder is on."""
    try_write: Callable[[Path], None] = lambda folder: _write_and_remove(folder)
    """Writes a megabyte to a folder and removes it; raises OSError where it cannot."""

    def at(self, path: str) -> Path:
        """Returns a path below the root."""
        return self.root / path.lstrip("/")

    def text(self, path: str, default: str = "") -> str:
        """Returns the stripped text of a file, or the default when it cannot be read."""
        return _text(self.at(path), default)

    def processes(self, name: str) -> tuple[str, ...]:
        """Returns the pids of the running processes of this name."""
        found = [path.parent.name for path in self.at("/proc").glob("[0-9]*/comm") if _text(path) == name]
        return tuple(sorted(found, key=int))


def list_found_ports(machine: Machine) -> tuple[FoundPort, ...]:
    """Returns the USB serial ports, in the order of their names."""
    found = []
    for folder in sorted(
        [*machine.at("/sys/class/tty").glob("ttyUSB*"), *machine.at("/sys/class/tty").glob("ttyACM*")]
    ):
        device = machine.at(f"/dev/{folder.name}")
        usb = _usb_folder(folder / "device")
        ids = (_text(usb / "idVendor"), _text(usb / "idProduct")) if usb is not None else ("", "")
        links = [
            link for link in sorted(machine.at("/dev/serial/by-id").glob("*")) if link.resolve() == device.resolve()
        ]
        found.append(
            FoundPort(
                device=f"/dev/{folder.name}",
                stable_name=f"/dev/serial/by-id/{links[0].name}" if links else None,
                driver=(folder / "device/driver").resolve().name if (folder / "device/driver").exists() else "unknown",
                usb=ids,
                serial=_text(usb / "serial") if usb is not None else "",
                owners=port_owners(device, machine.root),
            )
        )
    return tuple(found)


def check_machine(machine: Machine) -> list[Check]:
    """Returns what can be said without naming a port: adapters, kernel modules, brltty, ModemManager."""
    ports = list_found_ports(machine)
    return [
        _check_ports(ports),
        _check_modules(machine, ports),
        _check_brltty(machine),
        _check_modem_manager(machine, ports),
    ]


def check_port(machine: Machine, port: str) -> list[Check]:
    """Returns what can be said about one port without opening it: it is there, ours to open, free, and quick."""
    path = machine.at(port)
    if not path.exists():
        ports = list_found_ports(machine)
        there = f"ports here: {', '.join(map(str, ports))}" if ports else "plug the adapter in, and its power"
        return [Check.failed("port is there", f"there is no {port}", f"name another one; {there}")]
    checks = [Check.passed("port is there", f"{port} -> {path.resolve().name}")]
    known = next((found for found in list_found_ports(machine) if machine.at(found.device) == path.resolve()), None)
    checks += [_check_name(port, known), _check_rights(machine, port, path), _check_owner(machine, port, path)]
    if known is not None and known.driver == "ftdi_sio":
        checks.append(_check_latency(machine, known))
    return checks


def _check_ports(ports: tuple[FoundPort, ...]) -> Check:
    if ports:
        return Check.passed("serial ports", ", ".join(map(str, ports)))
    remedy = (
        "plug in the adapter with a cable that carries data (many only charge), switch the servos' power on, and look "
        "at the last lines of: sudo dmesg"
    )
    return Check.warning("serial ports", "no USB serial port", remedy)


def _check_modules(machine: Machine, ports: tuple[FoundPort, ...]) -> Check:
    """JetPack 7 comes without ch341.ko, so an SO-101's board is on the USB bus and has no port."""
    with_port = {(port.usb, port.serial) for port in ports}
    for folder in sorted(machine.at("/sys/bus/usb/devices").glob("*")):
        usb = (_text(folder / "idVendor"), _text(folder / "idProduct"))
        if usb not in _CHIPS or (usb, _text(folder / "serial")) in with_port:
            continue
        chip, module = _CHIPS[usb]
        found = f"a {chip} adapter is on the USB bus but has no serial port"
        modules = machine.at(f"/lib/modules/{machine.release}")
        is_there = any(modules.rglob(f"{module}.ko*")) or f"/{module}.ko" in _text(modules / "modules.builtin")
        if is_there:
            remedy = f"sudo modprobe {module}; if the port comes and goes, brltty takes it: sudo apt remove brltty"
        else:
            remedy = (
                f"this kernel ({machine.release}) has no module {module}; install your system's package of extra "
                f"modules, or build {module}.ko for it, then: sudo modprobe {module}"
            )
        return Check.failed("kernel module", found, remedy)
    return Check.passed("kernel module", "every known adapter has its port")


def _check_brltty(machine: Machine) -> Check:
    """The program brltty takes a CH340 for a braille display: the port appears and vanishes (lerobot #497)."""
    rules = [
        rule for folder in ("/lib/udev", "/usr/lib/udev", "/etc/udev") for rule in _rules(machine, folder, "brltty")
    ]
    claims = [rule for rule in rules if _has_active_line(rule, "7523")]
    running = machine.processes("brltty")
    if not claims and not running:
        return Check.passed("brltty", "does not claim adapters")
    found = f"brltty is running (pid {', '.join(running)})" if running else f"{claims[0].name} claims CH340 adapters"
    remedy = (
        "sudo apt remove brltty (it drives braille displays), or comment out the line with 1a86/7523 in its udev rules"
    )
    if any(port.usb == ("1a86", "7523") for port in list_found_ports(machine)) and claims:
        return Check.failed("brltty", found, remedy)
    return Check.warning("brltty", found, remedy)


def _check_modem_manager(machine: Machine, ports: tuple[FoundPort, ...]) -> Check:
    """ModemManager sends AT commands to a new ttyACM for seconds, into the servos."""
    running = machine.processes("ModemManager")
    acm = [port for port in ports if port.device.startswith("/dev/ttyACM")]
    ignored = [rule for folder in ("/etc/udev", "/lib/udev", "/usr/lib/udev") for rule in _rules(machine, folder, "")]
    texts = [_text(rule) for rule in ignored] if running and acm else []
    probed = [p for p in acm if not any("ID_MM_DEVICE_IGNORE" in text and p.usb[0] in text for text in texts)]
    if not running or not probed:
        return Check.passed("ModemManager", "does not probe the ports")
    vendor = probed[0].usb[0]
    line = f'ATTRS{{idVendor}}=="{vendor}", ENV{{ID_MM_DEVICE_IGNORE}}="1"'
    remedy = (
        "sudo systemctl disable --now ModemManager if you have no modem, or write this line to "
        f"/etc/udev/rules.d/99-servo.rules and plug in again: {line}"
    )
    return Check.warning("ModemManager", f"runs and probes {', '.join(port.device for port in probed)}", remedy)


def _check_name(port: str, known: FoundPort | None) -> Check:
    if known is None or known.stable_name is None or port == known.stable_name or not port.startswith("/dev/tty"):
        return Check.passed("port name", port)
    found = f"{port} is a name that changes with the order of plugging in"
    return Check.warning("port name", found, f'write port = "{known.stable_name}" in robot.toml')


def _check_rights(machine: Machine, port: str, path: Path) -> Check:
    if machine.may_open(path):
        return Check.passed("port rights", f"{machine.user} may read and write it")
    group = _group_of(machine, path)
    if machine.user in _members(machine, group):
        remedy = f"you are in the group {group} since after you logged in: log out and in, or type: newgrp {group}"
    else:
        remedy = f"sudo usermod -aG {group} {machine.user}, then log out and in"
    return Check.failed("port rights", f"{machine.user} may not open {port} (group {group})", remedy)


def _check_owner(machine: Machine, port: str, path: Path) -> Check:
    if path.resolve().is_relative_to(machine.at("/dev/pts")):
        return Check.passed("port is free", "a pseudo-terminal: a virtual arm, whose process is behind it")
    owners = [owner for owner in port_owners(path, machine.root) if owner.split()[0] != str(os.getpid())]
    if not owners:
        return Check.passed("port is free", "nobody we can see has it open")
    pids = " ".join(owner.split()[0] for owner in owners)
    return Check.failed("port is free", f"{port} is open in {', '.join(owners)}", f"close it, or: kill {pids}")


def _check_latency(machine: Machine, port: FoundPort) -> Check:
    """An FTDI chip keeps bytes for up to 16 ms unless it is told not to: 60 reads a second at best."""
    name = port.device.removeprefix("/dev/")
    file = f"/sys/bus/usb-serial/devices/{name}/latency_timer"
    text = machine.text(file)
    if not text.isdigit() or int(text) <= _MAX_LATENCY_MS:
        return Check.passed("latency timer", f"{text or 'unknown'} ms")
    rule = 'ACTION=="add", SUBSYSTEM=="usb-serial", DRIVER=="ftdi_sio", ATTR{latency_timer}="1"'
    remedy = f"echo 1 | sudo tee {file}; for good, write to /etc/udev/rules.d/99-servo.rules: {rule}"
    return Check.failed("latency timer", f"{port.device} waits {text} ms for more bytes", remedy)


def _rules(machine: Machine, folder: str, word: str) -> list[Path]:
    return sorted(machine.at(f"{folder}/rules.d").glob(f"*{word}*.rules" if word else "*.rules"))


def _has_active_line(rule: Path, word: str) -> bool:
    return any(word in line and not line.lstrip().startswith("#") for line in _text(rule).splitlines())


def _usb_folder(device: Path) -> Path | None:
    """The USB device that a tty hangs on: the nearest folder above it that has a vendor."""
    start = device.resolve()
    return next((folder for folder in (start, *start.parents) if (folder / "idVendor").is_file()), None)


def _group_of(machine: Machine, path: Path) -> str:
    number = str(path.stat().st_gid)
    names = [line.split(":") for line in machine.text("/etc/group").splitlines()]
    return next((parts[0] for parts in names if len(parts) > 2 and parts[2] == number), "dialout")


def _members(machine: Machine, group: str) -> list[str]:
    lines = [line.split(":") for line in machine.text("/etc/group").splitlines()]
    return next((parts[3].split(",") for parts in lines if len(parts) > 3 and parts[0] == group), [])


def _text(path: Path, default: str = "") -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return default


def _write_and_remove(folder: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".roboalign-doctor-") as file:
        file.write(b"\0" * (1 << 20))
        file.flush()
        os.fsync(file.fileno())


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
