"""Closed-loop evaluation: any policy on paired held-out scenes, with intervals, controls, films and reports.

Importing this package loads numpy and nothing heavier.
"""

from roboalign.sdk.evaluation.caveats import caveats
from roboalign.sdk.evaluation.comparison import Comparison, compare
from roboalign.sdk.evaluation.contenders import PolicyRef, named_policy
from roboalign.sdk.evaluation.controls import BlindPolicy, ExpertPolicy, RandomPolicy, ShuffledInstruction
from roboalign.sdk.evaluation.episodes import EpisodeEnv, EpisodePolicy, EpisodeResult, run_episode
from roboalign.sdk.evaluation.intervals import Interval, bootstrap_mean, success_interval, tango, wilson
from roboalign.sdk.evaluation.pictures import write_gif
from roboalign.sdk.evaluation.play import PlayConfig, PlayResult, run_task
from roboalign.sdk.evaluation.reality_gap import GapReport, Outcomes, PolicyOutcomes, gap, mmrv, pearson
from roboalign.sdk.evaluation.report import CommandRecord, Contender, ReportSources, Stage, write_report
from roboalign.sdk.evaluation.results import EvalReport, GoalsResult, TaskResult, read_report
from roboalign.sdk.evaluation.rollouts import EvalConfig, evaluate
from roboalign.sdk.evaluation.scenes import SceneRef
from roboalign.sdk.evaluation.statistics import PairedDifference, mcnemar_exact, paired_difference

__all__ = [
    "BlindPolicy",
    "CommandRecord",
    "Comparison",
    "Contender",
    "EpisodeEnv",
    "EpisodePolicy",
    "EpisodeResult",
    "EvalConfig",
    "EvalReport",
    "ExpertPolicy",
    "GapReport",
    "GoalsResult",
    "Interval",
    "Outcomes",
    "PairedDifference",
    "PlayConfig",
    "PlayResult",
    "PolicyOutcomes",
    "PolicyRef",
    "RandomPolicy",
    "ReportSources",
    "SceneRef",
    "ShuffledInstruction",
    "Stage",
    "TaskResult",
    "bootstrap_mean",
    "caveats",
    "compare",
    "evaluate",
    "gap",
    "mcnemar_exact",
    "mmrv",
    "named_policy",
    "paired_difference",
    "pearson",
    "read_report",
    "run_episode",
    "run_task",
    "success_interval",
    "tango",
    "wilson",
    "write_gif",
    "write_report",
]
