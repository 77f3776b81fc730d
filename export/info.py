"""What a bundle is, for a person: in a terminal of 80 columns, as a page, or as JSON. Needs numpy only, no framework.

The bundle is verified first, so that nothing is said about files that are not those it was exported with.
"""

from __future__ import annotations

import json
import struct
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from roboalign.sdk.bundle import MANIFEST_NAME, Manifest, ParityRecord, file_digest, find_bundle, read_bundle
from roboalign.sdk.errors import BundleError
from roboalign.sdk.evaluation.page import escape, table, write_page
from roboalign.sdk.quantized import METADATA_KEY, SCALE_SUFFIX

__all__ = ["BundleInfo", "WeightFile", "info_lines", "parity_words", "read_info", "write_info_page"]

_WIDTH = 80
_LABEL = 12

_UNITS = (("_rad", "rad"), ("_m", "m"))
"""Endings of field names; other fields have no unit."""

_HALF_BYTES = 2
"""Bytes of a weight in fp16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile:
    """What one file of weights holds."""

    file: str
    """Name."""
    num_bytes: int
    """Length of the file."""
    num_weights: int
    """Weights in it, scales not counted."""
    num_coded: int
    """Of these, stored as codes of few bits."""
    num_matrix: int
    """Of these, in matrices; kernels of convolutions have 8 bits in any case."""
    matrix_bytes: int
    """What the codes of matrices and their scales take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleInfo:
    """A verified bundle, described."""

    manifest: Manifest
    """Everything that it says about itself."""
    manifest_sha256: str
    """Digest of the manifest, which holds that of every file."""
    num_bytes: int
    """All files together."""
    weights: tuple[WeightFile, ...]
    """Files of weights."""
    coded_share: float
    """Share of the weights that are stored as codes."""
    matrix_ratio: float | None
    """Bytes of the matrices among these as a share of what they take in fp16; None where there are none."""
    boards: tuple[str, ...]
    """What its plan says of each machine."""


def read_info(bundle: Path | None) -> BundleInfo:
    """Verifies and describes a bundle; None is the one that comes for the Panda.

    Raises:
        BundleError: it is missing or altered.
    """
    folder = find_bundle(bundle)
    manifest = read_bundle(folder).manifest
    names = [name for name in sorted(manifest.files) if name in ("model.safetensors", "head.safetensors")]
    try:
        weights = tuple(_weights(folder / name) for name in names)
        boards = _boards(folder) if "plan.json" in manifest.files else ()
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise BundleError(
            f"the weights or plan.json of {folder} are described in another way than this version knows ({err!r}); "
            "export the bundle again"
        ) from err
    num_weights, num_coded = sum(one.num_weights for one in weights), sum(one.num_coded for one in weights)
    num_matrix = sum(one.num_matrix for one in weights)
    return BundleInfo(
        manifest=manifest,
        manifest_sha256=file_digest(folder / MANIFEST_NAME),
        num_bytes=sum(record.num_bytes for record in manifest.files.values()),
        weights=weights,
        coded_share=num_coded / num_weights if num_weights else 0.0,
        matrix_ratio=sum(one.matrix_bytes for one in weights) / (_HALF_BYTES * num_matrix) if num_matrix else None,
        boards=boards,
    )


def info_lines(info: BundleInfo) -> list[str]:
    """Returns the description as lines of at most 80 columns."""
    lines = []
    for label, texts in _facts(info).items():
        for index, text in enumerate(texts):
            lines += textwrap.wrap(
                text,
                _WIDTH,
                initial_indent=f"{label if index == 0 else '':{_LABEL}}",
                subsequent_indent=" " * _LABEL,
                break_on_hyphens=False,
            )
    lines.append(f"{'file':26} {'bytes':>10}  sha256")
    for name, record in sorted(info.manifest.files.items()):
        lines.append(f"{name:26} {record.num_bytes:>10}  {record.sha256[:16]}...")
    lines.append(f"{'all':26} {info.num_bytes:>10}")
    return lines


def write_info_page(info: BundleInfo, path: Path) -> Path:
    """Writes the description as a page that loads nothing."""
    manifest = info.manifest
    facts = [(label, " ".join(texts)) for label, texts in _facts(info).items()]
    graphs = [
        (role, graph.file, kind, tensor.name, f"{tensor.dtype}{list(tensor.shape)}", tensor.unit)
        for role, graph in sorted(manifest.graphs.items())
        for kind, tensors in (("in", graph.inputs), ("out", graph.outputs))
        for tensor in tensors
    ]
    files = [(name, str(record.num_bytes), record.sha256) for name, record in sorted(manifest.files.items())]
    body = [
        f"<h1>{escape(manifest.name)} for {escape(manifest.target)}</h1>",
        table(("", "what it says"), facts, ""),
        "<h2>Actions</h2>",
        table(("field", "unit", "1st percentile", "99th percentile", "largest error"), _action_rows(manifest), ""),
        "<h2>Graphs</h2>",
        table(("role", "file", "", "tensor", "type and shape", "unit"), graphs, "", is_numbers=True),
        "<h2>Files</h2>",
        table(("file", "bytes", "sha256"), files, f"manifest sha256 {info.manifest_sha256}"),
    ]
    return write_page(path, title=f"{manifest.name}, a roboalign bundle", body=body)


