"""Mixtures: a settings file that names sources with weights.

A file is TOML or JSON and holds `source`, a list of tables; `SourceSpec` has the keys of one. Nothing is opened here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from fractions import Fraction
from pathlib import Path

from roboalign.sdk.data.reasoning import REASONING_STYLES
from roboalign.sdk.errors import ConfigError, unknown_name
from roboalign.sdk.settings_file import read_settings

__all__ = [
    "ACTION_KINDS",
    "FORMATS",
    "MOTION",
    "ON_BAD_IMAGE",
    "PAIRINGS",
    "PAPER_MIXTURE",
    "RECORDED",
    "SAMPLE_KINDS",
    "STYLES",
    "TURNS",
    "Mixture",
    "SourceSpec",
    "check_shares",
    "load_mixture",
]

FORMATS = ("lerobot", "chat")
"""`lerobot` is a folder of demonstrations, `chat` a file of pictures and conversations."""
SAMPLE_KINDS = ("vqa", "reason", "action", "paired")
"""What a demonstrated frame can become."""
ACTION_KINDS = ("action", "paired")
"""Those that hold action tokens."""
PAIRINGS: Mapping[str, Mapping[str, float]] = {
    "zero-shot": {"vqa": 0.1, "reason": 0.35, "action": 0.55},
    "paired": {"vqa": 0.1, "reason": 0.1, "action": 0.2, "paired": 0.6},
}
"""Share of each kind of sample; `zero-shot` is the paper's, in which no sample joins a thought to an action."""
RECORDED, MOTION = "recorded", "motion"
STYLES = (*REASONING_STYLES, RECORDED, MOTION)
"""Where thoughts come from: written from simulator truth, or taken from the dataset's own words."""
TURNS = ("joined", "split")
"""A conversation gives one sample for each answer: with all turns before it in the prompt, or its question alone."""
ON_BAD_IMAGE = ("stop", "skip")
PAPER_MIXTURE = Path(__file__).resolve().parents[1] / "recipes" / "paper_mixture.json"
"""The mixture that the paper lists for its supervised stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceSpec:
    """One source of a mixture, as its file says."""

    name: str
    """Name in tables, errors and samples; unique in its mixture."""
    format: str
    """One of `FORMATS`."""
    path: Path
    """Dataset folder or chat file."""
    weight: float
    """Share of the mixture, relative to the other weights; 0 leaves the source out."""
    kinds: Mapping[str, float] = field(default_factory=dict)
    """lerobot: share of each of `SAMPLE_KINDS` within the source."""
    pairing: str | None = None
    """lerobot: the same by name, one of `PAIRINGS`; without `kinds` and `pairing` it is `zero-shot`."""
    style: str | None = None
    """lerobot: one of `STYLES`; None is `default` with simulator truth and `recorded` without."""
    thought: str | None = None
    """lerobot: text column that holds thoughts; None looks for the usual names."""
    images: Path | None = None
    """chat: folder that picture paths start from; None is the folder of the file."""
    turns: str = "joined"
    """chat: one of `TURNS`."""
    on_bad_image: str = "stop"
    """chat: `stop` at a picture that does not decode, or `skip` it and count."""
    rows: int | None = None
    """Samples that the source has where it comes from; compared with what is found, and the shape of the recipe."""
    about: str = ""
    """What it is, for people."""
    download: str = ""
    """Name of the public dataset to fetch, for people."""

    def __post_init__(self) -> None:
        where = f"source {self.name!r}"
        for key, allowed in (("format", FORMATS), ("turns", TURNS), ("on_bad_image", ON_BAD_IMAGE)):
            if getattr(self, key) not in allowed:
                raise ConfigError(f"{where}: {unknown_name(key, str(getattr(self, key)), allowed)}")
        if self.style is not None and self.style not in STYLES:
            raise ConfigError(f"{where}: {unknown_name('style', self.style, STYLES)}")
        if self.pairing is not None and self.pairing not in PAIRINGS:
            raise ConfigError(f"{where}: {unknown_name('pairing', self.pairing, PAIRINGS)}")
        if self.pairing is not None and self.kinds:
            raise ConfigError(f"{where} has both pairing and kinds, expected one of them; kinds spells a pairing out")
        for kind in self.kinds:
            if kind not in SAMPLE_KINDS:
                raise ConfigError(f"{where}: {unknown_name('kind', kind, SAMPLE_KINDS)}")
        if self.kinds:
            check_shares(f"{where}: kinds", self.kinds)
        only_chat = self.images is not None or self.turns != "joined" or self.on_bad_image != "stop"
        only_robot = bool(self.kinds) or any(item is not None for item in (self.pairing, self.style, self.thought))
        if (self.format == "chat" and only_robot) or (self.format == "lerobot" and only_chat):
            wrong = "kinds, pairing, style or thought" if only_robot else "images, turns or on_bad_image"
            raise ConfigError(f"{where} is of format {self.format} and sets {wrong}, which is for the other format")

    @property
    def kind_shares(self) -> Mapping[str, float]:
        """Share of each kind of sample of a lerobot source; positive ones only."""
        shares = self.kinds or PAIRINGS[self.pairing or "zero-shot"]
        return {kind: share for kind, share in shares.items() if share > 0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Sources with weights."""

    name: str
    """Name for people, e.g. of the file."""
    sources: tuple[SourceSpec, ...]
    """At least one; weights are checked."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError(f"the mixture {self.name!r} has no source, expected at least one [[source]]")
        names = [source.name for source in self.sources]
        doubled = next((name for name in names if names.count(name) > 1), None)
        if doubled is not None:
            raise ConfigError(f"the mixture {self.name!r} has two sources named {doubled!r}; rename one")
        check_shares(f"the weights of {self.name!r}", {source.name: source.weight for source in self.sources})

    @property
    def shares(self) -> Mapping[str, float]:
        """Share of each source; they sum to 1."""
        total = math.fsum(source.weight for source in self.sources)
        return {source.name: source.weight / total for source in self.sources}


def check_shares(what: str, shares: Mapping[str, float | Fraction]) -> None:
    """Raises ConfigError unless the shares are finite, not negative, and not all zero."""
    for name, share in shares.items():
        if (
            isinstance(share, bool)
            or not isinstance(share, int | float | Fraction)
            or not math.isfinite(share)
            or share < 0
        ):
            raise ConfigError(f"{what}: {name} is {share!r}, expected a number that is not negative")
    if not any(shares.values()):
        raise ConfigError(f"{what} sum to 0, expected a positive sum; give at least one of {', '.join(shares)} some")


def load_mixture(path: Path | str, *, root: Path | None = None) -> Mixture:
    """Returns the mixture in a file; relative paths in it start from `root`, or from the folder of the file.

    `paper` names the mixture that the paper lists, whose paths start from `root` or the working folder.

    Raises:
        ConfigError: the file is missing or damaged, has an unknown key, or weights that cannot be.
    """
    is_paper = str(path) == "paper"
    file = PAPER_MIXTURE if is_paper else Path(path)
    start = root or (Path() if is_paper else file.parent)
    content = read_settings(file, "mixture")
    try:
        _check_keys("the mixture", content, ("name", "about", "source"))
        listed = content.get("source")
        if not isinstance(listed, list):
            raise ConfigError("there is no list of sources; write one [[source]] table for each")
        sources = tuple(_source(number, item, start) for number, item in enumerate(listed))
        return Mixture(name=str(content.get("name", file.stem)), sources=sources)
    except ConfigError as err:
        raise ConfigError(f"{file}: {err}") from err


def _source(number: int, item: object, start: Path) -> SourceSpec:
    where = f"source {number + 1}"
    if not isinstance(item, dict):
        raise ConfigError(f"{where} is a {type(item).__name__}, expected a table")
    known = {part.name: part for part in fields(SourceSpec)}
    _check_keys(where, item, tuple(known))
    needed = [name for name, part in known.items() if part.default is MISSING and part.default_factory is MISSING]
    missing = [name for name in needed if name not in item]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}; every source has {', '.join(needed)}")
    values = dict(item)
    for name, expected in _TYPES.items():
        value = values.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, expected)):
            raise ConfigError(f"{where}: {name} is {value!r}, expected a {expected.__name__}")
    for name in ("path", "images"):
        if name in values:
            values[name] = start / Path(values[name]).expanduser()
    return SourceSpec(**values)


_TYPES: Mapping[str, type] = {
    "rows": int,
    "kinds": dict,
    **dict.fromkeys(("name", "format", "path", "pairing", "style", "thought", "images", "turns", "on_bad_image"), str),
    **dict.fromkeys(("about", "download"), str),
}
"""Types in the file; the weight is checked with the others of its mixture."""


def _check_keys(where: str, found: Mapping[str, object], known: tuple[str, ...]) -> None:
    for name in found:
        if name not in known:
            raise ConfigError(f"{where}: {unknown_name('key', name, known)}")
