"""Faults that are put between a sound policy, a sound arm and a sound machine: what the doctor has to name.

Each kind has the name of the check that must fail. A seed chooses among the forms that a kind takes in life.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from roboalign.drivers.setup.machine import Machine
from roboalign.sdk.control.kinematics import Kinematics, state_from_pose
from roboalign.sdk.sim.robots import find_robot
from roboalign.sdk.types import Observation

__all__ = ["KINDS", "Planted", "PlantedPolicy", "PlantedRobot", "healthy_machine", "plant"]

See = Callable[[Observation], Observation]
Do = Callable[[np.ndarray], np.ndarray]

ORIN = "NVIDIA Jetson AGX Orin Developer Kit"
MODES = {
    ORIN: ("MAXN", "MODE_15W", "MODE_30W", "MODE_50W"),
    "NVIDIA Jetson Orin Nano Developer Kit": ("15W", "25W", "MAXN_SUPER", "7W"),
    "NVIDIA Jetson AGX Thor Developer Kit": ("MAXN", "120W", "90W", "70W"),
}
TURNED: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "upside down": lambda image: image[::-1, ::-1],
    "mirrored": lambda image: image[:, ::-1],
    "top to bottom": lambda image: image[::-1],
    "by 90 degrees": lambda image: np.rot90(image),
    "by 270 degrees": lambda image: np.rot90(image, 3),
}


@dataclass
class Planted:
    """One fault, as changes of what is sensed, done, asked, and found on the machine."""

    kind: str
    form: str = ""
    see: See = lambda seen: seen
    do: Do = lambda action: action
    tell: Callable[[str], str] = lambda sentence: sentence
    backend: str = "auto"
    traces: Path | None = None
    machine: Machine | None = None
    is_of_motion: bool = False


class PlantedRobot:
    """A robot with a fault in its senses or in what it does."""

    def __init__(self, robot, planted: Planted) -> None:
        self._robot, self._planted = robot, planted
        self.spec = robot.spec

    def __getattr__(self, name):
        return getattr(self._robot, name)

    def observe(self, instruction="", with_images=True):
        seen = self._robot.observe(instruction, with_images)
        return self._planted.see(seen)

    def act(self, action):
        return self._robot.act(self._planted.do(np.array(action, np.float32)))


class PlantedPolicy:
    """A policy whose sentence is not the one that it was given."""

    def __init__(self, policy, planted: Planted) -> None:
        self._policy, self._planted = policy, planted

    def __getattr__(self, name):
        return getattr(self._policy, name)

    def act(self, observation):
        return self._policy.act(replace(observation, instruction=self._planted.tell(observation.instruction)))


def healthy_machine(root: Path) -> Machine:
    """A desktop computer with clocks that rise when they are needed."""
    write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "schedutil")
    write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "acpi-cpufreq")
    return Machine(root=root, user="ada", free_bytes=lambda folder: 40 * 2**30)


def write(root: Path, name: str, text: str) -> None:
    """Writes one file of a machine."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def jetson(root: Path, model: str, mode: int, *, is_locked: bool = True) -> Machine:
    """The files of a Jetson, as NVIDIA documents them."""
    write(root, "proc/device-tree/model", model + "\0")
    write(root, "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic")
    write(root, "var/lib/nvpmodel/status", f"pmode:{mode:04d}")
    lines = [f"< POWER_MODEL ID={number} NAME={name} >" for number, name in enumerate(MODES[model])]
    write(root, "etc/nvpmodel.conf", "\n".join(lines))
    write(root, "proc/meminfo", "MemTotal:       64000000 kB")
    write(root, "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0", "")
    low = 2201600 if is_locked else 729600
    write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq", str(low))
    write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "2201600")
    return Machine(root=root, user="ada", free_bytes=lambda folder: 40 * 2**30)


