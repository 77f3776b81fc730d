"""`Policy` against a backend that answers by a script: the decoding rules, the holds, and what may go wrong outside."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from roboalign.sdk.backends import Decoding
from roboalign.sdk.bundle import PolicySpec
from roboalign.sdk.errors import BackendError, BundleError, ConfigError, DataError
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.policy import Policy
from roboalign.sdk.types import COMMANDED_STATE_NAMES, FloatArray, Observation


class ScriptedBackend:
    """Says the tokens of a script one after another; its flow answers what it was told to, plus the noise."""

    def __init__(self, folder: Path, spec: PolicySpec, script: Sequence[int], vocab_size: int) -> None:
        self.folder, self.spec, self.script, self.vocab_size = folder, spec, list(script), vocab_size
        self.flow_result = np.zeros((8, 5), np.float32)
        self.read: list[int] = []
        self.is_closed = False

    def _logits(self) -> FloatArray:
        logits = np.zeros(self.vocab_size, np.float32)
        if self.script:
            logits[self.script[0]] = 1.0
        return logits

    def prefill(self, prompt_ids: Sequence[int], pixel_values: FloatArray) -> Decoding:
        assert pixel_values.shape == (3, 96, 96)
        self.read = []
        return Decoding(logits=self._logits(), length=len(prompt_ids), cache=None)

    def step(self, decoding: Decoding, token_id: int) -> None:
        if self.script and token_id == self.script[0]:
            self.script.pop(0)
        self.read.append(token_id)
        decoding.logits, decoding.length = self._logits(), decoding.length + 1

    def flow(self, decoding: Decoding, state: FloatArray, noise: FloatArray) -> FloatArray:
        return self.flow_result + noise

    def close(self) -> None:
        self.is_closed = True


class WindowedBackend(ScriptedBackend):
    """Says its script by place, so that what was read too far can be forgotten; counts its passes."""

    windows = (2, 4)

    def __init__(self, folder: Path, spec: PolicySpec, script: Sequence[int], vocab_size: int) -> None:
        super().__init__(folder, spec, script, vocab_size)
        self.passes: list[int] = []

    def _after(self, num_read: int) -> FloatArray:
        logits = np.zeros(self.vocab_size, np.float32)
        if 0 < num_read <= len(self.script):
            logits[self.script[num_read - 1]] = 1.0
        return logits

    def prefill(self, prompt_ids: Sequence[int], pixel_values: FloatArray) -> Decoding:
        self.read, self.passes = [], []
        return Decoding(logits=self._after(0), length=len(prompt_ids), cache=len(prompt_ids))

    def step(self, decoding: Decoding, token_id: int) -> None:
        self.extend(decoding, [token_id])

    def extend(self, decoding: Decoding, token_ids: Sequence[int]) -> FloatArray:
        self.passes.append(len(token_ids))
        start = len(self.read)
        self.read += token_ids
        rows = np.stack([self._after(start + count) for count in range(1, len(token_ids) + 1)])
        decoding.logits, decoding.length = rows[-1], decoding.length + len(token_ids)
        return rows

    def rewind(self, decoding: Decoding, length: int, logits: FloatArray) -> None:
        del self.read[length - decoding.cache :]
        decoding.logits, decoding.length = logits, length


@pytest.fixture
def backend(folder: Path, spec: PolicySpec, ids: dict[str, int]) -> ScriptedBackend:
    return ScriptedBackend(folder, spec, [], len(ids))


def test_a_thought_is_read_out_and_ends_where_the_model_ends_it(backend, ids, observation):
    backend.script = [ids["g"], ids["o"], ids["</think>"]]
    chunk = Policy(backend).act(observation)
    assert chunk.source == "flow"
    assert chunk.thought == "go"
    assert chunk.tokens == (ids["<think>"], ids["g"], ids["o"], ids["</think>"])


def test_a_thought_is_closed_when_its_budget_is_spent(backend, ids, observation):
    backend.script = [ids["g"]] * 50
    chunk = Policy(backend).act(observation)
    assert chunk.tokens == (ids["<think>"], *[ids["g"]] * 6, ids["</think>"])


@pytest.fixture
def windowed(folder: Path, spec: PolicySpec, ids: dict[str, int]) -> WindowedBackend:
    return WindowedBackend(folder, replace(spec, max_thought_tokens=12), [], len(ids))


def said(ids: dict[str, int], letters: str) -> list[int]:
    return [*(ids[letter] for letter in letters), ids["</think>"]]


def test_a_thought_that_still_holds_is_read_in_windows(windowed, ids, observation):
    """`<think>`, two windows, and `</think>`: four passes instead of eight."""
    windowed.script = said(ids, "abcdef")
    policy = Policy(windowed)
    first = policy.act(observation)
    assert windowed.passes == [1] * 8
    second = policy.act(observation)
    assert windowed.passes == [1, 2, 4, 1]
    assert second.tokens == first.tokens == tuple(windowed.read)


def test_a_thought_that_changes_is_the_same_as_without_a_draft(windowed, ids, observation):
    policy, plain = Policy(windowed), Policy(windowed, draft=False)
    for text in ("abcdefgh", "abXdefgh", "abXdYfgh", "h", "abcdefghijklm", "", "qrs"):
        windowed.script = said(ids, text)
        expected = plain.act(observation)
        assert windowed.read == list(expected.tokens)
        found = policy.act(observation)
        assert (found.tokens, found.thought) == (expected.tokens, expected.thought)
        assert windowed.read == list(found.tokens)


def test_after_a_reset_nothing_is_drafted(windowed, ids, observation):
    windowed.script = said(ids, "abcd")
    policy = Policy(windowed)
    policy.act(observation)
    policy.reset()
    policy.act(observation)
    assert windowed.passes == [1] * 6


def test_given_words_are_read_in_the_largest_window_and_end_at_their_end(windowed, ids, observation):
    words = said(ids, "abcde")
    chunk = Policy(windowed).act(observation, words=[*words, ids["f"]])
    assert windowed.passes == [4, 3]
    assert chunk.tokens == (ids["<think>"], *words)


def test_a_window_beyond_what_the_model_can_hold_is_a_hold(windowed, ids, observation):
    windowed.spec = replace(windowed.spec, max_tokens=60)
    chunk = Policy(windowed).act(observation, words=[ids["a"]] * 40)
    assert chunk.source == "hold"
    assert "longer than the 60 tokens" in chunk.reason


def test_markers_and_action_tokens_cannot_be_thought(backend, ids, observation):
    for name in ("<ACTION_3>", "<answer>", "<image>", "<bos>", "<think>"):
        backend.script = [ids[name]]
        assert ids[name] not in Policy(backend).act(observation).tokens[1:]


def test_a_thought_about_something_else_is_written_behind_the_own_prompt(backend, ids, observation):
    """The script ends with the thought: what stands behind the second prompt was not chosen there."""
    prompts, prefill = [], backend.prefill
    backend.prefill = lambda prompt, pixels: (prompts.append(len(prompt)), prefill(prompt, pixels))[1]
    backend.script = [ids["g"], ids["o"], ids["</think>"]]
    other = replace(observation, instruction="go down")
    chunk = Policy(backend).act(observation, thought_about=other)
    assert prompts[0] > prompts[1]
    assert chunk.tokens == (ids["<think>"], ids["g"], ids["o"], ids["</think>"])
    assert tuple(backend.read) == chunk.tokens
    assert chunk.thought == "go"


def test_a_policy_that_does_not_think_takes_no_thought(backend, observation):
    with pytest.raises(ConfigError, match="this policy does not think, so it takes no thought;"):
        Policy(backend, think=False).act(observation, thought_about=observation)


def test_without_thinking_the_head_acts_on_the_prompt_alone(backend, observation):
    chunk = Policy(backend, think=False).act(observation)
    assert chunk.thought is None
    assert backend.read == []


def test_fast_decodes_what_the_codec_encoded(backend, folder, ids, observation):
    codec = FastCodec.load(folder)
    wanted = np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)
    tokens = [ids["<ACTION_0>"] + i for i in codec.encode(wanted)]
    backend.script = list(tokens)
    chunk = Policy(backend, actions="fast", think=False).act(observation)
    assert chunk.source == "fast"
    assert np.array_equal(chunk.actions, codec.decode(codec.encode(wanted)).actions)
    assert chunk.tokens == (ids["<answer>"], ids["<ACTION_START>"], *tokens, ids["<ACTION_END>"])


def test_fast_is_legal_whatever_the_model_wants_to_say(backend, ids, observation):
    for name in ("</think>", "<ACTION_END>", "g", "<ACTION_127>"):
        backend.script = [ids[name]] * 200
        chunk = Policy(backend, actions="fast").act(observation)
        assert chunk.source == "fast"
        assert chunk.actions.shape == (8, 5)


def test_scores_that_are_not_finite_become_a_hold(backend, observation):
    backend._logits = lambda: np.full(backend.vocab_size, np.nan, np.float32)
    chunk = Policy(backend).act(observation)
    assert chunk.source == "hold"
    assert "not finite" in chunk.reason
    assert chunk.latency_s["total"] >= 0


def test_actions_that_are_not_finite_become_a_hold_that_keeps_the_thought(backend, ids, observation):
    backend.script = [ids["g"], ids["</think>"]]
    backend.flow_result = np.full((8, 5), np.inf, np.float32)
    chunk = Policy(backend).act(observation)
    assert (chunk.source, chunk.thought, len(chunk.actions)) == ("hold", "g", 0)


def test_an_answer_longer_than_the_model_can_hold_becomes_a_hold(backend, spec, observation):
    backend.spec = replace(spec, max_tokens=60)
    chunk = Policy(backend, actions="fast").act(observation)
    assert chunk.source == "hold"
    assert "longer than the 60 tokens" in chunk.reason


def test_reset_restores_the_noise_and_calls_differ(backend, observation):
    policy = Policy(backend, think=False, seed=3)
    first, second = policy.act(observation).actions, policy.act(observation).actions
    policy.reset()
    assert np.array_equal(policy.act(observation).actions, first)
    assert not np.array_equal(first, second)
    assert not np.array_equal(Policy(backend, think=False, seed=4).act(observation).actions, first)


def test_latency_names_its_parts_and_adds_up(backend, observation):
    ticks = iter(range(100))
    chunk = Policy(backend, clock=lambda: float(next(ticks))).act(observation)
    assert chunk.latency_s == {"vision_prompt": 1.0, "thought": 1.0, "action": 1.0, "total": 4.0}


def test_a_missing_camera_is_named_with_those_that_are_there(backend, observation):
    other = replace(observation, images={"wrist": observation.images["front"]})
    with pytest.raises(DataError, match=r"no image of camera 'front' \(it has: wrist\)"):
        Policy(backend).act(other)


def test_an_image_of_the_wrong_size_is_refused_with_both_sizes(backend, observation):
    small = replace(observation, images={"front": np.zeros((64, 64, 3), np.uint8)})
    with pytest.raises(DataError, match=r"64, 64, 3.*96, 96, 3"):
        Policy(backend).act(small)


def test_an_instruction_that_does_not_fit_is_refused_with_its_length(backend, observation):
    with pytest.raises(DataError, match="at most 96 fit; say it shorter"):
        Policy(backend).act(replace(observation, instruction="go down " * 30))


def test_a_model_without_a_head_cannot_flow_but_can_write(backend, spec, observation):
    backend.spec = replace(spec, has_head=False)
    with pytest.raises(BundleError, match="roboalign train head"):
        Policy(backend)
    assert Policy(backend, actions="fast").act(observation).source == "fast"


def test_a_closed_policy_says_so(backend, observation):
    with Policy(backend) as policy:
        pass
    policy.close()
    assert backend.is_closed
    with pytest.raises(BackendError, match="closed"):
        policy.act(observation)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backend": "tpu"},
            "no backend 'tpu'; choose one of auto, cpu, edge-llm, onnx, onnx-cuda, onnx-tensorrt, tensorrt, torch",
        ),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_wrong_settings_are_named(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        Policy.load(tmp_path, **arguments)


def test_an_unknown_way_to_act_is_named(backend):
    with pytest.raises(ConfigError, match="actions is 'dance', expected one of flow, fast"):
        Policy(backend, actions="dance")


def test_a_tokenizer_without_markers_is_a_bundle_error(backend, folder, tmp_path):
    (tmp_path / "tokenizer.json").write_text(Tokenizer(models.BPE()).to_str())
    backend.folder = tmp_path
    with pytest.raises(BundleError, match="no token '<think>'"):
        Policy(backend)


class AttentiveBackend(ScriptedBackend):
    """Keeps what it was asked about."""

    prompt: tuple[int, ...] = ()
    state: FloatArray = np.zeros(5, np.float32)

    def prefill(self, prompt_ids: Sequence[int], pixel_values: FloatArray) -> Decoding:
        self.prompt = tuple(prompt_ids)
        return super().prefill(prompt_ids, pixel_values)

    def flow(self, decoding: Decoding, state: FloatArray, noise: FloatArray) -> FloatArray:
        self.state = state
        return super().flow(decoding, state, noise)


def test_a_policy_that_acts_from_where_the_tool_was_sent_reads_that(
    folder: Path, spec: PolicySpec, observation: Observation
) -> None:
    commanded = np.array([0.6, 0.1, 0.3, 0.2], np.float32)
    sent = replace(observation, commanded=commanded)
    there = replace(observation, state=np.append(commanded, observation.state[4:]))
    measured = AttentiveBackend(folder, spec, [], 400)
    late = AttentiveBackend(folder, replace(spec, state_names=COMMANDED_STATE_NAMES), [], 400)
    Policy(measured, think=False).act(there)
    Policy(late, think=False).act(sent)
    assert late.prompt == measured.prompt
    np.testing.assert_array_equal(late.state, there.state)
    Policy(measured, think=False).act(sent)  # and one that acts from where the tool is does not
    assert late.prompt != measured.prompt
    with pytest.raises(DataError, match="does not say where"):
        Policy(late, think=False).act(observation)
