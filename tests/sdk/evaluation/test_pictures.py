import io
import json
from dataclasses import replace

import numpy as np
import pytest
from evaluation_fakes import LineEnv, WalkPolicy
from PIL import Image

from roboalign.sdk.errors import ConfigError, DataError
from roboalign.sdk.evaluation.episodes import run_episode
from roboalign.sdk.evaluation.pictures import encode_png, read_film, write_film, write_gif


def frames(count=5):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (24, 32, 3), dtype=np.uint8) for _ in range(count)]


def filmed():
    return run_episode(LineEnv(), WalkPolicy(), seed=4, task="place", record_frames=True)


def test_a_gif_has_every_frame_and_its_rate(tmp_path):
    path = write_gif(frames(), tmp_path / "deep" / "film.gif", rate_hz=10.0, scale=2)
    with Image.open(path) as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (5, (64, 48), 0)
        assert image.info["duration"] == 100


def test_the_last_frame_stays_for_a_while(tmp_path):
    with Image.open(write_gif(frames(), tmp_path / "film.gif")) as image:
        image.seek(4)
        assert image.info["duration"] == 1500


def test_a_gif_shows_the_colours_of_the_frames(tmp_path):
    red, blue = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)
    red[..., 0], blue[..., 2] = 220, 220
    with Image.open(write_gif([red, blue], tmp_path / "film.gif")) as image:
        image.seek(1)
        np.testing.assert_allclose(np.asarray(image.convert("RGB"))[8, 8], (0, 0, 220), atol=12)


def test_nothing_half_written_stays_when_a_gif_fails(tmp_path):
    broken = [*frames(2), np.zeros((24, 32), np.uint8)]
    with pytest.raises(DataError, match=r"uint8\[24, 32\]"):
        write_gif(broken, tmp_path / "film.gif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("pictures", "rate_hz"), [([], 10.0), (frames(1), 0.0)])
def test_a_gif_of_nothing_is_refused(tmp_path, pictures, rate_hz):
    with pytest.raises(ConfigError):
        write_gif(pictures, tmp_path / "film.gif", rate_hz=rate_hz)


def test_a_png_holds_the_exact_picture():
    picture = frames(1)[0]
    with Image.open(io.BytesIO(encode_png(picture))) as image:
        np.testing.assert_array_equal(np.asarray(image), picture)


def test_a_film_strip_survives_the_disk(tmp_path):
    strip = read_film(write_film(tmp_path / "film", filmed(), num_frames=3))
    assert [frame.step for frame in strip.frames] == [0, 4, 8]
    assert [frame.thought for frame in strip.frames] == ["move 1", "move 2", "move 2"]
    assert (strip.success, strip.steps, strip.sources) == (True, 8, ("flow",))
    assert strip.frames[0].png.startswith(b"\x89PNG")


def test_a_short_episode_has_fewer_pictures(tmp_path):
    episode = filmed()
    strip = read_film(write_film(tmp_path / "film", replace(episode, frames=episode.frames[:2])))
    assert len(strip.frames) == 2


def test_a_film_of_an_episode_without_pictures_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="record_frames"):
        write_film(tmp_path, replace(filmed(), frames=()))


def test_a_damaged_film_is_named(tmp_path):
    write_film(tmp_path, filmed())
    row = json.loads((tmp_path / "film.json").read_text())
    del row["frames"]
    (tmp_path / "film.json").write_text(json.dumps(row))
    with pytest.raises(DataError, match="run the evaluation again"):
        read_film(tmp_path)
