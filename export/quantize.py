"""Rounds a policy's weights as its export asks for, and writes down what that costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from roboalign.export.calibration import Inputs, dataset_inputs, input_moments, simulated_inputs
from roboalign.export.export_config import ExportConfig
from roboalign.export.modelopt import find_scales, modelopt_version
from roboalign.export.plan import ExportPlan, coded_parts
from roboalign.export.planner import WRITTEN_PRODUCTS
from roboalign.export.products import Products, ProductScales, narrow
from roboalign.export.rounding import Calibration, QuantizedWeight, quantizable
from roboalign.export.sensitivity import KEPT, Rounded, narrow_parts, round_parts
from roboalign.sdk.bundle import PolicySpec
from roboalign.trainer.backend import TorchBackend

__all__ = ["QUANTIZATION_NAME", "find_inputs", "narrow_products", "open_narrow", "round_weights"]

QUANTIZATION_NAME = "quantization.json"
"""What codes cost each part, and which stayed in fp16."""


def find_inputs(config: ExportConfig, robot: str, spec: PolicySpec, say: Callable[[str], None]) -> Inputs:
    """Returns the observations that calibrate and check: of the dataset that was named, else simulated."""
    num_calibration = config.num_calibration if config.is_calibrated else 0
    if config.data is not None:
        say(f"reading {config.num_observations + num_calibration} moments of {config.data}")
        return dataset_inputs(config.data, spec, config.num_observations, num_calibration, robot)
    say(f"rendering {config.num_observations + num_calibration} observations in held-out scenes")
    return simulated_inputs(config.num_observations, num_calibration, robot, spec.camera_names[0])


def round_weights(
    work: Path,
    backend: TorchBackend,
    config: ExportConfig,
    plan: ExportPlan,
    inputs: Inputs,
    say: Callable[[str], None],
) -> Rounded[QuantizedWeight]:
    """Rounds the weights of the parts that a plan stores as codes, one by one, and writes down what that costs."""
    calibration = None
    if config.is_calibrated:
        say(f"calibrating on {len(inputs.calibration)} observations, {inputs.source}")
        calibration = Calibration(moments=input_moments(backend, inputs.calibration), rounding=config.rounding)
    say(f"measuring what {config.precision} costs each part on {len(inputs.checks)} observations")
    parts = coded_parts(plan)
    rounded = round_parts(
        backend, inputs.checks, config.precision, limit=config.max_part_error, calibration=calibration, parts=parts
    )
    _write_down(work, config, inputs, rounded, {"rounding": config.rounding}, say)
    return rounded


def narrow_products(
    work: Path,
    backend: TorchBackend,
    config: ExportConfig,
    plan: ExportPlan,
    inputs: Inputs,
    say: Callable[[str], None],
) -> Products:
    """Finds the scales of narrow products and the parts that bear them, and writes down what that costs."""
    version, kind = modelopt_version(config.modelopt_python), WRITTEN_PRODUCTS[config.precision]
    assert config.modelopt_python is not None
    say(f"nvidia-modelopt {version} calibrates on {len(inputs.calibration)} observations, {inputs.source}")
    scales = find_scales(backend, inputs.calibration, kind, config.modelopt_python)
    say(f"measuring what {config.precision} costs each part on {len(inputs.checks)} observations")
    parts = coded_parts(plan)
    narrowed = narrow_parts(
        backend, inputs.checks, config.precision, limit=config.max_part_error, scales=scales, parts=parts
    )
    _write_down(work, config, inputs, narrowed, {"tool": f"nvidia-modelopt {version}"}, say)
    return kind, narrowed.codes["model"]


def open_narrow(bundle: Path, products: Products, threads: int) -> TorchBackend:
    """Returns PyTorch on a bundle's weights, with the products that its graphs have."""
    backend = TorchBackend.open(bundle, threads=threads)
    kind, scales = products
    narrow(quantizable(backend.backbone.model), scales, kind)
    return backend


def _write_down(
    work: Path,
    config: ExportConfig,
    inputs: Inputs,
    rounded: Rounded[QuantizedWeight] | Rounded[ProductScales],
    how: dict[str, str],
    say: Callable[[str], None],
) -> None:
    for loss in (*rounded.tried, rounded.together):
        accepted = loss.part == "all" or rounded.chosen[loss.part] == loss.precision
        say(
            f"  {loss.part:<8} {loss.precision:<5} actions off by {loss.action_error:6.2%} of their range (95th "
            f"percentile), {loss.same_thoughts:.0%} of thoughts alike"
            + ("" if accepted else f": more than {config.max_part_error:.1%}")
        )
    for part, precision in rounded.chosen.items():
        if precision != config.precision:
            say(f"  {part} stays {KEPT}" if precision == KEPT else f"  {part} takes {precision}")
    record = {
        "precision": config.precision,
        **how,
        "inputs": inputs.source,
        "num_calibration": len(inputs.calibration) if config.is_calibrated else 0,
        "num_observations": len(inputs.checks),
        "max_part_error": config.max_part_error,
        "parts": dict(rounded.chosen),
        "tried": [asdict(loss) for loss in rounded.tried],
        "together": asdict(rounded.together),
    }
    (work / QUANTIZATION_NAME).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
