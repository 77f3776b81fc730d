#!/bin/sh
# Sets up the environment of tests/peers/test_lerobot*.py: lerobot 0.6.1 and what it needs, on Python 3.12.
#
#     tests/peers/lerobot_env.sh [FOLDER]      (default: .venv-lerobot beside pyproject.toml)
#     pytest --also peers tests/peers
#
# PYTHON312 names the interpreter (default: python3.12). PyTorch for Linux comes with CUDA, so this takes 5.4 GB of disk;
# ROBOALIGN_LEROBOT_PYTHON=<FOLDER>/bin/python tells the tests of an environment elsewhere.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$root/.venv-lerobot}
"${PYTHON312:-python3.12}" -c 'import sys; assert sys.version_info >= (3, 12), sys.version'
"${PYTHON312:-python3.12}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet 'lerobot[dataset,feetech,dynamixel]==0.6.1'
"$folder/bin/python" -c 'from lerobot.datasets.lerobot_dataset import LeRobotDataset'
echo "$folder/bin/python"
