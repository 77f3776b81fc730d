"""Probes of a backbone on held-out frames: what its hidden states know, what it still answers, whether it thinks true.

Nothing is trained and nothing is drawn but the frames, by a seed; two runs give the same numbers. Frames need the
simulator's truth.
"""

from roboalign.trainer.probes.report import ProbeConfig, ProbeReport, run_probes

__all__ = ["ProbeConfig", "ProbeReport", "run_probes"]
