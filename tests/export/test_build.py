"""`roboalign build` on files of boards, with a stub of TensorRT and CUDA: what it refuses, keeps and writes.

Nothing here ran on a board. `tests/sdk/test_tensorrt.py` runs what was built.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.boards import THOR, write_board
from tests.stub_board import SOME_PARITY, StubBoard, make_portable, stub_board

from roboalign.cli.main import main
from roboalign.export import build as build_module
from roboalign.export import engine_parts
from roboalign.export.build import build, copy_bundle, find_builder
from roboalign.sdk.bundle import file_record, read_bundle, shipped_bundle_path, write_manifest
from roboalign.sdk.engines import read_engines
from roboalign.sdk.errors import BackendError, BundleError, CheckFailed, ConfigError
from roboalign.sdk.views.reference import REFERENCE_NAME, find_reference, read_reference


@pytest.fixture
def portable(tmp_path: Path) -> Path:
    return make_portable(tmp_path / "portable")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_board(tmp_path / "board")


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubBoard]:
    with stub_board(monkeypatch) as board:
        yield board


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A bundle that was built and compared, read only, and what was said."""
    folder = tmp_path_factory.mktemp("built")
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch, stub_board(patch) as board:
        build(make_portable(folder / "bundle"), say=lines.append, root=board.write(folder / "board"))
    return folder / "bundle", lines


@pytest.fixture
def finished(built_once: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A copy of it, in which every part is there."""
    shutil.copytree(built_once[0], tmp_path / "finished")
    return tmp_path / "finished"


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the comparison out of tests that are about building; others run it."""
    monkeypatch.setattr(build_module, "compare_engines", lambda *args: SOME_PARITY)


def quiet(line: str) -> None:
    pass


# What is refused before anything is compiled.


def test_no_board_is_the_reason_on_another_machine(portable: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="built on the Jetson itself, and this machine is none"):
        build(portable, root=tmp_path / "empty")


def test_a_board_without_tensorrt_is_told_what_to_install(portable: Path, tmp_path: Path) -> None:
    root = write_board(tmp_path / "board", tensorrt=None)
    with pytest.raises(BackendError, match="no libnvinfer of JetPack is on it; install it with: sudo apt"):
        build(portable, root=root)


def test_a_tensorrt_that_its_jetpack_does_not_have_is_refused(portable: Path, tmp_path: Path) -> None:
    root = write_board(tmp_path / "board", tensorrt="11.4.1")
    with pytest.raises(BackendError, match=r"TensorRT 11\.4\.1, and JetPack 6\.2 is known with 10\.3 to 10\.3"):
        build(portable, root=root)


def test_a_bundle_for_another_board_is_refused(tmp_path: Path, root: Path) -> None:
    folder = make_portable(tmp_path / "thor", target="agx-thor")
    with pytest.raises(BundleError, match="is for agx-thor, and this is agx-orin-64gb"):
        build(folder, root=root)


def test_a_bundle_for_a_cpu_needs_no_build(root: Path) -> None:
    with pytest.raises(BundleError, match="is for cpu and runs as it is"):
        build(shipped_bundle_path(), root=root)


def test_a_damaged_bundle_is_refused_before_the_board_is_looked_at(portable: Path, tmp_path: Path) -> None:
    (portable / "step.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"damaged: step\.onnx"):
        build(portable, root=tmp_path / "empty")


def test_a_board_that_lacks_nothing_is_found(tmp_path: Path) -> None:
    release = "# R38 (release), REVISION: 4.0"
    root = write_board(tmp_path, model=THOR, memory_gib=122.8, release=release, tensorrt="10.13.3")
    board, target, jetpack = find_builder(root)
    assert jetpack is not None
    assert (board.tensorrt, target.name, jetpack.name) == ("10.13.3", "agx-thor", "7.1")


def test_a_tensorrt_that_hides_jetpacks_is_refused(portable: Path, root: Path, monkeypatch) -> None:
    with stub_board(monkeypatch, "10.3.0", VERSION="10.13.3"):
        refused(
            portable, root, BackendError, r"Python imports TensorRT 10\.13\.3, and JetPack's libnvinfer is 10\.3\.0"
        )


def test_another_gpu_than_the_boards_is_refused(portable: Path, root: Path, monkeypatch) -> None:
    with stub_board(monkeypatch, CAPABILITY="9.0"):
        refused(portable, root, BackendError, r"compute capability 8\.7, and CUDA finds 9\.0")


def test_a_board_whose_python_lacks_tensorrt_is_told_so(portable: Path, root: Path) -> None:
    refused(portable, root, BackendError, r"Python cannot import TensorRT .* --system-site-packages")


def test_a_board_without_onnxruntime_is_told_so(portable: Path, root: Path, monkeypatch) -> None:
    monkeypatch.setattr(build_module, "find_spec", lambda name: None)
    refused(portable, root, BackendError, r"comparing engines needs the package 'onnxruntime'.*roboalign\[cpu\]")


def test_too_little_free_memory_is_refused(portable: Path, root: Path, stub: StubBoard) -> None:
    (root / "proc/meminfo").write_text("MemTotal: 64381517 kB\nMemAvailable:   300000 kB\n")
    refused(portable, root, ConfigError, r"needs about 0\.5 GB of memory and 0\.3 GB is free; stop other programs")


def test_too_little_disk_is_refused(portable: Path, root: Path, stub: StubBoard, monkeypatch) -> None:
    usage = shutil.disk_usage(portable)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000_000))
    refused(portable, root, ConfigError, r"engines need up to 0\.2 GB of disk, and 0\.1 GB is free")


