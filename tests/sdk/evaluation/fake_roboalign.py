"""Stands for the `roboalign` command in the tests of the demo: makes small outputs of the right shape at once.

`FAKE_REFUSE` makes align refuse, `FAKE_FAIL` names a verb that fails, `FAKE_HANG` one that waits to be interrupted;
`FAKE_EVALS` is a folder with finished evaluations. Imports nothing but the standard library, to start at once.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path


def main(words: list[str]) -> int:
    verb = words[1] if words[0] == "train" else words[0]
    out = Path(words[words.index("--out") + 1])
    with (out.parent / "called.txt").open("a") as file:
        file.write(verb + "\n")
    print(f"{verb} works on {out.name}", file=sys.stderr, flush=True)
    if os.environ.get("FAKE_HANG") == verb:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            (out.parent / "saved.txt").write_text("state")
            return 130
    if os.environ.get("FAKE_FAIL") == verb:
        print(f"error: {verb} is broken on purpose", file=sys.stderr)
        return 2
    if verb == "align" and os.environ.get("FAKE_REFUSE"):
        print("error: nothing to explore for align: 3 % of the samples are well formed", file=sys.stderr)
        return 1
    if verb == "eval":
        kind = "bad" if "random" in words or "--shuffled" in words else "good"
        shutil.copytree(Path(os.environ["FAKE_EVALS"]) / kind, out)
        return 0
    out.mkdir(parents=True)
    meta = {"stage": verb, "recipe": "fake", "metrics": {"error": 0.25}, "wall_s": 1.0, "cpu_s": 2.0}
    (out / "roboalign.json").write_text(json.dumps(meta))
    (out / "metrics.jsonl").write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "loss": 1.0}\n')
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
