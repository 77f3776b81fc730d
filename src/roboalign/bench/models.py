"""Policies of random weights for benches, written by the exporter's own graphs.

Nothing is trained, so nothing is said about quality; speed depends on sizes alone. Weights are drawn wide, because at
the usual scale a random model repeats one token, and a comparison of one token proves nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from roboalign import __version__
from roboalign.export.graph_set import write_graphs
from roboalign.export.rounding import QUANTIZED_BITS, quantizable, round_layers
from roboalign.sdk.bundle import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    GraphSpec,
    Manifest,
    PolicySpec,
    file_record,
    write_manifest,
)
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES
from roboalign.trainer.flow import FlowHead, FlowHeadConfig
from roboalign.trainer.nano import NanoConfig, NanoForConditionalGeneration

__all__ = [
    "ACTION_ROWS",
    "MAX_PROMPT_TOKENS",
    "MAX_THOUGHT_TOKENS",
    "PRECISIONS",
    "SIZES",
    "VOCAB",
    "BenchModel",
    "ModelSizes",
    "bench_model",
    "bench_spec",
    "lively_model",
    "make_prompt",
    "work_folder",
    "write_bench_manifest",
]

PRECISIONS = ("fp32", "fp16", "int8", "int4")
"""How weights may be stored."""

MAX_PROMPT_TOKENS = 208
MAX_THOUGHT_TOKENS = 128

VOCAB = 1024
ACTION_ROWS = (VOCAB // 2, VOCAB // 2)
"""First action token, and how many there are."""
_LAYER = 1
_WIDE = 4.0
"""Standard deviation of the decoder's weights, over the root of their inputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSizes:
    """Sizes of a nano model."""

    hidden: int
    intermediate: int
    layers: int
    head_dim: int


SIZES = {
    "tiny": ModelSizes(hidden=64, intermediate=96, layers=2, head_dim=32),
    "8M": ModelSizes(hidden=256, intermediate=704, layers=8, head_dim=32),
    "52M": ModelSizes(hidden=512, intermediate=1408, layers=15, head_dim=64),
}
"""By name: `tiny` is for tests."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BenchModel:
    """A model in PyTorch and as a bundle."""

    model: NanoForConditionalGeneration
    """In float32, before any rounding."""
    bundle: Path
    """Folder."""
    name: str
    """Size and precision."""
    decoder_values: int
    """Weights that one token reads: the decoder's and those of the output layer."""


@contextmanager
def work_folder(work: Path | None) -> Iterator[Path]:
    """Gives the folder that keeps the models, or one that is removed."""
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        yield work
        return
    with TemporaryDirectory(prefix="roboalign-bench-") as made:
        yield Path(made)


def bench_model(size: str, precision: str, work: Path) -> BenchModel:
    """Makes a model and its bundle; a bundle of the same sizes, precision and exporter is used again."""
    if size not in SIZES or precision not in PRECISIONS:
        raise ConfigError(
            f"there is no bench model {size} in {precision}, expected one of {', '.join(SIZES)} in one of "
            f"{', '.join(PRECISIONS)}"
        )
    sizes = SIZES[size]
    model = lively_model(sizes)
    name = f"{size}-{precision}"
    folder = work / f"{name}-{_digest(sizes)}"
    if not (folder / MANIFEST_NAME).is_file():
        part = work / f".{folder.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        _write(model, sizes, precision, part)
        part.rename(folder)
    decoder = sum(p.numel() for p in model.model.language_model.layers.parameters())
    values = decoder + model.lm_head.weight.numel()
    return BenchModel(model=model, bundle=folder, name=name, decoder_values=values)


def make_prompt(num_tokens: int, seed: int = 0) -> list[int]:
    """Returns the ids of a prompt: words, the picture's placeholders, and two flags, as `PromptFormat` puts them."""
    picture = PromptFormat().num_image_tokens
    words = torch.randint(32, VOCAB, (num_tokens - picture - 3,), generator=torch.Generator().manual_seed(seed))
    config = NanoConfig()
    return [config.bos_token_id, *words.tolist(), *[config.image_token_id] * picture, 5, 7]


def lively_model(sizes: ModelSizes, *, vocab: int = VOCAB) -> NanoForConditionalGeneration:
    """Returns a model of random weights that does not repeat itself."""
    torch.manual_seed(0)
    config = NanoConfig(
        vocab_size=vocab,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        head_dim=sizes.head_dim,
    )
    model = NanoForConditionalGeneration(config)
    model.eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.3)  # the embedding too
        for name, parameter in model.model.language_model.named_parameters():
            if "proj" in name:
                parameter.normal_(std=_WIDE / parameter.shape[1] ** 0.5)
    return model


def _write(model: NanoForConditionalGeneration, sizes: ModelSizes, precision: str, folder: Path) -> None:
    spec = bench_spec(sizes)
    head = FlowHead(
        FlowHeadConfig(
            hidden_size=sizes.hidden,
            layer=_LAYER,
            horizon=spec.horizon,
            action_low=spec.action_low,
            action_high=spec.action_high,
            state_mean=(0.5, 0.0, 0.2, 0.0, 0.04),
            state_std=(0.1, 0.1, 0.1, 0.3, 0.03),
        )
    )
    codes = {}
    if precision in QUANTIZED_BITS:
        bits = QUANTIZED_BITS[precision]
        codes = {"model": round_layers(quantizable(model), bits), "head": round_layers(quantizable(head), bits)}
    graphs = write_graphs(
        model, head, spec, folder, precision, codes=codes, reads_in_place=True, action_rows=ACTION_ROWS
    )
    (folder / "config.json").write_text(model.config.to_json_string(), encoding="utf-8")
    name = f"nano-{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M"
    write_bench_manifest(folder, spec, graphs, precision, name)


def write_bench_manifest(
    folder: Path, spec: PolicySpec, graphs: Mapping[str, GraphSpec], precision: str, name: str
) -> None:
    """Describes the graphs in a folder, so that it is a bundle."""
    files = {path.name: file_record(path) for path in sorted(folder.iterdir())}
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        roboalign_version=__version__,
        source_commit="unknown",
        name="bench",
        model=name,
        tokenizer_sha256="",
        codec_hash="",
        target="cpu",
        built=True,
        next_command="",
        precision=precision,
        stage="sft",
        parents=(),
        policy=spec,
        graphs=graphs,
        files=files,
    )
    write_manifest(folder, manifest)


def bench_spec(sizes: ModelSizes) -> PolicySpec:
    """Returns how to act with a model of these sizes."""
    return PolicySpec(
        horizon=8,
        rate_hz=10.0,
        camera_names=("front",),
        image_size_px=PromptFormat().image_size_px,
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        action_low=(-0.03, -0.04, -0.04, -0.13, 0.0),
        action_high=(0.04, 0.04, 0.04, 0.13, 1.0),
        prompt=PromptFormat(),
        max_prompt_tokens=MAX_PROMPT_TOKENS,
        max_thought_tokens=MAX_THOUGHT_TOKENS,
        max_tokens=MAX_PROMPT_TOKENS + MAX_THOUGHT_TOKENS + 16,
        hidden_size=sizes.hidden,
        has_head=True,
    )


def _digest(sizes: ModelSizes) -> str:
    """Returns a digest of the sizes and of the exporter, so that no bundle of another version is measured."""
    import roboalign.export as room

    digest = hashlib.sha256(json.dumps(asdict(sizes)).encode())
    for path in sorted([*Path(room.__file__).parent.glob("*.py"), Path(__file__)]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
