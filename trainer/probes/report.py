"""`run_probes`: every probe of one checkpoint, as rows with counts and intervals."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from roboalign.sdk.data.language import QUESTION_KINDS
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.intervals import success_interval
from roboalign.trainer.backbone import HuggingFaceBackbone, load_backbone
from roboalign.trainer.base import answer_accuracy
from roboalign.trainer.checkpoint import load_checkpoint
from roboalign.trainer.frames import FrameTable, load_frames
from roboalign.trainer.probes.neighbours import neighbour_probe
from roboalign.trainer.probes.thoughts import FACTS, thought_quality

__all__ = ["ProbeConfig", "ProbeReport", "ProbeRow", "run_probes"]

_PAPER_DEPTH = 18 / 28
"""Share of the decoder below the layer that the head reads, in the paper."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """What to probe."""

    checkpoint: Path
    """Checkpoint folder of any stage."""
    data: Path
    """Dataset folder with pictures and truth; its last episodes are asked about, the others are references."""
    out: Path
    """JSON file to write."""
    layer: int | None = None
    """Decoder layer; None is the one at the paper's depth (18 of 28)."""
    references: int = 4000
    """Reference frames of the neighbours, at most."""
    questions: int = 500
    """Held-out frames for the neighbours and the thoughts, and questions of each kind, at most."""
    held_share: float = 0.1
    """Share of the episodes that is asked about."""
    threads: int = 1
    """CPU threads."""
    seed: int = 0
    """Chooses the frames."""

    def __post_init__(self) -> None:
        for name in ("references", "questions", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"ProbeConfig.{name} is {getattr(self, name)}, expected 1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRow:
    """One share with its interval."""

    probe: str
    """`neighbours`, `answers` or `thoughts`."""
    what: str
    """Label, kind of question, or fact."""
    task: str
    """Name of the task, or `all`."""
    right: int
    """Cases that were right."""
    count: int
    """Cases."""
    low: float
    """Lower end of the 95 % interval over cases."""
    high: float
    """Upper end."""
    chance: float | None = None
    """Share that is right without looking, where it is known."""
    episodes: int | None = None
    """Episodes that the cases are of, where they are counted."""

    @property
    def rate(self) -> float:
        """Share that was right."""
        return self.right / self.count


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeReport:
    """Every probe of one checkpoint."""

    checkpoint: str
    """Folder of the checkpoint."""
    sha256: str
    """Hash of the checkpoint."""
    stage: str
    """Stage that made it."""
    data_hash: str
    """Hash of the dataset."""
    layer: int
    """Layer whose hidden states were read."""
    config: dict[str, Any]
    """Settings."""
    rows: tuple[ProbeRow, ...]
    """The results."""


def run_probes(config: ProbeConfig) -> ProbeReport:
    """Returns what the probes found, and writes it to `config.out`."""
    checkpoint = load_checkpoint(config.checkpoint)
    torch.set_num_threads(config.threads)
    backbone = load_backbone(config.checkpoint)
    layer = max(1, round(_PAPER_DEPTH * backbone.num_layers)) if config.layer is None else config.layer
    if not 1 <= layer <= backbone.num_layers:
        raise ConfigError(f"ProbeConfig.layer is {layer}, expected 1 to {backbone.num_layers}")
    fmt = cast(Any, backbone.processor).prompt_format
    table = load_frames(config.data, horizon=1, image_size_px=fmt.image_size_px)
    train, held = table.split(config.held_share)
    asked = _some(held, config.questions, seed=config.seed)
    rows = [
        _row("neighbours", r.label, r.task, r.right, r.count, chance=r.chance, episodes=r.episodes)
        for r in neighbour_probe(backbone, _some(train, config.references, seed=config.seed), asked, layer=layer)
    ]
    rows += _answers(backbone, held, config)
    if _can_think(backbone):
        counts = thought_quality(backbone, asked, fmt)
        rows += [_row("thoughts", name, "all", counts[name], len(asked)) for name in FACTS]
    report = ProbeReport(
        checkpoint=str(config.checkpoint),
        sha256=checkpoint.sha256,
        stage=checkpoint.meta.stage,
        data_hash=table.data_hash,
        layer=layer,
        config=json.loads(json.dumps(asdict(config), default=str)),
        rows=tuple(rows),
    )
    config.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = config.out.with_name(f".{config.out.name}.tmp")
    temporary.write_text(json.dumps(asdict(report), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.rename(config.out)
    return report


def _answers(backbone: HuggingFaceBackbone, held: FrameTable, config: ProbeConfig) -> list[ProbeRow]:
    """Returns the share of held-out questions answered word for word: what was kept of seeing and telling."""
    shares = answer_accuracy(backbone, held, seed=config.seed, count=config.questions)
    names = [name for name in shares if name in QUESTION_KINDS or name.endswith("_within_10mm")]
    return [_row("answers", name, "all", round(shares[name] * config.questions), config.questions) for name in names]


def _can_think(backbone: HuggingFaceBackbone) -> bool:
    """Whether the vocabulary has the markers of a thought that was trained: a base model's has no action tokens yet."""
    return "<ACTION_0>" in backbone.tokenizer.get_vocab()


def _some(table: FrameTable, count: int, *, seed: int) -> FrameTable:
    """Returns at most `count` frames, drawn by the seed, in order."""
    rows = np.random.default_rng((seed, 19)).permutation(len(table))[:count]
    return table.take(np.sort(rows))


def _row(
    probe: str,
    what: str,
    task: str,
    right: int,
    count: int,
    *,
    chance: float | None = None,
    episodes: int | None = None,
) -> ProbeRow:
    interval = success_interval(right, count)
    return ProbeRow(
        probe=probe,
        what=what,
        task=task,
        right=right,
        count=count,
        low=interval.low,
        high=interval.high,
        chance=chance,
        episodes=episodes,
    )
