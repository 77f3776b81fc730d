import json

import numpy as np
import pytest
import tiny
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from roboalign.sdk.errors import BundleError, ConfigError
from roboalign.trainer.backbone import (
    HuggingFaceBackbone,
    PromptInputs,
    load_backbone,
    make_backbone,
)
from roboalign.trainer.qwen import QwenProcessor
from roboalign.trainer.vocabulary import add_action_tokens

NUM_ACTIONS = 16
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    "tie_word_embeddings": True,
}
"""`mrope_section` must sum to half the head dimension."""


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
    raw.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in (*names, "<|video_pad|>")])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _qwen(version: str) -> HuggingFaceBackbone:
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    find = tokenizer.convert_tokens_to_ids
    ids = {
        "image_token_id": find("<|image_pad|>"),
        "video_token_id": find("<|video_pad|>"),
        "vision_start_token_id": find("<|vision_start|>"),
        "vision_end_token_id": find("<|vision_end|>"),
    }
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    text = _TEXT | {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": find("<|im_end|>"),
        "pad_token_id": find("<|endoftext|>"),
    }
    if version == "qwen2_5_vl":
        vision |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
    else:
        vision |= {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        config = Qwen3VLConfig(
            text_config=text | {"head_dim": 16}, vision_config=vision, tie_word_embeddings=True, **ids
        )
        model = Qwen3VLForConditionalGeneration(config).eval()
    patch = vision["patch_size"]
    images = Qwen2VLImageProcessorPil(
        patch_size=patch, size={"shortest_edge": 4 * patch**2, "longest_edge": 64 * patch**2}
    )
    add_action_tokens(model, tokenizer, NUM_ACTIONS, multiple_of=64)
    return make_backbone(model, QwenProcessor(images, tokenizer))


@pytest.fixture(scope="module", params=["nano", "qwen2_5_vl", "qwen3_vl"])
def member(request: pytest.FixtureRequest) -> HuggingFaceBackbone:
    if request.param == "nano":
        return tiny.backbone(tiny.codec_of(tiny.frames(8)))
    return _qwen(request.param)


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


def _eos(member: HuggingFaceBackbone) -> list[int]:
    eos = member.model.generation_config.eos_token_id
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def test_new_rows_are_the_mean_of_the_old_ones() -> None:
    member = _qwen("qwen3_vl")
    weight = member.model.get_input_embeddings().weight
    first = member.tokenizer.convert_tokens_to_ids("<think>")
    assert weight.shape[0] % 64 == 0
    torch.testing.assert_close(weight[first], weight[:first].mean(dim=0))
    assert member.model.get_output_embeddings().weight.data_ptr() == weight.data_ptr()
    assert add_action_tokens(member.model, member.tokenizer, NUM_ACTIONS) == 0


def test_action_tokens_have_contiguous_ids() -> None:
    find = _qwen("qwen2_5_vl").tokenizer.convert_tokens_to_ids
    assert [find(f"<ACTION_{i}>") - find("<ACTION_0>") for i in range(NUM_ACTIONS)] == list(range(NUM_ACTIONS))


def test_a_folder_of_an_unknown_model_is_refused(tmp_path) -> None:
    with pytest.raises(BundleError, match=r"no readable config\.json"):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    with pytest.raises(BundleError, match=r"preprocessor_config\.json"):
        QwenProcessor.from_pretrained(tmp_path)