def refused(bundle: Path, root: Path, kind: type[Exception], reason: str) -> None:
    before = sorted(bundle.rglob("*"))
    with pytest.raises(kind, match=reason):
        build(bundle, say=quiet, root=root)
    assert sorted(bundle.rglob("*")) == before


def test_a_bundle_without_observations_is_refused_before_anything_is_compiled(portable, root, stub) -> None:
    manifest = read_bundle(portable).manifest
    files = {name: record for name, record in manifest.files.items() if name != "parity.safetensors"}
    write_manifest(portable, replace(manifest, files=files))
    refused(portable, root, BundleError, r"has no parity\.safetensors to compare engines on; export it again")


# What is built.


def test_the_receipt_says_what_was_built_where_and_how_it_passed(built_once: tuple[Path, list[str]]) -> None:
    bundle, lines = built_once
    found = read_engines(bundle / "engines/agx-orin-64gb-trt10.3.0-sm8.7-maxn")
    assert (found.target, found.jetpack, found.l4t) == ("agx-orin-64gb", "6.2", "36.4.3")
    assert (found.tensorrt, found.capability, found.power_mode) == ("10.3.0", "8.7", "MAXN")
    assert set(found.engines) == {"prefill", "step", "flow"}
    files = read_bundle(bundle).manifest.files
    assert found.engines["flow"].graph_sha256 == files["flow.onnx"].sha256
    assert found.engines["flow"].weights_sha256 == {"head.safetensors": files["head.safetensors"].sha256}
    assert found.parity is not None
    assert found.parity.num_tokens > 100
    assert found.parity.equal_tokens == 1.0
    said = f"compared: 100.00% of {found.parity.num_tokens} tokens identical; largest differences of actions"
    assert any(line.startswith(said) for line in lines)
    assert set(found.parity.action_errors) == set(read_bundle(bundle).manifest.policy.action_names)
    assert lines[0].startswith("Jetson AGX Orin 64GB, JetPack 6.2, TensorRT 10.3.0, power mode MAXN, memory free: 52.7")
    assert "[2/3] prefill.onnx: building with TensorRT 10.3.0" in lines
    assert not list(bundle.rglob("*.tmp"))
    head = next(bundle.rglob("flow-*.engine")).read_bytes()[:200]
    assert b'"tf32": false' in head  # the arithmetic is what the graph says


def test_what_was_finished_is_kept_when_a_later_part_fails(portable, root, monkeypatch, unmeasured) -> None:
    with stub_board(monkeypatch, FAULT="crash step.onnx"):
        with pytest.raises(BackendError, match=r"TensorRT died of step\.onnx \(exit code -6\)"):
            build(portable, say=quiet, root=root)
        assert not list(portable.rglob("engines.json"))
    lines: list[str] = []
    with stub_board(monkeypatch, FAULT=""):
        receipt = build(portable, say=lines.append, root=root)
    assert [line for line in lines if "kept" in line or "built in" in line] == [
        "[1/3] flow.onnx: kept, it was built before in " + took(receipt, "flow"),
        "[2/3] prefill.onnx: kept, it was built before in " + took(receipt, "prefill"),
        *[line for line in lines if line.startswith("[3/3] step.onnx: built in")],
    ]


def took(receipt: Path, role: str) -> str:
    return f"{read_engines(receipt.parent).engines[role].build_s:.0f} s"


