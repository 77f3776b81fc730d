"""Measures on the real clock what a thought beside the actions costs them: chunks a second, with it and without.

    python benchmarks/thinking_rate.py BUNDLE --rounds 5 --out runs/thinking-rate.json

Four policies on the same bundle take turns in one run: one does not think, two think beside their actions, of which
one recalls its thoughts (`Thinking.recalls`), and one thinks before every chunk. Each is asked for chunks without
pause, and at the nominal rate (one chunk in the time that its actions last). The thought never ends by itself here: the
end of a thought is forbidden until the budget is spent, so that every thought is as long as the bundle allows. A bundle
without windows reads a thought as slowly as it writes one; export it again (`roboalign export BUNDLE`) for those.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from roboalign.sdk import Observation, Policy, Thinking
from roboalign.sdk.backends import Backend, Decoding, RecallingBackend, SkimmingBackend, find_backend
from roboalign.sdk.backends.onnx import OnnxBackend
from roboalign.sdk.bundle import find_bundle
from roboalign.sdk.turn import Vocabulary
from roboalign.sdk.types import FloatArray

__all__ = ["EndlessBackend", "measure"]


class EndlessBackend:
    """Another backend that never ends a thought before its budget."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._closing = cast(OnnxBackend, backend), Vocabulary(backend).think_close
        self.spec, self.folder, self.windows = backend.spec, backend.folder, self._backend.windows
        self.rewind, self.flow, self.close = self._backend.rewind, self._backend.flow, self._backend.close
        if isinstance(backend, SkimmingBackend):
            self.skim_prompt, self.skim = backend.skim_prompt, backend.skim
        if isinstance(backend, RecallingBackend):
            self.states, self.recall = backend.states, backend.recall

    def prefill(self, prompt_ids: Sequence[int], pixel_values: FloatArray) -> Decoding:
        """Reads a prompt and a picture."""
        return self._without_end(self._backend.prefill(prompt_ids, pixel_values))

    def step(self, decoding: Decoding, token_id: int) -> None:
        """Reads one more token."""
        self._backend.step(decoding, token_id)
        self._without_end(decoding)

    def extend(self, decoding: Decoding, token_ids: Sequence[int]) -> FloatArray:
        """Reads several tokens."""
        logits = np.array(self._backend.extend(decoding, token_ids))
        logits[:, self._closing] = -1e9
        self._without_end(decoding)
        return logits

    def _without_end(self, decoding: Decoding) -> Decoding:
        decoding.logits = np.array(decoding.logits)
        decoding.logits[self._closing] = -1e9
        return decoding


_WAYS = {
    "off": Thinking(mode="off"),
    "beside": Thinking(mode="beside", max_age_s=1e6),
    "beside, recalled": Thinking(mode="beside", max_age_s=1e6, recalls=True),
    "before_every_chunk": Thinking(),
}


def _open(folder: Path, thinking: Thinking) -> Policy:
    backend = EndlessBackend(find_backend("onnx").open(folder, threads=1))
    return Policy(backend, thinking=thinking, draft=thinking.mode == "beside")


def _observations(policy: Policy, count: int) -> list[Observation]:
    rng, size = np.random.default_rng(0), policy.spec.image_size_px
    return [
        Observation(
            images={name: rng.integers(0, 256, (size, size, 3), np.uint8) for name in policy.spec.camera_names},
            state=np.array([0.5, 0.0, 0.2, 0.0, 0.05], np.float32),
            joint_pos_rad=np.zeros(7, np.float32),
            instruction="put the red block in the blue bowl",
            time_s=0.0,
        )
        for _ in range(count)
    ]


def _rate(policy: Policy, seen: Sequence[Observation], chunks: int, period_s: float) -> dict[str, float]:
    """Returns chunks a second, the longest answer, and the words that were thought meanwhile."""
    latencies_s, waits_s, ids, lengths = [], [], set(), []
    start_s = time.perf_counter()
    for number in range(chunks):
        left_s = start_s + number * period_s - time.perf_counter()
        if left_s > 0.0:
            time.sleep(left_s)
        asked_s = time.perf_counter()
        chunk = policy.act(seen[number % len(seen)])
        latencies_s.append(time.perf_counter() - asked_s)
        waits_s.append(chunk.latency_s.get("wait", 0.0))
        if chunk.thought_use is not None and chunk.thought_use.id is not None:
            ids.add(chunk.thought_use.id)
            lengths.append(len(chunk.tokens) - 2)
    wall_s = time.perf_counter() - start_s
    # A chunk that comes after its period has ended is late; one that comes in time is followed by a rest.
    busy_s = sum(max(latency_s, period_s) for latency_s in latencies_s)
    return {
        "chunks_per_s": chunks / busy_s,
        "wall_s": wall_s,
        "act_p50_ms": 1e3 * float(np.median(latencies_s)),
        "act_p99_ms": 1e3 * float(np.percentile(latencies_s, 99)),
        "wait_p50_ms": 1e3 * float(np.median(waits_s)),
        "wait_max_ms": 1e3 * max(waits_s),
        "thoughts": len(ids),
        "thought_tokens": float(np.mean(lengths)) if lengths else 0.0,
    }


def measure(folder: Path, *, rounds: int, chunks: int, say: Callable[[str], None]) -> dict[str, object]:
    """Lets the policies take turns; returns every round and the ratios to not thinking."""
    policies = {way: _open(folder, thinking) for way, thinking in _WAYS.items()}
    seen = _observations(policies["off"], 8)
    spec = policies["off"].spec
    periods_s = {"free": 0.0, "nominal": spec.horizon / spec.rate_hz}
    rows: list[dict[str, object]] = []
    try:
        for policy in policies.values():  # warm, and a first thought beside
            for one in seen:
                policy.act(one)
        for number in range(rounds):
            for pace, period_s in periods_s.items():
                for mode, policy in policies.items():
                    count = chunks if pace == "free" else max(2, chunks // 10)
                    row = _rate(policy, seen, count, period_s)
                    rows.append({"round": number, "pace": pace, "mode": mode, **row})
                    say(f"{number} {pace:8} {mode:19} " + " ".join(f"{k}={v:.3g}" for k, v in row.items()))
    finally:
        for policy in policies.values():
            policy.close()
    return {
        "bundle": folder.name,
        "max_thought_tokens": spec.max_thought_tokens,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "ratios": {
            f"{pace}/{mode}": _ratios(rows, pace, mode) for pace in periods_s for mode in _WAYS if mode != "off"
        },
        "rows": rows,
    }


def _ratios(rows: Sequence[dict[str, object]], pace: str, mode: str) -> dict[str, float]:
    def rates(who: str) -> list[float]:
        return [float(str(row["chunks_per_s"])) for row in rows if (row["pace"], row["mode"]) == (pace, who)]

    found = [mine / off for mine, off in zip(rates(mode), rates("off"), strict=True)]
    return {"median": float(np.median(found)), "low": min(found), "high": max(found)}


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", help="the shipped one by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--chunks", type=int, default=100, help="of each turn without pause; a tenth at the nominal rate"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/thinking-rate.json"))
    options = parser.parse_args()
    result = measure(find_bundle(options.bundle), rounds=options.rounds, chunks=options.chunks, say=print)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["ratios"], indent=1))
    print(options.out)


if __name__ == "__main__":
    _main()
