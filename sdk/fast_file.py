"""The file that holds an action codec: its config, the report of its fit, and a sha256 over both.

One JSON file, so that a codec cannot lose a part of itself. The codec is sdk/fast.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.sdk.types import FloatArray

__all__ = ["FAST_FILE", "FastConfig", "FastReport", "codec_hash", "read_codec", "write_codec"]

FAST_FILE = "fast.json"
"""Name of the file inside a bundle or checkpoint directory."""

_FORMAT, _FORMAT_VERSION = "roboalign-fast", 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FastConfig:
    """Everything that turns actions into tokens; two codecs with equal configs give equal tokens."""

    horizon: int
    """Actions in a chunk."""
    names: tuple[str, ...]
    """Names of the action fields, unit as suffix."""
    rate_hz: float
    """Control rate of the actions; a chunk of another rate has another meaning."""
    scale: float
    """Quanta per normalised unit: a coefficient is off by at most 0.5 / scale."""
    low: FloatArray
    """float32[D] action that is normalised to -1 (1st percentile)."""
    high: FloatArray
    """float32[D] action that is normalised to +1 (99th percentile)."""
    min_coefficient: int
    """Smallest coefficient of the alphabet; it is token 0."""
    max_coefficient: int
    """Largest coefficient of the alphabet."""
    merges: tuple[tuple[int, int], ...]
    """Pairs of token ids by rank; pair r makes token `alphabet_size + r`."""

    def __post_init__(self) -> None:
        if self.horizon < 1 or not self.names:
            raise ConfigError(f"FastConfig: a chunk of {self.horizon} actions with fields {self.names} is empty")
        if not (np.isfinite(self.rate_hz) and self.rate_hz > 0 and np.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"FastConfig.rate_hz and .scale must be positive, found {self.rate_hz} and {self.scale}")
        if self.min_coefficient > self.max_coefficient:
            raise ConfigError(f"FastConfig: alphabet {self.min_coefficient}..{self.max_coefficient} is empty")
        for field in ("low", "high"):
            values = np.array(getattr(self, field), dtype=np.float32)
            if values.shape != (len(self.names),) or not np.isfinite(values).all():
                raise ConfigError(f"FastConfig.{field} must hold {len(self.names)} finite numbers, found {values}")
            values.flags.writeable = False
            object.__setattr__(self, field, values)
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if not low < high:
                raise ConfigError(f"FastConfig: {name} has low {low} >= high {high}")
        if len(set(self.merges)) != len(self.merges):
            raise ConfigError("FastConfig.merges names a pair twice")
        for rank, pair in enumerate(self.merges):
            if len(pair) != 2 or not all(0 <= token < self.alphabet_size + rank for token in pair):
                raise ConfigError(f"FastConfig.merges[{rank}] = {pair} names a token that does not exist yet")

    @property
    def num_dims(self) -> int:
        """Number of action fields."""
        return len(self.names)

    @property
    def num_coefficients(self) -> int:
        """Coefficients in a chunk: horizon times dimensions."""
        return self.horizon * len(self.names)

    @property
    def alphabet_size(self) -> int:
        """Number of coefficient values; these are the first token ids."""
        return self.max_coefficient - self.min_coefficient + 1

    @property
    def vocab_size(self) -> int:
        """Number of tokens: the alphabet and the merges."""
        return self.alphabet_size + len(self.merges)


@dataclass(frozen=True, kw_only=True, slots=True)
class FastReport:
    """How well a codec represents some chunks: absolute error of every action, per field and in its own unit."""

    names: tuple[str, ...]
    mean_error: tuple[float, ...]
    p95_error: tuple[float, ...]
    max_error: tuple[float, ...]
    num_chunks: int
    num_saturated: int
    """Coefficients (of `num_chunks * horizon * dims`) that were clipped to the alphabet."""
    tokens_per_chunk: float
    """Mean length of the token sequences."""
    compression: float
    """Numbers in a chunk divided by `tokens_per_chunk`."""

    def lines(self) -> list[str]:
        """Returns the report as lines of text: one for each field, and one about tokens."""
        rows = zip(self.names, self.mean_error, self.p95_error, self.max_error, strict=True)
        errors = [f"{name}: error mean {a:.2g}, p95 {b:.2g}, max {c:.2g}{_unit(name)}" for name, a, b, c in rows]
        tokens = f"{self.tokens_per_chunk:.1f} tokens a chunk ({self.compression:.1f}x fewer than numbers)"
        return [*errors, f"{tokens}; {self.num_saturated} coefficients of {self.num_chunks} chunks saturated"]


def codec_hash(config: FastConfig, report: FastReport | None) -> str:
    """Returns the sha256 (hex) of everything the file holds."""
    return _digest(_to_document(config, report))


def write_codec(directory: str | Path, config: FastConfig, report: FastReport | None) -> Path:
    """Writes the file, under its final name only once it is complete, and returns its path."""
    document = _to_document(config, report)
    document["sha256"] = _digest(document)
    path = Path(directory) / FAST_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{FAST_FILE}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(json.dumps(document) + "\n", encoding="ascii")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def read_codec(directory: str | Path) -> tuple[FastConfig, FastReport | None]:
    """Returns what `write_codec` wrote.

    Raises:
        BundleError: The file is missing, truncated, altered, of another kind, or of a newer format.
    """
    path = Path(directory) / FAST_FILE
    try:
        document = json.loads(path.read_text(encoding="ascii"))
    except FileNotFoundError as err:
        raise BundleError(f"{path} does not exist; the action codec of a bundle or SFT checkpoint is there") from err
    except (OSError, ValueError) as err:
        raise BundleError(f"{path} cannot be read as JSON ({err}); it is truncated or damaged, copy it again") from err
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise BundleError(f"{path} is no action codec: it does not say format {_FORMAT!r}")
    version = document.get("format_version")
    if version != _FORMAT_VERSION:
        reads = f"this roboalign reads {_FORMAT_VERSION}"
        raise BundleError(f"{path} has format version {version}, {reads}; use the release that wrote it, or fit again")
    if document.get("sha256") != _digest(document):
        raise BundleError(f"{path} was altered: its content does not match its sha256; copy it again from its source")
    try:
        return _from_document(document)
    except (KeyError, TypeError, ValueError) as err:
        raise BundleError(f"{path} holds a codec that cannot be right: {err}") from err


def _unit(name: str) -> str:
    return {"m": " m", "rad": " rad"}.get(name.rpartition("_")[2], " (no unit)")


def _digest(document: dict[str, Any]) -> str:
    content = {key: value for key, value in document.items() if key != "sha256"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _to_document(config: FastConfig, report: FastReport | None) -> dict[str, Any]:
    content = {field.name: getattr(config, field.name) for field in fields(config)}
    # float32 -> float -> JSON -> float32 is exact.
    content.update(low=config.low.tolist(), high=config.high.tolist())
    fit_report = None if report is None else asdict(report)
    return {"format": _FORMAT, "format_version": _FORMAT_VERSION, "config": content, "fit_report": fit_report}


def _from_document(document: dict[str, Any]) -> tuple[FastConfig, FastReport | None]:
    config = dict(document["config"])
    config["names"] = tuple(config["names"])
    config["merges"] = tuple((int(left), int(right)) for left, right in config["merges"])
    report = document["fit_report"]
    if report is not None:
        report = {key: tuple(value) if isinstance(value, list) else value for key, value in report.items()}
    return FastConfig(**config), None if report is None else FastReport(**report)
