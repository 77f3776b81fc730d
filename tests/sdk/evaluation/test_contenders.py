import subprocess
import sys

import numpy as np
import pytest

from roboalign.sdk.errors import BackendError, BundleError, ConfigError
from roboalign.sdk.evaluation.contenders import PolicyRef, fingerprint, named_policy
from roboalign.sdk.evaluation.rollouts import EvalConfig, evaluate
from roboalign.sdk.evaluation.scenes import SceneRef


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "magic"},
        {"kind": "bundle", "actions": "slow"},
        {"kind": "checkpoint"},
        {"kind": "expert", "path": "x"},
        {"kind": "random", "is_shuffled": True},
        {"kind": "expert", "is_blind": True},
        {"kind": "remote"},
        {"kind": "callable"},
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
    assert PolicyRef(kind="bundle", path="runs/x", is_blind=True).name == "runs/x, blind"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (None, "bundle"),
        ("expert", "expert"),
        ("ws://127.0.0.1:8350", "remote"),
        ("package.module:make", "callable"),
        ("policies/mine.py:Mine", "callable"),
    ],
)
def test_a_name_says_what_kind_of_policy_it_is(name, kind):
    assert named_policy(name).kind == kind


@pytest.mark.parametrize(
    ("files", "kind", "place"),
    [
        (("manifest.json",), "bundle", "."),
        (("roboalign.json",), "checkpoint", "."),
        (("head/roboalign.json", "bundle/manifest.json"), "bundle", "bundle"),
        (("sft/roboalign.json", "head/roboalign.json"), "checkpoint", "head"),
    ],
)
def test_the_folder_of_a_run_stands_for_its_policy(tmp_path, files, kind, place):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    ref = named_policy(str(tmp_path))
    assert (ref.kind, ref.folder) == (kind, tmp_path / place)


def test_a_folder_without_a_policy_says_what_it_has(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(BundleError, match=r"neither a bundle.*notes\.txt"):
        named_policy(str(tmp_path))


def test_a_misspelt_control_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean expert"):
        named_policy("exprt")


def test_a_python_file_without_a_name_is_explained():
    with pytest.raises(ConfigError, match=r"mine\.py:NAME"):
        named_policy("mine.py")


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
    env = SceneRef().open()
    policy = PolicyRef(kind="random").open(env)
    env.reset(seed=1, options={"task": "place"})
    before = env.observe(with_image=False).state
    policy.seed_episode(1)
    for action in policy.act(env.observe(with_image=False)).actions:
        env.step(action)
    assert np.abs(env.observe(with_image=False).state[:3] - before[:3]).max() > 0.02
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "bundle", "backend": "tensort"}, "unknown backend 'tensort'.*tensorrt"),
        ({"kind": "random", "backend": "cpu"}, "a random policy is not run by the backend 'cpu'"),
        ({"kind": "remote", "path": "http://x:1", "backend": "cpu"}, "choose a backend where it is served"),
        ({"kind": "checkpoint", "path": "x", "backend": "onnx-cuda"}, "choose a backend on a bundle"),
    ],
)
def test_a_backend_that_would_not_be_used_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        PolicyRef(**options)


def test_a_backend_that_is_asked_for_is_used_or_an_error():
    """onnxruntime for CPUs is what is installed here; CUDA that was asked for is never the CPU."""
    env = SceneRef().open()
    try:
        with PolicyRef(kind="bundle", backend="cpu").open(env) as policy:
            assert policy.spec.has_head
        with pytest.raises(BackendError, match="CUDAExecutionProvider was asked for and cannot be used"):
            PolicyRef(kind="bundle", backend="onnx-cuda").open(env)
    finally:
        env.close()


def test_a_bundle_for_another_robot_is_refused():
    """It once acted in scenes of the other arm, and failed without a word."""
    env = SceneRef().open()
    try:
        with pytest.raises(BundleError, match="is for the robot so101, and this is panda"):
            named_policy("nano-so101").open(env)
    finally:
        env.close()
