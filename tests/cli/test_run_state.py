"""Corrections of a bundle are recorded with the state that it acts from."""

from types import SimpleNamespace

import pytest

from roboalign.cli.run import _state_of
from roboalign.sdk.evaluation.contenders import PolicyRef
from roboalign.sdk.types import STATES


@pytest.mark.parametrize("word", sorted(STATES))
def test_corrections_have_the_state_of_the_bundle(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    manifest = SimpleNamespace(policy=SimpleNamespace(state_names=STATES[word]))
    monkeypatch.setattr("roboalign.sdk.bundle.read_bundle", lambda path: SimpleNamespace(manifest=manifest))
    assert _state_of(PolicyRef(kind="bundle")) == word
