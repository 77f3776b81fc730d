"""Reading in place: arrays used again, windows at the cache's end, prompts that begin alike, scores of actions."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.bundles import some_observations, tiny_bundle

from roboalign.sdk.backends.in_place import WINDOWS, InPlaceBackend, prefers_codes
from roboalign.sdk.backends.onnx import OnnxBackend
from roboalign.sdk.bundle import FileRecord, Thresholds, read_bundle, shipped_bundle_path
from roboalign.sdk.errors import BackendError
from roboalign.sdk.policy import Policy
from roboalign.sdk.turn import Vocabulary
from roboalign.sdk.types import FloatArray, ImageArray, Observation

Prompt = tuple[list[int], FloatArray]
WORDS = [30, 41, 52, 63, 74, 85, 96, 107, 118, 129, 140, 151, 162, 173, 184, 195, 206, 217, 228, 239]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.getbasetemp())


@pytest.fixture
def backend(bundle: Path) -> Iterator[InPlaceBackend]:
    opened = OnnxBackend.open(bundle)
    assert isinstance(opened, InPlaceBackend)
    yield opened
    opened.close()


@pytest.fixture
def fresh(bundle: Path) -> Callable[[Prompt, Sequence[int]], FloatArray]:
    """Logits after a prompt and words, from a backend that never read anything else."""

    def read(prompt: Prompt, words: Sequence[int]) -> FloatArray:
        opened = InPlaceBackend.open(bundle)
        return write(opened, prompt, words)

    return read


def write(backend: InPlaceBackend, prompt: Prompt, words: Sequence[int]) -> FloatArray:
    decoding = backend.prefill(*prompt)
    rows = [decoding.logits.copy()]
    for word in words:
        backend.step(decoding, word)
        rows.append(decoding.logits.copy())
    return np.stack(rows)


def prompt_of(backend: InPlaceBackend, seen: Observation) -> Prompt:
    prompt = backend.spec.prompt
    text = prompt.prompt_text(seen.instruction, seen.state, pace="slow", task="act")
    ids = Vocabulary(backend).tokenizer.encode(text, add_special_tokens=False).ids
    return ids, prompt.pixel_values(seen.images["front"])


def changed(seen: Observation, *, instruction: str | None = None, image: ImageArray | None = None) -> Observation:
    return replace(
        seen,
        instruction=seen.instruction if instruction is None else instruction,
        images=seen.images if image is None else {"front": image},
    )


def test_a_bundle_of_an_older_version_is_read_by_its_portable_graphs() -> None:
    assert isinstance(OnnxBackend.open(shipped_bundle_path()), OnnxBackend)


def test_arrays_that_are_used_again_leave_nothing_of_what_they_held(backend, fresh) -> None:
    first, second = (prompt_of(backend, seen) for seen in some_observations()[:2])
    for prompt in (first, second, first):
        assert np.allclose(write(backend, prompt, WORDS), fresh(prompt, WORDS), atol=1e-4)
    gc.collect()
    assert len(backend._arrays) == 1


def test_two_sequences_at_once_do_not_touch_each_other(backend, fresh) -> None:
    prompts = [prompt_of(backend, seen) for seen in some_observations()[:2]]
    open_ones = [backend.prefill(*prompt) for prompt in prompts]
    for word in WORDS:
        for decoding in open_ones:
            backend.step(decoding, word)
    for decoding, prompt in zip(open_ones, prompts, strict=True):
        assert np.allclose(decoding.logits, fresh(prompt, WORDS)[-1], atol=1e-4)
    assert len(backend._arrays) == 2


@pytest.mark.parametrize("count", [1, 3, 4, 16, 20])
def test_a_window_gives_what_as_many_steps_give_and_so_does_what_follows(backend, fresh, count: int) -> None:
    prompt = prompt_of(backend, some_observations()[0])
    expected = fresh(prompt, [*WORDS, 33])
    decoding = backend.prefill(*prompt)
    rows = backend.extend(decoding, WORDS[:count])
    assert np.allclose(rows, expected[1 : count + 1], atol=1e-4)
    for word in [*WORDS[count:], 33]:
        backend.step(decoding, word)
    assert np.allclose(decoding.logits, expected[-1], atol=1e-4)


def test_what_was_taken_back_leaves_no_trace(backend, fresh) -> None:
    prompt = prompt_of(backend, some_observations()[0])
    decoding = backend.prefill(*prompt)
    start, logits = decoding.length, decoding.logits.copy()
    backend.extend(decoding, [77] * 16)
    backend.rewind(decoding, start, logits)
    assert np.array_equal(decoding.logits, logits)
    for word in WORDS:
        backend.step(decoding, word)
    assert np.allclose(decoding.logits, fresh(prompt, WORDS)[-1], atol=1e-4)


def test_the_last_window_fills_the_cache_to_its_end_and_not_beyond(backend, fresh) -> None:
    prompt = prompt_of(backend, some_observations()[0])
    decoding = backend.prefill(*prompt)
    room = backend.spec.max_tokens - decoding.length
    words = (WORDS * 20)[:room]
    expected = fresh(prompt, words)
    while decoding.length < backend.spec.max_tokens:
        run = words[decoding.length - len(prompt[0]) :][: WINDOWS[1]]
        rows = backend.extend(decoding, run)
    assert np.allclose(rows[-1], expected[-1], atol=1e-4)
    for read in (lambda: backend.step(decoding, 30), lambda: backend.extend(decoding, [30, 31])):
        with pytest.raises(BackendError, match=f"do not fit behind {backend.spec.max_tokens}: the cache of"):
            read()


def test_a_window_of_no_tokens_or_too_many_is_refused(backend) -> None:
    decoding = backend.prefill(*prompt_of(backend, some_observations()[0]))
    for count in (0, WINDOWS[-1] + 1):
        with pytest.raises(BackendError, match=f"{count} tokens cannot be read at once, expected 1 to {WINDOWS[-1]}"):
            backend.extend(decoding, [30] * count)


ANOTHER = np.full((96, 96, 3), 90, np.uint8)


@pytest.mark.parametrize(
    ("change", "looks"),
    [
        ({}, 0),
        ({"instruction": "push the green cylinder to the left"}, 1),
        ({"instruction": "put the red block in the blue bowl now"}, 1),
        ({"image": ANOTHER}, 1),
        ({"image": ANOTHER, "instruction": "push the red block to the left"}, 1),
    ],
)
def test_a_prompt_that_begins_like_the_last_one_is_read_from_where_it_differs(
    backend, fresh, monkeypatch, change: dict[str, object], looks: int
) -> None:
    """Equal logits, whatever changed; and the picture is looked at again only when it has to be."""
    seen = some_observations()[0]
    backend.prefill(*prompt_of(backend, seen))
    num_read: list[int] = []
    num_seen: list[int] = []
    read, look = backend._read, backend._graphs["look"].run
    monkeypatch.setattr(backend, "_read", lambda decoding, ids: (num_read.append(len(ids)), read(decoding, ids))[1])
    monkeypatch.setattr(backend._graphs["look"], "run", lambda feed: (num_seen.append(1), look(feed))[1])
    prompt = prompt_of(backend, changed(seen, **change))
    assert np.allclose(write(backend, prompt, WORDS), fresh(prompt, WORDS), atol=1e-4)
    assert len(num_seen) == looks
    assert num_read[0] < len(prompt[0])
    assert num_read[0] == 1 if not change else num_read[0] > 24


def test_the_shared_beginning_is_copied_while_another_sequence_goes_on(backend, fresh) -> None:
    seen = some_observations()[0]
    first = backend.prefill(*prompt_of(backend, seen))
    prompt = prompt_of(backend, changed(seen, image=ANOTHER))
    second = backend.prefill(*prompt)
    for word in WORDS:
        backend.step(first, word)
        backend.step(second, word)
    assert np.allclose(second.logits, fresh(prompt, WORDS)[-1], atol=1e-4)
    assert np.allclose(first.logits, fresh(prompt_of(backend, seen), WORDS)[-1], atol=1e-4)


def test_scores_of_action_tokens_are_their_rows_of_all_scores(backend) -> None:
    words = Vocabulary(backend)
    assert words.codec is not None
    assert backend.num_action_scores == words.codec.vocab_size
    prompt = prompt_of(backend, some_observations()[0])
    decoding = backend.prefill(*prompt)
    rows = slice(words.first_action, words.first_action + backend.num_action_scores)
    for word in WORDS:
        backend.step(decoding, word)
        every = decoding.logits.copy()
        backend.rewind(decoding, decoding.length - 1, every)
        backend.step_action(decoding, word)
        assert np.allclose(every[rows], decoding.logits, atol=1e-5)
        assert every[rows].argmax() == decoding.logits.argmax()


def test_actions_are_the_same_with_all_scores_and_with_those_of_actions(bundle, monkeypatch) -> None:
    """The argmax under the grammar, token by token; the control has scores of the wrong rows."""
    answers = []
    for has_scores in (True, False):
        with Policy.load(bundle, actions="fast", think=False) as policy:
            if not has_scores:
                monkeypatch.setattr(InPlaceBackend, "num_action_scores", 0)
            answers.append([policy.act(seen).tokens for seen in some_observations()])
    assert answers[0] == answers[1]
    assert len({tokens for row in answers for tokens in row}) > 8


def test_actions_are_scored_alone(bundle, monkeypatch) -> None:
    steps: list[int] = []
    step = InPlaceBackend.step_action
    monkeypatch.setattr(
        InPlaceBackend, "step_action", lambda self, d, token: (steps.append(token), step(self, d, token))[1]
    )
    with Policy.load(bundle, actions="fast", think=False) as policy:
        tokens = policy.act(some_observations()[0]).tokens
    assert steps == list(tokens[1:-2])


def test_codes_are_multiplied_as_they_are_where_float32_is_large_and_the_bundle_accepts_it(bundle) -> None:
    found = read_bundle(bundle)
    assert found.manifest.thresholds is not None
    loose = replace(found.manifest.thresholds, part_error=0.2)

    def of(precision: str, num_bytes: int, thresholds: Thresholds = loose) -> bool:
        files = {**found.manifest.files, "model.safetensors": FileRecord(sha256="0" * 64, num_bytes=num_bytes)}
        manifest = replace(found.manifest, precision=precision, files=files, thresholds=thresholds)
        return prefers_codes(replace(found, manifest=manifest))

    assert [of("int4", 2**20), of("int4", 2**22), of("int8", 2**22), of("int8", 2**23)] == [False, True, False, True]
    assert not of("fp16", 2**30)
    assert not of("int4", 2**30, found.manifest.thresholds)


def test_a_step_makes_no_array(backend) -> None:
    """Whatever is written, the same arrays hold it."""
    decoding = backend.prefill(*prompt_of(backend, some_observations()[0]))
    backend.step(decoding, 30)
    address = decoding.logits.ctypes.data
    arrays = decoding.cache.arrays
    before = {name: value.ctypes.data for name, value in vars(arrays).items() if isinstance(value, np.ndarray)}
    for word in WORDS:
        backend.step(decoding, word)
        assert decoding.logits.ctypes.data == address
    assert before == {name: v.ctypes.data for name, v in vars(arrays).items() if isinstance(v, np.ndarray)}


def test_from_reset_on_equal_calls_give_equal_answers(bundle) -> None:
    seen = some_observations()[:3]
    with Policy.load(bundle) as policy:
        policy.act(seen[0])  # so that the first round follows another prompt than the second does
        policy.reset()
        first = [policy.act(one) for one in seen]
        policy.reset()
        again = [policy.act(one) for one in seen]
    assert [chunk.tokens for chunk in first] == [chunk.tokens for chunk in again]
    assert all(np.array_equal(a.actions, b.actions) for a, b in zip(first, again, strict=True))


def test_a_closed_one_says_so(backend) -> None:
    decoding = backend.prefill(*prompt_of(backend, some_observations()[0]))
    backend.close()
    with pytest.raises(BackendError, match="was closed; load the policy again"):
        backend.prefill(*prompt_of(backend, some_observations()[1]))
    assert decoding.length > 0
