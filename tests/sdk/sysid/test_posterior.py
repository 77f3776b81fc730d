"""A crowd of parameters: where it stands on a hill, and that it never stands still."""

from types import SimpleNamespace

import numpy as np
import pytest

from roboalign.sdk.sysid.fit import NAMES, STEPS
from roboalign.sdk.sysid.posterior import CROWD, settle, settle_moving

TOP = np.full((len(NAMES), 2), 0.5)
HEATS = np.repeat(np.array([*np.geomspace(4.0, 1.0, 5), *[1.0] * 7])[:, None], 2, 1)


class Hills:
    """Two joints whose likelihood is a normal law around `TOP`, as wide as `widths` (in `STEPS`) say."""

    low, high = np.zeros((len(NAMES), 1)), np.ones((len(NAMES), 2))

    def __init__(self, *widths: float) -> None:
        self.std = STEPS[:, None] * np.array(widths)

    def residuals(self, values: np.ndarray) -> SimpleNamespace:
        cost = 0.5 * (((values - TOP) / self.std) ** 2).sum(1)
        return SimpleNamespace(bias_rad=np.zeros_like(cost), costs=lambda scale: cost)


def crowd_on(target: Hills, rng: np.random.Generator) -> np.ndarray:
    return TOP + target.std * rng.standard_normal((CROWD, *TOP.shape))


def spread(crowds: list, target: Hills) -> np.ndarray:
    """How wide the last crowds are, in units of the hill's own width: float64[P, J]."""
    return np.concatenate([crowd.values for crowd in crowds[-7:]]).std(0) / target.std


def test_a_crowd_on_a_hill_as_wide_as_its_jumps_is_as_wide_as_the_hill() -> None:
    target, rng = Hills(0.2, 0.2), np.random.default_rng(1)
    alike = settle_moving(target, crowd_on(target, rng), HEATS, np.ones(2), rng, kept=7)
    assert spread(alike, target) == pytest.approx(1.0, abs=0.35)


def moves(crowds: list) -> np.ndarray:
    """Which share of the last crowds moved from one round to the next: float64[J]."""
    last = np.stack([crowd.values for crowd in crowds[-7:]])
    return (np.diff(last, axis=0) != 0).any(2).mean((0, 1))


def test_a_crowd_that_would_stand_still_is_heated_until_it_moves_and_the_other_joint_is_not() -> None:
    target = Hills(0.2, 0.003)
    values = crowd_on(target, np.random.default_rng(1))
    still = settle(target, values, HEATS, np.ones(2), np.random.default_rng(2))
    assert moves(still)[1] < 0.05
    moving = settle_moving(target, values, HEATS, np.ones(2), np.random.default_rng(2), kept=7)
    assert moves(moving).min() > 0.14
    assert spread(moving, target)[:, 0] == pytest.approx(1.0, abs=0.35)
