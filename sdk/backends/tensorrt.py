"""Runs a bundle with engines that were built on this very board, with the system's TensorRT.

Buffers are allocated once, by the manifest's names, shapes and types. Keys, values and hidden states never leave the
device: a prompt's rows are copied into the cache there, a step's new rows with one strided copy. What the host gives
and takes (ids, a picture, a state, scores, actions) goes through page-locked memory. Each engine is one CUDA graph with
its transfers, recorded after a first run; one that cannot be recorded is an error, not a slower run.

Nothing here was ever run on a board: the tests run it on a stub of TensorRT and CUDA, which says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.backends import Decoding
from roboalign.sdk.backends.cuda_runtime import Array, Cuda
from roboalign.sdk.backends.feeds import check_interfaces, prompt_feed, step_feed
from roboalign.sdk.backends.tensorrt_engine import Engine, EngineReader, load_tensorrt
from roboalign.sdk.board import detect_board
from roboalign.sdk.bundle import Bundle, GraphSpec, PolicySpec, TensorSpec, read_bundle
from roboalign.sdk.engines import EngineSet, find_engines, read_engine
from roboalign.sdk.errors import BackendError, BundleError
from roboalign.sdk.types import FloatArray

__all__ = ["TensorRtBackend"]

_CACHES = {"kv": ("step", "kv"), "hidden": ("flow", "hidden")}
"""What a sequence leaves on the device, and the input that it is."""

_IMAGE = "image"
"""What the graph of the patches leaves on the device for that of the prompt, where there is one."""

_RESULTS = ("logits", "actions")
"""Outputs that the host reads."""


@dataclass(frozen=True, slots=True)
class _Sequence:
    """Which sequence the device's cache holds."""

    number: int
    offset: int
    """Position of a token behind the prompt, minus its place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Buffer:
    """A tensor on the device."""

    spec: TensorSpec
    address: int

    @property
    def item_bytes(self) -> int:
        return np.dtype(self.spec.dtype).itemsize


class TensorRtBackend:
    """The `Backend` of a bundle on engines of this board."""

    def __init__(self, bundle: Bundle, engines: EngineSet, folder: Path, trt: Any) -> None:
        self._bundle = bundle
        self._cuda = cuda = Cuda.open()
        try:
            _check_machine(engines, trt, cuda)
            graphs = bundle.manifest.graphs
            check_interfaces(bundle)
            caches = {name: _cache(cuda, bundle, *place) for name, place in _CACHES.items() if place[0] in graphs}
            bound = {**caches, _IMAGE: _cache(cuda, bundle, "prefill", _IMAGE)} if "vision" in graphs else caches
            reader = EngineReader(trt)
            self._runs = {}
            for role, spec in graphs.items():
                if role not in engines.engines:
                    raise BundleError(f"{folder} has no engine for {role!r}; build it again")
                content = read_engine(folder, engines.engines[role])
                engine = reader.read(content, spec, str(folder / engines.engines[role].file))
                self._runs[role] = _Run(cuda, role, spec, engine, bound)
        except BaseException:
            cuda.close()
            raise
        self._caches = caches
        self._shown: dict[str, Array] = {}
        self._number = 0

    @classmethod
    def open(cls, path: Path, *, threads: int = 1, root: Path = Path("/")) -> TensorRtBackend:
        """Verifies the bundle in a folder and the engines beside it, and loads them.

        Args:
            path: the bundle.
            threads: not used; the GPU runs everything.
            root: where the files that describe the board are looked for.

        Raises:
            BackendError: there are no engines for this board, or TensorRT, CUDA or the GPU is another one.
            BundleError: the bundle or an engine is altered.
        """
        bundle = read_bundle(path)
        engines, folder = find_engines(path, detect_board(root))
        return cls(bundle, engines, folder, load_tensorrt())

    @property
    def spec(self) -> PolicySpec:
        """How to act with the model."""
        return self._bundle.manifest.policy

    @property
    def folder(self) -> Path:
        """The bundle's folder."""
        return self._bundle.path

    def prefill(self, prompt_ids: Sequence[int], pixel_values: FloatArray) -> Decoding:
        """Reads a prompt and a picture; the sequence that was decoded before ends here."""
        run, length = self._run("prefill"), len(prompt_ids)
        feed = prompt_feed(self.spec, prompt_ids, pixel_values)
        if feed.vision:
            seen = self._run("vision")
            seen.fill(feed.vision)
            seen.launch()  # into what the prompt's graph reads, on the same stream
        run.fill(feed.prefill)
        for cache in self._caches.values():
            # Rows from the length on are zero, as in the other backends: a masked NaN would still be one.
            self._cuda.fill_zero(cache.address, prod(cache.spec.shape) * cache.item_bytes)
        run.launch()
        self._keep_rows(run.kept["kv"], "kv", 0, length)
        if "hidden" in self._caches:
            self._keep_rows(run.kept["hidden"], "hidden", 0, length)
        self._cuda.synchronize()
        self._number += 1
        return Decoding(logits=run.result("logits"), length=length, cache=_Sequence(self._number, feed.offset))

    def step(self, decoding: Decoding, token_id: int) -> None:
        """Reads one more token."""
        run, position = self._run("step"), decoding.length
        sequence = self._check_current(decoding)
        run.fill(step_feed(self.spec, token_id, position, sequence.offset))
        run.launch()
        self._keep_rows(run.kept["kv_new"], "kv", position, 1)
        if "hidden" in self._caches:
            self._keep_rows(run.kept["hidden"], "hidden", position, 1)
        self._cuda.synchronize()
        decoding.logits = run.result("logits")
        decoding.length = position + 1

    def flow(self, decoding: Decoding, state: FloatArray, noise: FloatArray) -> FloatArray:
        """Returns actions from the sequence read so far."""
        run = self._run("flow")
        self._check_current(decoding)
        run.inputs["length"][...] = decoding.length
        run.inputs["state"][0] = state
        run.inputs["noise"][0] = noise
        run.launch()
        self._cuda.synchronize()
        return run.result("actions")

    def inspect(self, decoding: Decoding) -> Mapping[str, FloatArray]:
        """Returns hidden states, keys and values of what was read so far, copied from the device."""
        self._run("prefill")  # once closed, what would be copied is freed
        self._check_current(decoding)
        found: dict[str, FloatArray] = {}
        for name, cache in self._caches.items():
            if name not in self._shown:
                self._shown[name] = self._cuda.pin(cache.spec.shape, cache.spec.dtype)
            self._cuda.download(self._shown[name], cache.address)
            self._cuda.synchronize()
            rows = self._shown[name][..., : decoding.length, :]
            found[name] = np.array(rows[0] if name == "hidden" else rows, np.float32)
        return found

    def close(self) -> None:
        """Frees engines and memory; may be called twice."""
        self._runs = {}
        self._cuda.close()

    def _keep_rows(self, rows: _Buffer, name: str, first: int, count: int) -> None:
        """Copies rows of each plane of keys and values, or of hidden states, into the cache from row `first` on."""
        cache = self._caches[name]
        row_bytes = cache.spec.shape[-1] * cache.item_bytes
        planes = prod(cache.spec.shape[:-2])
        into_bytes, from_bytes = (prod(one.shape[-2:]) * cache.item_bytes for one in (cache.spec, rows.spec))
        if planes == 1:
            self._cuda.copy(cache.address + first * row_bytes, rows.address, count * row_bytes)
        else:
            target, source = (cache.address + first * row_bytes, into_bytes), (rows.address, from_bytes)
            self._cuda.copy_rows(target, source, count * row_bytes, planes)

    def _run(self, role: str) -> _Run:
        run = self._runs.get(role)
        if run is None:
            state = "was closed" if not self._runs else f"has no {role!r} graph"
            raise BackendError(f"the tensorrt backend of {self._bundle.path} {state}; load the policy again")
        return run

    def _check_current(self, decoding: Decoding) -> _Sequence:
        sequence = cast(_Sequence, decoding.cache)
        if sequence.number != self._number:
            raise BackendError("another prompt was read since; the tensorrt backend holds one sequence at a time")
        return sequence


