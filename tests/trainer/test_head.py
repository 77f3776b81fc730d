"""Settings of the head stage, and how often each kind of thought is drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from roboalign.sdk.errors import ConfigError
from roboalign.trainer.head import HeadConfig, kinds_drawn

CONFIG = HeadConfig(data=Path("d"), backbone=Path("b"), out=Path("o"), recipe="x", steps=1, batch_size=4000)


def test_the_kinds_of_thought_are_drawn_by_their_shares() -> None:
    counts = np.bincount(kinds_drawn(CONFIG, 3), minlength=3) / CONFIG.batch_size
    np.testing.assert_allclose(counts, CONFIG.shares, atol=0.03)


def test_only_fresh_thoughts_are_drawn_when_that_is_asked_for() -> None:
    config = replace(CONFIG, shares=(1.0, 0.0, 0.0))
    assert set(kinds_drawn(config, 3)) == {0}
    assert config.trained_kinds == ("fresh",)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.5, 0.2, 0.2), (1.2, -0.2, 0.0)])
def test_shares_that_do_not_add_up_are_refused(shares) -> None:
    with pytest.raises(ConfigError, match=r"HeadConfig\.shares is .*, expected 3 shares \(fresh, stale, absent\) with"):
        replace(CONFIG, shares=shares)


def test_a_thought_older_than_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"HeadConfig\.max_age is 0, expected 1 or more"):
        replace(CONFIG, max_age=0)
