"""Do the graphs that read several tokens at once give what as many steps give? Steps are compared with PyTorch.

Each window reads the same words as steps do, behind the same prompts: full, and with fewer words than it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from roboalign.export.vectors import VECTORS_NAME, Vectors
from roboalign.sdk.backends import Backend, Decoding, InspectableBackend, WindowBackend, find_backend
from roboalign.sdk.errors import CheckFailed
from roboalign.sdk.types import FloatArray

__all__ = ["check_windows"]


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
            text = prompt.prompt_text(seen.instruction, seen.state, pace="slow", task="act")
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            decoding = opened.prefill(ids, prompt.pixel_values(seen.images[opened.spec.camera_names[0]]))
            for window in windows:
                # A thought may be shorter than a window; its words once more make it longer, and still vary.
                longer = (words * (window // len(words) + 1))[:window]
                for few in (longer, longer[:-3]):
                    error = _window_error(opened, decoding, few)
                    found[f"extend{window}"] = max(error, found.get(f"extend{window}", 0.0))
    finally:
        opened.close()
    for role, error in found.items():
        if not error <= tolerance:
            raise CheckFailed(
                f"parity failed: {role} differs from as many steps by {error:.2g} of the largest value, at most "
                f"{tolerance:.2g} is accepted"
            )
    return found


def _window_error(backend: Backend, decoding: Decoding, words: Sequence[int]) -> float:
    """Largest difference between reading words at once and one by one; the sequence is left as it was."""
    assert isinstance(backend, WindowBackend)
    assert isinstance(backend, InspectableBackend)
    start, logits = decoding.length, decoding.logits
    at_once = {"logits": backend.extend(decoding, words), **backend.inspect(decoding)}
    backend.rewind(decoding, start, logits)
    rows: list[FloatArray] = []
    for word in words:
        backend.step(decoding, word)
        rows.append(decoding.logits)
    stepped = {"logits": np.stack(rows), **backend.inspect(decoding)}
    backend.rewind(decoding, start, logits)
    return max(float(np.abs(at_once[name] - stepped[name]).max() / np.abs(stepped[name]).max()) for name in stepped)
