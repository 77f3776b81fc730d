"""What doctor says about a machine, on machines made of files: each fault with its remedy, and none on a sound one."""

import os
from pathlib import Path

import pytest

from roboalign.drivers.setup.checks import Check, DoctorReport
from roboalign.drivers.setup.machine import Machine, check_machine, check_port, list_found_ports
from roboalign.sdk.errors import CheckFailed

CH343 = ("1a86", "55d3")
FTDI = ("0403", "6014")
CH340 = ("1a86", "7523")
BY_ID = "/dev/serial/by-id/usb-1a86_USB_Single_Serial_5A7A-if00"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def plug_in(root: Path, name: str, usb: tuple[str, str], driver: str, *, by_id: str | None = None) -> None:
    """The files that the kernel and udev make for an adapter."""
    device = root / "sys/devices/usb1/1-2"
    write(device / "idVendor", usb[0])
    write(device / "idProduct", usb[1])
    write(device / "serial", "5A7A")
    (device / "1-2:1.0").mkdir(exist_ok=True)
    (root / f"sys/bus/drivers/{driver}").mkdir(parents=True, exist_ok=True)
    (root / f"sys/class/tty/{name}").mkdir(parents=True)
    (device / "1-2:1.0/driver").symlink_to(root / f"sys/bus/drivers/{driver}")
    (root / f"sys/class/tty/{name}/device").symlink_to(device / "1-2:1.0")
    (root / "sys/bus/usb/devices").mkdir(parents=True, exist_ok=True)
    (root / "sys/bus/usb/devices/1-2").symlink_to(device)
    write(root / f"dev/{name}", "")
    if by_id:
        (root / by_id.lstrip("/")).parent.mkdir(parents=True)
        (root / by_id.lstrip("/")).symlink_to(root / f"dev/{name}")


def run_process(root: Path, pid: int, name: str, *, holds: str | None = None) -> None:
    write(root / f"proc/{pid}/comm", name)
    if holds:
        (root / f"proc/{pid}/fd").mkdir()
        (root / f"proc/{pid}/fd/4").symlink_to(root / holds)


@pytest.fixture
def machine(tmp_path):
    plug_in(tmp_path, "ttyACM0", CH343, "cdc_acm", by_id=BY_ID)
    write(tmp_path / "etc/group", f"dialout:x:{os.getgid()}:bob")
    return Machine(root=tmp_path, user="ada", may_open=lambda _: True, release="6.8")


def find(checks, name):
    (check,) = [check for check in checks if check.name == name]
    return check


def test_a_sound_machine_passes_everything(machine):
    report = DoctorReport(checks=(*check_machine(machine), *check_port(machine, BY_ID)))
    assert {check.status for check in report.checks} == {"passed"}
    assert len(report.checks) == 8
    report.raise_if_failed()


def test_a_port_is_described_by_what_stays(machine):
    (port,) = list_found_ports(machine)
    assert str(port) == f"{BY_ID} (CH343)"
    assert (port.device, port.driver, port.usb, port.serial) == ("/dev/ttyACM0", "cdc_acm", CH343, "5A7A")


def test_no_port_at_all_is_a_question_of_cable_and_power(tmp_path):
    check = find(check_machine(Machine(root=tmp_path)), "serial ports")
    assert check.status == "warning"
    assert "cable that carries data" in check.remedy


def test_an_absent_port_lists_those_that_are_there(machine):
    (check,) = check_port(machine, "/dev/ttyUSB3")
    assert check.status == "failed"
    assert BY_ID in check.remedy


def test_a_name_that_changes_is_replaced_by_one_that_stays(machine):
    check = find(check_port(machine, "/dev/ttyACM0"), "port name")
    assert check.status == "warning"
    assert check.remedy == f'write port = "{BY_ID}" in robot.toml'


def test_missing_rights_name_the_group(machine, tmp_path):
    machine = Machine(root=tmp_path, user="ada", may_open=lambda _: False)
    check = find(check_port(machine, BY_ID), "port rights")
    assert check.status == "failed"
    assert check.remedy == "sudo usermod -aG dialout ada, then log out and in"


