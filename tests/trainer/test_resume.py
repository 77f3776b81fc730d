import random

import numpy as np
import pytest
import tiny
import torch

from roboalign.sdk.errors import BundleError
from roboalign.trainer.resume import load_training_state, save_training_state, unique_tensors

CODEC = tiny.codec_of(tiny.frames(8))


def _pair(seed: int):
    model = tiny.backbone(CODEC, seed=seed).model
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def _update(model, optimizer) -> None:
    loss = sum((p * torch.randn_like(p)).sum() for p in model.parameters())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_nothing_there_is_none(tmp_path) -> None:
    model, optimizer = _pair(0)
    assert load_training_state(tmp_path / "state", model=model, optimizer=optimizer) is None


def test_a_resumed_run_continues_as_if_it_had_not_stopped(tmp_path) -> None:
    model, optimizer = _pair(0)
    _update(model, optimizer)
    save_training_state(tmp_path / "state", model=model, optimizer=optimizer, step=1, extra={"note": "x"})
    _update(model, optimizer)
    draws = (random.random(), float(np.random.rand()), float(torch.rand(())))  # noqa: NPY002 - the global generator

    other, other_optimizer = _pair(1)
    state = load_training_state(tmp_path / "state", model=other, optimizer=other_optimizer)
    assert (state.step, state.extra) == (1, {"note": "x"})
    _update(other, other_optimizer)
    assert draws == (random.random(), float(np.random.rand()), float(torch.rand(())))  # noqa: NPY002
    for name, tensor in unique_tensors(model).items():
        assert torch.equal(tensor, unique_tensors(other)[name]), name


def test_every_tensor_is_in_the_state_and_tied_ones_once() -> None:
    model, _ = _pair(0)
    names = unique_tensors(model)
    assert sum(t.numel() for t in names.values()) >= sum(p.numel() for p in model.parameters())
    assert len({"lm_head.weight", "model.language_model.embed_tokens.weight"} & names.keys()) == 1


def test_a_tensor_that_does_not_fit_is_an_error_not_a_log_line(tmp_path) -> None:
    """transformers' resume dropped every tensor whose name differed, and trained on from random weights."""
    model, optimizer = _pair(0)
    save_training_state(tmp_path / "state", model=model, optimizer=optimizer, step=1)
    wrapped = torch.nn.ModuleDict({"inner": model})
    with pytest.raises(BundleError, match="tensors differ"):
        load_training_state(tmp_path / "state", model=wrapped, optimizer=optimizer)


def test_a_truncated_state_is_found(tmp_path) -> None:
    model, optimizer = _pair(0)
    save_training_state(tmp_path / "state", model=model, optimizer=optimizer, step=1)
    file = tmp_path / "state" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BundleError, match="damaged"):
        load_training_state(tmp_path / "state", model=model, optimizer=optimizer)
