import pytest

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.contenders import PolicyRef
from roboalign.sdk.evaluation.play import PlayConfig, find_scene, parse_task, run_task
from roboalign.sdk.sim.language import SENTENCES, TEMPLATES
from roboalign.sdk.sim.seeds import is_eval_seed
from roboalign.sdk.sim.tasks import FAMILIES, scene_for

GOALS = {"place": "blue bowl", "push": "left", "stack": "green block"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_sentence_of_the_families_is_understood(family):
    for split in SENTENCES:
        for template in TEMPLATES[family][split]:
            task = parse_task(template.format(target="red cylinder", goal=GOALS[family]))
            assert (task.family, task.target, task.goal) == (family, "red cylinder", GOALS[family])
            assert task.is_known_form


def test_capitals_and_punctuation_do_not_matter():
    task = parse_task("  Please: put the Red  Block in the BLUE bowl!")
    assert (task.target, task.goal, task.is_known_form) == ("red block", "blue bowl", False)


@pytest.mark.parametrize(
    "sentence",
    [
        "make coffee",
        "",
        "push the red block",
        "put the red block",
        "push the blue bowl to the left",
        "put the pink block in the blue bowl",
        "put the red block on the red block",
        "put the red block on the green cylinder",
        "put the red block and the green block in the blue bowl",
        "push the red block to the left and to the right",
    ],
)
def test_an_unknown_task_lists_what_can_be_asked(sentence):
    with pytest.raises(ConfigError, match=r"put the red block in the blue bowl.*colours red, .*shapes block, cylinder"):
        parse_task(sentence)


@pytest.mark.parametrize(
    "sentence", ["stack the red block on the green block", "push the orange cylinder to the right"]
)
def test_a_found_scene_poses_the_task_and_is_held_out(sentence):
    task = parse_task(sentence)
    seeds = [find_scene(task, index) for index in range(3)]
    assert len(set(seeds)) == 3
    for seed in seeds:
        scene = scene_for(seed, task.family)
        assert (scene.target, scene.goal) == (task.target, task.goal)
        assert is_eval_seed(seed)


def test_only_gifs_are_written(tmp_path):
    with pytest.raises(ConfigError, match=r"\.gif"):
        PlayConfig(task="x", out=tmp_path / "film.mp4")


def test_the_expert_does_what_a_sentence_says(tmp_path):
    lines = []
    config = PlayConfig(
        task="Put the red block in the blue bowl.", out=tmp_path / "film.gif", policy=PolicyRef(kind="expert")
    )
    result = run_task(config, say=lines.append)
    assert result.episode.success
    assert result.gif.read_bytes().startswith(b"GIF89a")
    assert lines[0].startswith("task: put the red block in the blue bowl (scene 1")
    assert lines[-1] == f"done after {result.episode.steps} steps; acted: expert"


def test_an_unusual_sentence_is_noted():
    lines = []
    run_task(PlayConfig(task="please push the red block left", policy=PolicyRef(kind="expert")), say=lines.append)
    assert lines[0] == "note: sentences of training say it like this: 'push the red block to the left'"
