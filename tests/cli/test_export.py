"""`roboalign export` and `build` from the command line: plans, a portable bundle, and honest refusals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.bundles import tiny_run

from roboalign.cli.main import main
from roboalign.sdk.bundle import shipped_bundle_path

NANO = str(shipped_bundle_path())


def test_a_plan_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", NANO, "--target", "jetson", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("plan: nano in nano-policy in fp16 for any Jetson, portable, opset 20\n")
    assert max(map(len, out.splitlines())) <= 80
    assert err == ""


def test_a_shipped_bundle_is_planned_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "nano-policy", "--target", "jetson", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("plan: nano in nano-policy in fp16")


def test_a_plan_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", NANO, "--target", "jetson", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["result"]
    assert (found["built"], found["next_command"], len(found["boards"])) == (False, "roboalign build .", 14)


def test_a_plan_that_is_refused_is_printed_and_a_failed_check(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["export", "--model", "qwen2.5-vl-7b", "--target", "jetson", "--board", "orin-nano-8gb", "--dry-run"]
    assert main(args) == 1
    out, err = capsys.readouterr()
    assert "refused     qwen2.5-vl-7b in fp16 needs about" in out
    assert err.startswith("error: the export would be refused: qwen2.5-vl-7b in fp16 needs about 21.0 GB to run")


def test_tensorrt_11_is_refused_on_jetpack_6(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--target", "agx-orin-64gb", "--jetpack", "6.2", "--tensorrt", "11.4", "--dry-run"]
    assert main(["export", NANO, *args]) == 1
    assert "TensorRT 11.4 does not run on JetPack 6.2" in capsys.readouterr().err


def test_a_compiler_for_a_cpu_is_refused_before_it_is_asked_to_be_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "nano-policy", "--check", "rtx"]) == 2
    assert "--check rtx is for boards; for cpu nothing is compiled" in capsys.readouterr().err


def test_a_plan_loads_no_framework(tmp_path: Path) -> None:
    code = (
        "import sys; from roboalign.cli.main import main\n"
        f"main(['export', {NANO!r}, '--target', 'jetson', '--dry-run'])\n"
        "print([name for name in ('torch', 'onnx', 'transformers', 'numpy.linalg.x') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_without_a_jetson_the_bundle_says_that_it_is_not_built_and_what_to_type(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    from tests.bundles import some_observations

    from roboalign.export import calibration

    run, out = tiny_run(tmp_path_factory.getbasetemp()), tmp_path / "bundle"
    monkeypatch.setattr(calibration, "simulated_observations", lambda count, robot: some_observations())
    assert main(["export", str(run), "--target", "jetson", "--out", str(out), "--json"]) == 0
    text, err = capsys.readouterr()
    result = json.loads(text)
    assert (result["path"], result["built"], result["next_command"]) == (str(out), False, "roboalign build .")
    assert "built: false" in err
    assert err.rstrip().endswith("roboalign build .")
    assert "any Jetson, portable" in err
    # The command that is named exists, and says here why it cannot do it.
    monkeypatch.chdir(out)
    assert main(result["next_command"].split()[1:]) == 2
    assert "engines are built on the Jetson itself, and this machine is none" in capsys.readouterr().err


def test_asking_for_engines_without_a_jetson_is_refused_before_anything_is_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["export", "nowhere", "--target", "jetson", "--build"]) == 2
    assert "engines are built on the Jetson itself" in capsys.readouterr().err


@pytest.mark.parametrize(("args", "is_board"), [(["--build"], False), ([], True)])
def test_on_a_jetson_the_export_goes_on_to_build(
    args: list[str], is_board: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import roboalign.export
    from roboalign.export import build as build_module
    from roboalign.sdk import board

    done: list[str] = []
    here = board.Board(model="some board", l4t=None, tensorrt=None, memory_bytes=None)
    monkeypatch.setattr(board, "detect_board", lambda: here if is_board else None)
    monkeypatch.setattr(build_module, "find_builder", lambda: done.append("looked"))
    monkeypatch.setattr(build_module, "build", lambda folder, say: done.append(f"built {folder}"))
    monkeypatch.setattr(roboalign.export, "export", lambda config, say: done.append("exported") or Path(NANO))
    assert main(["export", NANO, "--target", "jetson", "--json", *args]) == 0
    assert done == ["looked", "exported", f"built {NANO}"]
    result = json.loads(capsys.readouterr().out)
    assert (result["built"], result["next_command"]) == (True, "")
