"""Patterns for the table."""

import dataclasses

import numpy as np
import pytest

from roboalign.sdk.randomization import DomainSample
from roboalign.sdk.randomization.textures import table_texture
from roboalign.sdk.randomization.values import TextureValues


def texture(table: str, contrast: float = 0.4, cell_m: float = 0.1, seed: int = 0) -> np.ndarray | None:
    values = TextureValues(table=table, contrast=contrast, cell_m=cell_m)
    return table_texture(dataclasses.replace(DomainSample(seed=seed), textures=values), 1.4)


def test_a_flat_table_has_none() -> None:
    assert texture("flat") is None
    assert texture("checker", contrast=0.0) is None


@pytest.mark.parametrize("table", ["checker", "noise", "gradient"])
def test_a_pattern_only_darkens_and_by_no_more_than_its_contrast(table: str) -> None:
    made = texture(table)
    assert made is not None
    assert (made.dtype, made.shape) == (np.uint8, (128, 128, 3))
    assert made.min() >= round(255 * 0.6)
    assert made.std() > 5


@pytest.mark.parametrize("table", ["noise", "gradient"])
def test_a_smooth_pattern_has_no_seam(table: str) -> None:
    made = texture(table)
    assert made is not None
    grey = made[:, :, 0].astype(int)
    inside = np.abs(np.diff(grey, axis=0)).max()
    assert np.abs(grey[0] - grey[-1]).max() <= inside + 1


def test_a_checkerboard_has_cells_of_its_size() -> None:
    made = texture("checker", cell_m=0.1)
    assert made is not None
    assert np.count_nonzero(np.diff(made[7, :, 0].astype(int))) in (13, 14)


@pytest.mark.parametrize("table", ["checker", "noise", "gradient"])
def test_a_pattern_is_that_of_its_seed(table: str) -> None:
    first, again, other = texture(table, seed=1), texture(table, seed=1), texture(table, seed=2)
    assert np.array_equal(first, again)  # type: ignore[arg-type]
    assert not np.array_equal(first, other)  # type: ignore[arg-type]
