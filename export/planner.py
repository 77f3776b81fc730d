"""Which part of a model goes where on a board, in which type, what that takes in memory, and why it would be refused.

It needs sizes only, so it runs before anything heavy and on any machine. Memory to run is weights, keys and values,
and what the runtime takes; memory to build is fitted to what TensorRT-RTX took (`MEASURED_BUILDS`).
Both are estimates. What this version cannot write yet is said in the notes, and is no reason to refuse a plan.
"""

from __future__ import annotations

from dataclasses import dataclass

from roboalign.export.prediction import BYTES, Prediction, predict
from roboalign.export.shapes import ModelSize
from roboalign.export.targets import JetPack, Target

__all__ = [
    "CODES_OPSET",
    "EDGE_LLM",
    "MEASURED_BUILDS",
    "NVFP4_REASON",
    "OPSET_OF",
    "ORT_CPU",
    "PRECISIONS",
    "WITHOUT_EDGE_LLM",
    "WRITTEN_CODES",
    "WRITTEN_PRECISIONS",
    "WRITTEN_PRODUCTS",
    "BoardPlan",
    "PartPlan",
    "Refusal",
    "build_memory_gb",
    "plan_board",
]

PRECISIONS = tuple(BYTES)
"""What can be planned for."""

WRITTEN_PRECISIONS = ("fp16", "fp32")
"""How this version can store weights for every machine; where TensorRT runs the graphs, this is their arithmetic."""

WRITTEN_CODES = ("int8", "int4")
"""How it can store them where operator set 21 is read: codes in blocks, which are decoded, not computed with."""

WRITTEN_PRODUCTS = {"int8-w8a8": "int8", "fp8": "fp8"}
"""What it can have a TensorRT multiply, weights and activations alike, and the type of the GPU that this takes."""

NVFP4_REASON = (
    "nvfp4 is not written: nvidia-modelopt quantises to it on a CUDA GPU alone; on Thor use fp8, or, for a Qwen model, "
    "--edge-llm-python"
)

TENSORRT, ORT_TENSORRT, EDGE_LLM, ORT_CPU = "TensorRT", "ORT + TensorRT", "TensorRT Edge-LLM", "onnxruntime CPU"

OPSET_OF = {"int4": 21, "nvfp4": 23}
"""Oldest operator set with blocks of these types in DequantizeLinear; 20 does for the others."""

_OPSET = 20
CODES_OPSET = 21
"""Operator set of graphs with codes in blocks, as `export.onnx_files` writes them."""

USABLE_SHARE = 0.9
"""Share of a board's memory that is left to us: 29 of 32 GB, seen by others on AGX Orin (Seeed, GR00T N1.7)."""

_RUNTIME_GB = {TENSORRT: 1.0, ORT_TENSORRT: 1.0, EDGE_LLM: 1.8, ORT_CPU: 0.1}
"""CUDA, libraries and buffers, once each: what SmolVLA took on Orin Nano (1.9 GB with 0.9 GB of weights), and what
Edge-LLM took on Orin NX beyond its weights (1.1 to 1.8 GB, benchmarks/published.toml); onnxruntime's were measured."""

MEASURED_BUILDS = (
    ("action head of 42M parameters, fp16", 0.084, 0.53),
    ("action head of 42M parameters, fp32", 0.168, 0.79),
    ("qwen2.5-vl-3b with 2 decoder layers, fp16", 0.931, 3.0),
    ("qwen2.5-vl-7b with 1 decoder layer, fp16", 2.646, 8.2),
)
"""Graph, GB of its weights, and GB at the peak of compiling it: TensorRT-RTX 1.7.1 on a CPU, the larger of both
stand-ins (benchmarks/qwen_graphs.py with --layers; docs/jetson.md). None of a board."""

_BUILD_GB, _BUILD_COPIES = 0.5, 3.0
"""A builder's peak is 0.5 GB and three times the weights: below none of `MEASURED_BUILDS`, and 42 % above at most."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a plan cannot be carried out."""

    kind: str
    """`type`, `opset`, `version`, `run memory` or `build memory`."""
    reason: str
    """In words, with what was found and what would do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartPlan:
    """One part of the model."""

    part: str
    """`vision`, `embed`, `prefill`, `step` or `head`."""
    engine: str
    """What runs it."""
    precision: str
    """Type of its weights, and of its arithmetic where that is of 16 bits or more."""
    weights_gb: float
    """Weights that it holds in memory; 0 where another part's are used."""
    build_gb: float
    """Estimated peak of building it; 0 where nothing is built."""
    why: str
    """Reason for the engine and the type."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoardPlan:
    """A model on one machine."""

    target: str
    """Name of the machine."""
    jetpack: str | None
    """Its JetPack; None for other machines."""
    tensorrt: str | None
    """TensorRT that it has, or that was asked for; None without."""
    opset: int
    """Operator set of the graphs."""
    max_opset: int | None
    """Newest that is read there; None when unknown."""
    dtypes: tuple[str, ...]
    """Types that it computes with."""
    precision: str
    """Type that was asked for: the decoder's. Other parts may keep 16 bits."""
    parts: tuple[PartPlan, ...]
    """In the order in which they run."""
    build_gb: float
    """Estimated peak of building, one part after the other."""
    run_gb: float
    """Estimated memory to run: all weights, keys and values, runtimes."""
    usable_gb: float | None
    """Memory that is there for it; None when unknown."""
    refusals: tuple[Refusal, ...]
    """Every reason against it; empty when it can be done."""
    prediction: Prediction | None
    """Predicted speed; None where nothing is known to predict it from, or where it is refused for its types."""


