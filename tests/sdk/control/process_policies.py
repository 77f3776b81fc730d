"""Policies that tests make in a process of their own, by `PolicyRecipe`."""

from __future__ import annotations

import dataclasses
import os
import time

import numpy as np

from roboalign.sdk.bundle import PolicySpec, find_bundle, read_bundle
from roboalign.sdk.types import ActionChunk, Observation

RATE_HZ = 100.0


def spec_at(rate_hz: float, image_size_px: int, camera_names: tuple[str, ...]) -> PolicySpec:
    """What a policy for the fast test robot needs."""
    spec = read_bundle(find_bundle("nano-so101")).manifest.policy
    return dataclasses.replace(spec, rate_hz=rate_hz, image_size_px=image_size_px, camera_names=camera_names)


class Steady:
    """Goes up and down a little, and from its `after`-th answer on does something else."""

    def __init__(
        self,
        do: str = "nothing",
        after: int = 10,
        latency_s: float = 0.01,
        steps: int = 16,
        rate_hz: float = RATE_HZ,
        size_px: int = 16,
    ) -> None:
        if do == "refuse":
            raise ValueError("this policy cannot be made")
        self.spec = spec_at(rate_hz, size_px, ("front",))
        self._do, self._after, self._latency_s, self._steps, self._count = do, after, latency_s, steps, 0

    def reset(self) -> None:
        self._count = 0

    def act(self, observation: Observation) -> ActionChunk:
        self._count += 1
        time.sleep(self._latency_s)
        if self._count >= self._after:
            self.misbehave()
        phase = np.sin(np.arange(self._steps) / self._steps * 2 * np.pi)
        actions = np.zeros((self._steps, 5), np.float32)
        actions[:, 2] = 0.002 * phase
        text = f"saw {observation.images['front'].mean():.1f} and {observation.instruction}"
        return ActionChunk(actions=actions, rate_hz=self.spec.rate_hz, source="flow", thought=text)

    def misbehave(self) -> None:
        if self._do == "hang":
            time.sleep(3600)
        if self._do == "raise":
            raise RuntimeError("out of memory")
        if self._do == "exit":
            os._exit(7)
        if self._do == "stall":
            self._do = "nothing"
            time.sleep(1.0)


class Talker(Steady):
    """Says what it thinks while it thinks: a letter a time, and a thought of its own each time."""

    hear = staticmethod(lambda text: None)

    def listen(self, hear) -> None:
        self.hear = hear

    def act(self, observation: Observation) -> ActionChunk:
        for length in range(1, 5):
            self.hear(f"{self._count}: " + "x" * length)
            time.sleep(0.01)
        return dataclasses.replace(super().act(observation), thought=f"{self._count - 1}: xxxx")


def for_panda() -> Steady:
    """The same for the simulated Panda."""
    return Steady(latency_s=0.05, steps=8, rate_hz=10.0, size_px=96)
