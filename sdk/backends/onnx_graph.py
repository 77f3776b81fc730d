"""One graph of a bundle in a session of onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.bundle import Bundle, GraphSpec
from roboalign.sdk.errors import BackendError, BundleError, missing_extra
from roboalign.sdk.types import FloatArray

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["CPU_PROVIDERS", "OnnxGraph"]

CPU_PROVIDERS = ("CPUExecutionProvider",)

_Arrays = Mapping[str, NDArray[np.generic]]

_ORT_TYPES = {
    "bool": "tensor(bool)",
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
}
"""What onnxruntime calls the types of a manifest."""


class OnnxGraph:
    """One graph of a bundle in a session."""

    def __init__(
        self,
        bundle: Bundle,
        spec: GraphSpec,
        threads: int,
        providers: Sequence[str] = CPU_PROVIDERS,
        *,
        on_codes: bool = False,
    ) -> None:
        self.spec = spec
        self._outputs = [output.name for output in spec.outputs]
        self._session = _session(bundle.file(spec.file), threads, providers, on_codes=on_codes)
        found = [
            [(n.name, n.type) for n in nodes] for nodes in (self._session.get_inputs(), self._session.get_outputs())
        ]
        if found != [[(t.name, _ORT_TYPES.get(t.dtype)) for t in declared] for declared in (spec.inputs, spec.outputs)]:
            raise BundleError(
                f"{bundle.path / spec.file} has other inputs or outputs than its manifest says; export it again"
            )

    def run(self, feed: _Arrays) -> list[FloatArray]:
        """Returns the outputs, in the order of the manifest."""
        return cast(list[FloatArray], self._session.run(self._outputs, feed))

    def bind(self, inputs: _Arrays, outputs: _Arrays) -> Callable[[], None]:
        """Returns what runs the graph on these very arrays, which have to live as long; CPU provider only.

        An array may be both input and output where the graph's operators allow that.
        """
        binding = self._session.io_binding()
        for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, array in arrays.items():
                assert array.flags.c_contiguous, name
                bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        session = self._session

        def run() -> None:
            session.run_with_iobinding(binding)

        return run


def _session(path: Path, threads: int, providers: Sequence[str], *, on_codes: bool) -> onnxruntime.InferenceSession:
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
    if on_codes:
        # Products on the codes themselves, with activations rounded to 8 bits in blocks: the only fast ones.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    else:
        # Codes of few bits become float32 once, here.
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
