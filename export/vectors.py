"""Parity vectors: a few observations with everything that PyTorch answers to them, kept in the bundle.

They are what makes verification repeatable: on a board, years later, without PyTorch, on the exact bytes. Each backend
answers them by its own thoughts, which tells how many tokens agree; then, where its thought differs, once more with
PyTorch's words, so that the error of the actions is the error of arithmetic and not that of another thought. The noise
of the flow head is stored too and injected. Parts are measured in a chain: `step` reads what its own `prefill` left,
`flow` reads the hidden states of both.

The file is safetensors; what is text lies in its metadata as JSON. Pictures are PNG, one behind the other under
`png.CAMERA`; files of earlier versions hold them as numbers under `image.CAMERA`, and are read too.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.backends import Backend, Decoding, InspectableBackend, find_backend
from roboalign.sdk.bundle import PolicySpec, Thresholds
from roboalign.sdk.errors import BundleError, CheckFailed, missing_extra
from roboalign.sdk.policy import Policy
from roboalign.sdk.seen import METADATA_KEY, PNG, UNREADABLE, VECTORS_NAME, seen_observations
from roboalign.sdk.types import ActionChunk, FloatArray, Observation

__all__ = [
    "NUM_VECTORS",
    "PARTS",
    "VECTORS_NAME",
    "VectorErrors",
    "Vectors",
    "action_difference",
    "answer_vectors",
    "compare_vectors",
    "draw_noise",
    "find_faults",
    "measure_errors",
]

NUM_VECTORS = 6
"""Observations that are kept: 3 KB of picture each from the simulator, and five times as much of answers."""

PARTS = ("prefill.logits", "prefill.hidden", "prefill.kv", "step.logits", "step.hidden", "step.kv")
"""What is compared of each graph, beside the actions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vectors:
    """Observations, and what one backend answered. N observations."""

    observations: tuple[Observation, ...]
    """What was seen."""
    noise: FloatArray
    """float32[N, T, A] that the flow head started from."""
    tokens: tuple[tuple[int, ...], ...]
    """Thought of each, as tokens with their markers."""
    quick_tokens: tuple[tuple[int, ...], ...]
    """Action tokens of each without a thought."""
    actions: FloatArray
    """float32[N, T, A] of the flow head, in their units."""
    parts: Mapping[str, FloatArray]
    """By name of `PARTS`, stacked over the observations. Of hidden states, keys and values: at two positions. Files
    keep the keys and values of the last layer, on which all others act."""

    def save(self, path: Path) -> None:
        """Writes the file."""
        from safetensors.numpy import save_file

        names = sorted(self.observations[0].images)
        commanded = [seen.commanded for seen in self.observations if seen.commanded is not None]
        pictures = {name: [_to_png(seen.images[name]) for seen in self.observations] for name in names}
        tensors: dict[str, NDArray[np.generic]] = {
            **{f"{PNG}{name}": np.frombuffer(b"".join(files), np.uint8) for name, files in pictures.items()},
            "state": np.stack([seen.state for seen in self.observations]),
            **({"commanded": np.stack(commanded)} if len(commanded) == len(self.observations) else {}),
            "joint_pos_rad": np.stack([seen.joint_pos_rad for seen in self.observations]),
            "noise": self.noise,
            "actions": self.actions,
            **{name: value[:, -2:] if name.endswith(".kv") else value for name, value in self.parts.items()},
        }
        text = {
            "instructions": [seen.instruction for seen in self.observations],
            "tokens": self.tokens,
            "quick_tokens": self.quick_tokens,
            "png_bytes": {name: [len(file) for file in files] for name, files in pictures.items()},
        }
        contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        save_file(contiguous, path, metadata={METADATA_KEY: json.dumps(text)})
        path.chmod(0o644)  # safetensors writes for the owner only; a bundle is meant to be copied and served

    @classmethod
    def load(cls, path: Path) -> Vectors:
        """Reads the file of a bundle that was verified; what is no such file is a BundleError."""
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as err:
            raise missing_extra("safetensors", "cpu", "parity") from err
        try:
            with safe_open(path, "numpy") as file:
                text = json.loads((file.metadata() or {})[METADATA_KEY])
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            observations = seen_observations(stored, text)
            return cls(
                observations=observations,
                noise=stored["noise"],
                tokens=tuple(tuple(row) for row in text["tokens"]),
                quick_tokens=tuple(tuple(row) for row in text["quick_tokens"]),
                actions=stored["actions"],
                parts={name: stored[name] for name in PARTS},
            )
        except (*UNREADABLE, SafetensorError) as err:
            raise BundleError(f"{path} holds no parity vectors ({err}); export the bundle again") from err


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorErrors:
    """How far a backend is from the stored answers. A part that the backend cannot show is missing from `parts`."""

    num_observations: int
    """Observations that were answered."""
    fields: Mapping[str, float]
    """Largest difference of each action field, in its own unit."""
    action_share: float
    """Difference that the asked share of the values of each action field stays within, as a share of its range."""
    parts: Mapping[str, float]
    """Largest difference by name of `PARTS`, as a share of the largest stored value."""
    num_tokens: int
    """Tokens that PyTorch wrote."""
    same_tokens: float
    """Share of them that the backend wrote too, at the same place."""


