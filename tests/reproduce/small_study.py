"""A small plan in a folder, run by a program that stands for `roboalign`."""

import sys
from pathlib import Path

from roboalign.reproduce import StudyConfig, run_study
from roboalign.reproduce.ledger import Ledger, read_ledger

PROGRAM = (sys.executable, "-S", str(Path(__file__).with_name("fake_commands.py")))
SCENES = 10
PLAN = f"""
title = "a small plan"
seeds = [0, 1]
scenes = {SCENES}
primary = ["aligned", "sft"]
secondary = [["longer", "sft"]]
template.head.run = "train head {{backbone}} --data {{data}} --seed {{seed}}"
template.export.run = "export {{head}}"
template.eval.run = "eval {{policy}} --episodes {{scenes}} --first-episode {{first}}"
step.data.run = "collect --episodes 4"
step.sft.run = "train sft {{shipped-base}} --data {{data}} --seed {{seed}}"
step.align = {{ run = "train align {{sft}} --data {{data}} --seed {{seed}}", may_refuse = true }}
step.longer = {{ run = "train sft {{data}} --steps {{matched}} --seed {{seed}}", match = ["sft", "align"] }}
arm.sft = {{ label = "SFT", backbone = "sft" }}
arm.aligned = {{ label = "SFT + RL", backbone = "align" }}
arm.longer = {{ label = "SFT, longer", backbone = "longer" }}
arm.mute = {{ label = "without a thought", policy_of = "aligned", eval = "--no-think" }}
arm.random = {{ label = "random", policy = "random" }}
"""


class Study:
    """A plan in a folder, run as often as a test likes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.plan = folder, folder / "out", folder / "plan.toml"
        self.log = folder / "called.txt"
        self.plan.write_text(PLAN)

    def config(self, **options: object) -> StudyConfig:
        return StudyConfig(plan=str(self.plan), out=self.out, source="one", **options)

    def run(self, **options: object) -> Path:
        return run_study(self.config(**options), program=PROGRAM)

    def change(self, old: str, new: str) -> None:
        text = self.plan.read_text()
        assert old in text
        self.plan.write_text(text.replace(old, new))

    def called(self) -> list[str]:
        """What was run since the last call, in order."""
        lines = self.log.read_text().split("\n")[:-1] if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    @property
    def ledger(self) -> Ledger:
        return read_ledger(self.out / "results.jsonl")