def test_an_interrupt_ends_the_compiler_and_leaves_nothing_half_written(
    portable, root, monkeypatch, unmeasured
) -> None:
    children = []
    start = engine_parts.subprocess.Popen

    def popen(*args: object, **kwargs: object) -> object:
        children.append(start(*args, **kwargs))
        return children[-1]

    def interrupt(line: str) -> None:
        if "prefill" in line:
            monkeypatch.setattr(engine_parts.time, "sleep", raise_interrupt)

    def raise_interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine_parts.subprocess, "Popen", popen)
    with stub_board(monkeypatch, FAULT="hang prefill.onnx"), pytest.raises(KeyboardInterrupt):
        build(portable, say=interrupt, root=root)
    assert children[-1].returncode == -9
    left = sorted(path.name.partition("-")[0] for path in portable.glob("engines/*/*"))
    assert left == ["flow", "flow"]


def test_a_hang_ends(portable: Path, root: Path, monkeypatch, unmeasured) -> None:
    monkeypatch.setattr(engine_parts.Builder.__init__, "__kwdefaults__", {"timeout_s": 1.0})
    lines: list[str] = []
    monkeypatch.setattr(engine_parts, "_PROGRESS_S", 0.5)
    reason = r"did not finish flow\.onnx within 1 s"
    with stub_board(monkeypatch, FAULT="hang flow.onnx"), pytest.raises(BackendError, match=reason):
        build(portable, say=lines.append, root=root)
    assert "[1/3] flow.onnx: 1 s" in lines


@pytest.mark.parametrize("damage", ["engine", "record"])
def test_a_part_that_is_not_what_it_was_is_built_again(finished, root, stub, unmeasured, damage: str) -> None:
    (receipt,) = finished.rglob("engines.json")
    part = receipt.parent / read_engines(receipt.parent).engines["flow"].file
    path = part if damage == "engine" else part.with_suffix(".engine.json")
    path.write_bytes(path.read_bytes()[:-9])
    lines: list[str] = []
    build(finished, say=lines.append, root=root)
    assert next(line for line in lines if "built in" in line).startswith("[1/3] flow.onnx: built in")
    assert len([line for line in lines if "kept" in line]) == 2


def test_another_power_mode_has_engines_of_its_own(finished, tmp_path, stub, unmeasured) -> None:
    receipts = {
        build(finished, say=quiet, root=write_board(tmp_path / mode, power_mode=mode)) for mode in ("MAXN", "MODE_15W")
    }
    assert {receipt.parent.name for receipt in receipts} == {
        "agx-orin-64gb-trt10.3.0-sm8.7-maxn",
        "agx-orin-64gb-trt10.3.0-sm8.7-mode-15w",
    }
    files = [{part.file for part in read_engines(one.parent).engines.values()} for one in sorted(receipts)]
    assert not files[0] & files[1]


def test_parts_of_an_older_export_go_and_those_that_did_not_change_stay(finished, root, stub, unmeasured) -> None:
    (receipt,) = finished.rglob("engines.json")
    before = {role: part.file for role, part in read_engines(receipt.parent).engines.items()}
    change_file(finished, "flow.onnx", lambda content: content + b"\x32\x00")  # another, empty, documentation
    lines: list[str] = []
    build(finished, say=lines.append, root=root)
    after = {role: part.file for role, part in read_engines(receipt.parent).engines.items()}
    assert after["step"] == before["step"]
    assert after["flow"] != before["flow"]
    assert not (receipt.parent / before["flow"]).exists()
    assert len([line for line in lines if "kept" in line]) == 2