class _Recorder:
    """Notes what the graphs of a backend left behind: when the prompt was read, and when actions are asked for."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.parts: dict[str, FloatArray] = {}
        self._prompt = 0

    @property
    def spec(self) -> PolicySpec:
        return self._backend.spec

    @property
    def folder(self) -> Path:
        return self._backend.folder

    def prefill(self, prompt_ids: Sequence[int], pixel_values: FloatArray) -> Decoding:
        decoding = self._backend.prefill(prompt_ids, pixel_values)
        self._prompt = decoding.length
        self._note("prefill", decoding, (decoding.length // 2, decoding.length - 1))
        return decoding

    def step(self, decoding: Decoding, token_id: int) -> None:
        self._backend.step(decoding, token_id)

    def flow(self, decoding: Decoding, state: FloatArray, noise: FloatArray) -> FloatArray:
        self._note("step", decoding, ((self._prompt + decoding.length) // 2, decoding.length - 1))
        return self._backend.flow(decoding, state, noise)

    def close(self) -> None:
        self._backend.close()

    def _note(self, part: str, decoding: Decoding, places: tuple[int, int]) -> None:
        self.parts[f"{part}.logits"] = np.array(decoding.logits, np.float32)
        if isinstance(self._backend, InspectableBackend):
            shown = self._backend.inspect(decoding)
            self.parts[f"{part}.hidden"] = shown["hidden"][list(places)]
            self.parts[f"{part}.kv"] = shown["kv"][:, :, list(places)]


def answer_vectors(
    bundle: Path,
    backend: str | Backend,
    observations: Sequence[Observation],
    noise: FloatArray,
    *,
    tokens: Sequence[tuple[int, ...]] | None = None,
    threads: int = 1,
) -> Vectors:
    """Returns what a backend answers to observations.

    Args:
        bundle: the folder.
        backend: name of the backend, or one that is open and will be closed.
        observations: what it sees.
        noise: float32[N, T, A] that the flow head starts from.
        tokens: thoughts of another backend: where its own differ, actions and parts are those after these words.
        threads: CPU threads.

    Raises:
        CheckFailed: an answer is a hold.
    """
    opened = find_backend(backend).open(bundle, threads=threads) if isinstance(backend, str) else backend
    name = backend if isinstance(backend, str) else type(backend).__name__
    recorder = _Recorder(opened)
    try:
        policy, quick = Policy(recorder), Policy(recorder, actions="fast", think=False)
        chunks, thoughts, parts = [], [], []
        for index, seen in enumerate(observations):
            chunk = _answer(policy.act(seen, noise=noise[index]), name)
            thoughts.append(chunk.tokens)
            if tokens is not None and chunk.tokens != tokens[index]:
                chunk = _answer(policy.act(seen, noise=noise[index], words=tokens[index][1:-1]), name)
            chunks.append(chunk)
            parts.append(recorder.parts)
            recorder.parts = {}
        quick_tokens = tuple(_answer(quick.act(seen), name).tokens for seen in observations)
    finally:
        recorder.close()
    return Vectors(
        observations=tuple(observations),
        noise=noise,
        tokens=tuple(thoughts),
        quick_tokens=quick_tokens,
        actions=np.stack([chunk.actions for chunk in chunks]),
        parts={name: np.stack([part[name] for part in parts]) for name in parts[0]},
    )


def action_difference(shares: FloatArray, quantile: float) -> float:
    """Returns the difference that a share of each action field's values stays within, of the worst field.

    Args:
        shares: float32[N, T, A] differences as shares of the field's range; of no answer the difference is 0.
        quantile: 1.0 is the largest difference.
    """
    return float(np.quantile(shares, quantile, axis=(0, 1)).max()) if len(shares) else 0.0


def measure_errors(
    bundle: Path, spec: PolicySpec, backend: str, *, threads: int = 1, action_quantile: float = 1.0
) -> VectorErrors:
    """Returns how far a backend on this machine is from the answers that the bundle holds.

    Raises:
        BundleError: the bundle holds no vectors.
        BackendError: the backend cannot be used here.
        CheckFailed: an answer is a hold, or has another shape than the stored one.
    """
    stored = Vectors.load(bundle / VECTORS_NAME)
    found = answer_vectors(bundle, backend, stored.observations, stored.noise, tokens=stored.tokens, threads=threads)
    return compare_vectors(stored, found, spec, action_quantile=action_quantile)


def compare_vectors(stored: Vectors, found: Vectors, spec: PolicySpec, *, action_quantile: float = 1.0) -> VectorErrors:
    """Returns how far the answers of one backend are from those of another.

    Raises:
        CheckFailed: shapes differ, or a number is not finite.
    """
    pairs = {"flow.actions": (stored.actions, found.actions)}
    for name, value in stored.parts.items():
        if name in found.parts:
            # Older files keep keys and values of all layers, newer ones those of the last.
            start = -value.shape[1] if name.endswith(".kv") else 0
            pairs[name] = (value, found.parts[name][:, start:])
    for name, (expected, value) in pairs.items():
        if expected.shape != value.shape or not np.isfinite(value).all():
            raise CheckFailed(
                f"parity failed: {name} is {list(value.shape)}, expected {list(expected.shape)} finite numbers"
            )
    errors = np.abs(found.actions - stored.actions)
    span = np.asarray(spec.action_high, np.float32) - np.asarray(spec.action_low, np.float32)
    rows = [(a, b) for a, b in zip(stored.tokens + stored.quick_tokens, found.tokens + found.quick_tokens, strict=True)]
    num = sum(len(row) for row, _ in rows)
    same = sum(a == b for row, other in rows for a, b in zip(row, other, strict=False))
    return VectorErrors(
        num_observations=len(stored.observations),
        fields={name: float(error) for name, error in zip(spec.action_names, errors.max(axis=(0, 1)), strict=True)},
        action_share=action_difference(errors / span, action_quantile),
        parts={name: _share(*pairs[name]) for name in PARTS if name in pairs},
        num_tokens=num,
        same_tokens=same / num,
    )


def find_faults(errors: VectorErrors, thresholds: Thresholds) -> tuple[str, ...]:
    """Returns what stands against a backend, in words; what was not measured does too."""
    faults = [f"{name} was not measured" for name in PARTS if name not in errors.parts]
    limits = [(name, error, thresholds.part_error) for name, error in errors.parts.items()]
    for name, error, limit in [*limits, ("flow.actions", errors.action_share, thresholds.action_error)]:
        if not error <= limit:
            faults.append(f"{name} differs by {error:.2g} of its range, at most {limit:.2g} is accepted")
    if not errors.same_tokens >= thresholds.same_tokens:
        faults.append(f"{errors.same_tokens:.1%} of the tokens agree, at least {thresholds.same_tokens:.0%} must")
    return tuple(faults)


def _share(expected: FloatArray, found: FloatArray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _answer(chunk: ActionChunk, backend: str) -> ActionChunk:
    if chunk.source == "hold":
        raise CheckFailed(f"parity cannot be checked: an answer of the {backend} backend is a hold: {chunk.reason}")
    return chunk


def _to_png(picture: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def draw_noise(count: int, spec: PolicySpec) -> FloatArray:
    """Returns float32[count, T, A], standard normal, equal at every call."""
    shape = (count, spec.horizon, len(spec.action_names))
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
