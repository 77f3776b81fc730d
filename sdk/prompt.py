"""How an observation becomes a prompt: one definition for training, export and the robot.

A prompt reads `<bos>{instruction} state {x} {y} {z} {yaw} {width}<image>*N{pace}{task}`. Two flags close it: the pace
(`<quick>`: answer at once, `<slow>`: think first) and the task (`<ask>`: answer in words, `<act>`: answer with an
action).
The state is written as whole numbers, so that every backbone reads it as text. Only numpy is needed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.patches import PatchFormat
from roboalign.sdk.types import STATE_NAMES, FloatArray, ImageArray

__all__ = ["FORMS", "PACES", "TASKS", "UNSAID", "PromptFormat"]

PACES = ("quick", "slow")
"""`quick` answers at once; `slow` thinks first."""

TASKS = ("ask", "act")
"""`ask` wants words; `act` wants an action."""

FORMS = ("nano", "chat", "qwen")
"""`nano` closes a prompt with two flags, `<slow><act>`; `chat` (SmolLM2) and `qwen` say them in a turn of a chat."""

UNSAID: Mapping[str, object] = {"form": FORMS[0], "patches": None}
"""Fields that are not written while they are so, as in the files from before there was anything else."""

_LAYOUTS = {
    "nano": "<bos>{text}{state}{image}<{pace}><{task}>",
    "chat": "<|im_start|>user\n{text}{state}{image}\n{flags}<|im_end|>\n<|im_start|>assistant\n",
    "qwen": "<|im_start|>user\n{image}{text}{state}\n{flags}<|im_end|>\n<|im_start|>assistant\n",
}
_PACE_WORDS = {"quick": "Answer at once.", "slow": "Think first."}
_TASK_WORDS = {"ask": "Answer in words.", "act": "Answer with an action."}


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptFormat:
    """The fixed facts of a prompt; saved with every checkpoint and bundle."""

    image_size_px: int = 96
    """Height and width of the picture that the model takes."""
    num_image_tokens: int = 24
    """Placeholders that the vision encoder's output replaces."""
    length_unit_m: float = 0.005
    """Metres per whole number for positions, in the state and in thoughts alike."""
    width_unit_m: float = 0.001
    """Metres per whole number for the gripper width."""
    angle_unit_rad: float = 0.02
    """Radians per whole number for the yaw."""
    origin_m: tuple[float, float, float] = (0.30, -0.26, 0.0)
    """Position written as 0 0 0."""
    yaw_origin_rad: float = -1.0
    """Yaw written as 0."""
    max_number: int = 127
    """Largest number that has a word of its own; everything is clipped to 0..max_number."""
    pixel_mean: float = 0.5
    """Subtracted from pixel / 255."""
    pixel_std: float = 0.25
    """Divides what is left."""
    form: str = "nano"
    """How the parts are put together, one of `FORMS`."""
    patches: PatchFormat | None = None
    """How the picture is cut for a model that takes patches; None where it takes the picture whole."""

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ConfigError(f"PromptFormat.form is {self.form!r}, expected one of {', '.join(FORMS)}")

    @property
    def upper_m(self) -> tuple[float, ...]:
        """Position written as the largest numbers; beyond it, or before `origin_m`, the edge is written."""
        return tuple(start + self.max_number * self.length_unit_m for start in self.origin_m)

    def numbers(self, values: FloatArray, units: FloatArray) -> list[int]:
        """Returns values / units as whole numbers inside 0..max_number."""
        return [int(v) for v in np.clip(np.rint(values / units), 0, self.max_number)]

    def position_numbers(self, position_m: FloatArray) -> list[int]:
        """Returns a position in the base frame (2 or 3 numbers) in length units from the origin."""
        offset = np.asarray(position_m, np.float64) - np.asarray(self.origin_m[: len(position_m)])
        return self.numbers(offset.astype(np.float32), np.full(len(offset), self.length_unit_m, np.float32))

    def state_numbers(self, state: FloatArray) -> list[int]:
        """Returns `Observation.state` as five whole numbers."""
        if np.shape(state) != (len(STATE_NAMES),) or not np.isfinite(state).all():
            raise DataError(
                f"state must be {len(STATE_NAMES)} finite numbers ({', '.join(STATE_NAMES)}), found {state}"
            )
        yaw = self.numbers(
            np.asarray([state[3] - self.yaw_origin_rad], np.float32), np.asarray([self.angle_unit_rad], np.float32)
        )
        width = self.numbers(np.asarray([state[4]], np.float32), np.asarray([self.width_unit_m], np.float32))
        return self.position_numbers(np.asarray(state[:3], np.float32)) + yaw + width

    def clean_text(self, text: str) -> str:
        """Returns an instruction as the model was trained on it: no markup; for nano also lower case, no punctuation.

        A pretrained model knows capitals and punctuation; only what a marker could be made of is taken out.
        """
        if self.form != "nano":
            return " ".join("".join(" " if c in "<>|" else c for c in text).split())
        kept = "".join(c if c.isalnum() or c.isspace() else " " for c in text.lower())
        return " ".join(kept.split())

    def prompt_text(self, instruction: str, state: FloatArray | None, *, pace: str, task: str) -> str:
        """Returns the prompt as text; the tokenizer maps each marker in it to one token. No state, no state words."""
        if pace not in PACES or task not in TASKS:
            raise ConfigError(f"prompt flags are {pace!r} and {task!r}, expected one of {PACES} and one of {TASKS}")
        text = self.clean_text(instruction)
        if not text:
            raise DataError(
                "the instruction is empty; say what the robot should do, e.g. 'put the red block in the blue bowl'"
            )
        flags = f"{_PACE_WORDS[pace]} {_TASK_WORDS[task]}"
        parts = {"text": text, "state": self.state_text(state), "image": self.image_text, "flags": flags}
        return _LAYOUTS[self.form].format(**parts, pace=pace, task=task)

    @property
    def image_text(self) -> str:
        """The placeholders of a picture, with what a model wants around them."""
        if self.form == "qwen":
            return f"<|vision_start|>{'<|image_pad|>' * self.num_image_tokens}<|vision_end|>"
        return "<image>" * self.num_image_tokens

    def state_text(self, state: FloatArray | None) -> str:
        """Returns ` state` and its numbers, or nothing when there is no state (a picture that no robot took)."""
        return "" if state is None else " state " + " ".join(str(n) for n in self.state_numbers(state))

    def check_image(self, image: ImageArray, name: str = "front") -> None:
        """Raises DataError unless the image is uint8[size, size, 3]."""
        size = self.image_size_px
        if image.dtype != np.uint8 or image.shape != (size, size, 3):
            raise DataError(
                f"image {name!r} is {image.dtype}{list(image.shape)}, expected uint8[{size}, {size}, 3]; "
                f"resize the camera picture to {size} x {size} RGB"
            )

    def pixel_values(self, image: ImageArray) -> FloatArray:
        """Returns float32[3, size, size], normalised, from uint8[size, size, 3]."""
        self.check_image(image)
        scaled = (image.astype(np.float32) / 255.0 - self.pixel_mean) / self.pixel_std
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))

    def image_of(self, pixel_values: FloatArray) -> ImageArray:
        """Returns the uint8[size, size, 3] that `pixel_values` was made from."""
        scaled = (pixel_values.transpose(1, 2, 0) * self.pixel_std + self.pixel_mean) * 255.0
        image: ImageArray = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        return image

    def to_json(self) -> dict[str, object]:
        """Returns a JSON-able description; `from_json` reads it back. The first form goes without saying."""
        data = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in data.items() if key not in UNSAID or value != UNSAID[key]}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> PromptFormat:
        """Builds the format from `to_json`'s result; unknown or missing fields are a ConfigError."""
        known = {f.name for f in fields(cls)}
        data = {**UNSAID, **data}
        if set(data) != known:
            odd = sorted(set(data) ^ known)
            raise ConfigError(f"prompt format has missing or unknown fields {odd}; it was written by another version")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        if isinstance(patches := data["patches"], Mapping):
            fixed = {key: tuple(value) if isinstance(value, list) else value for key, value in patches.items()}
            values["patches"] = PatchFormat(**fixed)  # type: ignore[arg-type]  # from to_json, as above
        return cls(**values)  # type: ignore[arg-type]  # checked by name above, values come from to_json
