import pytest

from roboalign.sdk.errors import ConfigError
from roboalign.sdk.libero.suites import LIBERO_SUITES, find_task, suite_of_split, task_ids


def test_every_suite_has_ten_tasks_and_four_variants() -> None:
    assert len(LIBERO_SUITES) == 10
    assert all(len(set(tasks)) == 10 for tasks in LIBERO_SUITES.values())


@pytest.mark.parametrize("suite", LIBERO_SUITES)
def test_a_task_is_found_by_its_id(suite: str) -> None:
    assert [find_task(suite, task) for task in task_ids(suite)] == list(range(10))


@pytest.mark.parametrize("task", ["7", "libero_object/7", "milk", "pick_up_the_milk_and_place_it_in_the_basket"])
def test_a_task_is_found_by_what_identifies_it(task: str) -> None:
    assert find_task("libero_object", task) == 7


@pytest.mark.parametrize("task", ["", "10", "libero_spatial/3", "ilk_and_honey", "libero_object/"])
def test_an_unknown_task_lists_its_neighbours(task: str) -> None:
    with pytest.raises(ConfigError, match="libero_object/"):
        find_task("libero_object", task)


def test_an_unknown_suite_lists_its_neighbours() -> None:
    with pytest.raises(ConfigError, match=r"did you mean .*libero_object"):
        task_ids("libero_objects")


def test_a_variant_has_no_variants() -> None:
    assert suite_of_split("libero_object_lan", "train") == "libero_object_lan"
    with pytest.raises(ConfigError, match="variant already"):
        suite_of_split("libero_object_lan", "swap")


def test_a_split_of_our_own_suites_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="unknown LIBERO split 'camera'"):
        suite_of_split("libero_object", "camera")
