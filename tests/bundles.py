"""A tiny random policy: every part is real, nothing is trained, and its answers vary with what it sees.

Checkpoints and bundles of it for the suites that need a policy to run, not a policy that is any good.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from roboalign.bench.models import bench_model
from roboalign.export import ExportConfig, export
from roboalign.sdk.bundle import IN_PLACE_ROLES, GraphSpec, read_bundle
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.types import Observation
from roboalign.trainer.checkpoint import CheckpointMeta, save_checkpoint
from roboalign.trainer.flow import FlowHead, FlowHeadConfig
from roboalign.trainer.nano import (
    NanoConfig,
    NanoForConditionalGeneration,
    NanoImageProcessor,
    NanoProcessor,
    train_tokenizer,
)
from roboalign.trainer.vocabulary import add_action_tokens

__all__ = ["copy_portable", "flow_head", "some_observations", "step_codec", "tiny_bundle", "tiny_run", "write_run"]

TEXTS = ("put the red block in the blue bowl", "push the green cylinder to the left", "next go down to the block .")


def step_codec() -> FastCodec:
    """An action codec of random steps."""
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(300, 8, 5)).astype(np.float32).cumsum(axis=1)
    return FastCodec.fit(steps * np.array([0.01, 0.01, 0.01, 0.05, 0.3], np.float32), rate_hz=10.0, vocab_size=256)


def _model(seed: int) -> tuple[NanoForConditionalGeneration, NanoProcessor]:
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(TEXTS, max_number=PromptFormat().max_number, vocab_size=512)
    config = NanoConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    return NanoForConditionalGeneration(config), NanoProcessor(NanoImageProcessor(), tokenizer)


def _make_lively(model: NanoForConditionalGeneration) -> None:
    """Draws wide weights: at the usual scale a random model repeats one token, and new token rows all tie."""
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(std=0.3)
        for name, parameter in model.model.language_model.named_parameters():
            if "proj" in name:
                parameter.normal_(std=0.5)


def flow_head(codec: FastCodec, *, hidden_size: int = 64) -> FlowHead:
    """A head of random weights that fits the codec."""
    low, high = (tuple(float(v) for v in limit) for limit in (codec.config.low, codec.config.high))
    head = FlowHead(
        FlowHeadConfig(
            hidden_size=hidden_size,
            layer=1,
            horizon=8,
            action_low=low,
            action_high=high,
            state_mean=(0.5, 0.0, 0.2, 0.0, 0.04),
            state_std=(0.1, 0.1, 0.1, 0.3, 0.03),
            width=32,
            num_layers=1,
            num_steps=2,
        )
    )
    with torch.no_grad():  # a fresh head is the identity: zero everywhere
        for parameter in head.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return head


def write_run(path: Path, *, stage: str = "head", seed: int = 0, **more: object) -> Path:
    """Writes a checkpoint; `stage="sft"` has no head, `stage="base"` no codec either."""
    model, processor = _model(seed)
    codec = None if stage == "base" else step_codec()
    if codec is not None:
        add_action_tokens(model, processor.tokenizer, codec.vocab_size)
    _make_lively(model)
    head = flow_head(codec) if codec is not None and stage == "head" else None
    notes = {"thought_budget": 12}
    meta = CheckpointMeta(stage=stage, recipe="tiny", seeds={"all": seed}, notes=notes, robot="panda", **more)
    save_checkpoint(path, model=model, processor=processor, meta=meta, codec=codec, head=head)
    return path


def some_observations() -> list[Observation]:
    """Noise pictures and states near the home pose."""
    rng = np.random.default_rng(1)
    return [
        Observation(
            images={"front": rng.integers(0, 256, (96, 96, 3)).astype(np.uint8)},
            state=np.array([0.5, 0.0, 0.2, 0.1, 0.05], np.float32) + 0.05 * rng.standard_normal(5).astype(np.float32),
            joint_pos_rad=np.zeros(7, np.float32),
            instruction=TEXTS[index % len(TEXTS)],
            time_s=0.0,
        )
        for index in range(16)
    ]


@cache
def tiny_run(basetemp: Path) -> Path:
    """The checkpoint with a head, written once below the base folder of a test run; read only."""
    return write_run(basetemp / "tiny-runs" / "head-tiny")


@cache
def tiny_bundle(basetemp: Path) -> Path:
    """The bundle of `tiny_run`, exported once for all suites of a test run; read only."""
    config = ExportConfig(run=tiny_run(basetemp), out=basetemp / "tiny-bundles" / "tiny")
    return export(config, observations=some_observations(), say=lambda line: None)


def tiny_bench_bundle(basetemp: Path, precision: str) -> Path:
    """A small bundle of random weights, made once for all suites of a test run; read only."""
    work = basetemp / "tiny-bundles" / "bench"
    work.mkdir(parents=True, exist_ok=True)
    return bench_model("tiny", precision, work).bundle


def copy_portable(bundle: Path, folder: Path) -> dict[str, GraphSpec]:
    """Copies weights and portable graphs into a folder, instead of tracing them again; returns these graphs."""
    graphs = {role: spec for role, spec in read_bundle(bundle).manifest.graphs.items() if role not in IN_PLACE_ROLES}
    for path in [*bundle.glob("*.safetensors"), *(bundle / spec.file for spec in graphs.values())]:
        (folder / path.name).write_bytes(path.read_bytes())
    return graphs
