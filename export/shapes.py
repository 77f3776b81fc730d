"""How large the parts of a model are: of a published one by its sizes, of a checkpoint or bundle of ours by its files.

Counted are weights, bytes and multiplications; nothing is loaded but headers. Biases and norms of published models are
left out (under 0.1 %); those of a checkpoint are counted, since its file lists them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import cast

from roboalign.sdk.errors import BundleError, ConfigError, unknown_name
from roboalign.sdk.settings_file import read_settings

__all__ = ["HeadSize", "ModelSize", "model_names", "model_size", "run_size"]

PICTURE_PX = 448
"""Side of the one picture that published models are planned for; the checkpoint says it for ours."""

TEXT_TOKENS = 64
"""Words around the picture: instruction, state, template."""

CONTEXT_TOKENS = 1024
"""Longest sequence that is planned for: prompt, thought and answer."""

_HEAD_WIDTH, _HEAD_LAYERS, _HEAD_STEPS, _HEAD_HORIZON = 1536, 16, 4, 16
"""The head of our recipes for published models (trainer/recipes/qwen.py), with four Euler steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadSize:
    """The action head."""

    weights: int
    """Parameters."""
    layers: int
    """Blocks, each of which is launched in every step."""
    steps: int
    """Euler steps, each of which reads all of the weights."""
    horizon: int
    """Actions in a chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """Parameters by part, and what a prompt costs."""

    name: str
    """What was asked for."""
    vision: int
    """Parameters of the vision encoder, with what maps into the decoder."""
    embed: int
    """Parameters of the embedding table."""
    decoder: int
    """Parameters of the decoder's layers."""
    is_tied: bool
    """Whether the output layer is the embedding table."""
    layers: int
    """Decoder layers."""
    kv_values: int
    """Numbers that keys and values of one token take, over all layers."""
    patches: int | None
    """Patches that the vision encoder sees at once; None for a convolution, whose work does not follow from weights."""
    image_tokens: int
    """Tokens of the picture in the prompt."""
    prompt_tokens: int
    """Tokens of the prompt, with those of the picture."""
    context_tokens: int
    """Longest sequence that is planned for."""
    head: HeadSize | None
    """None for a model without an action head."""
    has_own_graphs: bool
    """Whether this version writes graphs for it, with keys and values as explicit tensors."""
    has_own_products: bool
    """Whether it writes graphs for it that multiply narrow numbers."""

    @property
    def num_parameters(self) -> int:
        """Everything, the output layer once more where it has a table of its own."""
        tables = self.embed * (1 if self.is_tied else 2)
        return self.vision + self.decoder + tables + (self.head.weights if self.head else 0)


@cache
def _table() -> Mapping[str, object]:
    return read_settings(Path(__file__).with_name("shapes.toml"), "table of model sizes")


def model_names() -> tuple[str, ...]:
    """Returns the published models whose sizes are known."""
    return tuple(_table())


