"""Runs `fit` on the tiny world and writes its weights; started by `test_parallel.py`, in one process or in two."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import tiny
import tiny_scenes
from safetensors.torch import save_file

from roboalign.trainer.folders import is_main_process
from roboalign.trainer.parallel import all_processes
from roboalign.trainer.resume import unique_tensors
from roboalign.trainer.samples import make_sample
from roboalign.trainer.supervised import FitConfig, fit

TRAIN, HELD = tiny_scenes.frames(40).split(0.2)
CODEC = tiny.codec_of(TRAIN)


def draw_from(table):
    def draw(_step, count, rng):
        rows = rng.integers(len(table), size=count)
        return [make_sample(table, int(row), "vqa", tiny.FORMAT, rng) for row in rows]

    return draw


def main(folder: Path, stop_after: int | None) -> None:
    """Trains six steps in `folder`; with `stop_after`, draws no batch of that step and dies."""
    config = FitConfig(steps=6, batch_size=8, micro_batch=4, save_every=2)
    train = draw_from(TRAIN)

    def draw(step, count, rng):
        if step == stop_after:
            raise SystemExit(3)
        return train(step, count, rng)

    with all_processes():
        member = tiny.backbone(CODEC)
        fit(member, draw, draw_from(HELD), config, data_hash="tiny", folder=folder, label="tiny")
        tensors = unique_tensors(member.model)
    if is_main_process():
        save_file(tensors, folder / "final.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
