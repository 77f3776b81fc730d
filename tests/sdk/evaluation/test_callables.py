import numpy as np
import pytest
from evaluation_fakes import SPEC, LineEnv, LineScene

from roboalign.sdk.errors import BackendError, ConfigError, DataError
from roboalign.sdk.evaluation.callables import callable_fingerprint, is_callable_name, load_callable
from roboalign.sdk.evaluation.contenders import PolicyRef, named_policy
from roboalign.sdk.evaluation.rollouts import EvalConfig, evaluate

CODE = """
import numpy as np
from roboalign.sdk import ActionChunk

def right(observation):
    return np.tile([0.04, 0, 0, 0, 1], (4, 1))

def make(spec):
    return Walker(spec.max_step_m)

def make_function():
    return right

class Walker:
    needs_image = False
    def __init__(self, step_m=0.04):
        self.step_m, self.resets = step_m, 0
    def reset(self):
        self.resets += 1
    def act(self, observation):
        return ActionChunk(actions=np.array([[self.step_m, 0, 0, 0, 1]]), rate_hz=10.0, source="mine")

def fails(observation):
    return 1 / 0

def wrong_shape(observation):
    return np.zeros((4, 3))

def not_finite(observation):
    return np.full((1, 5), np.nan)

def words(observation):
    return "go right"

def takes_two(observation, spec):
    return None

def returns_nothing(spec):
    return None

number = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


@pytest.fixture
def observation():
    env = LineEnv()
    env.reset(seed=4, options={"task": "place"})
    return env.observe(with_image=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a.b:make", True), ("dir/file.py:Make", True), ("ws://host:80", False), ("runs/x", False), ("a:b c", False)],
)
def test_names_of_code_are_told_from_folders_and_addresses(text, expected):
    assert is_callable_name(text) is expected


@pytest.mark.parametrize(
    ("name", "source", "steps"),
    [("right", "callable", 4), ("make", "mine", 1), ("make_function", "callable", 4), ("Walker", "mine", 1)],
)
def test_functions_factories_and_classes_act(file, observation, name, source, steps):
    chunk = load_callable(f"{file}:{name}", SPEC).act(observation)
    assert (chunk.source, len(chunk.actions)) == (source, steps)
    np.testing.assert_allclose(chunk.actions[0], [0.04, 0, 0, 0, 1])


def test_an_object_is_reset_and_says_whether_it_looks(file):
    policy = load_callable(f"{file}:Walker", SPEC)
    policy.reset()
    assert policy._owner.resets == 1
    assert not policy.needs_image


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("fails", BackendError, r"ZeroDivisionError.*mine\.py, line 24"),
        ("wrong_shape", DataError, r"shape \[4, 3\], expected \[T, 5\]"),
        ("not_finite", DataError, "mine.py:not_finite answered numbers that are not finite"),
        ("words", DataError, "answered str"),
    ],
)
def test_a_useless_answer_is_explained(file, observation, name, error, message):
    with pytest.raises(error, match=message):
        load_callable(f"{file}:{name}", SPEC).act(observation)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("takes_two", r"takes \(observation, spec\)"),
        ("returns_nothing", "returned NoneType"),
        ("number", "no function or class 'number'; it has: .*Walker"),
        ("absent", "no function or class 'absent'"),
    ],
)
def test_code_that_cannot_be_a_policy_is_explained(file, name, message):
    with pytest.raises(ConfigError, match=message):
        load_callable(f"{file}:{name}", SPEC)


def test_a_file_that_fails_to_load_is_named_with_its_line(tmp_path):
    (tmp_path / "broken.py").write_text("x = 1\nraise ValueError('no')\n")
    with pytest.raises(BackendError, match=r"ValueError: no at .*broken\.py, line 2"):
        load_callable(f"{tmp_path}/broken.py:make", SPEC)


def test_an_error_of_syntax_names_the_file_and_not_the_importer(tmp_path):
    (tmp_path / "broken.py").write_text("def make(:\n")
    with pytest.raises(BackendError, match=r"SyntaxError: .*\(broken\.py, line 1\); use --debug"):
        load_callable(f"{tmp_path}/broken.py:make", SPEC)


@pytest.mark.parametrize("name", ["no_such_module:make", "nowhere/file.py:make"])
def test_missing_code_is_named(name):
    with pytest.raises(ConfigError, match=name.partition(":")[0]):
        load_callable(name, SPEC)
    with pytest.raises(ConfigError, match=name.partition(":")[0]):
        callable_fingerprint(name)


@pytest.mark.parametrize("name", ["no_package.module:make", ".relative:make"])
def test_a_module_that_cannot_be_looked_for_is_named(name):
    """`importlib` raises errors of its own for these, which reached the user as a bug of ours."""
    with pytest.raises(ConfigError, match="there is no module or file"):
        callable_fingerprint(name)


def test_a_module_of_the_working_folder_is_found(file, monkeypatch, observation):
    monkeypatch.chdir(file.parent)
    assert load_callable("mine:right", SPEC).act(observation).source == "callable"


def test_changed_code_does_not_go_on_in_the_same_folder(file, tmp_path):
    ref, config = named_policy(f"{file}:right"), EvalConfig(out=tmp_path / "out", episodes=2, films=0)
    evaluate(config, ref, LineScene())
    file.write_text(CODE.replace("0.04", "0.02"))
    with pytest.raises(ConfigError, match="policy fingerprint"):
        evaluate(config, ref, LineScene())


def test_code_is_evaluated_in_worker_processes(file, tmp_path):
    config = EvalConfig(out=tmp_path / "out", episodes=4, films=0, workers=2)
    report = evaluate(config, PolicyRef(kind="callable", path=f"{file}:make"), LineScene())
    assert (report.total.num_successes, report.who_acted) == (4, "mine")
