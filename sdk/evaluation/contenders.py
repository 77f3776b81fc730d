"""`PolicyRef`: who to evaluate, as plain values that travel to a worker process and are opened there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, cast

from roboalign.sdk.backends import backend_names, choose_backend, find_backend
from roboalign.sdk.bundle import find_bundle, read_bundle, require_robot
from roboalign.sdk.control.chunks import CHUNK_STRATEGIES
from roboalign.sdk.control.clock import FakeClock
from roboalign.sdk.errors import BundleError, ConfigError, missing_extra, unknown_name
from roboalign.sdk.evaluation.callables import callable_fingerprint, is_callable_name, load_callable
from roboalign.sdk.evaluation.controls import BlindPolicy, RandomPolicy, ShuffledInstruction, expert_policy
from roboalign.sdk.evaluation.episodes import EpisodeEnv, EpisodePolicy
from roboalign.sdk.evaluation.latency import WAIT, LatencyProfile, LatePolicy, TimedBackend
from roboalign.sdk.evaluation.results import JsonValue
from roboalign.sdk.evaluation.thoughts import ShuffledThoughts, StaleThoughts, ThinkingPolicy
from roboalign.sdk.policy import Policy
from roboalign.sdk.serving.remote import RemotePolicy, is_address, served_policy
from roboalign.sdk.thinking import Thinking, resolve_thinking
from roboalign.sdk.types import RobotSpec

__all__ = ["ACTORS", "ACT_FILE", "KINDS", "PolicyRef", "fingerprint", "named_policy"]

KINDS = ("bundle", "checkpoint", "act", "remote", "callable", "expert", "random")
"""What can be evaluated: an exported bundle, a checkpoint through torch, the baseline without a language model, a
policy on a server, a user's Python code, and the two controls without a model."""

ACT_FILE = "act.json"
"""What tells the folder of a baseline (`roboalign train act`)."""

_ACT_OPENER = ("roboalign.trainer.act_model", "open_policy")

ACTORS = ("flow", "fast")
"""Which part of a model acts: the flow-matching head, or the action tokens."""

