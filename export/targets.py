"""The machines that a bundle can be meant for, and what is left to do on each.

A folder is `built` when its target can run it as it is. Engines are compiled on the Jetson itself, never here: an
engine fits one GPU, one TensorRT and one JetPack. So a bundle for it is portable, says `built: false`, and names the
command to type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from roboalign.sdk.errors import ConfigError

__all__ = ["TARGETS", "Target", "find_target"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One kind of machine."""

    name: str
    """What `--target` takes."""
    runtime: str
    """What runs the graphs there."""
    is_built_here: bool
    """True when nothing is left to compile."""
    command: str
    """What to type on the target inside the bundle's folder; `{graphs}` stands for the names of the graphs."""

    def next_command(self, graphs: Sequence[str]) -> str:
        """Returns the command that is left to type on the target; empty when there is none."""
        return self.command.format(graphs=" ".join(graphs))


TARGETS = {
    target.name: target
    for target in (
        Target(name="cpu", runtime="onnxruntime", is_built_here=True, command=""),
        Target(
            name="jetson",
            runtime="TensorRT (not run yet; until engines are built, onnxruntime acts from the same folder)",
            is_built_here=False,
            command=(
                "for g in {graphs}; do /usr/src/tensorrt/bin/trtexec --onnx=$g.onnx --saveEngine=$g.engine "
                "--stronglyTyped; done"
            ),
        ),
    )
}


def find_target(name: str) -> Target:
    """Returns a target by its name; an unknown name is a ConfigError."""
    if name not in TARGETS:
        raise ConfigError(f"there is no target {name!r}; choose one of {', '.join(TARGETS)}")
    return TARGETS[name]
