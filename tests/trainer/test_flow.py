"""The action head: signs, times, masks, and what a file must hold."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.trainer.flow import FlowHead, FlowHeadConfig, flow_loss, sample_times


def config(**changes: object) -> FlowHeadConfig:
    sizes = {
        "hidden_size": 12,
        "layer": 1,
        "horizon": 4,
        "action_low": (-0.04, 0.0),
        "action_high": (0.04, 1.0),
        "state_mean": (0.0, 0.0, 0.0),
        "state_std": (1.0, 1.0, 1.0),
        "width": 16,
        "num_layers": 2,
        "num_heads": 2,
    }
    return FlowHeadConfig(**{**sizes, **changes})


def head(**changes: object) -> FlowHead:
    torch.manual_seed(0)
    made = FlowHead(config(**changes))
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    return made.eval()


def inputs(batch: int = 3, length: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn((batch, length, 12), generator=generator)
    state = torch.randn((batch, 3), generator=generator)
    noise = torch.randn((batch, 4, 2), generator=generator)
    return hidden, torch.ones((batch, length), dtype=torch.bool), state, noise


def test_a_fresh_head_predicts_no_velocity_so_that_sampling_returns_the_noise() -> None:
    fresh = FlowHead(config()).eval()
    hidden, mask, state, noise = inputs()
    assert torch.allclose(fresh.normalize(fresh.sample(hidden, mask, state, noise)), noise, atol=1e-5)


def test_the_true_velocity_carries_noise_at_time_0_to_the_action_at_time_1(monkeypatch: pytest.MonkeyPatch) -> None:
    made = head()
    hidden, mask, state, noise = inputs()
    wanted = torch.rand((3, 4, 2)) * 2 - 1
    monkeypatch.setattr(made, "velocity", lambda *_: wanted - noise)
    assert torch.allclose(made.normalize(made.sample(hidden, mask, state, noise)), wanted, atol=1e-5)


def test_denormalize_undoes_normalize_and_the_ends_are_low_and_high() -> None:
    made = head()
    ends = torch.stack((made.action_low, made.action_high))
    assert torch.allclose(made.normalize(ends), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    assert torch.allclose(made.denormalize(made.normalize(ends)), ends)


def test_hidden_states_behind_the_mask_do_not_matter_and_those_before_it_do() -> None:
    made = head()
    hidden, mask, state, noise = inputs()
    mask[:, 4:] = False
    before = made.sample(hidden, mask, state, noise)
    hidden[:, 4:] = 9.0
    assert torch.allclose(made.sample(hidden, mask, state, noise), before)
    hidden[:, 0] = 9.0
    assert not torch.allclose(made.sample(hidden, mask, state, noise), before)


def test_training_times_are_in_0_to_1_and_lean_towards_the_noise() -> None:
    times = sample_times(20_000, np.random.default_rng(0)).numpy()
    assert times.min() >= 0.0
    assert times.max() <= 1.0
    assert times.mean() == pytest.approx(1 - 0.6 / 0.999, abs=0.01)  # Beta(1.5, 1) has mean .6


def test_training_reduces_the_loss_and_the_head_learns_what_the_state_says() -> None:
    torch.manual_seed(0)
    made = FlowHead(config(num_frequencies=1, width=32))
    rng = np.random.default_rng(0)
    hidden, mask = torch.zeros((64, 2, 12)), torch.ones((64, 2), dtype=torch.bool)
    state = torch.randn((64, 3))
    actions = made.denormalize(state[:, None, :2].tanh().expand(-1, 4, -1))
    optimizer = torch.optim.AdamW(made.parameters(), lr=4e-3)
    for _ in range(250):
        optimizer.zero_grad()
        loss = flow_loss(made, hidden, mask, state, actions, rng, draws=2)
        loss.backward()
        optimizer.step()
    made.eval()
    found = made.sample(hidden, mask, state, torch.randn((64, 4, 2)))
    error = (made.normalize(found) - made.normalize(actions)).abs().mean()
    assert error.item() < 0.25  # standing still would give 0.6


def test_a_saved_head_acts_the_same(tmp_path: Path) -> None:
    made = head()
    made.save(tmp_path)
    arguments = inputs()
    assert torch.equal(FlowHead.load(tmp_path).sample(*arguments), made.sample(*arguments))


def test_a_missing_or_damaged_head_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no head\.json"):
        FlowHead.load(tmp_path)
    head().save(tmp_path)
    data = (tmp_path / "head.safetensors").read_bytes()
    (tmp_path / "head.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(BundleError, match="damaged"):
        FlowHead.load(tmp_path)


def test_a_head_of_another_version_is_damaged_not_a_crash(tmp_path: Path) -> None:
    head().save(tmp_path)
    raw = json.loads((tmp_path / "head.json").read_text())
    (tmp_path / "head.json").write_text(json.dumps({**raw, "surprise": 1}))
    with pytest.raises(BundleError, match="surprise"):
        FlowHead.load(tmp_path)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of num_heads"):
        config(width=15)
    with pytest.raises(ConfigError, match="one entry for each field"):
        config(action_low=(0.0,))


def test_training_sees_the_same_velocity_as_acting() -> None:
    """Training projects the queries instead of the hidden states."""
    made = head()
    with torch.no_grad():
        made.source[0].weight.uniform_(0.5, 2.0)
        made.source[0].bias.normal_()
    hidden, mask, state, _ = inputs()
    mask[1, 3:] = False
    noisy, times = torch.randn((3, 2, 4, 2)), torch.rand((3, 2))
    found = made.velocities(noisy, times, state, hidden, mask)
    memory, embedded = made.condition(hidden), made.embed_state(state)
    for draw in range(2):
        wanted = made.velocity(noisy[:, draw], times[:, draw], embedded, memory, mask)
        torch.testing.assert_close(found[:, draw], wanted, atol=1e-5, rtol=1e-4)