_CONTROLS = ("expert", "random")
_MODELS = ("bundle", "checkpoint")


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRef:
    """A policy by name: kind, files and settings. Opening it twice gives two policies that act alike."""

    kind: str
    """One of `KINDS`."""
    path: str | None = None
    """Folder of the bundle or checkpoint, address of the server, or name of the code; None is the shipped bundle."""
    actions: str = "flow"
    """One of `ACTORS`."""
    think: bool = True
    """Whether the policy writes a thought before it acts."""
    is_shuffled: bool = False
    """Whether it is told the sentence of another task."""
    is_blind: bool = False
    """Whether it is given black pictures."""
    has_shuffled_thoughts: bool = False
    """Whether its thoughts are about another scene."""
    thought_age: int = 0
    """Calls that passed since its thought was written; 0 is a fresh one."""
    seed: int = 0
    """Seed of the random policy and of the shuffles."""
    backend: str = "auto"
    """What runs a bundle, as `sdk.Policy.load` takes it: one that is named is used, or an error says why not."""
    thinking: Thinking | None = None
    """When it thinks, how long at most, and how old a thought may be; None goes by `think`."""
    latency: LatencyProfile | None = None
    """What each of its passes takes while the scene goes on; None lets the scene wait."""
    chunks: str | None = None
    """How chunks follow one another under a latency: `latency.WAIT` or one of `CHUNK_STRATEGIES`; None waits."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(unknown_name("policy kind", self.kind, KINDS))
        if self.actions not in ACTORS:
            raise ConfigError(unknown_name("actions", self.actions, ACTORS))
        if self.kind in ("checkpoint", "act", "remote", "callable") and self.path is None:
            raise ConfigError(f"a {self.kind} policy needs its path")
        if self.kind in _CONTROLS and (self.path is not None or self.is_shuffled or self.is_blind):
            raise ConfigError(
                f"the {self.kind} policy has no files, does not read the instruction and does not look; leave out path,"
                " shuffled and blind"
            )
        if self.thought_age < 0:
            raise ConfigError(f"PolicyRef.thought_age is {self.thought_age}, expected 0 or more")
        object.__setattr__(self, "think", resolve_thinking(self.think, self.thinking).mode != "off")
        self._check_thoughts()
        self._check_latency()
        if self.backend != "auto":
            self._check_backend()

    def _check_backend(self) -> None:
        choices = ("auto", *backend_names())
        if self.backend not in choices:
            raise ConfigError(unknown_name("backend", self.backend, choices))
        if self.kind != "bundle" and not (self.kind == "checkpoint" and self.backend == "torch"):
            where = "where it is served" if self.kind == "remote" else "on a bundle"
            raise ConfigError(
                f"a {self.kind} policy is not run by the backend {self.backend!r}; choose a backend {where}"
            )

    @property
    def is_late(self) -> bool:
        """Whether the scene goes on while it computes; thinking beside the actions has no other clock to go by."""
        return self.latency is not None or (self.thinking is not None and self.thinking.mode == "beside")

    @property
    def strategy(self) -> str:
        """How its chunks follow one another where it is late."""
        return self.chunks or WAIT

    def _check_latency(self) -> None:
        if (self.is_late or self.thinking is not None) and self.kind not in _MODELS:
            raise ConfigError(
                f"how a {self.kind} policy thinks is not chosen here, and its passes cannot be timed; give a bundle"
            )
        if self.chunks is not None:
            if not self.is_late:
                raise ConfigError("a chunk strategy needs a latency, or thinking beside the actions")
            choices = (WAIT, *CHUNK_STRATEGIES)
            if self.chunks not in choices:
                raise ConfigError(unknown_name("chunk strategy", self.chunks, choices))
            if self.chunks == "rtc" and self.actions != "flow":
                raise ConfigError("chunks 'rtc' guide the flow head; act with actions 'flow', or choose 'blend'")

    def _check_thoughts(self) -> None:
        if not self.has_shuffled_thoughts and self.thought_age == 0:
            return
        if self.kind not in _MODELS or not self.think:
            what = f"{self.kind} policy" if self.kind not in _MODELS else "policy that does not think"
            raise ConfigError(f"a {what} has no thoughts to exchange; give a bundle or checkpoint that thinks")
        if self.has_shuffled_thoughts and self.thought_age > 0:
            raise ConfigError("thoughts are either about another scene or old; ask for one of both")

    @property
    def name(self) -> str:
        """What a table calls it."""
        if self.kind in _CONTROLS:
            return self.kind
        parts = ["shipped bundle" if self.path is None else str(self.path)]
        parts += ["shuffled instruction"] * self.is_shuffled + ["blind"] * self.is_blind
        parts += ["shuffled thoughts"] * self.has_shuffled_thoughts
        parts += [f"thoughts {self.thought_age} calls old"] * (self.thought_age > 0)
        if self.thinking is not None:
            parts.append("thinking " + self.thinking.mode.replace("_", " ") + ", recalled" * self.thinking.recalls)
        if self.latency is not None:
            parts.append(f"latency {self.latency.name}")
        parts += [f"chunks {self.strategy}"] * self.is_late
        return ", ".join(parts)

    def describe(self) -> Mapping[str, JsonValue]:
        """Says who is evaluated.

        Raises:
            BundleError: The folder is not there.
            BackendError: The server does not answer.
            ConfigError: The code is not there.
        """
        row: dict[str, JsonValue] = {
            "name": self.name,
            "kind": self.kind,
            "is_shuffled": self.is_shuffled,
            "is_blind": self.is_blind,
            "seed": self.seed,
        }
        if self.has_shuffled_thoughts:
            row["has_shuffled_thoughts"] = True
        if self.thought_age:
            row["thought_age"] = self.thought_age
        if self.backend != "auto":
            row["backend"] = self.backend
        if self.thinking is not None:
            # What was begun before there was `recalls` has to be recognised.
            row["thinking"] = {
                name: value for name, value in asdict(self.thinking).items() if name != "recalls" or value
            }
        if self.is_late:
            row |= {"latency": asdict(self.latency or LatencyProfile()), "chunks": self.strategy}
        if self.kind in _MODELS:
            row |= {
                "path": self.path,
                "actions": self.actions,
                "think": self.think,
                "fingerprint": fingerprint(self.folder),
            }
        elif self.kind == "act":
            row |= {"path": self.path, "fingerprint": fingerprint(self.folder)}
        elif self.kind == "callable":
            row |= {"path": self.path, "fingerprint": callable_fingerprint(str(self.path))}
        elif self.kind == "remote":
            row |= {"path": self.path, "served": served_policy(str(self.path))}
        return row

    @property
    def folder(self) -> Path:
        """Folder of the model's files."""
        if self.path is not None:
            return Path(self.path)
        from roboalign.sdk.bundle import shipped_bundle_path

        return shipped_bundle_path()

    def open(self, env: EpisodeEnv, *, split: str = "train") -> EpisodePolicy:
        """Returns the policy for a scene; it belongs to the caller, and so does the scene.

        Args:
            env: Where it will act.
            split: Split of the scenes, from which the shuffle takes its sentences.

        Raises:
            BundleError: The bundle was made for another robot than acts there.
        """
        if self.kind == "expert":
            return expert_policy(env)
        if self.kind == "bundle":
            require_robot(read_bundle(self.folder).manifest, _robot_names(env.robot_spec), self.folder)
        policy = self._open_late() if self.is_late else self.open_alone(env.robot_spec)
        if self.has_shuffled_thoughts:
            policy = ShuffledThoughts(cast(ThinkingPolicy, policy), env, self.seed)
        elif self.thought_age:
            policy = StaleThoughts(cast(ThinkingPolicy, policy), self.thought_age)
        if self.is_blind:
            policy = BlindPolicy(policy)
        if self.is_shuffled:
            policy = ShuffledInstruction(policy, env, self.seed, split=split)
        return policy

    def open_alone(self, spec: RobotSpec) -> EpisodePolicy:
        """Returns the policy without the controls around it, for a robot; raises ConfigError for the expert."""
        if self.kind == "random":
            return RandomPolicy(spec, self.seed)
        if self.kind == "remote":
            return RemotePolicy(str(self.path))
        if self.kind == "callable":
            return load_callable(str(self.path), spec)
        if self.kind == "act":
            return _open_act(self.folder, spec)
        if self.kind == "expert":
            raise ConfigError("the expert reads the simulator, so it cannot act anywhere else")
        backend = "torch" if self.kind == "checkpoint" else self.backend
        actions = cast(Literal["flow", "fast"], self.actions)
        return Policy.load(self.folder, backend=backend, actions=actions, think=self.think, thinking=self.thinking)

    def _open_late(self) -> EpisodePolicy:
        """Returns the policy on a clock that its own passes move."""
        name = choose_backend(self.folder) if self.backend == "auto" else self.backend
        opened = find_backend("torch" if self.kind == "checkpoint" else name).open(self.folder, threads=1)
        clock = FakeClock()
        try:
            policy = Policy(
                TimedBackend(opened, self.latency or LatencyProfile(), clock),
                actions=cast(Literal["flow", "fast"], self.actions),
                think=self.think,
                thinking=self.thinking,
                clock=clock.now,
                is_driven=True,
            )
        except BaseException:
            opened.close()
            raise
        return LatePolicy(policy, clock, self.strategy)


