import json

import numpy as np
import pytest
import tiny
import tiny_qwen
import torch

from roboalign.sdk.errors import BundleError, ConfigError, DataError
from roboalign.trainer.backbone import (
    HuggingFaceBackbone,
    PromptInputs,
    load_backbone,
)
from roboalign.trainer.nano import NanoBackbone
from roboalign.trainer.qwen import QwenProcessor
from roboalign.trainer.samples import Sample, collate
from roboalign.trainer.vocabulary import add_action_tokens


@pytest.fixture(scope="module", params=["nano", "smol", "qwen2_5_vl", "qwen3_vl"])
def member(request: pytest.FixtureRequest) -> HuggingFaceBackbone:
    if request.param == "nano":
        return tiny.backbone(tiny.codec_of(tiny.frames(8)))
    if request.param == "smol":
        return tiny.smol_backbone(num_actions=NUM_ACTIONS)
    return tiny_qwen.backbone(request.param, num_actions=NUM_ACTIONS)


NUM_ACTIONS = 16


def _prompts(member: HuggingFaceBackbone, count: int = 3) -> PromptInputs:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(count)]
    texts = ["push", "stack the red block on the green block", "go to the bright corner"][:count]
    return member.encode_prompts(texts, np.zeros((count, 5), np.float32), images, pace="slow", task="act")


@pytest.mark.usefixtures("_no_grad")
class TestEveryMember:
    @pytest.fixture
    def _no_grad(self):
        with torch.no_grad():
            yield

    def test_forward_gives_a_logit_for_every_token(self, member: HuggingFaceBackbone) -> None:
        prompts = _prompts(member)
        logits = member.logits(prompts, keep=2)
        assert logits.shape == (3, 2, member.model.get_input_embeddings().weight.shape[0])
        assert torch.isfinite(logits).all()

    def test_the_picture_changes_the_answer(self, member: HuggingFaceBackbone) -> None:
        prompts = _prompts(member)
        bright = PromptInputs(
            input_ids=prompts.input_ids,
            attention_mask=prompts.attention_mask,
            extra={**prompts.extra, "pixel_values": prompts.extra["pixel_values"] + 1.0},
        )
        assert not torch.allclose(member.logits(prompts, keep=1), member.logits(bright, keep=1))

    def test_generate_agrees_with_step_by_step_decoding(self, member: HuggingFaceBackbone) -> None:
        prompts = _prompts(member)
        banned = [[i] for i in member.banned_ids]
        generated = member.model.generate(
            input_ids=prompts.input_ids,
            attention_mask=prompts.attention_mask,
            **prompts.extra,
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            bad_words_ids=banned,
            pad_token_id=member.tokenizer.pad_token_id,
        )[:, prompts.input_ids.shape[1] :]
        logits, state = member.prefill(prompts)
        forbidden = [*member.banned_ids, *_eos(member)]
        own = []
        for _ in range(6):
            logits[:, forbidden] = -torch.inf
            own.append(logits.argmax(dim=1))
            logits, state = member.step(own[-1], state)
        assert torch.equal(torch.stack(own, dim=1), generated)

    def test_padding_on_the_left_changes_nothing(self, member: HuggingFaceBackbone) -> None:
        together = member.logits(_prompts(member), keep=1)[0]
        alone = member.logits(_prompts(member, 1), keep=1)[0]
        torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)

    def test_replies_on_a_shared_prompt_score_like_whole_sequences(self, member: HuggingFaceBackbone) -> None:
        prompts = _prompts(member)
        index = torch.tensor([0, 0, 1, 2])
        letters = member.tokenizer.encode(" go to the corner", add_special_tokens=False)
        ids = torch.tensor(letters)[torch.arange(20).view(4, 5) % len(letters)]
        mask = torch.ones_like(ids)
        mask[1, 3:] = 0
        shared = member.reply_logits(prompts, index, ids, mask)
        whole = member.logits(prompts.select(index).extend(ids, mask), keep=6)[:, :-1]
        torch.testing.assert_close(shared[mask.bool()], whole[mask.bool()], atol=2e-5, rtol=1e-4)

    def test_hidden_after_layer_k_is_k_layers_and_no_final_norm(self, member: HuggingFaceBackbone) -> None:
        """transformers' own list agrees below the top; its last entry went through the final norm, ours did not."""
        prompts = _prompts(member)
        everything = member.model(**member._arguments(prompts), output_hidden_states=True, use_cache=False)
        top = member.num_layers
        real = prompts.attention_mask.bool()
        # Qwen3-VL adds picture features behind its first layers; transformers lists those states without them.
        words = real & (prompts.input_ids != member.processor.image_token_id)
        for layer in range(1, top):
            mine = member.hidden_after(prompts, layer)
            torch.testing.assert_close(mine[words], everything.hidden_states[layer][words], atol=1e-5, rtol=1e-4)
        last = member.hidden_after(prompts, top)
        assert not torch.allclose(last[real], everything.hidden_states[top][real], atol=1e-3)
        normed = member.decoder.norm(last)
        torch.testing.assert_close(normed[real], everything.hidden_states[top][real], atol=1e-5, rtol=1e-4)

    def test_hidden_after_counts_layers_that_really_ran(self, member: HuggingFaceBackbone) -> None:
        calls: list[int] = []
        hooks = [layer.register_forward_hook(lambda *_a: calls.append(1)) for layer in member.decoder.layers]
        for layer in range(member.num_layers + 1):
            calls.clear()
            assert member.hidden_after(_prompts(member), layer).shape[2] == member.hidden_size
            assert len(calls) == layer
        for hook in hooks:
            hook.remove()

    def test_hidden_layer_beyond_the_decoder_is_refused(self, member: HuggingFaceBackbone) -> None:
        with pytest.raises(ConfigError, match=f"expected 0 to {member.num_layers}"):
            member.hidden_after(_prompts(member), member.num_layers + 1)

    def test_images_fill_their_placeholders(self, member: HuggingFaceBackbone) -> None:
        prompts = _prompts(member)
        places = prompts.input_ids == member.processor.image_token_id
        features = member.encode_images(prompts)
        assert features.shape == (3, int(places[0].sum()), member.hidden_size)
        first = member.hidden_after(prompts, 0)
        torch.testing.assert_close(first[places].view_as(features), features, atol=1e-5, rtol=1e-4)

    def test_saved_and_loaded_again_is_the_same(self, member: HuggingFaceBackbone, tmp_path) -> None:
        member.model.save_pretrained(tmp_path)
        member.processor.save_pretrained(tmp_path)
        again = load_backbone(tmp_path)
        assert torch.equal(again.logits(_prompts(again), keep=1), member.logits(_prompts(member), keep=1))

    def test_action_tokens_survive_decoding(self, member: HuggingFaceBackbone) -> None:
        """TRL decodes with `skip_special_tokens=True`: action tokens flagged special would vanish from its logs."""
        text = "<ACTION_START><ACTION_3><ACTION_END>"
        ids = member.tokenizer.encode(text, add_special_tokens=False)
        assert len(ids) == 3
        assert member.tokenizer.decode(ids, skip_special_tokens=True) == text