def plan_board(
    size: ModelSize, target: Target, precision: str, *, jetpack: JetPack | None = None, tensorrt: str | None = None
) -> BoardPlan:
    """Returns the plan of a model on one machine; nothing is loaded or written.

    Args:
        size: of the model.
        target: the machine.
        precision: type of the decoder's weights, one of `PRECISIONS`.
        jetpack: the board's; None for other machines.
        tensorrt: version asked for; None takes the JetPack's own.
    """
    version = tensorrt or (jetpack.tensorrt[0] if jetpack else None)
    engines = {part: _engine(part, size, target, jetpack) for part in _parts(size)}
    # Weights in blocks need a newer operator set, but not where Edge-LLM reads them in its own way.
    is_plain = any(engines[part] != EDGE_LLM for part in ("prefill", "step"))
    if precision in WRITTEN_CODES and size.has_own_graphs:
        opset = CODES_OPSET
    else:
        opset = OPSET_OF.get(precision, _OPSET) if is_plain else _OPSET
    parts = tuple(_plan_part(part, engine, size, target, precision) for part, engine in engines.items())
    kv_gb = size.kv_values * BYTES["fp32" if _computes_in_fp32(target) else "fp16"] * size.context_tokens / 1e9
    run_gb = sum(part.weights_gb for part in parts) + kv_gb + sum(_RUNTIME_GB[name] for name in set(engines.values()))
    build_gb = max((part.build_gb for part in parts), default=0.0)
    usable_gb = None if target.memory_gb is None else USABLE_SHARE * target.memory_gb
    by_type = _type_refusals(target, precision, jetpack, tensorrt, opset)
    unwritten = _unwritten(size, precision) if is_plain and not by_type else ()
    return BoardPlan(
        target=target.name,
        jetpack=jetpack.name if jetpack else None,
        tensorrt=version,
        opset=opset,
        max_opset=jetpack.opset if jetpack else target.opset,
        dtypes=target.dtypes,
        precision=precision,
        parts=parts,
        build_gb=build_gb,
        run_gb=run_gb,
        usable_gb=usable_gb,
        refusals=(*by_type, *unwritten, *_memory_refusals(size, target, precision, run_gb, build_gb, usable_gb)),
        prediction=None if by_type else predict(size, target, precision),
    )


def build_memory_gb(weights_gb: float) -> float:
    """Returns the estimated peak of building a part with so many GB of weights."""
    return _BUILD_GB + _BUILD_COPIES * weights_gb


def _parts(size: ModelSize) -> tuple[str, ...]:
    names = ["vision", "embed", "prefill", "step", "head"]
    return tuple(
        name for name in names if not (name == "vision" and not size.vision) and not (name == "head" and not size.head)
    )


def _computes_in_fp32(target: Target) -> bool:
    return target.name == "cpu"


def _engine(part: str, size: ModelSize, target: Target, jetpack: JetPack | None) -> str:
    if target.name == "cpu":
        return ORT_CPU
    if size.has_own_graphs or part == "head":
        return TENSORRT
    if jetpack is not None and jetpack.edge_llm:
        return EDGE_LLM
    return TENSORRT if part == "vision" else ORT_TENSORRT


WITHOUT_EDGE_LLM = (
    "let a workstation think ('roboalign serve' there, 'roboalign run ws://WORKSTATION:8350' on the board), or name "
    "a JetPack from 7.2 on"
)
"""What is used instead of TensorRT Edge-LLM where the JetPack has none."""

_WHY_ENGINE = {
    ORT_CPU: "no GPU is asked for",
    EDGE_LLM: "its runtime knows this family: paged keys and values, drafts, plug-ins",
    ORT_TENSORRT: (
        "TensorRT Edge-LLM is for JetPack 7.2 and later; here what TensorRT cannot take runs on CUDA; or "
        f"{WITHOUT_EDGE_LLM}"
    ),
    TENSORRT: "standard operators and fixed shapes",
}


