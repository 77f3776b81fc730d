"""From a finished run to a bundle that a robot can load: graphs, shared weights, manifest, parity with PyTorch."""

from roboalign.export.bundle_writer import ExportConfig, export, newest_run
from roboalign.export.parity import simulated_observations
from roboalign.export.targets import TARGETS, Target

__all__ = ["TARGETS", "ExportConfig", "Target", "export", "newest_run", "simulated_observations"]
