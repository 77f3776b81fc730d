"""Whether the machine under a policy is what it should be: its backend, its power mode, its disk."""

from __future__ import annotations

import re
from pathlib import Path

from roboalign.drivers.setup.checks import Check
from roboalign.drivers.setup.machine import Machine
from roboalign.sdk.backends import backend_names, choose_backend, find_backend
from roboalign.sdk.board import detect_board
from roboalign.sdk.bundle import Bundle
from roboalign.sdk.engines import find_engines
from roboalign.sdk.errors import BackendError, ConfigError, RoboalignError, unknown_name

__all__ = ["check_backend", "check_disk", "check_power"]

_NAME = "backend"
_FASTEST = re.compile(r"MAXN(_SUPER)?")
_MODES = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
_MIN_FREE_BYTES, _FEW_FREE_BYTES = 256 * 2**20, 2 * 2**30
_OWN_CLOCKS = ("intel_pstate", "amd-pstate-epp")  # their `powersave` is as fast as needed
_CPU = "/sys/devices/system/cpu/cpu0/cpufreq"


def check_backend(bundle: Bundle, wanted: str, machine: Machine) -> Check:
    """Opens the bundle with the wanted backend and says what is active; `auto` must be the fastest of this machine.

    Raises:
        ConfigError: There is no such backend.
    """
    if wanted != "auto" and wanted not in backend_names():
        raise ConfigError(unknown_name("backend", wanted, ("auto", *backend_names())))
    board, name = detect_board(machine.root), wanted
    if wanted == "auto":
        name = choose_backend(bundle.path, root=machine.root)
        if board is not None and name != "tensorrt":
            return Check.failed(
                _NAME,
                f"onnxruntime on the CPU, on {board.model or 'a Jetson'}: {_why_no_engines(bundle, machine)}",
                f"roboalign build {bundle.path}, here; it takes minutes, and auto is TensorRT then",
            )
    try:
        find_backend(name).open(bundle.path, threads=1).close()
    except RoboalignError as err:
        remedy = "install what it names, or choose another one: --backend cpu"
        return Check.failed(_NAME, f"{name} was asked for and is not active: {err}", remedy)
    found = f"{name}, as asked" if wanted != "auto" else f"{name}, which is what auto means here"
    if name in ("cpu", "onnx") and not bundle.manifest.reads_in_place and bundle.manifest.target == "cpu":
        return Check.warning(
            _NAME,
            f"{found}; its graphs are the portable ones, which copy their cache at every token",
            "to think faster, export anew for the CPU: roboalign export RUN --target cpu",
        )
    if name in ("cpu", "onnx") and bundle.manifest.target != "cpu":
        return Check.failed(
            _NAME,
            f"onnxruntime on the CPU, with a bundle made for {bundle.manifest.target}",
            f"on that board: roboalign build {bundle.path}; on this machine: roboalign export RUN --target cpu",
        )
    return Check.passed(_NAME, found)


def _why_no_engines(bundle: Bundle, machine: Machine) -> str:
    try:
        find_engines(bundle.path, detect_board(machine.root))
    except (BackendError, OSError) as err:
        return str(err).partition("; build them")[0]
    return "the engines do not fit"


def check_power(machine: Machine) -> Check:
    """Looks at nvpmodel on a Jetson, at the governor of the clocks elsewhere. Unverified on a real board."""
    name = "power mode"
    board = detect_board(machine.root)
    if board is not None:
        modes = _MODES.findall(machine.text("/etc/nvpmodel.conf"))
        fastest = [mode for mode in modes if _FASTEST.fullmatch(mode[1])]
        number, title = max(fastest, key=lambda mode: len(mode[1])) if fastest else ("0", "the first")
        if board.power_mode is None:
            return Check.skipped(name, "cannot tell: nvpmodel left no status; see: sudo nvpmodel -q")
        if board.power_mode not in (title, number):
            found = f"mode {board.power_mode}; the fastest of this board is {title}"
            remedy = f"sudo nvpmodel -m {number}, then sudo jetson_clocks; engines must be built again in that mode"
            return Check.failed(name, found, remedy)
        low, high = (machine.text(f"{_CPU}/scaling_{end}_freq") for end in ("min", "max"))
        if low.isdigit() and high.isdigit() and int(low) < int(high):
            found = f"mode {board.power_mode}, but its clocks may fall to {int(low) // 1000} of {int(high) // 1000} MHz"
            return Check.failed(name, f"{found} between two answers", "sudo jetson_clocks (again after every start)")
        return Check.passed(name, f"mode {board.power_mode}")
    governor, driver = (machine.text(f"{_CPU}/scaling_{what}") for what in ("governor", "driver"))
    if governor == "powersave" and driver not in _OWN_CLOCKS:
        found = f"the governor {governor} of {driver or 'unknown'} keeps the clocks at their lowest"
        return Check.failed(name, found, "sudo cpupower frequency-set -g performance (or schedutil)")
    return Check.passed(
        name, f"governor {governor}" if governor else "no governor: clocks are not this machine's to set"
    )


def check_disk(folder: Path, machine: Machine) -> Check:
    """Writes a megabyte where traces go, a folder that need not exist yet, and looks how much is free."""
    name, there = "disk", folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        machine.try_write(there)
        free = machine.free_bytes(there)
    except OSError as err:
        reason = err.strerror or str(err)
        remedy = f"free some space, mount it writable, or name another folder with --traces ({there} was tried)"
        return Check.failed(name, f"no trace can be written to {folder}: {reason}", remedy)
    found = f"{free / 1e9:.1f} GB free at {there}"
    if free < _MIN_FREE_BYTES:
        return Check.failed(name, f"{found}; a run with trace and recording needs more", "remove old recordings first")
    if free < _FEW_FREE_BYTES:
        return Check.warning(name, found, "remove old recordings soon")
    return Check.passed(name, found)