def model_size(name: str) -> ModelSize:
    """Returns the size of a published model, with the action head of our recipes; an unknown name is a ConfigError."""
    if name not in _table():
        raise ConfigError(unknown_name("model", name, model_names()))
    row = cast(dict[str, dict[str, int]], _table()[name])
    text, seen = row["decoder"], row.get("vision")
    width, hidden = text["heads"] * text["head_dim"], text["hidden"]
    pairs = 2 * text["kv_heads"] * text["head_dim"]
    patches = 0 if seen is None else (PICTURE_PX // seen["patch"] // seen["merge"] * seen["merge"]) ** 2
    image_tokens = 0 if seen is None else patches // seen["merge"] ** 2
    return ModelSize(
        name=name,
        vision=0 if seen is None else _vision_weights(seen, hidden),
        embed=text["vocab"] * hidden,
        decoder=text["layers"] * (hidden * (2 * width + pairs) + 3 * hidden * text["intermediate"]),
        is_tied=bool(text["tied"]),
        layers=text["layers"],
        kv_values=text["layers"] * pairs,
        patches=patches,
        image_tokens=image_tokens,
        prompt_tokens=image_tokens + TEXT_TOKENS,
        context_tokens=CONTEXT_TOKENS,
        head=HeadSize(weights=_head_weights(hidden), layers=_HEAD_LAYERS, steps=_HEAD_STEPS, horizon=_HEAD_HORIZON),
        has_own_graphs=False,
        has_own_products=False,
    )


def _vision_weights(seen: Mapping[str, int], hidden: int) -> int:
    width = seen["hidden"]
    block = 4 * width**2 + seen["mlp_matrices"] * width * seen["intermediate"]
    merged = width * seen["merge"] ** 2
    # A patch is two frames deep: both families see a picture twice.
    return seen["depth"] * block + seen["mergers"] * (merged**2 + merged * hidden) + 6 * seen["patch"] ** 2 * width


def _head_weights(hidden: int) -> int:
    """Parameters of `trainer.flow.FlowHead`: two attentions, a feed-forward and a modulation a block."""
    block = (4 + 4 + 4 + 9) * _HEAD_WIDTH**2
    return _HEAD_LAYERS * block + hidden * _HEAD_WIDTH + 2 * _HEAD_WIDTH**2


def run_size(folder: Path) -> ModelSize:
    """Returns the size of a checkpoint or bundle of ours, from its config.json, head.json and safetensors headers.

    Raises:
        BundleError: the folder lacks one of them, or they are not what this project writes.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        counts = _count_weights(folder / "model.safetensors")
        text, kind = config.get("text_config", config), str(config["model_type"])
        layers = int(text["num_hidden_layers"])
        heads = int(text["num_attention_heads"])
        head_dim = int(text.get("head_dim") or text["hidden_size"] // heads)
        head = _read_head(folder)
        patches, image_tokens = _pictures(config)
        context = min(CONTEXT_TOKENS, int(text["max_position_embeddings"]))
        kv_values = 2 * layers * int(text.get("num_key_value_heads", heads)) * head_dim
    except (OSError, KeyError, TypeError, ValueError, struct.error) as err:
        raise BundleError(
            f"{folder} is no checkpoint or bundle whose sizes can be read ({err}); plan for one of stage head, "
            "or for a published model with --model"
        ) from err
    return ModelSize(
        name=f"{kind.removeprefix('roboalign_')} in {folder.resolve().name}",
        vision=counts["vision"],
        embed=counts["embed"],
        decoder=counts["decoder"],
        is_tied=not counts["lm_head"],
        layers=layers,
        kv_values=kv_values,
        patches=patches,
        image_tokens=image_tokens,
        prompt_tokens=image_tokens + TEXT_TOKENS,
        context_tokens=context,
        head=head,
        has_own_graphs=kind in _OWN_GRAPHS,
        has_own_products=kind in _OWN_PRODUCTS,
    )


_OWN_PRODUCTS = ("roboalign_nano", "roboalign_smol")
_OWN_GRAPHS = (*_OWN_PRODUCTS, "qwen2_5_vl", "qwen3_vl")
"""Model types that `export/graph_set.py` makes graphs of, which needs torch and is not asked here."""


def _pictures(config: Mapping[str, Mapping[str, int]]) -> tuple[int | None, int]:
    """Patches and tokens of one picture: of a transformer at `PICTURE_PX`, of our convolution as configured."""
    if "vision_config" not in config:
        return None, int(cast(int, config["num_keypoints"])) + int(cast(int, config["grid_size"])) ** 2
    seen = config["vision_config"]
    merge = seen["spatial_merge_size"]
    patches = (PICTURE_PX // seen["patch_size"] // merge * merge) ** 2
    return patches, patches // merge**2


def _read_head(folder: Path) -> HeadSize | None:
    if not (folder / "head.json").is_file():
        return None
    config = json.loads((folder / "head.json").read_text(encoding="utf-8"))
    weights = sum(_count_weights(folder / "head.safetensors").values())
    return HeadSize(
        weights=weights,
        layers=int(config["num_layers"]),
        steps=int(config["num_steps"]),
        horizon=int(config["horizon"]),
    )


_PART_OF = {"vision": "vision", "visual": "vision", "embed_tokens": "embed", "lm_head": "lm_head"}
"""What a weight's name holds, and the part it belongs to."""


def _count_weights(path: Path) -> dict[str, int]:
    """Returns the number of values in a safetensors file by part; what is none of the others counts as decoder."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > path.stat().st_size:
            raise ValueError(f"{path.name} is cut short")
        header = json.loads(stream.read(length))
    counts = dict.fromkeys(("vision", "embed", "lm_head", "decoder"), 0)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        part = next((part for word, part in _PART_OF.items() if word in name), "decoder")
        counts[part] += prod(entry["shape"])
    return counts