def test_a_membership_that_is_newer_than_the_session_is_told_apart(machine, tmp_path):
    machine = Machine(root=tmp_path, user="bob", may_open=lambda _: False)
    assert "newgrp dialout" in find(check_port(machine, BY_ID), "port rights").remedy


def test_whoever_holds_the_port_is_named(machine, tmp_path):
    run_process(tmp_path, 4711, "lerobot-record", holds="dev/ttyACM0")
    check = find(check_port(machine, BY_ID), "port is free")
    assert check.status == "failed"
    assert "4711 (lerobot-record)" in check.found
    assert check.remedy.endswith("kill 4711")


@pytest.mark.parametrize(
    ("has_module", "remedy"), [(True, "sudo modprobe ch341"), (False, "has no module ch341")], ids=["there", "missing"]
)
def test_an_adapter_without_a_port_lacks_its_kernel_module(tmp_path, has_module, remedy):
    write(tmp_path / "sys/bus/usb/devices/1-3/idVendor", CH340[0])
    write(tmp_path / "sys/bus/usb/devices/1-3/idProduct", CH340[1])
    if has_module:
        write(tmp_path / "lib/modules/6.8/kernel/drivers/usb/serial/ch341.ko.zst", "")
    check = find(check_machine(Machine(root=tmp_path, release="6.8")), "kernel module")
    assert check.status == "failed"
    assert "CH340" in check.found
    assert remedy in check.remedy


@pytest.mark.parametrize(("prefix", "status"), [("", "failed"), ("# ", "passed")], ids=["active", "commented out"])
def test_brltty_takes_a_ch340(tmp_path, prefix, status):
    plug_in(tmp_path, "ttyUSB0", CH340, "ch341")
    rule = f'{prefix}ENV{{PRODUCT}}=="1a86/7523/*", ENV{{BRLTTY_BRAILLE_DRIVER}}="bm"'
    write(tmp_path / "usr/lib/udev/rules.d/85-brltty.rules", rule)
    check = find(check_machine(Machine(root=tmp_path)), "brltty")
    assert check.status == status
    assert ("sudo apt remove brltty" in check.remedy) == (status == "failed")


def test_a_running_brltty_is_a_warning_when_no_ch340_is_there(machine, tmp_path):
    run_process(tmp_path, 90, "brltty")
    assert find(check_machine(machine), "brltty").status == "warning"


def test_modem_manager_probes_acm_ports_unless_it_is_told_not_to(machine, tmp_path):
    run_process(tmp_path, 91, "ModemManager")
    check = find(check_machine(machine), "ModemManager")
    assert check.status == "warning"
    line = check.remedy.split(": ")[-1]
    assert line == 'ATTRS{idVendor}=="1a86", ENV{ID_MM_DEVICE_IGNORE}="1"'
    write(tmp_path / "etc/udev/rules.d/99-servo.rules", line)
    assert find(check_machine(machine), "ModemManager").status == "passed"


@pytest.mark.parametrize(("text", "status"), [("16", "failed"), ("1", "passed")])
def test_the_latency_timer_of_ftdi_chips(tmp_path, text, status):
    plug_in(tmp_path, "ttyUSB0", FTDI, "ftdi_sio")
    write(tmp_path / "sys/bus/usb-serial/devices/ttyUSB0/latency_timer", text)
    check = find(check_port(Machine(root=tmp_path, may_open=lambda _: True), "/dev/ttyUSB0"), "latency timer")
    assert check.status == status
    assert ('ATTR{latency_timer}="1"' in check.remedy) == (status == "failed")


def test_this_machine_can_be_examined_without_an_exception():
    assert len(check_machine(Machine())) == 4


@pytest.mark.parametrize(("status", "remedy"), [("failed", ""), ("passed", "do something")])
def test_a_check_and_its_remedy_belong_together(status, remedy):
    with pytest.raises(AssertionError, match="and its remedy"):
        Check(name="x", status=status, found="y", remedy=remedy)


def test_a_report_names_what_failed():
    report = DoctorReport(checks=(Check.passed("a", "fine"), Check.failed("b", "bad", "mend it")))
    assert str(report) == "ok   a: fine\nFAIL b: bad\n     fix: mend it"
    with pytest.raises(CheckFailed, match="1 of 2 checks failed: b"):
        report.raise_if_failed()
