"""What `roboalign build` runs in a process of its own for each graph: TensorRT compiles it, and may crash alone.

    python -m roboalign.export.compile_engine probe
    python -m roboalign.export.compile_engine compile GRAPH ENGINE WORKSPACE_BYTES

The last line on stdout is JSON. Strong typing only: an engine computes in the types that the graph states.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from roboalign.sdk.backends.cuda_runtime import Cuda
from roboalign.sdk.backends.tensorrt_engine import collecting_log, load_tensorrt
from roboalign.sdk.errors import CheckFailed, RoboalignError

__all__ = ["compile_engine", "main", "probe"]


def probe() -> dict[str, object]:
    """Returns the version of TensorRT and the compute capability of the GPU."""
    trt = load_tensorrt()
    cuda = Cuda.open()
    try:
        return {"tensorrt": str(trt.__version__), "capability": cuda.capability(), "from": str(trt.__file__)}
    finally:
        cuda.close()


def compile_engine(graph: Path, engine: Path, workspace_bytes: int) -> dict[str, object]:
    """Compiles a graph, whose weights lie beside it, and writes the engine.

    Raises:
        CheckFailed: TensorRT refuses the graph; the message is its own.
    """
    trt = load_tensorrt()
    log = collecting_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        said = [parser.get_error(index).desc() for index in range(parser.num_errors)] or log.lines
        raise CheckFailed(f"the parser refuses {graph.name}: {' '.join(said)[:500]}")
    config = builder.create_builder_config()
    # On by default, it rounds the factors of float32 products to 10 bits, which parity with onnxruntime would show.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    content = builder.build_serialized_network(network, config)
    if content is None:
        raise CheckFailed(f"the compiler refuses {graph.name}: {' '.join(log.lines)[:500] or 'it gave no reason'}")
    engine.write_bytes(content)
    return {"tensorrt": str(trt.__version__)}


def main(argv: Sequence[str]) -> int:
    """Runs one of the two commands; 0 with the result, 1 with `{"error": ...}` as the last line."""
    try:
        if argv[0] == "probe":
            found = probe()
        else:
            found = compile_engine(Path(argv[1]), Path(argv[2]), int(argv[3]))
    except RoboalignError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
