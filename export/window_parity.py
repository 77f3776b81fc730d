"""Does reading several tokens at once give what as many steps give? Steps are compared with PyTorch.

Where a bundle has graphs that read in place these are what acts, and what is compared with PyTorch; its portable ones,
for other providers, are compared with them. Each window reads the same words as steps do, behind the same prompts:
full, and with fewer words than it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from roboalign.export.vectors import VECTORS_NAME, Vectors
from roboalign.sdk.backends import Backend, Decoding, InspectableBackend, WindowBackend, find_backend
from roboalign.sdk.backends.in_place import InPlaceBackend
from roboalign.sdk.backends.onnx import OnnxBackend
from roboalign.sdk.bundle import read_bundle
from roboalign.sdk.errors import CheckFailed
from roboalign.sdk.types import FloatArray

__all__ = ["check_portable", "check_windows"]

_NUM_STEPS = 8
"""Words that are read one by one by either kind of graph."""


def check_windows(bundle: Path, tolerance: float, *, backend: str = "onnx", threads: int = 1) -> dict[str, float]:
    """Returns by how much each window's logits, hidden states, keys and values differ, as a share of the largest.

    Reads prompts and words of the bundle's parity vectors; a backend without windows has nothing to compare.
    A difference above the tolerance is a CheckFailed.
    """
    vectors = Vectors.load(bundle / VECTORS_NAME)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    words = max(vectors.tokens, key=len)
    found: dict[str, float] = {}
    opened = find_backend(backend).open(bundle, threads=threads)
    prompt = opened.spec.prompt
    try:
        windows = opened.windows if isinstance(opened, WindowBackend) else ()
        for seen in vectors.observations[:2] if windows else ():
            text = prompt.prompt_text(seen.instruction, seen.state_of(opened.spec.state_names), pace="slow", task="act")
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            decoding = opened.prefill(ids, prompt.pixel_values(seen.images[opened.spec.camera_names[0]]))
            for window in windows:
                # A thought may be shorter than a window; its words once more make it longer, and still vary.
                longer = (words * (window // len(words) + 1))[: min(window, opened.spec.max_tokens - decoding.length)]
                for few in (longer, longer[:-3]):
                    if few:
                        error = _window_error(opened, decoding, few)
                        found[f"window{window}"] = max(error, found.get(f"window{window}", 0.0))
    finally:
        opened.close()
    for role, error in found.items():
        if not error <= tolerance:
            raise CheckFailed(
                f"parity failed: {role} differs from as many steps by {error:.2g} of the largest value, at most "
                f"{tolerance:.2g} is accepted"
            )
    return found


def check_portable(bundle: Path, tolerance: float, *, threads: int = 1) -> float:
    """Returns by how much `prefill` and `step` differ from the graphs that read in place, as a share of the largest.

    A difference above the tolerance is a CheckFailed.
    """
    vectors, found = Vectors.load(bundle / VECTORS_NAME), read_bundle(bundle)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    portable, in_place = OnnxBackend(found, threads=threads), InPlaceBackend(found, threads=threads)
    spec, errors = found.manifest.policy, []
    for seen, words in zip(vectors.observations[:2], vectors.tokens, strict=False):
        text = spec.prompt.prompt_text(seen.instruction, seen.state_of(spec.state_names), pace="slow", task="act")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        picture = spec.prompt.pixel_values(seen.images[spec.camera_names[0]])
        shown = []
        for backend in (portable, in_place):
            decoding = backend.prefill(ids, picture)
            rows = [decoding.logits.copy()]
            for word in words[:_NUM_STEPS]:
                backend.step(decoding, word)
                rows.append(decoding.logits.copy())
            shown.append({"logits": np.stack(rows), **backend.inspect(decoding)})
        errors += [
            float(np.abs(shown[0][name] - shown[1][name]).max() / np.abs(shown[1][name]).max()) for name in shown[1]
        ]
    portable.close()
    in_place.close()
    error = max(errors)
    if not error <= tolerance:
        raise CheckFailed(
            f"parity failed: prefill and step differ from the graphs that read in place by {error:.2g} of the largest "
            f"value, at most {tolerance:.2g} is accepted"
        )
    return error


def _window_error(backend: Backend, decoding: Decoding, words: Sequence[int]) -> float:
    """Largest difference between reading words at once and one by one; the sequence is left as it was."""
    assert isinstance(backend, WindowBackend)
    assert isinstance(backend, InspectableBackend)
    start, logits = decoding.length, decoding.logits.copy()
    at_once = {"logits": backend.extend(decoding, words).copy(), **backend.inspect(decoding)}
    backend.rewind(decoding, start, logits)
    rows: list[FloatArray] = []
    for word in words:
        backend.step(decoding, word)
        rows.append(decoding.logits.copy())
    stepped = {"logits": np.stack(rows), **backend.inspect(decoding)}
    backend.rewind(decoding, start, logits)
    return max(float(np.abs(at_once[name] - stepped[name]).max() / np.abs(stepped[name]).max()) for name in stepped)
