"""Hidden arms: one drawn sample that somebody knows and the tool under test does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.randomization.domain import CONCERNS, DomainSample
from roboalign.sdk.randomization.presets import find_randomization
from roboalign.sdk.settings_file import read_settings

__all__ = ["read_hidden"]


def read_hidden(given: str | Path, seed: int | None = None) -> DomainSample:
    """Returns the sample of a hidden arm.

    Args:
        given: A `.json` file that `DomainSample.to_json` wrote; or a preset or a file of a randomisation, from which
            one is drawn.
        seed: Chooses what is drawn; needed for a randomisation, refused for a sample.

    Raises:
        ConfigError: It is none of these, or the seed is missing or of no use.
    """
    path = Path(given)
    if path.suffix == ".json":
        content = read_settings(path, "hidden arm")
        if "seed" in content and _is_sample(content):
            if seed is not None:
                raise ConfigError(f"{path} is one drawn sample, a seed of {seed} has nothing to choose; leave it out")
            try:
                return DomainSample.from_json(content)
            except ConfigError as err:
                raise ConfigError(f"{path}: {err}") from err
    if seed is None:
        raise ConfigError(f"{given} is a randomisation; give the seed that draws the hidden arm (--hidden-seed)")
    return find_randomization(str(given)).sample(seed)


def _is_sample(content: Mapping[str, object]) -> bool:
    """True when no parameter holds a range."""
    groups = (content.get(concern) for concern in CONCERNS)
    return not any(
        isinstance(value, Mapping) for group in groups if isinstance(group, Mapping) for value in group.values()
    )
