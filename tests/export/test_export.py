"""Export of a tiny random policy: what the bundle holds, that both backends act alike, and what is refused."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from safetensors.numpy import load_file
from tests.boards import NANO, write_board
from tests.bundles import copy_portable

from roboalign.export import (
    ExportConfig,
    all_targets,
    export,
    find_place,
    model_size,
    newest_run,
    plan_export,
    quantize,
)
from roboalign.export import bundle_writer as writer
from roboalign.export.calibration import input_moments
from roboalign.export.parity import simulated_observations
from roboalign.export.rounding import Calibration
from roboalign.export.sensitivity import PARTS, Rounded, round_parts
from roboalign.export.window_parity import check_portable, check_windows
from roboalign.sdk.backends.in_place import InPlaceBackend
from roboalign.sdk.bundle import ParityRecord, read_bundle
from roboalign.sdk.errors import BundleError, CheckFailed, ConfigError
from roboalign.sdk.policy import Policy
from roboalign.sdk.types import Observation
from roboalign.trainer.backend import TorchBackend

HUGE = model_size("qwen2.5-vl-3b")
ASKED = [("jetson", "fp16"), ("jetson", "fp32"), ("agx-thor", "fp16"), ("cpu", "fp16")]

logging.getLogger("torch.__trace").propagate = False  # pytest would format 100,000 records of it


def entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    """Copies the graphs of the finished bundle instead of tracing them again."""

    def copy(model: object, head: object, spec: object, folder: Path, precision: str, **more: object) -> object:
        return copy_portable(bundle, folder)

    monkeypatch.setattr(writer, "write_graphs", copy)


def test_the_manifest_states_what_a_robot_needs(bundle):
    manifest = read_bundle(bundle).manifest
    assert (manifest.target, manifest.built, manifest.precision, manifest.next_command) == ("cpu", True, "fp16", "")
    assert manifest.policy.max_thought_tokens == 12
    assert set(manifest.graphs) == {"prefill", "step", "flow", "hear", "look", "lower", "upper", "write_actions"}
    state = next(tensor for tensor in manifest.graphs["flow"].inputs if tensor.name == "state")
    assert (state.shape, state.fields) == ((1, 5), manifest.policy.state_names)
    assert set(manifest.files) == {path.name for path in bundle.iterdir()} - {"manifest.json"}


def test_observations_are_taken_beyond_the_end_of_short_scenes():
    """The expert solves some scenes before the last moment; stepping on used to end the export with an error."""
    assert len(simulated_observations(64)) == 64
    assert len(simulated_observations(9, "so101")) == 9


def test_parity_is_recorded_and_proves_something(bundle):
    parity = read_bundle(bundle).manifest.parity
    assert parity.max_action_error <= parity.tolerance == 1e-4
    assert parity.num_observations == 16
    assert parity.num_distinct_tokens >= 50
    assert parity.num_distinct_sequences == 16
    assert parity.action_spread > 0.1


def test_tokens_read_at_once_are_those_read_one_by_one_or_the_export_stops(bundle, tmp_path, monkeypatch):
    """The negative control reads the padding of a window as if it were written."""
    errors = check_windows(bundle, 1e-4)
    assert set(errors) == {"window16", "window48"}
    assert 0.0 < min(errors.values()) < max(errors.values()) < 1e-4
    stored = read_bundle(bundle).manifest.parity.part_errors
    assert {name: stored[name] for name in errors} == errors
    extend = InPlaceBackend.extend

    def late(self, decoding, ids):
        decoding.length += 1
        decoding.cache.num_whole += 1
        decoding.cache.num_read += 1
        rows = extend(self, decoding, ids)
        decoding.length -= 1
        return rows

    monkeypatch.setattr(InPlaceBackend, "extend", late)
    with pytest.raises(CheckFailed, match="parity failed: window16 differs from as many steps by"):
        check_windows(bundle, 1e-4)


def test_portable_graphs_say_the_same_or_the_export_stops(bundle, monkeypatch):
    error = check_portable(bundle, 1e-4)
    assert 0.0 < error < 5e-5
    assert read_bundle(bundle).manifest.parity.part_errors["portable"] == error
    step = InPlaceBackend.step
    monkeypatch.setattr(InPlaceBackend, "step", lambda self, decoding, token: step(self, decoding, token + 1))
    with pytest.raises(CheckFailed, match="parity failed: prefill and step differ from the graphs that read in place"):
        check_portable(bundle, 1e-4)


def test_a_thought_drafted_by_the_one_before_is_the_one_that_is_written_anew(bundle, observations):
    with Policy.load(bundle) as drafted, Policy.load(bundle, draft=False) as plain:
        for seen in [*observations, *observations[:2], observations[1]]:
            one, other = drafted.act(seen), plain.act(seen)
            assert one.tokens == other.tokens
            assert np.allclose(one.actions, other.actions, atol=1e-6)


def test_every_weight_is_stored_once_and_all_graphs_point_at_it(bundle):
    places: set[tuple[str, int]] = set()
    for role in ("prefill", "step", "flow"):
        graph = onnx.load(bundle / f"{role}.onnx", load_external_data=False).graph
        inline = [t for t in graph.initializer if t.data_location != TensorProto.EXTERNAL]
        assert sum(len(t.raw_data) for t in inline) < 65536
        for tensor in graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                places.add((entries(tensor)["location"], int(entries(tensor)["offset"])))
    stored = {name: load_file(bundle / name) for name in ("model.safetensors", "head.safetensors")}
    assert len(places) == sum(map(len, stored.values()))
    own = {path.name for path in bundle.glob("*.onnx")} - {f"{role}.onnx" for role in ("prefill", "step", "flow")}
    assert own == {"hear.onnx", "look.onnx", "lower.onnx", "upper.onnx", "write_actions.onnx"}
    assert max((bundle / name).stat().st_size for name in own) < 65536
    assert all(array.dtype == np.float16 for arrays in stored.values() for array in arrays.values())


def test_graphs_use_plain_operators_and_name_no_path_of_this_machine(bundle):
    """What runs on a CPU alone may take onnxruntime's own operators."""
    for path in bundle.glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        own = [("com.microsoft", 1)] if path.stem in ("hear", "lower", "upper", "write_actions") else []
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 20), *own]
        assert not {"ScatterND", "ScatterElements", "If", "Loop", "NonZero"} & {n.op_type for n in model.graph.node}
        assert str(Path.home()).encode() not in path.read_bytes()
        assert b".py" not in path.read_bytes()


