"""What a plan may say, and which steps come of it."""

import re
from pathlib import Path

import pytest
from small_study import PLAN

from roboalign.reproduce.graph import expand
from roboalign.reproduce.plan import PLANS, find_plan, read_plan
from roboalign.sdk.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def plan_of(tmp_path):
    def read(*changes):
        text = PLAN
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "plan.toml"
        path.write_text(text)
        return read_plan(path)

    return read


WRONG = {
    "a setting that does not exist": (
        ("scenes = 10", "scenes = 10\nscene = 3"),
        "unknown setting 'scene'; did you mean",
    ),
    "a setting of another type": (("scenes = 10", "scenes = true"), "scenes is True, expected int"),
    "a scene before the first": (("scenes = 10", "scenes = 10\nfirst_scene = -1"), "first_scene is -1, expected 0"),
    "no seeds": (("seeds = [0, 1]", "seeds = []"), "seeds is [], expected different numbers"),
    "the same seed twice": (("seeds = [0, 1]", "seeds = [1, 1]"), "seeds is [1, 1], expected different numbers"),
    "an arm that does not exist": (
        ('["longer", "sft"]', '["long", "sft"]'),
        "unknown arm 'long'; did you mean longer?",
    ),
    "three arms in a comparison": (('["longer", "sft"]', '["longer", "sft", "mute"]'), "names 3 arms, expected two"),
    "a step that does not exist": (
        ("{sft} --data", "{stf} --data"),
        "step align: unknown step 'stf'; did you mean sft?",
    ),
    "two sources of a policy": (
        ('"random", policy = "random"', '"random", policy = "random", backbone = "sft"'),
        "arm.random: found backbone and policy, expected exactly one of",
    ),
    "no source of a policy": (('"random", policy = "random"', '"random"'), "arm.random: found none of them"),
    "nothing to match": ((', match = ["sft", "align"]', ""), "step.longer: {matched} in a command and `match`"),
    "a borrowed policy that is borrowed": (('policy_of = "aligned"', 'policy_of = "mute"'), "has no policy of its own"),
    "a name with a dot": (("step.data.run", 'step."da.ta".run'), "'da.ta' cannot be a name"),
    "no template": (('template.export.run = "export {head}"', ""), "template lacks export"),
    "no TOML": (("seeds = [0, 1]", "seeds = "), "is no TOML"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named_with_its_place(plan_of, change, message):
    with pytest.raises(ConfigError) as error:
        plan_of(change)
    assert message in str(error.value)
    assert "plan.toml" in str(error.value)


def test_a_circle_is_found(plan_of):
    plan = plan_of(("collect --episodes 4", "collect {sft}"))
    with pytest.raises(ConfigError, match="need one another"):
        expand(plan)


def test_braces_that_mean_nothing_are_found(plan_of):
    with pytest.raises(ConfigError, match=r"head\.sft: unknown name in braces 'bone'"):
        expand(plan_of(("{backbone}", "{bone}")))


def test_unknown_arms_and_seeds_are_refused(plan_of):
    with pytest.raises(ConfigError, match="unknown arm 'algned'; did you mean aligned"):
        expand(plan_of(), arms=["algned"])
    with pytest.raises(ConfigError, match="no seed 7, it has 0, 1"):
        expand(plan_of(), seeds=[7])


def test_the_primary_arms_come_first(plan_of):
    steps = list(expand(plan_of()).steps)
    last = max(steps.index(f"eval.{arm}.s1") for arm in ("sft", "aligned"))
    assert last < min(steps.index(f"eval.{arm}.s0") for arm in ("longer", "mute", "random"))


def test_a_step_stands_behind_what_it_needs(plan_of):
    steps = expand(plan_of()).steps
    order = list(steps)
    assert all(order.index(need) < order.index(id_) for id_, step in steps.items() for need in step.needs)


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_plan_of_the_package_measures_every_arm_for_every_seed(path):
    plan = read_plan(path)
    assert len(expand(plan).evaluations) == len(plan.arm) * len(plan.seeds)


def test_the_protocol_is_the_plan_that_runs_by_default():
    """Three seeds of 500 scenes, one hypothesis: docs/evidence.md."""
    plan = read_plan(find_plan("nano"))
    assert (plan.seeds, plan.scenes, plan.first_scene) == ((11, 12, 13), 500, 100_000)
    assert plan.primary == ("aligned", "sft")


def test_an_unknown_plan_lists_the_known_ones():
    with pytest.raises(ConfigError, match="unknown plan 'nona'; did you mean nano"):
        find_plan("nona")


def test_the_plan_in_the_documentation_can_be_read(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "evidence.md").read_text(), re.S)
    (tmp_path / "plan.toml").write_text(text)
    assert len(expand(read_plan(tmp_path / "plan.toml")).evaluations) == 6
