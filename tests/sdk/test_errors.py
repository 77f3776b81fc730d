import re

import pytest

from roboalign.sdk import errors
from roboalign.sdk.errors import BackendError, RoboalignError, RobotError, missing_extra, unknown_name

DRAWN = re.findall(r"^ {4}([|` -]*)(\w+) +\((\w+)\)", errors.__doc__, re.MULTILINE)
"""Indentation, name and builtin of each line of the tree in the module's docstring that names a builtin."""
CLASSES = [getattr(errors, name) for name in errors.__all__ if name[0].isupper()]


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_is_one_of_ours(error) -> None:
    assert issubclass(error, RoboalignError)


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_is_drawn_in_the_tree(error) -> None:
    assert re.search(rf"\b{error.__name__}\b", errors.__doc__)


@pytest.mark.parametrize(("branch", "name", "builtin"), DRAWN, ids=[name for _, name, _ in DRAWN])
def test_the_tree_draws_the_bases_that_the_classes_have(branch, name, builtin) -> None:
    parent = RobotError if len(branch) > 4 else RoboalignError
    assert [base.__name__ for base in getattr(errors, name).__bases__] == [parent.__name__, builtin]


def test_the_tree_names_a_builtin_for_all_but_the_root_and_two_leaves() -> None:
    drawn = {name for _, name, _ in DRAWN}
    assert {c.__name__ for c in CLASSES} - drawn == {"RoboalignError", "LimitViolation", "CameraTimeout"}
    assert issubclass(errors.CameraTimeout, errors.RobotTimeout)


def test_a_missing_extra_is_answered_with_the_line_to_type() -> None:
    error = missing_extra("pybullet", "sim", "the simulator")
    assert isinstance(error, BackendError)
    expected = "the simulator needs the package 'pybullet', which is not installed: pip install 'roboalign[sim]'"
    assert str(error) == expected


def test_an_unknown_name_is_answered_with_the_nearest_ones() -> None:
    assert unknown_name("robot", "pandas", ("panda", "so101")) == "unknown robot 'pandas'; did you mean panda?"
    assert unknown_name("robot", "xyz", ("panda", "so101")) == "unknown robot 'xyz'; choose one of panda, so101"
