import subprocess
import sys

import numpy as np
import pytest

from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.sdk.evaluation.contenders import PolicyRef, fingerprint
from roboalign.sdk.evaluation.rollouts import EvalConfig, evaluate


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "magic"},
        {"kind": "bundle", "actions": "slow"},
        {"kind": "checkpoint"},
        {"kind": "expert", "path": "x"},
        {"kind": "random", "is_shuffled": True},
    ],
)
def test_a_policy_that_cannot_be_is_refused(options):
    with pytest.raises(ConfigError):
        PolicyRef(**options)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(BundleError, match="nothing"):
        PolicyRef(kind="bundle", path=str(tmp_path / "nothing")).describe()


def test_the_fingerprint_follows_the_description(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    before = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == before
    (tmp_path / "manifest.json").write_text("[]")
    assert fingerprint(tmp_path) != before


def test_tables_name_the_policy():
    assert PolicyRef(kind="expert").name == "expert"
    assert PolicyRef(kind="bundle", is_shuffled=True).name == "shipped bundle, shuffled instruction"
    assert PolicyRef(kind="bundle", path="runs/x").name == "runs/x"


def test_the_expert_and_chance_are_far_apart(tmp_path):
    expert = evaluate(EvalConfig(out=tmp_path / "e", episodes=4, films=0), PolicyRef(kind="expert"))
    chance = evaluate(EvalConfig(out=tmp_path / "r", episodes=2, films=0), PolicyRef(kind="random"))
    assert (expert.total.num_successes, expert.who_acted) == (4, "expert")
    assert (chance.total.num_successes, chance.who_acted) == (0, "random")


def test_simulated_evaluations_repeat_bit_by_bit_in_any_number_of_processes(tmp_path):
    reports = [
        evaluate(EvalConfig(out=tmp_path / name, episodes=3, films=films, workers=workers), PolicyRef(kind="expert"))
        for name, films, workers in (("a", 0, 1), ("b", 1, 2))
    ]
    assert reports[0].state_hashes == reports[1].state_hashes
    assert reports[0].successes == reports[1].successes
    assert len(set(reports[0].state_hashes)) == 3


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, roboalign.sdk.evaluation\n"
        "heavy = {'torch', 'onnxruntime', 'pybullet', 'gymnasium', 'PIL', 'matplotlib', 'rich', 'tokenizers'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_random_policy_moves_the_simulated_arm():
    env, policy = PolicyRef(kind="random").open("train")
    env.reset(seed=1, options={"family": "place"})
    before = env.observe(with_image=False).state
    policy.seed_episode(1)
    for action in policy.act(env.observe(with_image=False)).actions:
        env.step(action)
    assert np.abs(env.observe(with_image=False).state[:3] - before[:3]).max() > 0.02
    env.close()
