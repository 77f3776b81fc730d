"""Runs a bundle's graphs with onnxruntime: on the CPU, or on the GPU where that was asked for by name.

onnxruntime itself goes on with the CPU when a GPU cannot be used, and says so in a log line at most. Here that is an
error: who asks for a GPU gets it, or the reason. On a GPU none of this was run yet.

The cache of keys and values is one array that this module owns: `prefill` fills its first rows, each `step` adds one.
Every shape and type is fixed by the manifest: what is carried from graph to graph (keys, values, hidden states) is
float32 in bundles for `cpu`, float16 in those for boards, whose arithmetic onnxruntime widens on a CPU. Nothing but
numpy and onnxruntime is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.backends import Decoding
from roboalign.sdk.backends.feeds import check_interfaces, prompt_feed, step_feed
from roboalign.sdk.bundle import EXTEND_ROLE, Bundle, GraphSpec, PolicySpec, read_bundle
from roboalign.sdk.errors import BackendError, BundleError, missing_extra
from roboalign.sdk.types import FloatArray

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxBackend", "OnnxCudaBackend", "OnnxGraph", "OnnxTensorrtBackend"]

_Carried = NDArray[np.float32] | NDArray[np.float16]
_Feed = Mapping[str, _Carried | NDArray[np.int64]]


_ORT_TYPES = {"float16": "tensor(float16)", "float32": "tensor(float)", "int64": "tensor(int64)"}
"""What onnxruntime calls the types of a manifest."""


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

    providers: ClassVar[tuple[str, ...]] = ("CPUExecutionProvider",)
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
        self._graphs = {role: open_graph(bundle, spec, threads) for role, spec in bundle.manifest.graphs.items()}
        self._kv = next(spec for spec in self._graphs["step"].spec.inputs if spec.name == "kv")
        self._windows = {
            graph.spec.inputs[0].shape[0]: graph for role, graph in self._graphs.items() if role.startswith(EXTEND_ROLE)
        }

    @classmethod
    def open(cls, path: Path, *, threads: int = 1) -> OnnxBackend:
        """Verifies and loads the bundle in a folder."""
        return cls(read_bundle(path), threads=threads)

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


class OnnxGraph:
    """One graph of a bundle in a session."""

    def __init__(
        self, bundle: Bundle, spec: GraphSpec, threads: int, providers: Sequence[str] = OnnxBackend.providers
    ) -> None:
        self.spec = spec
        self._outputs = [output.name for output in spec.outputs]
        self._session = _session(bundle.file(spec.file), threads, providers)
        found = [
            [(n.name, n.type) for n in nodes] for nodes in (self._session.get_inputs(), self._session.get_outputs())
        ]
        if found != [[(t.name, _ORT_TYPES.get(t.dtype)) for t in declared] for declared in (spec.inputs, spec.outputs)]:
            raise BundleError(
                f"{bundle.path / spec.file} has other inputs or outputs than its manifest says; export it again"
            )

    def run(self, feed: _Feed) -> list[FloatArray]:
        """Returns the outputs, in the order of the manifest."""
        return cast(list[FloatArray], self._session.run(self._outputs, feed))


def _session(path: Path, threads: int, providers: Sequence[str]) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
    except ImportError as err:
        raise missing_extra("onnxruntime", "cpu", "the onnx backend") from err
    _require(onnxruntime, providers[0], onnxruntime.get_available_providers(), "this build has")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # All graph optimisations: measured at 1 thread, 0.4 s of load for the three graphs; 20 % faster prefill than none.
    # Spinning threads starve the control loop's other work on a small board.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Codes of few bits become float32 once, here. Products on the codes themselves took 1.5 to 4 times as long for the
    # nano model, whose weights fit into the cache, and the fast ones of them round activations too.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers), enable_fallback=0)
    except Exception as err:  # onnxruntime's errors share no base class of its own
        raise BackendError(
            f"onnxruntime {onnxruntime.__version__} cannot load {path}: {str(err).splitlines()[0]}"
        ) from err
    _require(onnxruntime, providers[0], session.get_providers()[:1], "what became active is")
    return session


def _require(onnxruntime: ModuleType, provider: str, there: Sequence[str], verb: str) -> None:
    if provider not in there:
        raise BackendError(
            f"{provider} was asked for and cannot be used: of onnxruntime {onnxruntime.__version__}, {verb} "
            f"{', '.join(there)}; install the onnxruntime that fits this machine's CUDA, or choose backend='cpu'"
        )
