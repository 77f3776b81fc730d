"""Kills every stage at random moments and compares what it goes on to with a run that was left alone.

    python benchmarks/resume.py --kills 20 --out runs/resume.json

Each stage is a process of its own (forked from one that has only imported the package, which saves the seconds of the
import). It is killed (SIGKILL, so nothing can be tidied up) at moments drawn from the seed, started again with the same
settings, and so on until it finishes. Then every line of `metrics.jsonl` but its clocks, and every byte of the weights,
must equal those of the uninterrupted run: no tolerance. A stage whose loss or reward never changes would prove nothing
and counts as failed. While a stage runs, its final name is watched: there is nothing under it, or a complete checkpoint
whose every hash matches.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from multiprocessing.process import BaseProcess
from pathlib import Path

STAGES = ("base", "sft", "align", "head")
CLOCKS = ("cpu_s", "wall_s", "generate_s", "score_s", "step_s", "rollout_tokens_s", "update_tokens_s")
"""Numbers in `metrics.jsonl` that are times."""
WEIGHTS = ("model.safetensors", "head.safetensors")
POLL_S = 0.01
EPISODES = 6
PROCESSES = multiprocessing.get_context("forkserver")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one stage."""

    stage: str
    kills: int
    """Times it was killed."""
    kill_steps: tuple[int, ...]
    """Last step in the metrics at each kill; -1 where there was none yet."""
    runs: int
    """Runs that were killed at least once and went on to the end."""
    equal: bool
    """Whether all of them gave the metrics and the weights of the uninterrupted run."""
    varied: bool
    """Whether the loss (reward) of the uninterrupted run changed; otherwise its equality says nothing."""
    looks: int
    """Times the final name was looked at."""
    half_written: int
    """Times something incomplete was there."""


def run_stage(stage: str, folder: Path, out: Path) -> None:
    """Runs a stage of `nano-debug`, longer than it is; parents and data lie in `folder`."""
    from roboalign.trainer.align import align
    from roboalign.trainer.base import train_base
    from roboalign.trainer.head import train_head
    from roboalign.trainer.recipes import recipe
    from roboalign.trainer.sft import train_sft

    debug, data = recipe("nano-debug"), folder / "data"
    fit = replace(debug.base_fit, steps=60, save_every=7)
    if stage == "base":
        train_base(replace(debug.base_config(data=data, out=out), fit=fit))
    elif stage == "sft":
        # Long enough to think and act in the right form: samples that all earn nothing would leave align idle.
        config = debug.sft_config(data=data, base=folder / "base", out=out, pairing="paired")
        fit = replace(fit, steps=110, batch_size=12, peak_rate=5e-3, save_every=17)
        train_sft(replace(config, fit=fit, weights={"paired": 1.0}))
    elif stage == "align":
        changes = {"steps": 16, "save_every": 3, "watch_every": 4, "max_tokens": 64}
        align(debug.align_config(data=data, sft=folder / "sft", out=out, **changes))
    else:
        config = debug.head_config(data=data, backbone=folder / "sft", out=out)
        train_head(replace(config, steps=200, save_every=23))


class Watch:
    """Looks at a final name in a thread of its own, as long as the context is open."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._whole = -1
        self.looks, self.half_written = 0, 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._whole = -1
        self._check()

    def _look(self) -> None:
        while not self._stop.wait(POLL_S):
            self._check()

    def _check(self) -> None:
        from roboalign.sdk.errors import BundleError
        from roboalign.trainer.checkpoint import load_checkpoint

        self.looks += 1
        try:
            known = self._out.stat().st_ino
            if known != self._whole:
                load_checkpoint(self._out)
                self._whole = known
        except FileNotFoundError:
            return  # nothing there (yet)
        except BundleError as err:
            self._judge(known, err)

    def _judge(self, known: int, err: Exception) -> None:
        """Counts what was found, unless another folder took the place of this one while it was read."""
        try:
            is_same = self._out.stat().st_ino == known
        except FileNotFoundError:
            return
        if is_same:
            self.half_written += 1
            print(f"half-written: {err}", file=sys.stderr)


def start(stage: str, folder: Path, out: Path) -> BaseProcess:
    """Starts a stage as a process and returns when it has begun to work in its folder, or ended."""
    status = out.with_name(out.name + ".partial") / "status.json"
    before = status.stat().st_ino if status.is_file() else None
    process = PROCESSES.Process(target=run_stage, args=(stage, folder, out))
    process.start()
    while process.is_alive():
        if status.is_file() and status.stat().st_ino != before:
            break
        time.sleep(POLL_S)
    return process


def finish(process: BaseProcess, stage: str) -> None:
    """Waits for a stage that must succeed."""
    process.join()
    if process.exitcode != 0:
        sys.exit(f"{stage} ended with code {process.exitcode}")


def kill_after(process: BaseProcess, delay_s: float) -> bool:
    """Kills a process after a while; false when it ended before."""
    process.join(delay_s)
    if not process.is_alive():
        return False
    process.kill()
    process.join()
    return True


def numbers(out: Path) -> list[dict[str, object]]:
    """Returns the lines of a checkpoint's metrics without the clocks."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def is_same(one: Path, other: Path) -> bool:
    """Whether two checkpoints have equal metrics and equal weights; says what differs."""
    equal = True
    if numbers(one) != numbers(other):
        pairs = zip(numbers(one), numbers(other), strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), "their number")
        print(f"{other}: the metrics differ, first {first}", file=sys.stderr)
        equal = False
    for name in WEIGHTS:
        files = [folder / name for folder in (one, other)]
        if files[0].is_file() and files[0].read_bytes() != files[1].read_bytes():
            print(f"{other}: {name} differs", file=sys.stderr)
            equal = False
    return equal