def test_both_backends_act_alike_in_every_mode(bundle, observations):
    for actions, think in (("flow", True), ("flow", False), ("fast", True), ("fast", False)):
        answers = []
        for backend in ("onnx", "torch"):
            with Policy.load(bundle, backend=backend, actions=actions, think=think) as policy:
                answers.append([policy.act(observation) for observation in observations[:3]])
        for ours, theirs in zip(*answers, strict=True):
            assert ours.source == theirs.source == actions
            assert ours.tokens == theirs.tokens
            assert np.allclose(ours.actions, theirs.actions, atol=1e-5)


@pytest.mark.parametrize(("precision", "share"), [("int8", 0.75), ("int4", 0.6)])
def test_weights_of_few_bits_pass_the_same_parity(run, bundle, observations, tmp_path, precision, share):
    """Both sides decode the same codes, so the comparison is as strict as with full weights."""
    out = export(ExportConfig(run=run, out=tmp_path / "few", precision=precision), observations=observations)
    manifest = read_bundle(out).manifest
    assert (manifest.precision, {spec.opset for spec in manifest.graphs.values()}) == (precision, {21})
    assert manifest.parity.max_action_error < 1e-4
    graphs = {path.stem: onnx.load(path, load_external_data=False).graph for path in out.glob("*.onnx")}
    nodes = [node for graph in graphs.values() for node in graph.node]
    decoders = [node for node in nodes if node.op_type == "DequantizeLinear"]
    portable = [node for role in ("prefill", "step", "flow", "look") for node in graphs[role].node]
    assert {node.domain for node in portable} <= {"", "ai.onnx"}
    assert len(decoders) > 20
    used = {name for node in nodes for name in node.input}
    assert all(node.output[0] in used for node in decoders)

    def size(folder: Path) -> int:
        return sum((folder / f"{part}.safetensors").stat().st_size for part in ("model", "head"))

    assert size(out) < share * size(bundle)  # the tiny model has much that is too small for codes
    with Policy.load(out) as few, Policy.load(bundle) as full:
        assert not np.array_equal(few.act(observations[0]).actions, full.act(observations[0]).actions)


