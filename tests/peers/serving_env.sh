#!/bin/sh
# Sets up the environment of tests/peers/test_served_policy.py: openpi-client 0.1.2 (numpy 1) and vla-eval 0.8.0.
#
#     tests/peers/serving_env.sh [FOLDER]      (default: .venv-serving beside pyproject.toml)
#     pytest --also peers tests/peers/test_served_policy.py
#
# PYTHON names the interpreter (default: python3.11). 330 MB of disk.
# ROBOALIGN_SERVING_PYTHON=<FOLDER>/bin/python tells the tests of an environment elsewhere.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$root/.venv-serving}
"${PYTHON:-python3.11}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet 'openpi-client==0.1.2' 'vla-eval==0.8.0'
"$folder/bin/python" -c 'import openpi_client.websocket_client_policy, vla_eval.connection'
echo "$folder/bin/python"
