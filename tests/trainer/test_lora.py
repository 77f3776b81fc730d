"""LoRA on tiny random Qwen models: what learns, what is merged, and resuming."""

import pytest
import tiny_qwen
import torch
from safetensors.torch import load_file

from roboalign.sdk.errors import ConfigError
from roboalign.trainer.lora import ADAPTER_FILES, LoraSettings, add_lora, merge_lora

SETTINGS = LoraSettings(rank=2, alpha=4.0)
NUM_ACTIONS = 8


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def member(request):
    return tiny_qwen.backbone("qwen2_5_vl", num_actions=NUM_ACTIONS, tied=request.param)


def new_ids(member) -> range:
    return range(member.tokenizer.convert_tokens_to_ids("<think>"), len(member.tokenizer))


def learning(member) -> list[str]:
    return [name for name, p in member.model.named_parameters() if p.requires_grad]


def test_only_additions_to_the_decoder_and_the_new_rows_learn(member) -> None:
    is_tied = member.has_tied_rows
    add_lora(member, SETTINGS, new_ids=new_ids(member))
    names = learning(member)
    assert names
    assert all("lora_" in name or "trainable_tokens" in name for name in names)
    assert not any("visual" in name for name in names)
    assert sum("lora_A" in name for name in names) == 7 * member.num_layers
    assert sum("trainable_tokens" in name for name in names) == (1 if is_tied else 2)


def _nudge(member) -> None:
    with torch.no_grad():
        for parameter in member.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))


def _logits(member) -> torch.Tensor:
    ids = torch.tensor([[*member.tokenizer.encode("push"), *new_ids(member)]])
    with torch.no_grad():
        return member.model(input_ids=ids).logits


def test_merged_weights_say_what_the_additions_said(member, tmp_path) -> None:
    before = _logits(member)
    old = member.model.get_input_embeddings().weight.detach().clone()
    adapted = add_lora(member, SETTINGS, new_ids=new_ids(member))
    _nudge(member)
    wanted = _logits(member)
    files = merge_lora(adapted, tmp_path)
    torch.testing.assert_close(_logits(member), wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(wanted, before, atol=1e-2)
    assert not any("lora" in name for name in member.model.state_dict())
    rows = member.model.get_input_embeddings().weight
    first = new_ids(member)[0]
    assert torch.equal(rows[:first], old[:first])
    assert not torch.equal(rows[first:], old[first:])
    assert [file.name for file in files] == list(ADAPTER_FILES)
    assert any("lora_B" in name for name in load_file(files[1]))


@pytest.mark.parametrize("change", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"layers": ()}])
def test_sizes_that_cannot_be_are_refused(change) -> None:
    with pytest.raises(ConfigError, match="expected a rank of 1 or more"):
        LoraSettings(**change)
