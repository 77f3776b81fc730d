"""What to export, and for which machine: the settings of `roboalign export`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from roboalign.export.parity import BARS, ParityBar
from roboalign.export.planner import NVFP4_REASON, WRITTEN_PRODUCTS
from roboalign.export.rounding import QUANTIZED_BITS, ROUNDINGS
from roboalign.export.targets import target_names
from roboalign.export.weights import PRECISIONS
from roboalign.sdk.bundle import Thresholds
from roboalign.sdk.errors import ConfigError, unknown_name

__all__ = ["ExportConfig"]

CHECKS = ("static", "rtx")
"""Ways to check graphs; parity is always checked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """What to export, and for which machine."""

    run: Path | None = None
    """Checkpoint of stage head, or a bundle in fp16 or fp32; None takes the newest one below `runs_dir`."""
    target: str = "cpu"
    """Machine: a name of `targets.toml`, or `jetson` for this board, or for all where this is none."""
    board: str | None = None
    """Which board `jetson` means; None takes this one, or all."""
    jetpack: str | None = None
    """JetPack on the board; None takes this board's, or the newest that is known."""
    check: str = "static"
    """How graphs are checked for a board: `static` by rules, or `rtx` also by NVIDIA's compiler for its stand-in."""
    precision: str = "fp16"
    """How weights are stored: `fp16`, `fp32`, or as codes: `int8`, `int4`; or how a board's layers multiply:
    `int8-w8a8`, `fp8`."""
    out: Path | None = None
    """Folder to write; None makes one below `runs_dir`, named after the run and the target."""
    runs_dir: Path = Path("runs")
    """Where runs are looked for and bundles are put."""
    num_observations: int = 64
    """Observations that both sides answer in the parity check."""
    tolerance: float | None = None
    """Largest accepted action difference, as a share of the action's range; None takes that of the arithmetic: 1e-4 in
    float32, 1e-2 in float16."""
    part_tolerance: float | None = None
    """Largest accepted difference of any graph's output, as a share of its largest value; None as above."""
    min_same_tokens: float | None = None
    """Smallest share of tokens that `roboalign verify` wants to agree; None takes that of the arithmetic: 0.9, or 0.4
    with narrow products. At export all must, in float16 97 %."""
    max_success_loss: float = 0.1
    """Largest loss of success that `roboalign verify` accepts: the paired interval must lie above minus this."""
    max_part_error: float = 0.02
    """Largest accepted loss of a part by `int8` or `int4`, as a share of the action's range; one that loses more in
    int4 is tried in int8, and stays in fp16 if that loses more too."""
    data: Path | None = None
    """LeRobotDataset that calibrates and checks; None renders held-out simulated scenes."""
    rounding: str = "gptq"
    """How weights become codes: `gptq` or `awq`, calibrated on observations, or each to the `nearest`."""
    num_calibration: int = 96
    """Observations that calibrate; none of them is used to check."""
    modelopt_python: Path | None = None
    """Python of the environment that has nvidia-modelopt, for `int8-w8a8` and `fp8`."""
    threads: int = 1
    """CPU threads."""

    def __post_init__(self) -> None:
        if self.target not in target_names():
            raise ConfigError(unknown_name("target", self.target, target_names()))
        if self.check not in CHECKS:
            raise ConfigError(f"check is {self.check!r}, expected one of {', '.join(CHECKS)}")
        if self.precision == "nvfp4":
            raise ConfigError(f"precision {NVFP4_REASON}")
        known = sorted({*PRECISIONS, *WRITTEN_PRODUCTS})
        if self.precision not in known:
            raise ConfigError(f"precision is {self.precision!r}, expected one of {', '.join(known)}")
        if self.rounding not in ROUNDINGS:
            raise ConfigError(f"rounding is {self.rounding!r}, expected one of {', '.join(ROUNDINGS)}")
        bar = self.bar("float32")
        if self.num_observations < 2 or self.num_calibration < 1 or bar.tolerance <= 0 or self.threads < 1:
            raise ConfigError(
                f"export needs 2 or more observations, 1 or more to calibrate, a positive tolerance and 1 or more "
                f"threads, found {self.num_observations}, {self.num_calibration}, {bar.tolerance} and {self.threads}"
            )
        if not 0.0 < self.max_part_error <= 1.0:
            raise ConfigError(f"max_part_error is {self.max_part_error}, expected a share above 0, up to 1")
        self.thresholds("float32")  # refuses what is out of range

    def bar(self, arithmetic: str) -> ParityBar:
        """Returns what parity must reach at export, by what the graphs compute in."""
        usual = BARS[arithmetic]
        return replace(
            usual,
            tolerance=usual.tolerance if self.tolerance is None else self.tolerance,
            vector_tolerance=usual.vector_tolerance if self.tolerance is None else None,
            part_tolerance=usual.part_tolerance if self.part_tolerance is None else self.part_tolerance,
            same_tokens=usual.same_tokens if self.min_same_tokens is None else self.min_same_tokens,
        )

    def thresholds(self, arithmetic: str) -> Thresholds:
        """Returns what verification accepts, written into the manifest."""
        bar = self.bar(arithmetic)
        return Thresholds(
            action_error=bar.tolerance if bar.vector_tolerance is None else bar.vector_tolerance,
            part_error=bar.part_tolerance,
            same_tokens=bar.same_tokens,
            success_loss=self.max_success_loss,
        )

    @property
    def is_calibrated(self) -> bool:
        """Whether weights are rounded by what observations lead to."""
        return self.has_products or (self.precision in QUANTIZED_BITS and self.rounding != "nearest")

    @property
    def has_products(self) -> bool:
        """Whether layers multiply narrow numbers."""
        return self.precision in WRITTEN_PRODUCTS
