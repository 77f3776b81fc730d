"""`roboalign verify`: does a bundle do on this machine what PyTorch did where it was exported?

Every file is hashed, the stored vectors are answered with the chosen backend, and episodes are played in the simulator
against a reference on the same scenes. Nothing passes by default: what was not measured keeps the verdict from being
`verified`, too few episodes do not bound the loss of success, and a reference that solves nothing proves nothing.
Needs neither PyTorch nor a GPU, unless PyTorch is the reference.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from roboalign.export.parity import BARS
from roboalign.export.receipt import (
    FORMAT_VERSION,
    RECEIPT_SUFFIX,
    ClosedLoop,
    Receipt,
    describe_machine,
    describe_versions,
    write_receipt,
)
from roboalign.export.vectors import VECTORS_NAME, VectorErrors, find_faults, measure_errors
from roboalign.export.window_parity import check_windows
from roboalign.sdk.bundle import MANIFEST_NAME, Manifest, file_digest, find_bundle, read_bundle, shipped_bundle_path
from roboalign.sdk.errors import BundleError, CheckFailed, ConfigError
from roboalign.sdk.evaluation import EvalConfig, compare, evaluate
from roboalign.sdk.evaluation.contenders import fingerprint
from roboalign.sdk.evaluation.episodes import EpisodeEnv, EpisodePolicy
from roboalign.sdk.policy import Policy

__all__ = ["BackendRef", "VerifyConfig", "verify"]

EPISODES = 200
"""Episodes unless told otherwise. PyTorch and onnxruntime on the same weights, a millionth apart, end differently on 5
of 60 scenes, since contacts amplify the last digits; with that noise 60 do not bound a loss to 10 points, 200 do."""

_TASKS = ("place", "push")


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyConfig:
    """What to verify, and against what."""

    bundle: Path | None = None
    """Folder, or the name of a shipped bundle; None is the one that comes for the Panda."""
    reference: Path | None = None
    """Another bundle to play against; None is PyTorch on the bundle's own weights."""
    episodes: int = EPISODES
    """Scenes that both play; 0 asks for parity alone."""
    backend: str = "onnx"
    """What runs the graphs."""
    out: Path | None = None
    """Receipt to write; None puts it beside the bundle."""
    workers: int = 1
    """Processes that play."""

    def __post_init__(self) -> None:
        if self.episodes < 0 or self.workers < 1:
            raise ConfigError(
                f"verify needs 0 or more episodes and 1 or more workers, found {self.episodes} and {self.workers}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendRef:
    """A bundle on one backend, to be evaluated."""

    path: str
    """Folder of the bundle."""
    backend: str
    """Name of the backend."""

    def open(self, env: EpisodeEnv, *, split: str) -> EpisodePolicy:
        """Returns the policy."""
        return Policy.load(self.path, backend=self.backend)

    def describe(self) -> Mapping[str, object]:
        """Says which bundle it is, on what."""
        digest = fingerprint(Path(self.path))
        return {"name": f"{Path(self.path).name} on {self.backend}", "kind": "bundle", "fingerprint": digest}


def verify(config: VerifyConfig, *, say: Callable[[str], None]) -> tuple[Receipt, Path]:
    """Measures everything that can be measured here; returns the receipt and where it was written.

    Raises:
        BundleError: there is no bundle.
        CheckFailed: the bundle is altered, so that there is nothing to measure.
        ConfigError: the reference cannot be one.
    """
    folder = find_bundle(config.bundle)
    manifest = _read(folder)
    say(f"{len(manifest.files)} files have the digests that the manifest states")
    missing: list[str] = []
    faults: list[str] = []
    if config.episodes:
        _check_reference(config, folder, manifest)
    parity = _measure_parity(config, folder, manifest, faults, missing)
    for line in _parity_lines(parity):
        say(line)
    loop = _play(config, folder, manifest, missing) if config.episodes else None
    if loop is not None:
        faults += _loop_faults(loop, manifest)
        for line in _loop_lines(loop):
            say(line)
    receipt = Receipt(
        format_version=FORMAT_VERSION,
        verdict=_verdict(faults, missing, has_loop=config.episodes > 0),
        faults=tuple(faults),
        missing=tuple(missing),
        bundle=_describe(folder, manifest),
        backend=config.backend,
        machine=describe_machine(),
        versions=describe_versions(),
        thresholds=manifest.thresholds,
        parity=parity,
        closed_loop=loop,
    )
    return receipt, write_receipt(receipt, config.out or _beside(folder))


def _read(folder: Path) -> Manifest:
    if not (folder / MANIFEST_NAME).is_file():
        return read_bundle(folder).manifest  # says what it is instead
    try:
        return read_bundle(folder).manifest
    except BundleError as err:
        raise CheckFailed(f"not verified: {err}") from err


def _check_reference(config: VerifyConfig, folder: Path, manifest: Manifest) -> None:
    if config.reference is None and manifest.precision in ("int8", "int4"):
        raise ConfigError(
            f"the bundle holds {manifest.precision} weights: PyTorch on the same codes would not show what rounding "
            "costs; name the bundle in full weights with --reference, or ask for parity alone with --episodes 0"
        )
    if config.reference is not None:
        place = find_bundle(config.reference)
        other = read_bundle(place).manifest
        if file_digest(place / MANIFEST_NAME) == file_digest(folder / MANIFEST_NAME):
            raise ConfigError(
                f"the reference {config.reference} is the bundle itself, so nothing would be compared; name another, "
                "or leave --reference out to play against PyTorch on the same weights"
            )
        if other.robot is not None and manifest.robot is not None and other.robot.name != manifest.robot.name:
            raise ConfigError(
                f"the reference is for the robot {other.robot.name or 'unknown'}, the bundle for "
                f"{manifest.robot.name or 'unknown'}; name one of the same robot"
            )


def _measure_parity(
    config: VerifyConfig, folder: Path, manifest: Manifest, faults: list[str], missing: list[str]
) -> VectorErrors | None:
    if VECTORS_NAME not in manifest.files or manifest.thresholds is None:
        missing.append("parity: the bundle holds no answers of PyTorch; export it again with this version")
        return None
    try:
        quantile = BARS[manifest.arithmetic].action_quantile
        errors = measure_errors(folder, manifest.policy, config.backend, action_quantile=quantile)
    except CheckFailed as err:
        faults.append(str(err))
        return None
    faults += find_faults(errors, manifest.thresholds)
    try:
        check_windows(folder, manifest.thresholds.part_error, backend=config.backend)
    except CheckFailed as err:
        faults.append(str(err))
    return errors


def _play(config: VerifyConfig, folder: Path, manifest: Manifest, missing: list[str]) -> ClosedLoop | None:
    robot = "" if manifest.robot is None else manifest.robot.name
    reason = _cannot_play(config, robot)
    if reason is not None:
        missing.append(f"closed loop: {reason}")
        return None
    if config.reference is None:
        reference = BackendRef(path=str(folder), backend="torch")
        name = "torch, same weights"
    else:
        other = find_bundle(config.reference)
        reference = BackendRef(path=str(other), backend=config.backend)
        name = f"{_name(read_bundle(other).manifest)}, {config.backend}"
    reports = []
    for who in (BackendRef(path=str(folder), backend=config.backend), reference):
        with tempfile.TemporaryDirectory(prefix="roboalign-verify-") as out:
            settings = EvalConfig(
                out=Path(out) / "eval",
                tasks=_TASKS,
                episodes=config.episodes,
                robot=robot,
                workers=config.workers,
                films=0,
            )
            reports.append(evaluate(settings, who))
    total = compare(reports[0], reports[1]).total
    return ClosedLoop(
        reference=name,
        robot=robot,
        tasks=_TASKS,
        num_episodes=total.num_pairs,
        num_successes=reports[0].total.num_successes,
        num_reference_successes=reports[1].total.num_successes,
        num_only_bundle=total.num_only_first,
        num_only_reference=total.num_only_second,
        difference=total.difference,
        interval_low=total.interval.low,
        interval_high=total.interval.high,
    )


def _cannot_play(config: VerifyConfig, robot: str) -> str | None:
    """Returns why no episode can be played here, or None."""
    if find_spec("pybullet") is None:
        return "pybullet is not installed here: pip install 'roboalign[sim]'"
    if config.reference is None and find_spec("torch") is None:
        return "PyTorch is not installed here; name another bundle with --reference"
    from roboalign.sdk.sim.robots import ROBOTS

    if robot not in ROBOTS:
        return f"there is no simulated robot {robot!r}" if robot else "the manifest names no robot"
    return None


def _loop_faults(loop: ClosedLoop, manifest: Manifest) -> list[str]:
    if manifest.thresholds is None:
        return []
    accepted = manifest.thresholds.success_loss
    if loop.num_reference_successes == 0:
        return ["the reference solved no scene, so the comparison proves nothing"]
    if loop.interval_low < -accepted:
        return [
            f"success may be lower by {-100 * loop.interval_low:.1f} points, at most {100 * accepted:g} are accepted; "
            "where both did alike, play more episodes"
        ]
    return []


def _verdict(faults: list[str], missing: list[str], *, has_loop: bool) -> str:
    if faults:
        return "failed"
    if missing:
        return "incomplete"
    return "verified" if has_loop else "parity only"


def _describe(folder: Path, manifest: Manifest) -> dict[str, str]:
    return {
        "name": manifest.name,
        "model": manifest.model,
        "precision": manifest.precision,
        "target": manifest.target,
        "robot": "" if manifest.robot is None else manifest.robot.name,
        "manifest_sha256": file_digest(folder / MANIFEST_NAME),
    }


def _name(manifest: Manifest) -> str:
    return f"{manifest.name} in {manifest.precision}"


def _beside(folder: Path) -> Path:
    """Returns where a receipt goes: beside the bundle, never inside; of a bundle in the package, below runs/."""
    place = folder.resolve()
    if place.parent == shipped_bundle_path().resolve().parent:
        return Path("runs") / f"{place.name}{RECEIPT_SUFFIX}"
    return place.with_name(place.name + RECEIPT_SUFFIX)


def _parity_lines(errors: VectorErrors | None) -> list[str]:
    if errors is None:
        return []
    fields = ", ".join(f"{name} {error:.1e}" for name, error in errors.fields.items())
    worst = max(errors.parts, key=lambda name: errors.parts[name]) if errors.parts else None
    parts = [] if worst is None else [f"parts: at most {errors.parts[worst]:.1e} of their largest value ({worst})"]
    return [
        f"actions, largest difference: {fields}",
        *parts,
        f"tokens: {errors.same_tokens:.1%} of {errors.num_tokens} agree, {errors.num_observations} observations",
    ]


def _loop_lines(loop: ClosedLoop) -> list[str]:
    num = loop.num_episodes
    low, high = 100 * loop.interval_low, 100 * loop.interval_high
    return [
        f"closed loop on {loop.robot} ({', '.join(loop.tasks)}): {loop.num_successes} of {num} solved, "
        f"{loop.num_reference_successes} by the reference ({loop.reference})",
        f"difference {100 * loop.difference:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}; only one solved "
        f"{loop.num_only_bundle} + {loop.num_only_reference}",
    ]
