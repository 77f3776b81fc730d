"""Short closed-loop rollouts with action tokens, run by `align` at every measurement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.episodes import run_episode
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.policy import Policy
from roboalign.sdk.sim.env import SimEnv
from roboalign.sdk.sim.seeds import train_seed
from roboalign.sdk.types import STATE_NAMES
from roboalign.trainer.backbone import HuggingFaceBackbone
from roboalign.trainer.backend import TorchBackend, checkpoint_spec
from roboalign.trainer.checkpoint import load_checkpoint
from roboalign.trainer.watch import ClosedLoop

__all__ = ["FIRST_SEED", "token_rollouts"]

FIRST_SEED = 990_000_000
"""Index of the first training seed used here: the block of `--seed 99`, which `collect` uses only when asked to."""


def token_rollouts(
    folder: Path, *, episodes: int, families: tuple[str, ...] = ("place", "push"), replan_every: int | None = None
) -> ClosedLoop:
    """Returns a callable that plays `episodes` scenes with thought and action tokens and returns success and progress.

    The scenes are of the training stream, never of the evaluation stream, and the same at every call.

    Args:
        folder: checkpoint that holds the tokenizer and the codec of the model.
        episodes: scenes a call.
        families: task families, in turn.
        replan_every: actions of a chunk that are applied before the policy is asked again; None applies all.
    """
    if episodes < 1:
        raise ConfigError(f"closed-loop episodes are {episodes}, expected at least 1")

    names = load_checkpoint(folder, verify=False).meta.states or STATE_NAMES

    def play(backbone: HuggingFaceBackbone, codec: FastCodec) -> Mapping[str, float]:
        backend = TorchBackend(folder, backbone, None, checkpoint_spec(backbone, codec, None, state_names=names))
        policy, env = Policy(backend, actions="fast"), SimEnv("mix", image_size_px=backend.spec.image_size_px)
        try:
            results = [
                run_episode(
                    env,
                    policy,
                    seed=train_seed(FIRST_SEED + index),
                    task=families[index % len(families)],
                    replan_every=replan_every,
                )
                for index in range(episodes)
            ]
        finally:
            env.close()
        return {
            "success": float(np.mean([r.success for r in results])),
            "progress": float(np.mean([r.progress for r in results])),
            "episodes": float(episodes),
        }

    return play
