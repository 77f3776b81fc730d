"""What a bundle's `manifest.json` says, as types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.prompt import PromptFormat

__all__ = [
    "EXTEND_ROLE",
    "HEAR_ROLE",
    "IN_PLACE_ROLES",
    "LOOK_ROLE",
    "LOWER_CODES_ROLE",
    "LOWER_ROLE",
    "READ_CODES_ROLE",
    "READ_ROLE",
    "SEE_ROLE",
    "SINCE_VERSION_2",
    "UPPER_CODES_ROLE",
    "UPPER_ROLE",
    "WRITE_ACTIONS_ROLE",
    "WRITE_ROLE",
    "FileRecord",
    "GraphSpec",
    "Manifest",
    "ParityRecord",
    "PolicySpec",
    "RobotIdentity",
    "TensorSpec",
    "Thresholds",
]


EXTEND_ROLE = "extend"
"""Role of graphs that read several tokens at once, followed by how many: in bundles before there was `read`."""

HEAR_ROLE, LOOK_ROLE, SEE_ROLE = "hear", "look", "see"
READ_ROLE, READ_CODES_ROLE = "read", "read_codes"
LOWER_ROLE, LOWER_CODES_ROLE = "lower", "lower_codes"
UPPER_ROLE, UPPER_CODES_ROLE = "upper", "upper_codes"
WRITE_ROLE, WRITE_ACTIONS_ROLE = "write", "write_actions"
IN_PLACE_ROLES = (
    *(HEAR_ROLE, LOOK_ROLE, SEE_ROLE),
    *(LOWER_ROLE, LOWER_CODES_ROLE, UPPER_ROLE, UPPER_CODES_ROLE, READ_ROLE, READ_CODES_ROLE),
    *(WRITE_ROLE, WRITE_ACTIONS_ROLE),
)
"""Roles of the graphs that onnxruntime decodes with on a CPU, in bundles for that: what each word says to who looks at
the picture, the picture's tokens, and both in one (in bundles before there was `hear`); the layers up to the one that
the action head sees and those above it, with the scores of every token, for any number of tokens read into a cache that
is written in place, the same on codes as they are, and all layers in one, their scores apart (before there was
`lower`); scores of action tokens alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    """Name in the ONNX file."""
    shape: tuple[int, ...]
    """Every dimension is fixed, so that an engine builder needs no profile."""
    dtype: str
    """`float32`, `float16`, `int64`, `int32` or `bool`; whoever runs the graph makes its buffers of this type."""
    unit: str
    """Unit of the values, or what they count."""
    fields: tuple[str, ...] = ()
    """Names along the last dimension, in order; empty when they have none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphSpec:
    """One ONNX file."""

    file: str
    """File name inside the bundle."""
    opset: int
    """Version of the ai.onnx operator set, the only one that is used."""
    inputs: tuple[TensorSpec, ...]
    """In the order of the file."""
    outputs: tuple[TensorSpec, ...]
    """In the order of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """What a file must be to be believed."""

    sha256: str
    """Hexadecimal digest of the content."""
    num_bytes: int
    """Length of the content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RobotIdentity:
    """Which robot a policy was trained for."""

    name: str
    """Name of the arm, as in `RobotSpec.name` of the dataset it learnt from; empty where the dataset did not say."""
    statistics_sha256: str
    """Digest of how states and actions are normalised, see `statistics_digest`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """What `roboalign verify` accepts."""

    action_error: float
    """Largest difference of an action from PyTorch's, as a share of its field's range: of all of them, or of 95 % of
    each field's where products are narrow."""
    part_error: float
    """Largest difference of a graph's output from PyTorch's, as a share of the largest value of that output."""
    same_tokens: float
    """Smallest share of the tokens of PyTorch's answers that must be written too."""
    success_loss: float
    """Largest loss of success in the simulator: the paired interval must lie above minus this."""

    def __post_init__(self) -> None:
        for name in ("action_error", "part_error", "same_tokens", "success_loss"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigError(f"Thresholds.{name} is {getattr(self, name)}, expected a share above 0, up to 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityRecord:
    """The comparison of this bundle's graphs with PyTorch on the same weight bytes, made when it was exported."""

    num_observations: int
    """How many observations both sides answered."""
    max_action_error: float
    """Largest difference of any action field, as a share of that field's range, where both sides thought alike."""
    tolerance: float
    """Largest difference that was accepted: of all actions, or of 95 % of each field's where products are narrow."""
    action_spread: float
    """Largest variation of any action field over the observations, as a share of its range."""
    num_tokens: int
    """Tokens that PyTorch chose by greedy decoding."""
    num_distinct_tokens: int
    """Different tokens among them; a comparison of one repeated token would prove nothing."""
    num_distinct_sequences: int
    """Different answers among the observations."""
    inputs: str
    """Where the observations came from."""
    field_errors: Mapping[str, float] = field(default_factory=dict)
    """Largest difference of each action field, in its own unit, on the vectors that the bundle holds."""
    part_errors: Mapping[str, float] = field(default_factory=dict)
    """Largest difference of each graph's outputs on these, as a share of the largest value, e.g. `prefill.logits`."""
    equal_tokens: float = 1.0
    """Share of them that the graphs chose too, each answer read up to its first difference."""
    min_equal_tokens: float = 1.0
    """Smallest share that was accepted."""
    largest_half: float | None = None
    """Largest float16 value inside the graphs, of the 65504 that fit; None where arithmetic is float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicySpec:
    """What a policy needs from the robot and promises to it, with everything that prepares and reads its tensors."""

    horizon: int
    """Actions in a chunk."""
    rate_hz: float
    """Rate at which they are meant to be applied."""
    camera_names: tuple[str, ...]
    """Cameras that an observation must hold."""
    image_size_px: int
    """Height and width of each picture."""
    state_names: tuple[str, ...]
    """Fields of `Observation.state`, in order."""
    action_names: tuple[str, ...]
    """Fields of an action, in order."""
    action_low: tuple[float, ...]
    """1st percentile of each action field, in its unit: -1 in normalised actions."""
    action_high: tuple[float, ...]
    """99th percentile of each action field, in its unit: +1 in normalised actions."""
    prompt: PromptFormat
    """How observations become prompts."""
    max_prompt_tokens: int
    """Longest prompt, image tokens included."""
    max_thought_tokens: int
    """Thought budget; a longer thought is closed there."""
    max_tokens: int
    """Longest sequence in all: prompt, thought and answer."""
    hidden_size: int
    """Width of the hidden states that condition the action head."""
    has_head: bool
    """False for a policy that can only write action tokens."""
    has_actions: bool = True
    """False for a model that never learnt action tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The content of `manifest.json`."""

    format_version: int
    """Layout of the folder, see `FORMAT_VERSION`."""
    roboalign_version: str
    """Version that wrote the bundle."""
    source_commit: str
    """Commit of the exporter's source tree, or `unknown`."""
    name: str
    """Name of the bundle, from its run."""
    model: str
    """Architecture of the vision-language model."""
    tokenizer_sha256: str
    """Which tokenizer wrote the training texts."""
    codec_hash: str
    """Which action codec."""
    target: str
    """Machine the bundle is meant for: `cpu`, `host`, a board such as `agx-thor`, or `jetson` for any board."""
    built: bool
    """True when the folder can run on its target as it is; False when the target still has to compile it."""
    next_command: str
    """What to type on the target when `built` is False, otherwise empty."""
    precision: str
    """How weights are stored: `fp16`, `fp32`, `int8` or `int4`; or `int8-w8a8` or `fp8`: in fp16, and multiplied so."""
    stage: str
    """Training stage of the model under the head: `sft` or `align`."""
    parents: tuple[str, ...]
    """Digests of the checkpoints it descends from, nearest first."""
    policy: PolicySpec
    """How to act with it."""
    graphs: Mapping[str, GraphSpec]
    """By role: `prefill`, `step`, `flow`; `vision` where it is apart; `IN_PLACE_ROLES` in bundles for the CPU, where
    the first dimension that states more than one token is the most there may be."""
    files: Mapping[str, FileRecord]
    """Every file except the manifest."""
    parity: ParityRecord | None = None
    """How far the graphs are from PyTorch."""
    robot: RobotIdentity | None = None
    """Which robot it is for; None in bundles of format version 1."""
    thresholds: Thresholds | None = None
    """What verification accepts; None in bundles of format version 1."""
    arithmetic: str = "float32"
    """What the graphs compute in; where it is `float16`, what that would spoil is float32 all the same. With `int8` and
    `fp8` the products of some layers are, and everything else is as with `float16`."""

    @property
    def reads_in_place(self) -> bool:
        """Whether there are graphs that onnxruntime decodes with on a CPU."""
        return LOWER_ROLE in self.graphs or READ_ROLE in self.graphs


SINCE_VERSION_2: Mapping[type, frozenset[str]] = {
    Manifest: frozenset({"robot", "thresholds", "arithmetic"}),
    ParityRecord: frozenset({"field_errors", "part_errors", "equal_tokens", "min_equal_tokens", "largest_half"}),
}
"""Fields that manifests of version 1 do not have."""
