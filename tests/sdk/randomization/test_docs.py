"""docs/randomization.md says what the presets are, and shows them.

After a change of the presets on purpose: `pytest tests/sdk/randomization/test_docs.py --write-golden`.
"""

import io
from pathlib import Path

import numpy as np
import pytest

from roboalign.sdk.randomization import PRESETS
from roboalign.sdk.randomization.table import parameter_table
from roboalign.sdk.randomization.values import NUM_OBJECT_SLOTS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "randomization.md"
SHEET = PAGE.with_suffix(".png")
BEGIN, END = "<!-- parameters -->\n\n", "\n<!-- end of parameters -->"
SCENE_SEED, NUM_EPISODES, SHOWN_PX = 100, 8, 96


def contact_sheet() -> np.ndarray:
    """Returns uint8[H, W, 3]: one scene, a row a preset, a column an episode, as the policy sees it."""
    from roboalign.sdk.sim.env import SimEnv

    rows = []
    for name in PRESETS:
        env = SimEnv("place", randomization=name, image_size_px=SHOWN_PX)
        env.reset(seed=SCENE_SEED)
        scene, tiles = env.scene, []
        for seed in range(NUM_EPISODES):
            env.reset(seed=seed, options={"scene": scene})
            tiles.append(env.observe().images["front"])
        rows.append(np.concatenate(tiles, axis=1))
        env.close()
    return np.concatenate(rows, axis=0)


def test_the_table_is_that_of_the_presets(request: pytest.FixtureRequest) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    if request.config.getoption("--write-golden"):
        table = parameter_table()
        PAGE.write_text(before + BEGIN + table + END + after, encoding="utf-8")
    assert table == parameter_table()


def test_the_page_tells_the_number_of_slots_and_every_preset() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"{NUM_OBJECT_SLOTS} slots" in text
    assert all(f"`{name}`" in text for name in PRESETS)


def test_the_picture_shows_the_presets(request: pytest.FixtureRequest) -> None:
    """JPEG decoders differ by a few grey levels, so the pictures are compared by their means."""
    from PIL import Image

    pytest.importorskip("pybullet")
    pytest.importorskip("gymnasium")
    sheet = contact_sheet()
    if request.config.getoption("--write-golden"):
        file = io.BytesIO()
        Image.fromarray(sheet).save(file, "PNG", optimize=True)
        SHEET.write_bytes(file.getvalue())
    assert SHEET.stat().st_size <= 300_000
    with Image.open(SHEET) as stored:
        shown = np.asarray(stored.convert("RGB"))
    assert shown.shape == sheet.shape
    assert np.abs(means(shown) - means(sheet)).max() < 4


def means(sheet: np.ndarray) -> np.ndarray:
    """Returns the mean colour of every tile."""
    rows, columns = sheet.shape[0] // SHOWN_PX, sheet.shape[1] // SHOWN_PX
    return sheet.reshape(rows, SHOWN_PX, columns, SHOWN_PX, 3).mean(axis=(1, 3))