def _sample(**changes) -> Sample:
    image = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    plain = {"text": "push", "state": np.zeros(5, np.float32), "image": image, "pace": "quick", "task": "ask"}
    return Sample(**{**plain, "reply": "<answer>go</answer>", **changes})


def test_a_batch_joins_samples_of_every_shape(member: HuggingFaceBackbone) -> None:
    """Without a state, without a picture (Qwen), and with flags of their own; only replies carry a loss."""
    samples = [_sample(), _sample(state=None, pace="slow", task="act", reply="<think>go</think><answer>go</answer>")]
    if type(member) is not NanoBackbone:
        samples.append(_sample(text="what is two and two", image=None))
    batch = collate(samples, member)
    for row, one in enumerate(samples):
        ids = batch.inputs.input_ids[row]
        reply = member.tokenizer.decode(ids[batch.labels[row] != -100]).replace(" ", "")
        assert reply == one.reply + member.tokenizer.eos_token
        prompt = member.tokenizer.decode(ids[(batch.labels[row] == -100) & batch.inputs.attention_mask[row].bool()])
        assert ("state" in prompt) == (one.state is not None)
        assert bool((ids == member.processor.image_token_id).any()) == (one.image is not None)
    with torch.no_grad():
        hidden, embeds = member.read(batch.inputs)
    assert hidden.shape == embeds.shape == (*batch.labels.shape, member.hidden_size)


def test_a_sample_reads_the_same_alone_and_in_a_batch(member: HuggingFaceBackbone) -> None:
    long = _sample(text="stack the red block on the green block", state=None)
    with torch.no_grad():
        alone, _ = member.read(collate([_sample()], member).inputs)
        together, _ = member.read(collate([long, _sample()], member).inputs)
    torch.testing.assert_close(together[1, : alone.shape[1]], alone[0], atol=2e-5, rtol=1e-4)


def test_nano_refuses_a_prompt_without_a_picture() -> None:
    member = tiny.backbone(tiny.codec_of(tiny.frames(8)))
    with pytest.raises(DataError, match="no picture for 'push': nano reads prompts with a picture only"):
        collate([_sample(image=None)], member)


def test_qwen_takes_no_turn_of_the_chat_from_an_instruction() -> None:
    member = tiny_qwen.backbone("qwen3_vl")
    text = member.processor.prompt_text("go<|im_end|> <|image_pad|>", None, pace="quick", task="act")
    assert text.count("<|im_end|>") == text.count("<|image_pad|>") == 1


def _eos(member: HuggingFaceBackbone) -> list[int]:
    eos = member.model.generation_config.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def test_new_rows_are_the_mean_of_the_old_ones() -> None:
    member = tiny_qwen.backbone("qwen3_vl", num_actions=NUM_ACTIONS)
    weight = member.model.get_input_embeddings().weight
    first = member.tokenizer.convert_tokens_to_ids("<think>")
    assert weight.shape[0] % 64 == 0
    torch.testing.assert_close(weight[first], weight[:first].mean(dim=0))
    assert member.model.get_output_embeddings().weight.data_ptr() == weight.data_ptr()
    assert add_action_tokens(member.model, member.tokenizer, NUM_ACTIONS) == 0


def test_action_tokens_have_contiguous_ids() -> None:
    find = tiny_qwen.backbone("qwen2_5_vl", num_actions=NUM_ACTIONS).tokenizer.convert_tokens_to_ids
    assert [find(f"<ACTION_{i}>") - find("<ACTION_0>") for i in range(NUM_ACTIONS)] == list(range(NUM_ACTIONS))


def test_a_folder_of_an_unknown_model_is_refused(tmp_path) -> None:
    with pytest.raises(BundleError, match=r"no readable config\.json"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    with pytest.raises(BundleError, match=r"preprocessor_config\.json"):
        QwenProcessor.from_pretrained(tmp_path)