def test_every_part_is_measured_before_it_is_rounded(run, observations, tmp_path, monkeypatch):
    """What loses too much gets finer codes, then half precision, and says so; where all do, nothing is written."""
    said: list[str] = []
    out, found = tmp_path / "few", []

    def measure(*args: object, **more: object) -> Rounded:
        found.append(round_parts(*args, **more))
        return found[-1]

    monkeypatch.setattr(quantize, "round_parts", measure)
    config = ExportConfig(run=run, out=out, precision="int4")
    with pytest.raises(CheckFailed, match="every part loses more than 0"):
        export(replace(config, max_part_error=1e-9), observations=observations)
    assert not out.exists()
    assert not found
    export(replace(config, max_part_error=1.0), observations=observations, say=lambda line: None)
    coarse = {loss.part: loss.action_error for loss in found[0].tried}
    assert set(found[0].chosen.values()) == {"int4"}
    assert all(error > 0 for error in coarse.values())
    finest = {
        loss.part: loss.action_error for loss in _rounded(run, observations, "int8").tried if loss.part != "vision"
    }
    worst = max(finest, key=finest.get)
    limit = finest[worst] * 0.999
    export(replace(config, max_part_error=limit), observations=observations, say=said.append)
    record = json.loads((out / "quantization.json").read_text())
    assert record["parts"][worst] == "fp16"
    assert [one["precision"] for one in record["tried"] if one["part"] == worst] == ["int4", "int8"]
    assert record["together"]["num_weights"] > 0
    assert any(worst in line and "stays fp16" in line for line in said)
    file, prefix = PARTS[worst]
    kept = {name: t for name, t in load_file(out / f"{file}.safetensors").items() if name.startswith(prefix)}
    assert {array.dtype for array in kept.values()} == {np.dtype(np.float16)}
    with Policy.load(out) as policy:
        assert policy.act(observations[0]).source == "flow"


def _rounded(run: Path, observations: list[Observation], precision: str, *, limit: float = 1.0) -> Rounded:
    backend = TorchBackend.open(run)
    calibration = Calibration(moments=input_moments(backend, observations[::2]))
    return round_parts(backend, observations, precision, limit=limit, calibration=calibration)


def test_a_part_that_int4_hurts_takes_int8(run, observations):
    errors = {loss.part: loss.action_error for loss in _rounded(run, observations, "int4").tried}
    finer = {loss.part: loss.action_error for loss in _rounded(run, observations, "int8").tried}
    assert finer["head"] < errors["head"]
    mixed = _rounded(run, observations, "int4", limit=(finer["head"] + errors["head"]) / 2)
    assert mixed.chosen["head"] == "int8"
    assert {code.layout.bits for code in mixed.codes["head"].values()} == {8}
    assert mixed.together.precision == "mixed"


def test_rounding_one_part_changes_nothing_for_the_others(run, observations):
    backend = TorchBackend.open(run)
    before = {name: tensor.clone() for name, tensor in backend.backbone.model.state_dict().items()}
    first = round_parts(backend, observations[:3], "int4", limit=1.0)
    after = backend.backbone.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert round_parts(backend, observations[:3], "int4", limit=1.0).tried == first.tried
    finer = {loss.part: loss.action_error for loss in round_parts(backend, observations[:3], "int8", limit=1.0).tried}
    coarse = {loss.part: loss.action_error for loss in first.tried}
    assert finer["head"] < coarse["head"]  # the kernels of the tiny vision part are 8-bit codes in both
    assert finer["decoder"] < coarse["decoder"]