class _Run:
    """One engine with its buffers: `inputs` are the host's, `kept` are outputs that stay on the device."""

    def __init__(self, cuda: Cuda, role: str, spec: GraphSpec, engine: Engine, caches: Mapping[str, _Buffer]) -> None:
        self.inputs: dict[str, Array] = {}
        self.kept: dict[str, _Buffer] = {}
        self._results: dict[str, Array] = {}
        addresses: dict[str, int] = {}
        for tensor in spec.inputs:
            if tensor.name == _IMAGE or _CACHES.get(tensor.name) == (role, tensor.name):
                addresses[tensor.name] = caches[tensor.name].address
                continue
            addresses[tensor.name] = cuda.allocate(_num_bytes(tensor))
            self.inputs[tensor.name] = cuda.pin(tensor.shape, tensor.dtype)
        for tensor in spec.outputs:
            if tensor.name == _IMAGE:
                addresses[tensor.name] = caches[_IMAGE].address
                _check_image(tensor, caches[_IMAGE].spec)
                continue
            addresses[tensor.name] = cuda.allocate(_num_bytes(tensor))
            if tensor.name in _RESULTS:
                self._results[tensor.name] = cuda.pin(tensor.shape, tensor.dtype)
            else:
                self.kept[tensor.name] = _Buffer(spec=tensor, address=addresses[tensor.name])
                _check_rows(role, tensor, caches)
        engine.bind(addresses)

        def work() -> None:
            for name, array in self.inputs.items():
                cuda.upload(addresses[name], array)
            engine.enqueue(cuda.stream)
            for name, array in self._results.items():
                cuda.download(array, addresses[name])

        if "length" in self.inputs:
            self.inputs["length"][...] = 1  # the first run has to be one that could happen
        self.launch: Callable[[], None] = engine.capture(cuda, work)

    def fill(self, feed: Mapping[str, NDArray[Any]]) -> None:
        """Copies what the host gives into the inputs of these names."""
        for name, value in feed.items():
            self.inputs[name][...] = value

    def result(self, name: str) -> FloatArray:
        """Returns a copy of an output without its first dimension; read it after `synchronize`."""
        found: FloatArray = self._results[name][0].astype(np.float32)
        return found


