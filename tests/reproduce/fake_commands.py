"""Stands for `roboalign` in the tests of reproduce: small outputs of the right shape, at once.

What a result holds depends on the command and on its inputs, as with the real ones. `FAKE_LOG` names a file that gets a
line for each command that runs; `FAKE_FAIL`, `FAKE_REFUSE` and `FAKE_SLEEP` name a step (as its folder does, e.g.
`sft.s0`) that fails, refuses, or takes a second. Imports nothing but the standard library, to start at once.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path

KNOWN = ("--data", "--seed", "--steps", "--episodes", "--first-episode", "--no-think", "--out", "--help")


def main(words: list[str]) -> int:
    for word in words:
        if word.startswith("--") and word not in KNOWN:
            print(f"error: No such option: {word}. See: roboalign --help", file=sys.stderr)
            return 2
    if "--help" in words:
        return 0
    out = Path(words[words.index("--out") + 1])
    step = out.parent.parent.name
    with Path(os.environ["FAKE_LOG"]).open("a") as file:
        file.write(step + "\n")
    if os.environ.get("FAKE_SLEEP") == step:
        time.sleep(1.0)
    if os.environ.get("FAKE_FAIL") == step:
        print(f"error: {step} is broken on purpose", file=sys.stderr)
        return 2
    if os.environ.get("FAKE_REFUSE") == step:
        print("error: nothing to explore", file=sys.stderr)
        return 1
    if words[0] == "eval":
        is_good = "head.align" in words[1] or "export.align" in words[1]
        first = words[words.index("--first-episode") + 1]
        shutil.copytree(Path(os.environ["FAKE_EVALS"]) / f"{'good' if is_good else 'bad'}-{first}", out)
        return 0
    partial = out.with_name("result.partial")
    partial.mkdir(exist_ok=True)
    (partial / "words.json").write_text(json.dumps([_content(word) for word in words if word != str(out)]))
    if words[0] == "train":
        _write_checkpoint(partial, words)
    partial.rename(out)
    return 0


def _write_checkpoint(folder: Path, words: list[str]) -> None:
    steps = int(words[words.index("--steps") + 1]) if "--steps" in words else 100
    meta = {"stage": words[1], "cpu_s": 30.0 if words[1] == "align" else 60.0, "metrics": {}, "notes": {"frames": 40}}
    if words[1] == "align":
        meta["metrics"] = {"last_step": 20}
        meta["notes"] |= {"prompts_per_rollout": 3, "samples_per_prompt": 4}
    else:
        meta["notes"]["fit"] = {"steps": steps, "batch_size": 8}
    (folder / "roboalign.json").write_text(json.dumps(meta))
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "reward": 0.6}\n')


def _content(word: str) -> str:
    """The word, or for a folder what is in it."""
    path = Path(word)
    if not (path / "words.json").is_file():
        return word if not path.is_absolute() else path.name
    return hashlib.sha256((path / "words.json").read_bytes()).hexdigest()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