def test_a_bundle_can_be_exported_again(bundle, observations, tmp_path):
    out = export(ExportConfig(run=bundle, out=tmp_path / "again"), observations=observations)
    for name in ("model.safetensors", "head.safetensors", "flow.onnx", "tokenizer.json"):
        assert (out / name).read_bytes() == (bundle / name).read_bytes()
    first, again = (read_bundle(folder).manifest for folder in (bundle, out))
    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert again.parents == (digest, *first.parents)
    assert (again.name, again.stage, again.policy) == (first.name, first.stage, first.policy)
    assert digest[:12] in (out / "README.md").read_text()


EXPORT_ALL = """
import sys
from pathlib import Path
from tests.bundles import some_observations
from roboalign.export import ExportConfig, export
run, out = Path(sys.argv[1]), Path(sys.argv[2])
for precision in ("fp16", "int4"):
    config = ExportConfig(run=run, out=out / precision, precision=precision)
    export(config, observations=some_observations(), say=lambda line: None)
"""


@pytest.mark.slow
def test_two_processes_export_the_same_bytes_into_two_folders(run, tmp_path):
    """No path, no time, no order of chance: every file of both bundles has the same digest."""
    for name in ("one", "another/place"):
        # Another seed of hashes: what depends on the order of a set or of a dict would differ.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, "."]), "PYTHONHASHSEED": str(len(name))}
        command = [sys.executable, "-c", EXPORT_ALL, str(run), str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
        assert done.returncode == 0, done.stderr
    for precision in ("fp16", "int4"):
        one, other = (
            {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in (tmp_path / name / precision).iterdir()
            }
            for name in ("one", "another/place")
        )
        assert one == other
        assert len(one) >= 14
        everything = b"".join(path.read_bytes() for path in (tmp_path / "one" / precision).iterdir())
        assert str(tmp_path).encode() not in everything


def test_codes_are_not_rounded_again_and_a_bundle_is_not_written_over_itself(run, bundle, observations, tmp_path):
    few = export(ExportConfig(run=run, out=tmp_path / "few", precision="int8"), observations=observations)
    with pytest.raises(ConfigError, match="int8 weights, which cannot be rounded again"):
        export(ExportConfig(run=few, out=tmp_path / "x"), observations=observations)
    with pytest.raises(ConfigError, match="is what is exported"):
        export(ExportConfig(run=bundle, out=bundle), observations=observations)


def test_torch_acts_from_the_checkpoint_too(run, bundle, observations):
    with Policy.load(run, backend="torch") as policy, Policy.load(bundle) as shipped:
        assert policy.spec == shipped.spec
        # The bundle's weights are rounded to fp16, so this is close, not equal.
        difference = policy.act(observations[0]).actions - shipped.act(observations[0]).actions
        assert np.abs(difference).max() < 0.1


def test_a_checkpoint_without_a_head_writes_action_tokens(make_run, tmp_path, observations):
    sft = make_run(tmp_path / "sft", stage="sft")
    with pytest.raises(BundleError, match="stage 'sft' without an action head"):
        Policy.load(sft, backend="torch")
    with Policy.load(sft, backend="torch", actions="fast") as policy:
        assert policy.act(observations[0]).source == "fast"


def test_a_base_checkpoint_cannot_act(make_run, tmp_path):
    with pytest.raises(BundleError, match="base checkpoint without an action codec"):
        Policy.load(make_run(tmp_path / "base", stage="base"), backend="torch", actions="fast")


def test_onnx_refuses_a_checkpoint_and_names_the_command(run):
    with pytest.raises(BundleError, match="stage 'head', not a bundle; make one of it with: roboalign export"):
        Policy.load(run)


def test_thought_and_picture_reach_the_actions(bundle, observations):
    with Policy.load(bundle) as policy:
        first = policy.act(observations[0])
        policy.reset()
        black = {"front": np.zeros((96, 96, 3), np.uint8)}
        other = policy.act(replace(observations[0], images=black))
    assert not np.allclose(first.actions, other.actions, atol=1e-3)


def test_a_cold_start_loads_no_torch_and_is_quick(bundle):
    code = f"""
import sys, time
start = time.perf_counter()
import numpy as np
from roboalign.sdk.policy import Policy
from roboalign.sdk.types import Observation
policy = Policy.load({str(bundle)!r})
image = np.zeros((96, 96, 3), np.uint8)
state = np.array([0.5, 0, 0.2, 0, 0.05], np.float32)
chunk = policy.act(Observation(images={{"front": image}}, state=state, joint_pos_rad=np.zeros(7, np.float32),
                               instruction="put the red block in the blue bowl", time_s=0.0))
assert chunk.source == "flow", chunk
loaded = [name for name in ("torch", "transformers", "pybullet", "tensorrt", "serial") if name in sys.modules]
assert not loaded, loaded
print(time.process_time())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    # CPU time, not wall-clock time: other jobs share the machine that tests run on.
    assert float(done.stdout) <= 2.0


def test_an_altered_weight_is_found_when_the_bundle_is_loaded(bundle, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in bundle.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = bytearray((copy / "head.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "head.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match=r"altered: head\.safetensors"):
        Policy.load(copy)


def test_parity_that_fails_leaves_nothing_behind(run, observations, tmp_path, untraced, monkeypatch):
    honest = writer.check_parity

    def with_a_wrong_weight(work: Path, *args: object, **more: object) -> ParityRecord:
        graph = onnx.load(work / "step.onnx", load_external_data=False)
        node = next(n for n in graph.graph.node if n.op_type == "Neg")
        node.op_type = "Abs"  # a rotary embedding with a wrong sign
        onnx.save(graph, work / "step.onnx")
        writer._write_manifest(work, read_manifest(work))
        return honest(work, *args, **more)

    def read_manifest(work: Path) -> object:
        from roboalign.sdk.bundle import MANIFEST_NAME, _read_manifest

        return _read_manifest(work / MANIFEST_NAME)

    monkeypatch.setattr(writer, "check_parity", with_a_wrong_weight)
    with pytest.raises(CheckFailed, match="parity failed"):
        export(ExportConfig(run=run, out=tmp_path / "out"), observations=observations, say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_parity_of_equal_answers_is_a_failure(run, observations, tmp_path, untraced):
    same = [observations[0]] * 8
    with pytest.raises(CheckFailed, match="parity proves nothing"):
        export(ExportConfig(run=run, out=tmp_path / "out"), observations=same, say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_jetson_gets_a_portable_bundle_that_says_so_and_what_to_type(half_export, observations):
    out, lines = half_export
    manifest = read_bundle(out).manifest
    assert (manifest.target, manifest.built, manifest.next_command) == ("jetson", False, "roboalign build .")
    assert manifest.next_command in lines[-1]
    assert any("built: false" in line for line in lines)
    assert any(f"--make-reference {out / 'reference.json'}" in line for line in lines), (
        "there were no data to make it of"
    )
    written = json.loads((out / "plan.json").read_text())
    boards = written["plan"]["boards"]
    assert {board["target"] for board in boards} == {name for name, one in all_targets().items() if one.is_board}
    assert not any(board["refusals"] for board in boards)
    assert written["findings"] == {"prefill.onnx": [], "step.onnx": [], "flow.onnx": []}
    assert {"jetpack-6.txt", "jetpack-7.txt"} <= set(manifest.files)
    assert Policy.load(out).act(observations[0]).source == "flow"


def test_the_graphs_of_a_board_compute_in_half_precision_on_the_weights_as_stored(half_export, bundle):
    out = half_export[0]
    manifest = read_bundle(out).manifest
    assert (manifest.arithmetic, read_bundle(bundle).manifest.arithmetic) == ("float16", "float32")
    dtypes = {t.name: t.dtype for spec in manifest.graphs.values() for t in (*spec.inputs, *spec.outputs)}
    halves = {name for name, dtype in dtypes.items() if dtype == "float16"}
    assert halves == {"kv", "kv_new", "hidden"}
    assert {dtypes[name] for name in ("state", "noise", "actions", "pixel_values", "logits")} == {"float32"}
    assert (out / "model.safetensors").read_bytes() == (bundle / "model.safetensors").read_bytes()
    for path in out.glob("*.onnx"):
        model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False)).graph
        kinds = {v.name: v.type.tensor_type.elem_type for v in (*model.value_info, *model.input, *model.output)}
        kinds |= {tensor.name: tensor.data_type for tensor in model.initializer}
        products = [node for node in model.node if node.op_type in ("MatMul", "Gemm", "Conv")]
        assert len(products) > 10
        assert {kinds[name] for node in products for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}


def test_half_precision_is_close_to_pytorch_and_inside_its_range(half_export):
    parity = read_bundle(half_export[0]).manifest.parity
    assert 1e-6 < parity.max_action_error <= parity.tolerance == 1e-2
    assert parity.equal_tokens >= parity.min_equal_tokens == 0.97
    assert 1 < parity.largest_half < 32752


def test_a_board_that_reads_blocks_gets_the_decoder_in_codes_on_float16(run, observations, tmp_path):
    config = ExportConfig(run=run, target="agx-thor", precision="int4", out=tmp_path / "thor", max_part_error=1.0)
    out = export(config, observations=observations, say=lambda line: None, root=tmp_path)
    manifest = read_bundle(out).manifest
    assert (manifest.precision, manifest.arithmetic) == ("int4", "float16")
    assert json.loads((out / "quantization.json").read_text())["parts"] == {
        "decoder": "int4",
        "head": "fp16",
        "vision": "fp16",
    }
    decoders = {}
    for role in ("prefill", "step", "flow"):
        graph = onnx.load(out / f"{role}.onnx", load_external_data=False)
        assert graph.opset_import[0].version == (20 if role == "flow" else 21)
        types = {tensor.name: tensor.data_type for tensor in graph.graph.initializer}
        decoders[role] = [node for node in graph.graph.node if node.op_type == "DequantizeLinear"]
        assert {(types[n.input[0]], types[n.input[1]]) for n in decoders[role]} <= {
            (TensorProto.INT4, TensorProto.FLOAT16)
        }
    assert not decoders["flow"]
    assert len(decoders["step"]) == len(decoders["prefill"]) == 14
    with Policy.load(out) as policy:
        assert policy.act(observations[0]).source == "flow"


@pytest.mark.parametrize("target", ["jetson", "orin-nano-8gb"])
def test_codes_are_refused_where_a_jetpack_does_not_read_them(run, tmp_path, target):
    config = ExportConfig(run=run, target=target, jetpack=None if target == "jetson" else "6.2", precision="int8")
    with pytest.raises(
        ConfigError, match=r"this version writes fp16 or fp32 or int8-w8a8 weights for .*boards whose JetPack reads"
    ):
        export(config, say=lambda line: None, root=tmp_path)


def test_full_precision_for_a_board_is_not_narrowed():
    of = {name: plan_export(HUGE, find_place(*name[:1], root=Path("/nowhere")), name[1]).arithmetic for name in ASKED}
    assert of == dict(zip(ASKED, ("float16", "float32", "float16", "float32"), strict=True))


def test_a_graph_that_a_board_does_not_take_stops_the_export(
    run, observations, tmp_path, bundle, untraced, monkeypatch
):
    honest = writer.write_graphs

    def with_an_operator_that_tensorrt_lacks(*args: object, **more: object) -> object:
        graphs = honest(*args, **more)
        folder = args[3]
        graph = onnx.load(folder / "step.onnx", load_external_data=False)
        next(n for n in graph.graph.node if n.op_type == "Neg").op_type = "Det"
        onnx.save(graph, folder / "step.onnx")
        return graphs

    monkeypatch.setattr(writer, "write_graphs", with_an_operator_that_tensorrt_lacks)
    config = ExportConfig(run=run, target="jetson", out=tmp_path / "jetson")
    with pytest.raises(
        CheckFailed, match=r"stand against the graphs on jetson, first step\.onnx: Det .*no such operator"
    ):
        export(config, observations=observations, say=lambda line: None, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_is_refused_stops_before_a_model_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "open_source", lambda path: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError, match=r"no JetPack 6\.2"):
        export(ExportConfig(run=run, target="agx-thor", jetpack="6.2", out=tmp_path / "out"), say=lambda line: None)
    huge = writer.run_size(run)
    monkeypatch.setattr(writer, "run_size", lambda path: replace(huge, decoder=10**10))
    with pytest.raises(ConfigError, match="the plan is refused: nano in head-tiny in fp16 needs about"):
        export(ExportConfig(run=run, target="orin-nano-8gb", out=tmp_path / "out"), say=lambda line: None)


def test_on_a_jetson_the_bundle_is_for_that_board(run, observations, tmp_path, untraced):
    root = write_board(tmp_path / "board", model=NANO, memory_gib=7.4)
    out = export(
        ExportConfig(run=run, target="jetson", out=tmp_path / "out"),
        observations=observations,
        say=lambda line: None,
        root=root,
    )
    assert read_bundle(out).manifest.target == "orin-nano-8gb"
    (board,) = json.loads((out / "plan.json").read_text())["plan"]["boards"]
    assert (board["jetpack"], board["tensorrt"]) == ("6.2", "10.3.0")
    assert sorted(path.name for path in out.glob("jetpack-*")) == ["jetpack-6.txt"]


def test_without_a_run_the_newest_finished_one_is_taken_and_named(
    make_run: Callable[..., Path], tmp_path: Path, observations: list[Observation], untraced: None
) -> None:
    for name, age in (("head-old", 30), ("head-new", 20), ("sft-newer", 10), ("head-now.partial", 0)):
        made = make_run(tmp_path / "runs" / name, stage="sft" if name.startswith("sft") else "head")
        os.utime(made / "roboalign.json", (time.time() - age,) * 2)
    lines: list[str] = []
    out = export(ExportConfig(runs_dir=tmp_path / "runs"), observations=observations, say=lines.append)
    assert lines[0].endswith("head-new")
    assert out == tmp_path / "runs" / "bundle-new-cpu"


def test_no_run_at_all_is_said(tmp_path):
    with pytest.raises(BundleError, match="no finished run with an action head below"):
        newest_run(tmp_path)


def test_a_checkpoint_of_another_stage_is_refused(make_run, tmp_path):
    with pytest.raises(BundleError, match="stage 'sft' without an action head"):
        export(ExportConfig(run=make_run(tmp_path / "sft", stage="sft")), say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["sft"]


def test_a_folder_that_is_no_bundle_is_never_replaced(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is no bundle, so it is left alone"):
        export(ExportConfig(run=run, out=tmp_path), say=lambda line: None)
    assert (tmp_path / "thesis.txt").is_file()


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": "toaster"},
        {"precision": "fp4"},
        {"num_observations": 1},
        {"rounding": "up"},
        {"max_part_error": float("nan")},  # once found out after minutes of rounding
        {"max_part_error": 0.0},
        {"max_part_error": 2.0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        ExportConfig(**wrong)


def test_a_field_that_never_varied_stops_the_export(run):
    spec = TorchBackend.open(run).spec
    with pytest.raises(ConfigError, match=r"in which dx_m is always .*, so it has no range to measure errors by"):
        writer._check_ranges(replace(spec, action_low=spec.action_high), run)


def test_the_card_states_parity_and_parents(bundle):
    card = (bundle / "README.md").read_text()
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert "greedy tokens identical" in card
    assert "compute in float32" in card
    assert len(manifest["parents"][0]) == 64