def _plan_part(part: str, engine: str, size: ModelSize, target: Target, precision: str) -> PartPlan:
    kept = _kept_precision(part, precision, target)
    table = _kept_precision("embed", precision, target)
    layers, rows = _weights(part, engine, size)
    if _computes_in_fp32(target):
        # onnxruntime widens stored weights when it loads them.
        weights_gb = (layers + rows) * BYTES["fp32"] / 1e9
    else:
        weights_gb = (layers * BYTES[kept] + rows * BYTES[table]) / 1e9
    why = _WHY_ENGINE[engine]
    if kept != precision:
        why += f"; {kept}, since {_WHY_KEPT[part]}"
    is_built = engine != ORT_CPU and weights_gb > 0
    # Our own graphs look words up too: where the output layer is another table, they hold both.
    holds_both = part in ("prefill", "step") and engine != EDGE_LLM and not size.is_tied
    graph_gb = weights_gb + (size.embed * BYTES[table] / 1e9 if holds_both else 0.0)
    return PartPlan(
        part=part,
        engine=engine,
        precision=kept,
        weights_gb=weights_gb,
        build_gb=build_memory_gb(graph_gb) if is_built else 0.0,
        why=why,
    )


_WHY_KEPT = {
    "vision": "encoders lose accuracy below 16 bits and take a small share of the time",
    "embed": "a table is looked up, not multiplied",
    "head": "quantising a head cost others accuracy and gained no time",
}


def _kept_precision(part: str, precision: str, target: Target) -> str:
    """The type of a part: on a GPU only the decoder goes below 16 bits; for `cpu`, all but the table does."""
    is_code_of_cpu = target.name == "cpu" and precision in WRITTEN_CODES and part != "embed"
    if part in ("prefill", "step") or precision in ("fp32", "bf16") or is_code_of_cpu:
        return precision
    return "fp16"


def _weights(part: str, engine: str, size: ModelSize) -> tuple[int, int]:
    """Parameters that a part holds, as layers and as rows of the vocabulary: an engine has its weights inside."""
    if part == "vision":
        return size.vision, 0
    if part == "head":
        return size.head.weights if size.head else 0, 0
    if part == "embed":
        return 0, size.embed
    if engine == EDGE_LLM and part == "step":
        return 0, 0  # one engine reads prompts and steps
    return size.decoder, size.embed


def _type_refusals(
    target: Target, precision: str, jetpack: JetPack | None, tensorrt: str | None, opset: int
) -> tuple[Refusal, ...]:
    found = []
    is_product_of_cpu = precision in WRITTEN_PRODUCTS and _computes_in_fp32(target)
    if is_product_of_cpu or WRITTEN_PRODUCTS.get(precision, precision) not in target.dtypes:
        where = f" (compute capability {target.capability})" if target.capability else ""
        has = ", ".join(target.dtypes)
        found.append(Refusal("type", f"{precision} does not run on {target.title}{where}; it has {has}"))
    if jetpack is None:
        return tuple(found)
    oldest = jetpack.tensorrt[0]
    if tensorrt is not None and not jetpack.has_tensorrt(tensorrt):
        has = " to ".join(dict.fromkeys(jetpack.tensorrt))
        reason = f"TensorRT {tensorrt} does not run on JetPack {jetpack.name}, which has TensorRT {has}"
        found.append(Refusal("version", reason))
    if opset > jetpack.opset:
        reason = (
            f"{precision} blocks in plain ONNX need opset {opset}, and TensorRT {oldest} of JetPack {jetpack.name} "
            f"reads up to opset {jetpack.opset}"
        )
        found.append(Refusal("opset", reason))
    return tuple(found)


def _unwritten(size: ModelSize, precision: str) -> tuple[Refusal, ...]:
    """What the machine could run, and this version cannot write."""
    if precision == "nvfp4":
        return (Refusal("type", NVFP4_REASON),)
    if precision in WRITTEN_PRODUCTS and size.has_own_graphs and not size.has_own_products:
        reason = (
            f"{precision} is written for nano and smol models, and this is {size.name}; use --precision fp16, or "
            "prepare it with --edge-llm-python"
        )
        return (Refusal("type", reason),)
    return ()


def _memory_refusals(
    size: ModelSize, target: Target, precision: str, run_gb: float, build_gb: float, usable_gb: float | None
) -> tuple[Refusal, ...]:
    if usable_gb is None:
        return ()
    what = f"{size.name} in {precision}"
    there = f"about {usable_gb:.1f} of {target.memory_gb:g} GB are usable on {target.title}"
    found = []
    if run_gb > usable_gb:
        found.append(Refusal("run memory", f"{what} needs about {run_gb:.1f} GB to run, and {there}"))
    if build_gb > usable_gb:
        found.append(Refusal("build memory", f"building {what} needs about {build_gb:.1f} GB, and {there}"))
    return tuple(found)
