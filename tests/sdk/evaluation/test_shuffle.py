import re

import numpy as np
import pytest

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.scenes import SceneRef
from roboalign.sdk.evaluation.shuffle import shuffle_sentence
from roboalign.sdk.sim.layout import COLOURS, SHAPES
from roboalign.sdk.sim.seeds import eval_seed
from roboalign.sdk.suites import find_suite, suite_names

NAMED = re.compile(rf"\b(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})\b")
SUITES = [name for name in suite_names() if find_suite(name).kind == "sim" and find_suite(name).tasks]


def shuffled(env, task, seed):
    env.reset(seed=seed, options={"task": task})
    return shuffle_sentence(env, np.random.default_rng(seed), seed=seed)


@pytest.mark.parametrize("name", SUITES)
def test_every_task_of_every_suite_has_a_wrong_sentence(name):
    suite = find_suite(name)
    env = SceneRef(suite=name, task=suite.tasks[0], robot=suite.robot).open()
    try:
        for number, task in enumerate(suite.tasks):
            sentence = shuffled(env, task, eval_seed(number))
            assert sentence
            assert sentence != env.instruction
    finally:
        env.close()


@pytest.mark.parametrize("name", [name for name in ("object", "spatial") if name in SUITES])
def test_a_wrong_sentence_names_what_stands_on_the_table_where_it_can(name):
    suite = find_suite(name)
    env = SceneRef(suite=name, task=suite.tasks[0]).open()
    fitting = []
    for number, task in enumerate(suite.tasks):
        sentence = shuffled(env, task, eval_seed(number))
        fitting.append(set(NAMED.findall(sentence)) <= {item.label for item in env.truth().objects})
    env.close()
    assert np.mean(fitting) >= 0.5


class Benchmark:
    tasks = ("libero_x/0_pick_up_the_milk", "libero_x/1_pick_up_the_butter", "libero_x/2_pick_up_the_soup")
    instruction = "pick up the milk"


def test_an_outside_benchmark_tells_the_sentence_of_another_task():
    told = {shuffle_sentence(Benchmark(), np.random.default_rng(seed), seed=seed) for seed in range(20)}
    assert told == {"pick up the butter", "pick up the soup"}


def test_an_environment_without_other_tasks_is_refused():
    with pytest.raises(ConfigError, match="does not list other tasks"):
        shuffle_sentence(object(), np.random.default_rng(0), seed=0)
