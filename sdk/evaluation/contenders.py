"""`PolicyRef`: who to evaluate, as plain values that travel to a worker process and are opened there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.sdk.evaluation.controls import ExpertPolicy, RandomPolicy, ShuffledInstruction
from roboalign.sdk.evaluation.episodes import EpisodeEnv, EpisodePolicy
from roboalign.sdk.evaluation.results import JsonValue

__all__ = ["ACTORS", "KINDS", "PolicyRef", "fingerprint"]

KINDS = ("bundle", "checkpoint", "expert", "random")
"""What can be evaluated: an exported bundle, a checkpoint through torch, and the two controls without a model."""

ACTORS = ("flow", "fast")
"""Which part of a model acts: the flow-matching head, or the action tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRef:
    """A policy by name: kind, files and settings. Opening it twice gives two policies that act alike."""

    kind: str
    """One of `KINDS`."""
    path: str | None = None
    """Folder of the bundle or checkpoint; None is the shipped bundle."""
    actions: str = "flow"
    """One of `ACTORS`."""
    think: bool = True
    """Whether the policy writes a thought before it acts."""
    is_shuffled: bool = False
    """Whether it is told the sentence of another task."""
    seed: int = 0
    """Seed of the random policy and of the shuffle."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"unknown policy kind {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.actions not in ACTORS:
            raise ConfigError(f"actions is {self.actions!r}; choose one of {', '.join(ACTORS)}")
        if self.kind == "checkpoint" and self.path is None:
            raise ConfigError("a checkpoint needs its path")
        if self.kind in ("expert", "random") and (self.path is not None or self.is_shuffled):
            raise ConfigError(f"the {self.kind} policy has no files and does not read the instruction")

    @property
    def name(self) -> str:
        """What a table calls it."""
        if self.kind in ("expert", "random"):
            return self.kind
        base = "shipped bundle" if self.path is None else str(self.path)
        return base + (", shuffled instruction" if self.is_shuffled else "")

    def describe(self) -> Mapping[str, JsonValue]:
        """Says who is evaluated; raises BundleError when the folder is not there."""
        row: dict[str, JsonValue] = {
            "name": self.name,
            "kind": self.kind,
            "is_shuffled": self.is_shuffled,
            "seed": self.seed,
        }
        if self.kind in ("bundle", "checkpoint"):
            row |= {
                "path": self.path,
                "actions": self.actions,
                "think": self.think,
                "fingerprint": fingerprint(self.folder),
            }
        return row

    @property
    def folder(self) -> Path:
        """Folder of the model's files."""
        if self.path is not None:
            return Path(self.path)
        from roboalign.sdk.bundle import shipped_bundle_path

        return shipped_bundle_path()

    def open(self, split: str) -> tuple[EpisodeEnv, EpisodePolicy]:
        """Returns a scene and the policy in it; both belong to the caller."""
        from roboalign.sdk.sim.env import SimEnv

        env = SimEnv(family="mix", split=split)
        if self.kind == "expert":
            return env, ExpertPolicy(env)
        if self.kind == "random":
            return env, RandomPolicy(env.robot_spec, self.seed)
        from roboalign.sdk.policy import Policy

        backend = "torch" if self.kind == "checkpoint" else "auto"
        actions = cast(Literal["flow", "fast"], self.actions)
        policy: EpisodePolicy = Policy.load(self.folder, backend=backend, actions=actions, think=self.think)
        if self.is_shuffled:
            policy = ShuffledInstruction(policy, env, self.seed)
        return env, policy


def fingerprint(folder: Path) -> str:
    """Returns a hash that changes when the model in a folder does: its description, and the name and size of each file.

    A bundle's manifest holds the hash of every file, so it speaks for their content.
    """
    if not folder.is_dir():
        raise BundleError(
            f"there is no bundle or checkpoint at {folder}; train one, or leave the path out for the shipped one"
        )
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            continue
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        if path.name in ("manifest.json", "roboalign.json"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