def with_pictures(seen: Observation, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Observation:
    """An observation with other pictures, if it has any."""
    return replace(seen, images=change(dict(seen.images))) if seen.images else seen


def _camera_swap(dice, arm, root) -> Planted:
    def swap(images):
        return {**images, "front": images["show"], "show": images["front"]}

    return Planted("camera swap", "front and show", see=lambda seen: with_pictures(seen, swap))


def _colour_order(dice, arm, root) -> Planted:
    names = ("front",) if dice.random() < 0.5 else ("front", "show")

    def swap(images):
        return {name: np.ascontiguousarray(im[..., ::-1]) if name in names else im for name, im in images.items()}

    return Planted("colour order", " and ".join(names), see=lambda seen: with_pictures(seen, swap))


def _exchange(dice, count: int) -> list[int]:
    order = list(range(count))
    a, b = dice.choice(count, 2, replace=False)
    order[a], order[b] = order[b], order[a]
    return order


def _joint_order(dice, arm, root) -> Planted:
    form = ("state", "joints", "both", "sign")[dice.integers(4)]
    model = find_robot(arm)
    kinematics: Kinematics = model.kinematics()
    names = model.arm_joints
    if form == "state":
        order = _exchange(dice, 5) if dice.random() < 0.7 else np.roll(range(5), 1 + dice.integers(4)).tolist()
        return Planted("joint order", f"state {order}", see=lambda seen: replace(seen, state=seen.state[order]))
    if form == "sign":
        # A joint that stands at zero has no sign yet.
        index = {"so101": (1, 2, 3, 4), "panda": (1, 3, 5, 6)}[arm][dice.integers(4)]
        turn = np.ones(len(names), np.float32)
        turn[index] = -1
        return Planted(
            "joint order",
            f"{names[index]} turned",
            see=lambda seen: replace(seen, joint_pos_rad=seen.joint_pos_rad * turn),
        )
    order = _exchange(dice, len(names))

    def see(seen):
        joints = seen.joint_pos_rad[order]
        if form == "joints":
            return replace(seen, joint_pos_rad=joints)
        return replace(seen, joint_pos_rad=joints, state=state_from_pose(kinematics.forward(joints), seen.state[4]))

    return Planted("joint order", f"{form} {order}", see=see)


def _gripper_sign(dice, arm, root) -> Planted:
    most = find_robot(arm).gripper.max_width_m

    def turn_action(action):
        action[4] = 1.0 - action[4]
        return action

    def turn_state(seen):
        state = seen.state.copy()
        state[4] = most - state[4]
        return replace(seen, state=state)

    if dice.random() < 0.5:
        return Planted("gripper sign", "action", do=turn_action, is_of_motion=True)
    return Planted("gripper sign", "state", see=turn_state)


def _frozen_picture(dice, arm, root) -> Planted:
    first, after, count = {}, int(dice.integers(0, 3)), [0]

    def freeze(images):
        count[0] += 1
        if count[0] > after:
            images["front"] = first.setdefault("front", images["front"])
        return images

    return Planted("frozen picture", f"after {after}", see=lambda seen: with_pictures(seen, freeze))


def _picture_age(dice, arm, root) -> Planted:
    late = int(dice.integers(6, 11))
    kept: deque[np.ndarray] = deque(maxlen=late + 1)

    def delay(images):
        kept.append(images["front"])
        images["front"] = kept[0]
        return images

    return Planted("picture age", f"{late} periods", see=lambda seen: with_pictures(seen, delay))


def _picture_orientation(dice, arm, root) -> Planted:
    form = sorted(TURNED)[dice.integers(len(TURNED))]

    def turn(images):
        images["front"] = np.ascontiguousarray(TURNED[form](images["front"]))
        return images

    return Planted("picture orientation", form, see=lambda seen: with_pictures(seen, turn))


def _state_units(dice, arm, root) -> Planted:
    form = ("mm", "cm", "yaw in degrees", "joints in degrees", "width in mm")[dice.integers(5)]
    scale, joint = np.ones(5, np.float32), np.float32(1)
    if form in ("mm", "cm"):
        scale[:3] = scale[4] = 1000 if form == "mm" else 100
    elif form == "yaw in degrees":
        scale[3] = 180 / np.pi
    elif form == "joints in degrees":
        joint = np.float32(180 / np.pi)
    else:
        scale[4] = 1000
    return Planted(
        "state units",
        form,
        see=lambda seen: replace(seen, state=seen.state * scale, joint_pos_rad=seen.joint_pos_rad * joint),
    )


def _motion_axes(dice, arm, root) -> Planted:
    form = ("sign", "exchange", "scale")[dice.integers(3)]
    axis = int(dice.integers(3))

    def do(action):
        if form == "sign":
            action[axis] *= -1
        elif form == "exchange":
            other = (axis + 1) % 3
            action[[axis, other]] = action[[other, axis]]
        else:
            action[:3] *= 0.25
        return action

    return Planted("motion axes", f"{form} {'xyz'[axis]}", do=do, is_of_motion=True)


def _instruction(dice, arm, root) -> Planted:
    sentence = ("put the red block in the blue bowl", "push the green cylinder to the left")[dice.integers(2)]
    if dice.random() < 0.5:
        return Planted("instruction", "policy", tell=lambda _: sentence)
    return Planted("instruction", "robot", see=lambda seen: replace(seen, instruction=sentence))


def _backend(dice, arm, root) -> Planted:
    if dice.random() < 0.5:
        asked = ("onnx-cuda", "onnx-tensorrt", "tensorrt")[dice.integers(3)]
        return Planted("backend", asked, backend=asked, machine=healthy_machine(root))
    model = sorted(MODES)[dice.integers(len(MODES))]
    fastest = next(number for number, name in enumerate(MODES[model]) if name.startswith("MAXN"))
    return Planted("backend", f"{model} without engines", machine=jetson(root, model, fastest))


def _power_mode(dice, arm, root) -> Planted:
    if dice.random() < 0.3:
        machine = healthy_machine(root)
        write(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave")
        return Planted("power mode", "powersave", machine=machine)
    model = sorted(MODES)[dice.integers(len(MODES))]
    fastest = next(number for number, name in enumerate(MODES[model]) if name.startswith("MAXN"))
    if dice.random() < 0.3:
        return Planted("power mode", "clocks", backend="cpu", machine=jetson(root, model, fastest, is_locked=False))
    mode = int(dice.choice([number for number in range(4) if number != fastest]))
    return Planted("power mode", f"{model} {MODES[model][mode]}", backend="cpu", machine=jetson(root, model, mode))


def _disk(dice, arm, root) -> Planted:
    machine, form = healthy_machine(root), ("full", "read-only", "a file", "no space")[dice.integers(4)]
    if form == "full":
        free = int(dice.integers(1, 250)) * 2**20
        return Planted("disk", form, machine=replace(machine, free_bytes=lambda folder: free))
    if form == "a file":
        write(root, "traces", "not a folder")
        return Planted("disk", form, machine=machine, traces=root / "traces" / "today")
    number = errno.EROFS if form == "read-only" else errno.ENOSPC

    def refuse(folder):
        raise OSError(number, "Read-only file system" if form == "read-only" else "No space left on device")

    return Planted("disk", form, machine=replace(machine, try_write=refuse))


KINDS: Mapping[str, Callable[[np.random.Generator, str, Path], Planted]] = {
    "camera swap": _camera_swap,
    "colour order": _colour_order,
    "joint order": _joint_order,
    "gripper sign": _gripper_sign,
    "frozen picture": _frozen_picture,
    "instruction": _instruction,
    "backend": _backend,
    "power mode": _power_mode,
    "disk": _disk,
    "picture orientation": _picture_orientation,
    "state units": _state_units,
    "motion axes": _motion_axes,
    "picture age": _picture_age,
}
"""By the name of the check that must fail."""


def plant(kind: str, seed: int, arm: str, root: Path) -> Planted:
    """The fault of a seed; `root` is an empty folder that may stand for the machine."""
    return KINDS[kind](np.random.default_rng((seed, sorted(KINDS).index(kind))), arm, root)
