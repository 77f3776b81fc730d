"""The edge-llm backend against a stub of its server: the same answers as a backend that decodes token by token here."""

import json
import os
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from tests.edge_llm_server import EdgeLlmStub, serving
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from roboalign.export.edge_llm import CHAT_TEMPLATE
from roboalign.sdk import Observation, Policy
from roboalign.sdk.backends import Decoding
from roboalign.sdk.backends.edge_llm import URL_VARIABLE, EdgeLlmBackend
from roboalign.sdk.bundle import EDGE_LLM_NAME, PolicySpec
from roboalign.sdk.errors import BackendError, BundleError, ConfigError
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES

NAME = "roboalign-test"
NUM_IMAGE_TOKENS = 4
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
MARKERS = ("<think>", "</think>", "<answer>", "</answer>", "<ACTION_START>", "<ACTION_END>")


def tokenizer(num_actions: int) -> Tokenizer:
    """One token a byte, as Qwen's alphabet; action tokens behind it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    names = [*MARKERS, *(f"<ACTION_{i}>" for i in range(num_actions))]
    made.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])
    return made


def spec_of(codec: FastCodec) -> PolicySpec:
    prompt = PromptFormat(form="qwen", image_size_px=32, num_image_tokens=NUM_IMAGE_TOKENS)
    return PolicySpec(
        horizon=codec.config.horizon,
        rate_hz=10.0,
        camera_names=("front",),
        image_size_px=32,
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        action_low=(-1.0,) * len(ACTION_NAMES),
        action_high=(1.0,) * len(ACTION_NAMES),
        prompt=prompt,
        max_prompt_tokens=400,
        max_thought_tokens=12,
        max_tokens=400 + 12 + 5 + codec.num_coefficients,
        hidden_size=8,
        has_head=False,
    )


class Model:
    """Scores that depend on everything read so far, so that one wrong token changes all that follow."""

    def __init__(self, words: Tokenizer, *, seed: int, obedience: float) -> None:
        self.size = words.get_vocab_size(with_added_tokens=True)
        letters = [words.token_to_id(letter) for letter in "abcdefghijklmnopqrstuvwxyz"]
        self.start, self.first = words.token_to_id("<ACTION_START>"), words.token_to_id("<ACTION_0>")
        self.close, self.end = words.token_to_id("</think>"), words.token_to_id("<ACTION_END>")
        self.seed, self.obedience = seed, obedience
        self.base = np.full(self.size, -60.0)
        self.base[letters] = 0.0
        self.base[[words.token_to_id(name) for name in (*MARKERS, "<|im_end|>")]] = 0.0
        self.base[self.first :] = 0.0

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        rng = np.random.default_rng((self.seed, zlib.crc32(np.asarray(ids, np.int64).tobytes())))
        scores = self.base + rng.normal(size=self.size)
        if self.start in ids:
            scores[self.first :] += self.obedience
        else:
            scores[: self.first] += self.obedience
            scores[self.close] += 1.0
        return scores


class LocalBackend:
    """The same model with every score at hand."""

    def __init__(self, folder: Path, spec: PolicySpec, model: Model) -> None:
        self.folder, self.spec, self.model = folder, spec, model

    def prefill(self, prompt_ids: Sequence[int], pixel_values: np.ndarray) -> Decoding:
        return self._decoding(list(prompt_ids))

    def step(self, decoding: Decoding, token_id: int) -> None:
        ids = [*decoding.cache, token_id]
        decoding.cache, decoding.length, decoding.logits = ids, len(ids), self.model(ids)

    def flow(self, decoding: Decoding, state: np.ndarray, noise: np.ndarray) -> np.ndarray:
        raise AssertionError("no head")

    def close(self) -> None:
        pass

    def _decoding(self, ids: list[int]) -> Decoding:
        return Decoding(logits=self.model(ids), length=len(ids), cache=ids)


Made = Callable[..., tuple[Path, PolicySpec, EdgeLlmStub]]


@pytest.fixture(scope="module")
def codec() -> FastCodec:
    steps = np.random.default_rng(0).normal(size=(200, 4, 5)).astype(np.float32).cumsum(axis=1)
    return FastCodec.fit(steps * 0.01, rate_hz=10.0, vocab_size=128)


@pytest.fixture
def make(tmp_path: Path, codec: FastCodec, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """Writes a prepared folder and serves a model from it."""
    servers = []

    def make_one(*, seed: int = 0, obedience: float = 4.0) -> tuple[Path, PolicySpec, EdgeLlmStub]:
        words, spec = tokenizer(codec.vocab_size), spec_of(codec)
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
        words.save(str(tmp_path / "tokenizer.json"))
        codec.save(tmp_path)
        record = {"name": NAME, "edge_llm": "0.11.0", "url": "http://127.0.0.1:1", "policy": asdict(spec)}
        (tmp_path / EDGE_LLM_NAME).write_text(json.dumps(record), encoding="utf-8")
        model = Model(words, seed=seed, obedience=obedience)
        stub = EdgeLlmStub(tmp_path, model, name=NAME, num_image_tokens=NUM_IMAGE_TOKENS)
        server = serving(stub)
        monkeypatch.setenv(URL_VARIABLE, server.__enter__())
        servers.append(server)
        return tmp_path, spec, stub

    yield make_one
    for server in servers:
        server.__exit__(None, None, None)


def observation(seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    return Observation(
        images={"front": rng.integers(0, 256, (32, 32, 3), np.uint8)},
        state=np.array([0.5, 0.0, 0.2, 0.0, 0.08], np.float32),
        joint_pos_rad=np.zeros(7, np.float32),
        instruction="Put the red block in the blue bowl.",
        time_s=0.0,
    )


def load(folder: Path, **options: bool) -> Policy:
    return Policy.load(folder, backend="edge-llm", actions="fast", **options)


@pytest.mark.parametrize("lists_stop_tokens", [True, False])
@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize(("seed", "obedience"), [(0, 6.0), (1, 2.0), (2, 0.5), (3, 0.0)])
def test_the_answer_is_that_of_decoding_here(
    make: Made, seed: int, obedience: float, think: bool, lists_stop_tokens: bool
) -> None:
    folder, spec, stub = make(seed=seed, obedience=obedience)
    stub.lists_stop_tokens = lists_stop_tokens
    here = Policy(LocalBackend(folder, spec, stub.scores), actions="fast", think=think)  # type: ignore[arg-type]
    expected = here.act(observation(seed))
    with load(folder, think=think) as policy:
        chunk = policy.act(observation(seed))
    assert expected.source == "fast"
    assert (chunk.tokens, chunk.thought) == (expected.tokens, expected.thought)
    np.testing.assert_array_equal(chunk.actions, expected.actions)
    np.testing.assert_array_equal(stub.pictures[0], observation(seed).images["front"])


def test_a_model_that_obeys_is_asked_twice_for_an_answer_and_one_that_does_not_more_often(make: Made) -> None:
    folder, _, obedient = make(obedience=40.0)
    with load(folder) as policy:
        policy.act(observation())
    assert [request.get("stop") for request in obedient.requests][:1] == [["</think>"]]
    assert len(obedient.requests) == 2
    folder, _, other = make(obedience=0.0)
    with load(folder) as policy:
        policy.act(observation())
    assert len(other.requests) > 4


def test_the_thought_budget_is_asked_for_and_kept(make: Made) -> None:
    folder, spec, stub = make()
    honest = stub.scores
    stub.scores = lambda ids: np.where(np.arange(len(honest(ids))) == honest.close, -90.0, honest(ids))  # type: ignore[attr-defined]
    with load(folder) as policy:
        chunk = policy.act(observation())
    assert stub.requests[0]["max_tokens"] == spec.max_thought_tokens
    assert len(chunk.thought or "") == spec.max_thought_tokens


def test_where_no_candidate_may_follow_the_robot_is_held(make: Made) -> None:
    folder, _, stub = make(obedience=-200.0)
    with load(folder, think=False) as policy:
        chunk = policy.act(observation())
    assert chunk.source == "hold"
    assert "not finite for any token that may follow" in (chunk.reason or "")
    assert len(stub.requests) == 1


def test_an_action_head_is_refused_with_the_reason(make: Made) -> None:
    folder, _, _ = make()
    with pytest.raises(BundleError, match="gives an action head no hidden states; act with actions='fast'"):
        Policy.load(folder, backend="edge-llm")
    backend = EdgeLlmBackend.open(folder)
    decoding = backend.prefill([1], np.zeros((3, 32, 32), np.float32))
    with closing(backend), pytest.raises(BackendError, match=r"0\.11 gives no hidden states of roboalign-test"):
        backend.flow(decoding, np.zeros(5, np.float32), np.zeros((4, 5), np.float32))


def test_a_picture_that_the_server_cuts_otherwise_is_noticed(make: Made) -> None:
    folder, _, stub = make()
    stub.num_image_tokens = 9
    with load(folder) as policy, pytest.raises(BackendError, match=r"read a prompt of \d+ tokens, expected \d+"):
        policy.act(observation())
    stub.counts_prompt = False
    with load(folder) as policy:
        assert policy.act(observation()).source == "fast"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, r"serves 'other', expected 'roboalign-test'; start: tensorrt-edgellm-serve"),
        ({"modalities": ["text"]}, "takes no pictures"),
        ({"max_model_len": 64}, r"holds 64 tokens.*--max-kv-cache-capacity"),
    ],
)
def test_a_server_of_something_else_is_refused_before_anything_moves(
    make: Made, change: dict[str, object], message: str
) -> None:
    folder, _, stub = make()
    for name, value in change.items():
        setattr(stub, name, value)
    with pytest.raises(BackendError, match=message):
        load(folder)


def test_a_refusal_of_the_server_is_told_in_its_words(make: Made) -> None:
    folder, _, stub = make()
    with load(folder) as policy:
        stub.name = "other"
        with pytest.raises(BackendError, match=r"status 404\): model 'roboalign-test' is not served by this process"):
            policy.act(observation())


def test_nobody_there_says_how_to_start_it(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _, _ = make()
    monkeypatch.delenv(URL_VARIABLE)
    command = r"tensorrt-edgellm-serve .*model --served-model-name roboalign-test --host 127\.0\.0\.1 --port 1 "
    with pytest.raises(BackendError, match=f"nobody answers at http://127.0.0.1:1 .*{command}"):
        load(folder)


@pytest.mark.parametrize("url", ["http://192.168.1.2:8000", "https://127.0.0.1:8000", "http://127.0.0.1:8000/v1"])
def test_only_this_machine_is_asked(make: Made, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    folder, _, _ = make()
    monkeypatch.setenv(URL_VARIABLE, url)
    with pytest.raises(ConfigError, match="no address of a server on this machine"):
        load(folder)


def test_a_folder_of_another_version_or_none_is_refused(make: Made, tmp_path: Path) -> None:
    folder, _, _ = make()
    record = json.loads((folder / EDGE_LLM_NAME).read_text())
    (folder / EDGE_LLM_NAME).write_text(json.dumps(record | {"edge_llm": "0.12.0"}))
    with pytest.raises(BundleError, match=r"prepared with TensorRT Edge-LLM 0\.12\.0"):
        load(folder)
    (folder / EDGE_LLM_NAME).unlink()
    with pytest.raises(BundleError, match="was not prepared for TensorRT Edge-LLM"):
        load(folder)


def test_other_backends_say_what_the_folder_is(make: Made) -> None:
    with pytest.raises(BundleError, match=r"prepared for TensorRT Edge-LLM; act from it with .*backend='edge-llm'"):
        Policy.load(make()[0])


def test_what_the_template_renders_is_the_prompt_of_training(make: Made, codec: FastCodec) -> None:
    _, spec, stub = make()
    prompt = replace(spec.prompt, num_image_tokens=1)
    trained = prompt.prompt_text("Put it down.", observation().state, pace="slow", task="act")
    before, _, after = trained.partition("<|vision_end|>")
    text = after.removesuffix("<|im_end|>\n<|im_start|>assistant\n")
    content = [{"type": "image"}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "<think>so"}]
    assert stub.template.render(messages=messages) == f"{trained}<think>so"
    assert before.endswith("<|image_pad|>")


@pytest.mark.edge_llm
def test_requests_and_the_stubs_answers_have_the_form_of_the_server(make: Made, tmp_path: Path) -> None:
    """The real package's own classes read both; they refuse unknown fields."""
    python = os.environ.get("ROBOALIGN_EDGE_LLM_PYTHON")
    if python is None:
        pytest.fail("name the Python of an environment with tensorrt-edgellm[tools] in ROBOALIGN_EDGE_LLM_PYTHON")
    folder, _, stub = make(obedience=0.0)
    with load(folder) as policy:
        policy.act(observation())
    (tmp_path / "traffic.json").write_text(json.dumps([stub.requests, stub.answers]))
    code = (
        "import json, sys\n"
        "from experimental.server.api.protocol import ChatCompletionRequest, ChatCompletionResponse\n"
        "requests, answers = json.load(open(sys.argv[1]))\n"
        "for one in requests:\n"
        "    assert ChatCompletionRequest.model_validate(one).top_logprobs == 50\n"
        "for one in answers:\n"
        "    ChatCompletionResponse.model_validate(one)\n"
        "print(len(requests), len(answers))"
    )
    command = [python, "-c", code, str(tmp_path / "traffic.json")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == [str(len(stub.requests))] * 2, done.stderr