def last_step(out: Path) -> int:
    """Returns the last step in the metrics of an unfinished run."""
    file = out.with_name(out.name + ".partial") / "metrics.jsonl"
    if not file.is_file():
        return -1
    steps = [line.split('"step": ')[1].split(",")[0] for line in file.read_text().splitlines() if '"step": ' in line]
    return int(steps[-1].rstrip("}")) if steps else -1


def examine(stage: str, folder: Path, kills: int, rng: random.Random) -> Outcome:
    """Runs a stage undisturbed (if it is not there yet), then with `kills` kills."""
    from roboalign.trainer.run import read_status

    whole = folder / stage
    if not whole.is_dir():
        finish(start(stage, folder, whole), stage)
    status = read_status(whole)
    began, ended = (datetime.fromisoformat(text) for text in (status.started_utc, status.updated_utc))
    length_s = (ended - began).total_seconds()
    kill_steps: list[int] = []
    runs, looks, half_written, equal = 0, 0, 0, True
    while len(kill_steps) < kills:
        out = folder / f"{stage}-{runs}"
        with Watch(out) as watch:
            while True:
                process = start(stage, folder, out)
                is_spared = len(kill_steps) == kills
                if is_spared or not kill_after(process, rng.uniform(0, length_s)):
                    finish(process, stage)
                    break
                kill_steps.append(last_step(out))
        runs += 1
        looks, half_written = looks + watch.looks, half_written + watch.half_written
        equal = is_same(whole, out) and equal
    varied = len({line.get("reward", line.get("loss")) for line in numbers(whole)}) > 3
    return Outcome(stage, len(kill_steps), tuple(kill_steps), runs, equal, varied, looks, half_written)


def measure(
    folder: Path, kills: int, seed: int, show: Callable[[str], None], stages: Sequence[str] = STAGES
) -> list[Outcome]:
    """Examines the stages; the kills are dealt evenly. Data and checkpoints that are in `folder` already are used."""
    from roboalign.sdk.data.collect import CollectConfig, collect

    if not (folder / "data").is_dir():
        collect(CollectConfig(out=folder / "data", episodes=EPISODES, workers=1), show_progress=False)
    outcomes = []
    for index, stage in enumerate(stages):
        share = kills // len(stages) + (index < kills % len(stages))
        outcome = examine(stage, folder, share, random.Random(f"{seed} {stage}"))
        outcomes.append(outcome)
        show(
            f"{stage:6} {outcome.kills} kills at steps {list(outcome.kill_steps)}, {outcome.runs} runs: "
            f"{'equal' if outcome.equal else 'DIFFERENT'}{'' if outcome.varied else ', BUT NOTHING CHANGED'}; "
            f"{outcome.looks} looks, {outcome.half_written} half-written"
        )
    return outcomes


def main() -> int:
    """Prints the outcome of each stage; the exit code is 1 when anything differed or was half-written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/resume.json"))
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--folder", type=Path, help="keep data and checkpoints here; default: a temporary folder")
    args = parser.parse_args()
    PROCESSES.set_forkserver_preload(["roboalign.trainer.recipes", "roboalign.sdk.data.lerobot"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        outcomes = measure(folder, args.kills, args.seed, lambda text: print(text, flush=True), args.stages)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"kills": args.kills, "seed": args.seed, "stages": [asdict(outcome) for outcome in outcomes]}
    args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return int(not all(outcome.equal and outcome.varied and not outcome.half_written for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
