"""Plans: which part goes where, what is refused and why, and that the text fits a terminal."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.boards import NANO, THOR, write_board

from roboalign.export import all_targets, find_target
from roboalign.export.plan import ExportPlan, find_place, plan_export
from roboalign.export.plan_table import plan_lines
from roboalign.export.planner import (
    MEASURED_BUILDS,
    NVFP4_REASON,
    PRECISIONS,
    WRITTEN_PRODUCTS,
    build_memory_gb,
    plan_board,
)
from roboalign.export.shapes import ModelSize, model_names, model_size, run_size
from roboalign.export.targets import find_jetpack
from roboalign.sdk.bundle import shipped_bundle_path
from roboalign.sdk.errors import ConfigError

PRE_JETSON = Path("/nowhere")
SEVEN_B = model_size("qwen2.5-vl-7b")


@pytest.fixture(scope="module")
def nano() -> ModelSize:
    return run_size(shipped_bundle_path())


def plan(size: ModelSize, target: str, precision: str = "fp16", **more: str) -> ExportPlan:
    return plan_export(size, find_place(target, root=PRE_JETSON, **more), precision)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "more", "precision", "reason"),
    [
        (
            "agx-orin-64gb",
            {},
            "fp8",
            r"fp8 does not run on Jetson AGX Orin 64GB \(compute capability 8.7\); it has fp32",
        ),
        ("agx-orin-64gb", {}, "nvfp4", "nvfp4 does not run on Jetson AGX Orin 64GB"),
        ("orin-nano-8gb", {}, "fp16", "fp16 needs about .* GB to run, and about 7.2 of 8 GB are usable"),
        ("orin-nano-8gb", {}, "int4", r"building qwen2.5-vl-7b in int4 needs about 13\.9 GB"),
        (
            "agx-orin-64gb",
            {"jetpack": "6.2"},
            "int4",
            "need opset 21, and TensorRT 10.3 of JetPack 6.2 reads up to opset 20",
        ),
        (
            "agx-thor",
            {"jetpack": "7.1", "tensorrt": "10.16"},
            "fp16",
            "10.16 does not run on JetPack 7.1, which has .* 10.13",
        ),
        (
            "agx-orin-64gb",
            {"jetpack": "6.2", "tensorrt": "11.4"},
            "fp16",
            "TensorRT 11.4 does not run on JetPack 6.2, which has TensorRT 10.3",
        ),
        ("cpu", {}, "fp8", "fp8 does not run on any CPU"),
        ("jetson", {}, "fp8", "fp8 does not run on orin-nano-8gb, .* name a --board"),
        ("jetson", {}, "int4", "need opset 21, and what all boards read is opset 20"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(
    target: str, more: dict[str, str], precision: str, reason: str
) -> None:
    refusals = plan(SEVEN_B, target, precision, **more).refusals
    assert re.search(reason, "; ".join(refusals))


@pytest.mark.parametrize(
    ("target", "more", "precision"),
    [
        ("agx-orin-64gb", {}, "fp16"),
        ("agx-orin-64gb", {"jetpack": "7.2.2", "tensorrt": "11.4"}, "fp16"),
        ("agx-thor", {}, "nvfp4"),
        ("agx-thor", {"jetpack": "7.1"}, "fp8"),
        ("orin-nx-16gb", {}, "int4"),
        ("cpu", {}, "fp16"),
        ("jetson", {}, "fp16"),
    ],
)
def test_what_can_be_is_not_refused(target: str, more: dict[str, str], precision: str) -> None:
    assert plan(SEVEN_B, target, precision, **more).refusals == ()


@pytest.mark.parametrize(("graph", "weights_gb", "peak_gb"), MEASURED_BUILDS)
def test_memory_to_build_is_never_below_what_was_measured_and_not_half_as_much_again(
    graph: str, weights_gb: float, peak_gb: float
) -> None:
    """It once was 0.5 GB and twice the weights, from the first two rows alone: 5.8 GB where 8.2 were taken."""
    assert peak_gb <= build_memory_gb(weights_gb) <= 1.5 * peak_gb


@pytest.mark.parametrize(("model", "layers", "row"), [("qwen2.5-vl-3b", 2, 2), ("qwen2.5-vl-7b", 1, 3)])
def test_a_plan_of_the_shapes_that_were_measured_says_as_much(model: str, layers: int, row: int) -> None:
    full = model_size(model)
    size = replace(full, decoder=full.decoder * layers // full.layers, layers=layers)
    parts = plan(size, "agx-orin-64gb", jetpack="6.2").boards[0].parts
    (prefill,) = (part for part in parts if part.part == "prefill")
    _, weights_gb, peak_gb = MEASURED_BUILDS[row]
    assert prefill.build_gb == pytest.approx(build_memory_gb(weights_gb), rel=0.01)
    assert prefill.build_gb >= peak_gb


def test_reasoning_goes_to_edge_llm_where_jetpack_has_it_and_the_head_to_tensorrt() -> None:
    newer, older = (plan(SEVEN_B, "agx-orin-64gb", jetpack=name).boards[0].parts for name in ("7.2", "6.2"))
    assert [part.part for part in newer] == ["vision", "embed", "prefill", "step", "head"]
    assert [part.engine for part in newer] == ["TensorRT Edge-LLM"] * 4 + ["TensorRT"]
    assert [part.engine for part in older] == ["TensorRT", *["ORT + TensorRT"] * 3, "TensorRT"]
    assert "JetPack 7.2 and later" in older[2].why


def test_our_own_graphs_go_to_tensorrt_on_every_board_and_to_onnxruntime_on_a_cpu(nano: ModelSize) -> None:
    engines = {part.engine for board in plan(nano, "jetson").boards for part in board.parts}
    assert engines == {"TensorRT"}
    assert {part.engine for part in plan(nano, "cpu").boards[0].parts} == {"onnxruntime CPU"}


def test_only_the_decoder_goes_below_16_bits() -> None:
    parts = {part.part: part.precision for part in plan(SEVEN_B, "agx-orin-64gb", "int4").boards[0].parts}
    assert parts == {"vision": "fp16", "embed": "fp16", "prefill": "int4", "step": "int4", "head": "fp16"}


def test_an_edge_llm_engine_reads_prompts_and_steps_so_its_weights_count_once() -> None:
    edge, ours = (plan(SEVEN_B, "agx-orin-64gb", jetpack=name).boards[0].run_gb for name in ("7.2", "6.2"))
    decoder_gb = 2 * (SEVEN_B.decoder + SEVEN_B.embed) / 1e9
    # Edge-LLM's own memory is 0.8 GB more than the other runtime's, and comes on top of TensorRT's for the head.
    assert ours + 0.8 == pytest.approx(edge + decoder_gb, abs=0.01)


def test_blocks_take_a_newer_operator_set_where_they_are_read_from_plain_onnx(nano: ModelSize) -> None:
    assert plan(nano, "agx-orin-64gb", "int4").opset == 21
    assert plan(SEVEN_B, "agx-orin-64gb", "int4").opset == 20
    assert plan(nano, "cpu", "int4").opset == plan(nano, "cpu", "int8").opset == 21
    assert plan(nano, "cpu", "fp16").opset == 20


def test_a_portable_plan_has_a_row_for_every_board_and_jetpack(nano: ModelSize) -> None:
    found = plan(nano, "jetson")
    expected = [(name, j.name) for name, target in all_targets().items() for j in target.jetpacks]
    assert [(board.target, board.jetpack) for board in found.boards] == expected
    assert (found.opset, found.built, found.next_command) == (20, False, "roboalign build .")
    assert found.arithmetic == "float16"


def test_a_portable_bundle_is_refused_only_when_no_board_can_run_it() -> None:
    found = plan(SEVEN_B, "jetson")
    assert {board.target for board in found.boards if not board.refusals} == {"agx-orin-64gb", "agx-thor"}
    giant = replace(SEVEN_B, decoder=200 * 10**9)
    assert len(plan(giant, "jetson").refusals) > 1


def test_a_jetpack_narrows_the_portable_rows() -> None:
    assert {board.target for board in plan(SEVEN_B, "jetson", jetpack="7.1").boards} == {"agx-thor"}
    with pytest.raises(ConfigError, match=r"has JetPack 5\.1"):
        find_place("jetson", jetpack="5.1", root=PRE_JETSON)


def test_on_a_jetson_the_alias_means_this_board(tmp_path: Path) -> None:
    place = find_place("jetson", root=write_board(tmp_path, model=NANO, memory_gib=7.4))
    assert (place.name, place.is_here, place.tensorrt) == ("orin-nano-8gb", True, "10.3.0")
    assert place.options[0][1] == find_jetpack(find_target("orin-nano-8gb"), "6.2")
    assert "NVIDIA Jetson Orin Nano" in place.note


def test_a_named_board_is_not_looked_for(tmp_path: Path) -> None:
    place = find_place("jetson", board="agx-orin-64gb", root=write_board(tmp_path, model=NANO, memory_gib=7.4))
    assert (place.name, place.is_here) == ("agx-orin-64gb", False)
    assert place.note == "JetPack 7.2 is assumed; --jetpack names another"


def test_a_board_whose_release_is_unknown_needs_its_jetpack(tmp_path: Path) -> None:
    root = write_board(tmp_path, model=THOR, memory_gib=122.8, release=None, tensorrt="10.13.3")
    with pytest.raises(ConfigError, match="does not say its JetPack; give --jetpack"):
        find_place("jetson", root=root)
    assert find_place("jetson", jetpack="7.1", root=root).is_here


@pytest.mark.parametrize(
    ("target", "more", "message"),
    [
        ("jetson", {"board": "cpu"}, "cpu is no Jetson"),
        ("cpu", {"board": "agx-thor"}, "--board agx-thor is for --target jetson"),
        ("cpu", {"jetpack": "6.2"}, "cpu has no JetPack"),
        ("jetson", {"tensorrt": "new"}, "'new' is no version"),
        ("toaster", {}, "unknown target 'toaster'"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused(target: str, more: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_place(target, root=PRE_JETSON, **more)  # type: ignore[arg-type]


def test_host_is_the_gpu_that_is_there() -> None:
    place = find_place("host", query_gpu=lambda: "NVIDIA RTX 6000 Ada Generation, 8.9, 49140\n")
    found = plan_export(SEVEN_B, place, "fp8").boards[0]
    assert found.usable_gb == pytest.approx(46.4, abs=0.1)
    assert found.refusals == ()
    assert "nvfp4 does not run" in plan_export(SEVEN_B, place, "nvfp4").refusals[0]


@pytest.mark.parametrize("answer", ["", "no devices were found\n"])
def test_host_without_a_gpu_is_refused(answer: str) -> None:
    with pytest.raises(ConfigError, match="nvidia-smi shows none; use --target cpu"):
        find_place("host", query_gpu=lambda: answer)


def test_nvfp4_is_planned_for_edge_llm_alone(nano: ModelSize) -> None:
    """Nothing here writes it; NVIDIA's own tools do, for the boards on which they run a Qwen model."""
    for size, more in ((nano, {}), (nano, {"jetpack": "7.0"}), (SEVEN_B, {"jetpack": "7.1"})):
        found = plan(size, "agx-thor", "nvfp4", **more)
        assert found.refusals == (NVFP4_REASON,)
        assert not any(line.startswith("then type") for line in plan_lines(found))
    here = find_place("host", query_gpu=lambda: "NVIDIA GeForce RTX 5090, 12.0, 32607\n")
    assert plan_export(nano, here, "nvfp4").refusals == (NVFP4_REASON,)
    assert plan(SEVEN_B, "agx-thor", "nvfp4").refusals == ()


