"""What every suite shares: one thread, no network, and opt-in suites that are counted when they do not run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Before anything loads OpenMP or a Hugging Face package: both read the environment once.
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}.items():
    os.environ.setdefault(_name, _value)

ROOT = Path(__file__).resolve().parents[1]

OPT_IN = {
    "slow": "takes minutes",
    "gate": "makes environments and installs packages, part of make test",
    "gpu": "needs a CUDA device",
    "jetson": "needs a Jetson with TensorRT",
    "robot": "moves hardware",
    "rtx": "needs NVIDIA's compiler, tensorrt-rtx-cu13",
    "edge_llm": "needs tensorrt-edgellm, in the environment of ROBOALIGN_EDGE_LLM_PYTHON",
    "modelopt": "needs nvidia-modelopt, in the environment of ROBOALIGN_MODELOPT_PYTHON",
    "browser": "needs headless Chromium (apt install chromium-headless-shell)",
    "rerun": "needs rerun-sdk (pip install 'roboalign[rerun]')",
    "peers": "needs other projects' packages",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--also",
        action="append",
        default=[],
        choices=sorted(OPT_IN),
        help="run this opt-in suite too (repeatable); without it its tests are counted as skipped",
    )
    parser.addoption("--write-golden", action="store_true", help="rewrite the files under tests/golden, then compare")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips opt-in tests that were not asked for by `--also MARKER` or `-m MARKER`, and says how to run them."""
    asked = {*config.getoption("--also"), *re.findall(r"\w+", config.getoption("-m") or "")}
    for item in items:
        for marker, why in OPT_IN.items():
            if marker not in asked and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{marker}: {why}; run with: pytest --also {marker}"))
                break


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the working tree, built once."""
    out = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))
