"""Closed-loop evaluation: paired held-out seeds, intervals, controls, films and the report.

Importing this package loads numpy and nothing heavier.
"""

from roboalign.sdk.evaluation.contenders import PolicyRef
from roboalign.sdk.evaluation.controls import ExpertPolicy, RandomPolicy, ShuffledInstruction
from roboalign.sdk.evaluation.episodes import EpisodePolicy, EpisodeResult, run_episode
from roboalign.sdk.evaluation.pictures import write_gif
from roboalign.sdk.evaluation.play import PlayConfig, PlayResult, run_task
from roboalign.sdk.evaluation.report import CommandRecord, Contender, ReportSources, Stage, write_report
from roboalign.sdk.evaluation.results import EvalReport, FamilyResult, compare, read_report
from roboalign.sdk.evaluation.rollouts import EvalConfig, evaluate
from roboalign.sdk.evaluation.statistics import Interval, PairedDifference, paired_difference, wilson

__all__ = [
    "CommandRecord",
    "Contender",
    "EpisodePolicy",
    "EpisodeResult",
    "EvalConfig",
    "EvalReport",
    "ExpertPolicy",
    "FamilyResult",
    "Interval",
    "PairedDifference",
    "PlayConfig",
    "PlayResult",
    "PolicyRef",
    "RandomPolicy",
    "ReportSources",
    "ShuffledInstruction",
    "Stage",
    "compare",
    "evaluate",
    "paired_difference",
    "read_report",
    "run_episode",
    "run_task",
    "wilson",
    "write_gif",
    "write_report",
]