@pytest.mark.parametrize("precision", WRITTEN_PRODUCTS)
def test_products_of_a_model_that_has_none_are_refused_by_its_plan(nano: ModelSize, precision: str) -> None:
    qwen = replace(nano, name="qwen3_vl in run", has_own_products=False)
    (reason,) = plan(qwen, "agx-thor", precision).refusals
    assert reason.startswith(f"{precision} is written for nano and smol models, and this is qwen3_vl in run")
    assert plan(nano, "agx-thor", precision).refusals == ()
    assert plan(replace(qwen, has_own_graphs=False), "agx-thor", precision).refusals == ()  # Edge-LLM's to do


def test_a_plan_from_published_sizes_says_what_a_run_of_that_family_gets() -> None:
    assert any("'roboalign export RUN', with graphs" in note for note in plan(SEVEN_B, "cpu").notes)
    assert any("no graphs for a model without eyes" in note for note in plan(model_size("qwen3-0.6b"), "cpu").notes)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="'fp4', expected one of fp32, fp16"):
        plan(SEVEN_B, "cpu", "fp4")


@pytest.mark.parametrize("model", [*model_names(), "nano"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_plan_fits_80_columns_and_shows_every_part_and_reason(model: str, precision: str, nano: ModelSize) -> None:
    size = nano if model == "nano" else model_size(model)
    for target in (*(name for name in all_targets() if name != "host"), "jetson"):
        found = plan(size, target, precision)
        lines = plan_lines(found)
        assert max(map(len, lines)) <= 80
        text = " ".join(" ".join(lines).split())
        assert all(reason in text for reason in found.refusals)
        assert all(note in text for note in found.notes)
        assert "predicted" in text


def test_the_board_table_says_what_kind_of_reason_each_board_has() -> None:
    rows = {
        line.split()[0] + line.split()[1]: line.split("  ")[-1]
        for line in plan_lines(plan(SEVEN_B, "jetson", "int4"))[2:16]
    }
    assert rows["orin-nano-8gb6.2/10.3"] == "no ORB"
    assert rows["orin-nano-8gb7.2/10.16"] == "no RB"
    assert rows["agx-orin-64gb7.2/10.16"] == "yes"


def test_the_board_table_marks_every_rate_as_predicted() -> None:
    lines = plan_lines(plan(model_size("qwen3-vl-2b"), "jetson"))
    assert lines[1].split()[-3:] == ["tok/s*", "chunks/s*", "fits"]
    assert any(line.startswith("* predicted, not measured") for line in lines)


def test_a_small_model_gets_no_rate_that_bytes_alone_would_promise(nano: ModelSize) -> None:
    found = plan_board(
        nano, find_target("agx-orin-64gb"), "fp16", jetpack=find_jetpack(find_target("agx-orin-64gb"), "7.2")
    )
    assert found.prediction is not None
    assert found.prediction.is_upper_bound
    assert "tokens/s" not in "\n".join(plan_lines(plan(nano, "agx-orin-64gb")))