def parity_words(record: ParityRecord) -> str:
    """Returns what the comparison of an export with PyTorch found."""
    return (
        f"actions within {record.max_action_error:.1e} of their range, {record.equal_tokens:.2%} of "
        f"{record.num_tokens} greedy tokens identical ({record.num_distinct_tokens} different ones)"
    )


def _facts(info: BundleInfo) -> dict[str, tuple[str, ...]]:
    """Returns what to say, by label."""
    manifest, policy = info.manifest, info.manifest.policy
    size = f"{policy.image_size_px} x {policy.image_size_px}"
    built = "runs as it is" if manifest.built else f"not built; on the target type: {manifest.next_command}"
    ratio = "" if info.matrix_ratio is None else f"; matrices in {info.matrix_ratio:.3f} of the bytes of fp16"
    robot = "not named (format 1)" if manifest.robot is None else manifest.robot.name or "not named by its data"
    statistics = "" if manifest.robot is None else f"; statistics {manifest.robot.statistics_sha256[:16]}"
    parents = ", ".join(parent[:16] for parent in manifest.parents) or "none"
    return {
        "bundle": (f"{manifest.name}: {manifest.model}, stage {manifest.stage}, for {manifest.target}, {built}",),
        "robot": (f"{robot}{statistics}",),
        "cameras": tuple(
            f"{name}: {size} pixels, RGB; the robot cuts and scales (a square from the middle unless it says)"
            for name in policy.camera_names
        ),
        "state": (", ".join(f"{name} ({_unit(name)})" for name in policy.state_names),),
        "actions": (
            f"{policy.horizon} at {policy.rate_hz:g} Hz; 1st to 99th percentile:",
            *(f"{name} {low} to {high} {unit}".rstrip() for name, unit, low, high, _ in _action_rows(manifest)),
        ),
        "thought": (f"up to {policy.max_thought_tokens} tokens; prompt up to {policy.max_prompt_tokens}",),
        "weights": (
            f"{manifest.precision}; {info.coded_share:.0%} of {sum(one.num_weights for one in info.weights)} as codes"
            f"{ratio}",
        ),
        "parity": _parity(manifest),
        "plan": info.boards or ("none (an older version wrote this bundle)",),
        "history": (
            f"roboalign {manifest.roboalign_version}, source {manifest.source_commit[:16]}, format "
            f"{manifest.format_version}; descends from {parents}",
        ),
        "manifest": (f"sha256 {info.manifest_sha256[:32]}...",),
    }


def _action_rows(manifest: Manifest) -> list[tuple[str, str, str, str, str]]:
    policy = manifest.policy
    errors: Mapping[str, float] = manifest.parity.field_errors if manifest.parity is not None else {}
    return [
        (name, _unit(name), f"{low:.4g}", f"{high:.4g}", f"{errors[name]:.1e}" if name in errors else "not measured")
        for name, low, high in zip(policy.action_names, policy.action_low, policy.action_high, strict=True)
    ]


def _parity(manifest: Manifest) -> tuple[str, ...]:
    parity = manifest.parity
    if parity is None:
        return ("not measured",)
    lines = [f"{parity_words(parity)}, {parity.num_observations} observations ({parity.inputs})"]
    if parity.field_errors:
        lines.append("by field: " + ", ".join(f"{name} {error:.1e}" for name, error in parity.field_errors.items()))
    if parity.part_errors:
        lines.append("by part: " + ", ".join(f"{name} {error:.1e}" for name, error in parity.part_errors.items()))
    return tuple(lines)


def _unit(name: str) -> str:
    return next((unit for ending, unit in _UNITS if name.endswith(ending)), "")


def _weights(path: Path) -> WeightFile:
    """Reads the header of a file of weights, which was found to describe what the file holds."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    described = json.loads(header.pop("__metadata__", {}).get(METADATA_KEY, "{}"))
    spans = {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items()}
    scales = {name + SCALE_SUFFIX for name in described}
    coded = {name: prod(layout["shape"]) for name, layout in described.items()}
    matrices = [name for name, layout in described.items() if layout["block"]]
    plain = [prod(entry["shape"]) for name, entry in header.items() if name not in coded and name not in scales]
    return WeightFile(
        file=path.name,
        num_bytes=path.stat().st_size,
        num_weights=sum(plain) + sum(coded.values()),
        num_coded=sum(coded.values()),
        num_matrix=sum(coded[name] for name in matrices),
        matrix_bytes=sum(spans[name] + spans[name + SCALE_SUFFIX] for name in matrices),
    )


def _boards(folder: Path) -> tuple[str, ...]:
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))["plan"]
    return tuple(
        f"{board['target']}{' JetPack ' + board['jetpack'] if board['jetpack'] else ''}: "
        f"{'; '.join(refusal['reason'] for refusal in board['refusals']) or 'fits'}, "
        f"{board['run_gb']:.2g} GB to run (estimated)"
        for board in plan["boards"]
    )
