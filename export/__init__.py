"""From a finished run to a bundle that a robot can load: plan, graphs, shared weights, manifest, parity with PyTorch.

What is in `__all__` is loaded when it is first used: a plan, and whatever runs on a board, need no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roboalign.export.bundle_writer import export
    from roboalign.export.export_config import ExportConfig
    from roboalign.export.parity import simulated_observations
    from roboalign.export.plan import find_place, plan_export
    from roboalign.export.plan_table import plan_lines
    from roboalign.export.receipt import Receipt, read_receipt, receipt_table
    from roboalign.export.runs import newest_run
    from roboalign.export.shapes import model_size, run_size
    from roboalign.export.targets import Target, all_targets, find_target
    from roboalign.export.verification import VerifyConfig, verify

__all__ = [
    "ExportConfig",
    "Receipt",
    "Target",
    "VerifyConfig",
    "all_targets",
    "export",
    "find_place",
    "find_target",
    "model_size",
    "newest_run",
    "plan_export",
    "plan_lines",
    "read_receipt",
    "receipt_table",
    "run_size",
    "simulated_observations",
    "verify",
]

_MODULE_OF = {
    "ExportConfig": "export_config",
    "Receipt": "receipt",
    "Target": "targets",
    "VerifyConfig": "verification",
    "all_targets": "targets",
    "export": "bundle_writer",
    "find_place": "plan",
    "find_target": "targets",
    "model_size": "shapes",
    "newest_run": "runs",
    "plan_export": "plan",
    "plan_lines": "plan_table",
    "read_receipt": "receipt",
    "receipt_table": "receipt",
    "run_size": "shapes",
    "simulated_observations": "parity",
    "verify": "verification",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"roboalign.export.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