def _robot_names(spec: RobotSpec) -> tuple[str, ...]:
    """Returns what bundles call a simulated robot; LIBERO's Panda is a Panda too."""
    return (spec.name, spec.name.removeprefix("libero-"))


def named_policy(
    name: str | None,
    *,
    actions: str = "flow",
    think: bool = True,
    is_shuffled: bool = False,
    is_blind: bool = False,
    has_shuffled_thoughts: bool = False,
    thought_age: int = 0,
    seed: int = 0,
    backend: str = "auto",
    thinking: Thinking | None = None,
    latency: LatencyProfile | None = None,
    chunks: str | None = None,
) -> PolicyRef:
    """Returns the policy that somebody names.

    Args:
        name: None for the shipped bundle; `expert` or `random`; the folder of a bundle, checkpoint or run;
            `ws://host:port`; `module:name` or `path/to/file.py:name`.
        actions: One of `ACTORS`.
        think: Whether it writes a thought before it acts.
        is_shuffled: Whether it is told the sentence of another task.
        is_blind: Whether it is given black pictures.
        has_shuffled_thoughts: Whether its thoughts are about another scene.
        thought_age: Calls that passed since its thought was written.
        seed: Seed of the random policy and of the shuffle.
        backend: What runs a bundle.
        thinking: When it thinks; None goes by `think`.
        latency: What each of its passes takes while the scene goes on.
        chunks: How its chunks follow one another under a latency.

    Raises:
        ConfigError: The name is none of these; the nearest are listed.
        BundleError: It is a folder without a policy.
    """
    path: str | None
    if name in _CONTROLS:
        kind, path = str(name), None
    elif name is None:
        kind, path = "bundle", None
    elif is_address(name):
        kind, path = "remote", name
    elif is_callable_name(name):
        kind, path = "callable", name
    else:
        kind, path = _model_folder(name)
    return PolicyRef(
        kind=kind,
        path=path,
        actions=actions,
        think=think,
        is_shuffled=is_shuffled,
        is_blind=is_blind,
        has_shuffled_thoughts=has_shuffled_thoughts,
        thought_age=thought_age,
        seed=seed,
        backend=backend,
        thinking=thinking,
        latency=latency,
        chunks=chunks,
    )


def _model_folder(name: str) -> tuple[str, str]:
    """Returns kind and folder of a model: the folder itself, or the best one in the folder of a run."""
    folder = find_bundle(name)
    for place in (folder, folder / "bundle", folder / "head"):
        if (place / "manifest.json").is_file():
            return "bundle", str(place)
        if (place / "roboalign.json").is_file():
            return "checkpoint", str(place)
        if (place / ACT_FILE).is_file():
            return "act", str(place)
    if folder.is_dir():
        has = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise BundleError(f"{folder} holds neither a bundle, nor a checkpoint, nor a run (it has: {has})")
    if folder.suffix == ".py":
        raise ConfigError(f"{name} is a file; say which function or class in it acts: {name}:NAME")
    if folder.parent == Path() and name.isidentifier():
        raise ConfigError(
            unknown_name("policy", name, _CONTROLS)
            + "; a folder of that name is not here, and code is named module:name or file.py:name"
        )
    raise BundleError(
        f"there is no bundle, checkpoint or run at {folder}; train one, or leave the path out for the shipped one"
    )


def _open_act(folder: Path, spec: RobotSpec) -> EpisodePolicy:
    """Returns the baseline in a folder; it needs torch, so it lives in a higher room and is called by its name."""
    module, name = _ACT_OPENER
    try:
        opener = getattr(import_module(module), name)
    except ImportError as err:
        raise missing_extra(str(err.name), "train", "the ACT-like policy") from err
    return cast(EpisodePolicy, opener(folder, spec))


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
        if path.name in ("manifest.json", "roboalign.json", "training.json"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