def _num_bytes(tensor: TensorSpec) -> int:
    return prod(tensor.shape) * np.dtype(tensor.dtype).itemsize


def _cache(cuda: Cuda, bundle: Bundle, role: str, name: str) -> _Buffer:
    for tensor in bundle.manifest.graphs[role].inputs:
        if tensor.name == name:
            return _Buffer(spec=tensor, address=cuda.allocate(_num_bytes(tensor)))
    raise BundleError(f"graph {role!r} of bundle {bundle.path} has no input {name!r}; export it again")


def _check_image(given: TensorSpec, taken: TensorSpec) -> None:
    if (given.shape, given.dtype) != (taken.shape, taken.dtype):
        raise BundleError(
            f"graph 'vision' gives {given.name!r} as {given.dtype} {given.shape}, and 'prefill' reads {taken.dtype} "
            f"{taken.shape}; export the bundle again"
        )


def _check_rows(role: str, rows: TensorSpec, caches: Mapping[str, _Buffer]) -> None:
    """An output that stays on the device must fit the cache that its rows are copied into, byte for byte."""
    cache = caches.get("kv" if rows.name.startswith("kv") else rows.name)
    if cache is None:
        return
    spec = cache.spec
    fits = rows.dtype == spec.dtype and rows.shape[-1] == spec.shape[-1]
    if not fits or prod(rows.shape[:-2]) != prod(spec.shape[:-2]):
        raise BundleError(
            f"graph {role!r} gives {rows.name!r} as {rows.dtype} {rows.shape}, and {spec.name!r} is read as "
            f"{spec.dtype} {spec.shape}; export the bundle again"
        )


def _check_machine(engines: EngineSet, trt: Any, cuda: Cuda) -> None:
    """Compares what only the libraries know; everything else was compared before they were loaded."""
    for what, ours, here in (
        ("TensorRT", engines.tensorrt, str(trt.__version__)),
        ("compute capability", engines.capability, cuda.capability()),
    ):
        if ours != here:
            raise BackendError(
                f"the engines are for {what} {ours}, and Python has {here} here; build them again: roboalign build"
            )
