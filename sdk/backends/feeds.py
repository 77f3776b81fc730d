"""What the host gives the graphs of a bundle for a prompt and for each token behind it, the same on every backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.bundle import (
    EXTEND_ROLE,
    HEAR_ROLE,
    LOOK_ROLE,
    LOWER_CODES_ROLE,
    LOWER_ROLE,
    READ_CODES_ROLE,
    READ_ROLE,
    SEE_ROLE,
    UPPER_CODES_ROLE,
    UPPER_ROLE,
    WRITE_ACTIONS_ROLE,
    WRITE_ROLE,
    Bundle,
    GraphSpec,
    PolicySpec,
)
from roboalign.sdk.errors import BundleError
from roboalign.sdk.types import FloatArray

__all__ = ["PromptFeed", "check_interfaces", "prompt_feed", "step_feed"]

_Feed = Mapping[str, NDArray[np.float32] | NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PromptFeed:
    """Inputs of the graphs that read a prompt."""

    vision: _Feed
    """Of the graph that sees patches; empty where `prefill` sees the picture itself."""
    prefill: _Feed
    """Of the prompt's graph; `image` comes from the other."""
    offset: int
    """Position of what follows, minus its place in the sequence: not zero behind a picture on three axes."""


def prompt_feed(spec: PolicySpec, prompt_ids: Sequence[int], pixel_values: FloatArray) -> PromptFeed:
    """Returns what reads a prompt, padded on the right, and a picture float32[3, size, size]."""
    length, patches = len(prompt_ids), spec.prompt.patches
    ids = np.zeros((1, spec.max_prompt_tokens), np.int64)
    ids[0, :length] = prompt_ids
    words: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {
        "input_ids": ids,
        "length": np.array([length], np.int64),
    }
    if patches is None:
        return PromptFeed(vision={}, prefill={**words, "pixel_values": pixel_values[None]}, offset=0)
    position = np.zeros((3, spec.max_prompt_tokens), np.int64)
    position[:, :length] = patches.positions(prompt_ids)
    cut = patches.cut(spec.prompt.image_of(pixel_values))
    offset = int(position[:, :length].max()) + 1 - length
    return PromptFeed(vision={"patches": cut}, prefill={**words, "position": position}, offset=offset)


def step_feed(spec: PolicySpec, token_id: int, length: int, offset: int) -> _Feed:
    """Returns what reads one more token, besides keys and values: `length` tokens precede it."""
    feed = {"token": np.array([token_id], np.int64), "length": np.array([length], np.int64)}
    return feed if spec.prompt.patches is None else {**feed, "position": np.array([length + offset], np.int64)}


def check_interfaces(bundle: Bundle) -> None:
    """Raises BundleError where a graph takes or gives something else than is filled and read here.

    An input that nobody fills would be zero, and nobody would notice.
    """
    has_patches = bundle.manifest.policy.prompt.patches is not None
    axes = {"position"} if has_patches else set()
    expected = {
        "prefill": (
            {"input_ids", "length", *axes, "image" if has_patches else "pixel_values"},
            {"logits", "hidden", "kv"},
        ),
        "step": ({"token", "length", "kv", *axes}, {"logits", "hidden", "kv_new"}),
        "flow": ({"hidden", "length", "state", "noise"}, {"actions"}),
    }
    needed = ["prefill", "step"]
    if has_patches:
        expected["vision"] = ({"patches"}, {"image"})
        needed.append("vision")
    graphs = bundle.manifest.graphs
    extended = ({"tokens", "length", "kv"}, {"logits", "hidden", "kv_new"})
    expected |= _in_place_interfaces(graphs)
    expected |= {role: extended for role in graphs if role.startswith(EXTEND_ROLE) and not has_patches}
    for role, spec in graphs.items():
        found = tuple({tensor.name for tensor in side} for side in (spec.inputs, spec.outputs))
        if found != expected.get(role):
            names = " -> ".join(", ".join(sorted(side)) for side in found)
            raise BundleError(
                f"graph {role!r} of bundle {bundle.path} is {names}, which this version does not know how to run; "
                "upgrade roboalign, or export the bundle again"
            )
    for role in needed:
        if role not in graphs:
            raise BundleError(
                f"bundle {bundle.path} has no {role!r} graph, only {', '.join(sorted(graphs))}; export it again"
            )


def _in_place_interfaces(graphs: Mapping[str, GraphSpec]) -> dict[str, tuple[set[str], set[str]]]:
    """Names of what goes in and comes out of the graphs that read in place: a key and a value for each layer."""
    num_lower, num_upper = (_num_layers(graphs.get(role)) for role in (LOWER_ROLE, UPPER_ROLE))
    read = _reading(range(_num_layers(graphs.get(READ_ROLE))), {"tokens", "given", "is_given"}, {"last", "hidden"})
    lower = _reading(range(num_lower), {"tokens", "given", "is_given"}, {"hidden"})
    upper = _reading(range(num_lower, num_lower + num_upper), {"hidden", "first_scored"}, {"last", "logits"})
    head = ({"last"}, {"logits"})
    return {
        HEAR_ROLE: ({"tokens"}, {"heard"}),
        LOOK_ROLE: ({"pixel_values", "summary"}, {"rows"}),
        SEE_ROLE: ({"input_ids", "pixel_values"}, {"rows", "places"}),
        LOWER_ROLE: lower,
        LOWER_CODES_ROLE: lower,
        UPPER_ROLE: upper,
        UPPER_CODES_ROLE: upper,
        READ_ROLE: read,
        READ_CODES_ROLE: read,
        WRITE_ROLE: head,
        WRITE_ACTIONS_ROLE: head,
    }


def _num_layers(graph: GraphSpec | None) -> int:
    return 0 if graph is None else sum(tensor.name.startswith("key_") for tensor in graph.inputs)


def _reading(layers: range, inputs: set[str], outputs: set[str]) -> tuple[set[str], set[str]]:
    rows = {f"{part}_{index}" for part in ("key", "value") for index in layers}
    places = {"last_place", "length"} if layers else set()
    return inputs | places | rows, outputs | {f"{name}_out" for name in rows}
