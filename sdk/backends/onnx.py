"""Runs a bundle's graphs with onnxruntime: on the CPU, or on the GPU where that was asked for by name.

onnxruntime itself goes on with the CPU when a GPU cannot be used, and says so in a log line at most. Here that is an
error: who asks for a GPU gets it, or the reason. On a GPU none of this was run yet.

A bundle for the CPU has graphs that read in place, and `OnnxBackend.open` leaves it to `InPlaceBackend`. What is here
runs the portable graphs: of bundles for boards, of older ones, and on a GPU. The cache of keys and values is one array
that this module owns: `prefill` fills its first rows, each `step` adds one. Every shape and type is fixed by the
manifest: what is carried from graph to graph (keys, values, hidden states) is float32 in bundles for `cpu`, float16 in
those for boards, whose arithmetic onnxruntime widens on a CPU. Nothing but numpy and onnxruntime is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.backends import Decoding
from roboalign.sdk.backends.feeds import check_interfaces, prompt_feed, step_feed
from roboalign.sdk.backends.in_place import InPlaceBackend
from roboalign.sdk.backends.onnx_graph import CPU_PROVIDERS, OnnxGraph
from roboalign.sdk.bundle import (
    EXTEND_ROLE,
    IN_PLACE_ROLES,
    Bundle,
    GraphSpec,
    PolicySpec,
    read_bundle,
)
from roboalign.sdk.errors import BackendError
from roboalign.sdk.types import FloatArray

__all__ = ["OnnxBackend", "OnnxCudaBackend", "OnnxTensorrtBackend"]

_Carried = NDArray[np.float32] | NDArray[np.float16]
_Feed = Mapping[str, _Carried | NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cache:
    """What a sequence leaves behind; rows from its length on are zero."""

    kv: _Carried
    """[C, H, max_tokens, K] keys and values of each layer in turn."""
    hidden: _Carried
    """[max_tokens, D] output of the tapped layer."""
    offset: int
    """Position of a token behind the prompt, minus its place in the sequence."""


class OnnxBackend:
    """The `Backend` of a bundle on onnxruntime, with its CPU provider."""

    providers: ClassVar[tuple[str, ...]] = CPU_PROVIDERS
    """What runs the graphs: the first has to be active, the others may take what it cannot."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 1,
        open_graph: Callable[[Bundle, GraphSpec, int], OnnxGraph] | None = None,
    ) -> None:
        """Opens the graphs; `open_graph` may open them in another way, e.g. to look at what they compute."""
        check_interfaces(bundle)
        self._bundle = bundle
        open_graph = open_graph or partial(OnnxGraph, providers=self.providers)
        specs = {role: spec for role, spec in bundle.manifest.graphs.items() if role not in IN_PLACE_ROLES}
        self._graphs = {role: open_graph(bundle, spec, threads) for role, spec in specs.items()}
        self._kv = next(spec for spec in self._graphs["step"].spec.inputs if spec.name == "kv")
        self._windows = {
            graph.spec.inputs[0].shape[0]: graph for role, graph in self._graphs.items() if role.startswith(EXTEND_ROLE)
        }

    @classmethod
    def open(cls, path: Path, *, threads: int = 1) -> OnnxBackend | InPlaceBackend:
        """Verifies and loads the bundle in a folder, in place where it can be."""
        bundle = read_bundle(path)
        if cls.providers == CPU_PROVIDERS and bundle.manifest.reads_in_place:
            check_interfaces(bundle)
            return InPlaceBackend(bundle, threads=threads)
        return cls(bundle, threads=threads)

    @property
    def spec(self) -> PolicySpec:
        """How to act with the model."""
        return self._bundle.manifest.policy

    @property
    def folder(self) -> Path:
        """The bundle's folder."""
        return self._bundle.path

    def prefill(self, prompt_ids: Sequence[int], pixel_values: FloatArray) -> Decoding:
        """Reads a prompt and a picture."""
        length, feed = len(prompt_ids), prompt_feed(self.spec, prompt_ids, pixel_values)
        image = {"image": self._graph("vision").run(feed.vision)[0]} if feed.vision else {}
        logits, rows_PD, rows_CHPK = self._graph("prefill").run({**feed.prefill, **image})
        hidden = np.zeros((self.spec.max_tokens, self.spec.hidden_size), rows_PD.dtype)
        hidden[:length] = rows_PD[0, :length]
        kv = np.zeros(self._kv.shape, self._kv.dtype)
        kv[:, :, :length] = rows_CHPK[:, :, :length]
        cache = _Cache(kv=kv, hidden=hidden, offset=feed.offset)
        return Decoding(logits=logits[0], length=length, cache=cache)

    def step(self, decoding: Decoding, token_id: int) -> None:
        """Reads one more token."""
        cache = cast(_Cache, decoding.cache)
        place = decoding.length
        feed = step_feed(self.spec, token_id, place, cache.offset)
        logits, row_1D, rows_CH1K = self._graph("step").run({**feed, "kv": cache.kv})
        cache.kv[:, :, place] = rows_CH1K[:, :, 0]
        cache.hidden[place] = row_1D[0]
        decoding.logits = logits[0]
        decoding.length = place + 1

    @property
    def windows(self) -> tuple[int, ...]:
        """Sizes of the passes that the bundle has graphs for, rising."""
        return tuple(sorted(self._windows))

    def extend(self, decoding: Decoding, token_ids: Sequence[int]) -> FloatArray:
        """Reads several tokens in the smallest pass that holds them; returns what would follow each."""
        cache, start, count = cast(_Cache, decoding.cache), decoding.length, len(token_ids)
        window = next((size for size in self.windows if size >= count), None)
        if window is None or count == 0:
            raise BackendError(f"{count} tokens cannot be read at once; the bundle has passes of {self.windows}")
        ids = np.zeros(window, np.int64)
        ids[:count] = token_ids
        feed: _Feed = {"tokens": ids, "length": np.array([start], np.int64), "kv": cache.kv}
        logits, rows_WD, rows_CHWK = self._windows[window].run(feed)
        cache.kv[:, :, start : start + count] = rows_CHWK[:, :, :count]
        cache.hidden[start : start + count] = rows_WD[:count]
        decoding.logits = logits[count - 1]
        decoding.length = start + count
        return logits[:count]

    def rewind(self, decoding: Decoding, length: int, logits: FloatArray) -> None:
        """Forgets what was read beyond `length`."""
        cache = cast(_Cache, decoding.cache)
        cache.kv[:, :, length : decoding.length] = 0
        cache.hidden[length : decoding.length] = 0
        decoding.logits = logits
        decoding.length = length

    def flow(self, decoding: Decoding, state: FloatArray, noise: FloatArray) -> FloatArray:
        """Returns actions from the sequence read so far."""
        feed: _Feed = {
            "hidden": cast(_Cache, decoding.cache).hidden[None],
            "length": np.array([decoding.length], np.int64),
            "state": state[None],
            "noise": noise[None],
        }
        actions: FloatArray = self._graph("flow").run(feed)[0][0]
        return actions

    def inspect(self, decoding: Decoding) -> Mapping[str, FloatArray]:
        """Returns hidden states, keys and values of what was read so far."""
        cache, length = cast(_Cache, decoding.cache), decoding.length
        hidden, kv = cache.hidden[:length], cache.kv[:, :, :length]
        return {"hidden": np.array(hidden, np.float32), "kv": np.array(kv, np.float32)}

    def close(self) -> None:
        """Frees the sessions."""
        self._graphs = {}
        self._windows = {}

    def _graph(self, role: str) -> OnnxGraph:
        graph = self._graphs.get(role)
        if graph is None:
            state = "was closed" if not self._graphs else f"has no {role!r} graph"
            raise BackendError(f"the onnx backend of {self._bundle.path} {state}; load the policy again")
        return graph


class OnnxCudaBackend(OnnxBackend):
    """The same on CUDA; never the CPU in its place."""

    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")


class OnnxTensorrtBackend(OnnxBackend):
    """The same on onnxruntime's TensorRT provider, which leaves to CUDA what it cannot take; never the CPU alone."""

    providers = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