def change_file(bundle: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    manifest = read_bundle(bundle).manifest
    (bundle / name).write_bytes(change((bundle / name).read_bytes()))
    write_manifest(bundle, replace(manifest, files={**manifest.files, name: file_record(bundle / name)}))


def test_a_refusal_is_tensorrts_own(portable: Path, root: Path, monkeypatch) -> None:
    reason = r"the compiler refuses flow\.onnx: Could not find any implementation"
    with stub_board(monkeypatch, FAULT="refuse"), pytest.raises(CheckFailed, match=reason):
        build(portable, say=quiet, root=root)
    assert not list(portable.rglob("*.engine"))


def test_a_graph_that_the_parser_refuses_is_named_with_its_reason(portable, root, stub) -> None:
    import onnx

    def newer(content: bytes) -> bytes:
        model = onnx.load_model_from_string(content)
        model.opset_import[0].version = 21
        return bytes(model.SerializeToString())

    change_file(portable, "flow.onnx", newer)
    with pytest.raises(CheckFailed, match=r"the parser refuses flow\.onnx: opset 21 is newer than 20"):
        build(portable, say=quiet, root=root)


@pytest.mark.parametrize(
    ("output", "reason"),
    [("logits", r"answer 0 differs from onnxruntime's at token"), ("actions", r"differs from onnxruntime's by .*%")],
)
def test_engines_that_answer_otherwise_get_no_receipt(finished, root, monkeypatch, output: str, reason: str) -> None:
    next(finished.rglob("engines.json")).unlink()
    with (
        stub_board(monkeypatch, FAULT=f"wrong {output}"),
        pytest.raises(CheckFailed, match=f"engines fail: .*{reason}"),
    ):
        build(finished, say=quiet, root=root)
    assert len(list(finished.rglob("*.engine"))) == 3
    assert not list(finished.rglob("engines.json"))


def test_observations_that_are_all_alike_prove_nothing(finished, root, stub, monkeypatch) -> None:
    honest = build_module._read_observations
    for count, reason in (
        (1, "compared on 2 or more observations, the bundle has 1"),
        (2, "proves nothing: 1 different answers over 2 observations"),
    ):
        monkeypatch.setattr(
            build_module, "_read_observations", lambda bundle, n=count, read=honest: read(bundle)[:1] * n
        )
        with pytest.raises(CheckFailed, match=reason):
            build(finished, say=quiet, root=root)


def test_out_is_a_copy_that_is_built(portable, root, tmp_path, stub, unmeasured) -> None:
    out = tmp_path / "copies" / "built"
    receipt = build(portable, out=out, say=quiet, root=root)
    assert receipt.is_relative_to(out)
    assert read_bundle(out).manifest == read_bundle(portable).manifest
    assert not (portable / "engines").exists()
    assert build(portable, out=out, say=quiet, root=root) == receipt
    with pytest.raises(ConfigError, match="exists and is not this bundle, so it is left alone"):
        build(portable, out=tmp_path, say=quiet, root=root)


def test_the_command_prints_the_receipt(finished, root, stub, unmeasured, monkeypatch, capsys) -> None:
    monkeypatch.setattr(build_module, "build", lambda bundle, out, say: build(bundle, out=out, say=say, root=root))
    assert main(["build", str(finished), "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert Path(result["path"]).is_file()
    assert result["engines"]["engines"]["step"]["num_bytes"] > 1_000_000
    assert "[3/3] step.onnx: kept" in err


@pytest.mark.parametrize("more", [[], ["--on", "user@board"]])
def test_the_command_knows_shipped_bundles_by_name(more: list[str], capsys) -> None:
    assert main(["build", "nano-policy", *more]) == 2
    assert "is for cpu and runs as it is; there is nothing to build" in capsys.readouterr().err


def test_building_needs_no_framework(tmp_path: Path) -> None:
    code = (
        "import sys; import roboalign.export.build, roboalign.export.remote_build, roboalign.export.compile_engine\n"
        "print([name for name in ('torch', 'onnx', 'transformers', 'tensorrt', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


RTX_PYTHON = os.environ.get("ROBOALIGN_RTX_PYTHON", sys.executable)


@pytest.mark.rtx
def test_the_code_that_compiles_runs_with_nvidias_own_python_api(tmp_path: Path) -> None:
    """TensorRT-RTX has the same builder and parser in Python, and needs no GPU; only the name differs."""
    code = (
        "import sys, tensorrt_rtx; sys.modules['tensorrt'] = tensorrt_rtx\n"
        "from pathlib import Path; from roboalign.export.compile_engine import compile_engine\n"
        "compile_engine(Path(sys.argv[1]), Path(sys.argv[2]), 2**30)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    for path in sorted(shipped_bundle_path().glob("*.onnx")):
        engine = tmp_path / f"{path.stem}.engine"
        command = [RTX_PYTHON, "-c", code, str(path), str(engine)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert engine.stat().st_size > 1_000_000


def test_a_copy_keeps_what_the_doctor_compares_with(tmp_path: Path) -> None:
    shipped = read_bundle(shipped_bundle_path())
    kept = copy_bundle(shipped, tmp_path / "copy")
    assert read_reference(find_reference(kept.path)) == read_reference(find_reference(shipped.path))
    (kept.path / REFERENCE_NAME).unlink()
    assert find_reference(copy_bundle(kept, tmp_path / "bare").path) is None
