"""Reading in place: arrays used again, windows at the cache's end, prompts that begin alike, scores of actions."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.bundles import some_observations, tiny_bundle
from tests.stub_board import copy_portable

from roboalign.sdk.backends.in_place import WINDOWS, InPlaceBackend, prefers_codes
from roboalign.sdk.backends.onnx import OnnxBackend
from roboalign.sdk.bundle import FileRecord, Thresholds, find_bundle, read_bundle, shipped_bundle_path
from roboalign.sdk.errors import BackendError
from roboalign.sdk.policy import Policy
from roboalign.sdk.thinking import Thinking
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


def test_a_bundle_of_an_older_version_is_read_by_its_portable_graphs(tmp_path) -> None:
    assert isinstance(OnnxBackend.open(shipped_bundle_path()), InPlaceBackend)
    assert isinstance(OnnxBackend.open(copy_portable(tmp_path / "old")), OnnxBackend)


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
    monkeypatch.setattr(
        backend,
        "_read",
        lambda decoding, ids, count, **how: (num_read.append(count), read(decoding, ids, count, **how)),
    )
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


def test_what_is_skimmed_gives_the_head_what_reading_gives_it(backend) -> None:
    """The same bits, in windows of any size, from a prompt that was skimmed or read."""
    prompt = prompt_of(backend, some_observations()[0])
    words = (WORDS * 5)[:70]
    state, noise = np.zeros(5, np.float32), np.ones((8, 5), np.float32)
    decoding = backend.prefill(*prompt)
    for start in range(0, len(words), 16):
        backend.extend(decoding, words[start : start + 16])
    expected = backend.flow(decoding, state, noise), backend.inspect(decoding)["hidden"]
    for read in (backend.prefill, backend.skim_prompt):
        backend.forget()
        skimmed = read(*prompt)
        backend.skim(skimmed, words)
        assert skimmed.length == decoding.length
        assert np.array_equal(backend.flow(skimmed, state, noise), expected[0])
        assert np.array_equal(backend.inspect(skimmed)["hidden"], expected[1])


def test_layers_that_only_scores_need_are_not_run_for_the_head(backend, monkeypatch) -> None:
    run: list[str] = []
    bind = backend._bind

    def watched(arrays: object, role: str, *how: int) -> Callable[[], None]:
        bound = bind(arrays, role, *how)
        return lambda: (run.append(role), bound())[1]

    monkeypatch.setattr(backend, "_bind", watched)
    backend.skim(backend.skim_prompt(*prompt_of(backend, some_observations()[0])), WORDS)
    assert run == ["lower", "lower"]
    backend.prefill(*prompt_of(backend, some_observations()[1]))
    assert run[2:] == ["lower", "upper"]


def test_nothing_is_written_behind_what_was_skimmed_until_it_is_taken_back(backend, fresh) -> None:
    prompt = prompt_of(backend, some_observations()[0])
    decoding = backend.prefill(*prompt)
    length, logits = decoding.length, decoding.logits.copy()
    backend.skim(decoding, WORDS)
    assert len(decoding.logits) == 0
    with pytest.raises(BackendError, match=f"from place {length} on were read for the action head alone"):
        backend.step(decoding, 30)
    backend.rewind(decoding, length, logits)
    for word in WORDS:
        backend.step(decoding, word)
    assert np.allclose(decoding.logits, fresh(prompt, WORDS)[-1], atol=1e-4)


def test_what_is_recalled_gives_the_head_what_it_was_given_before(backend) -> None:
    """Behind the same prompt the same bits, and behind another one the states of then."""
    prompt = prompt_of(backend, some_observations()[0])
    state, noise = np.zeros(5, np.float32), np.ones((8, 5), np.float32)
    decoding = backend.prefill(*prompt)
    length = decoding.length
    for word in WORDS:
        backend.step(decoding, word)
    states, expected = backend.states(decoding, length), backend.flow(decoding, state, noise)
    assert states.shape == (len(WORDS), backend.spec.hidden_size)
    for number, which in enumerate((prompt, prompt_of(backend, some_observations()[1]))):
        backend.forget()
        again = backend.skim_prompt(*which)
        before = backend.inspect(again)["hidden"]
        backend.recall(again, states)
        assert np.array_equal(backend.inspect(again)["hidden"], np.concatenate([before, states]))
        assert np.array_equal(backend.flow(again, state, noise), expected) == (number == 0)
        assert len(again.logits) == 0


def test_nothing_is_read_behind_what_was_recalled_until_it_is_taken_back(backend, fresh) -> None:
    prompt = prompt_of(backend, some_observations()[0])
    decoding = backend.prefill(*prompt)
    length, logits = decoding.length, decoding.logits.copy()
    for written in ((), WORDS[:10]):
        for word in written:
            backend.step(decoding, word)
        backend.rewind(decoding, length, logits)
        backend.recall(decoding, np.ones((3, backend.spec.hidden_size), np.float32))
        for read in (lambda: backend.skim(decoding, WORDS), lambda: backend.step(decoding, 30)):
            with pytest.raises(BackendError, match=f"from place {length} on were recalled"):
                read()
        backend.rewind(decoding, length, logits)
    for word in WORDS:
        backend.step(decoding, word)
    assert np.allclose(decoding.logits, fresh(prompt, WORDS)[-1], atol=1e-4)
    room = backend.spec.max_tokens - decoding.length
    with pytest.raises(BackendError, match=f"{room + 1} tokens do not fit behind {decoding.length}"):
        backend.recall(decoding, np.ones((room + 1, backend.spec.hidden_size), np.float32))


def test_a_prompt_that_was_skimmed_is_read_whole_when_it_is_written_behind(backend, fresh) -> None:
    seen = some_observations()[0]
    prompts = [prompt_of(backend, changed(seen, image=image)) for image in (seen.images["front"], ANOTHER)]
    backend.prefill(*prompts[0])
    for first, second in ((prompts[1], prompts[1]), (prompts[0], prompts[1])):
        backend.skim_prompt(*first)
        assert np.allclose(write(backend, second, WORDS), fresh(second, WORDS), atol=1e-4)


def test_a_bundle_of_an_older_version_skims_by_reading_all_layers() -> None:
    """The shipped bundle for the SO-101 has `read` in one."""
    backend = InPlaceBackend.open(find_bundle("nano-so101"))
    prompt = [1, *[40] * 10, *[3] * 24, 5, 7], np.ones((3, 96, 96), np.float32)
    decoding = backend.prefill(*prompt)
    backend.extend(decoding, WORDS)
    expected = backend.inspect(decoding)["hidden"]
    backend.forget()
    skimmed = backend.skim_prompt(*prompt)
    backend.skim(skimmed, WORDS)
    assert np.array_equal(backend.inspect(skimmed)["hidden"], expected)
    backend.step(skimmed, 30)
    assert np.isfinite(skimmed.logits).all()
    backend.close()


@pytest.mark.parametrize(("mode", "skims"), [("off", True), ("before_every_chunk", False)])
def test_a_policy_skims_where_nothing_is_written_and_acts_the_same(bundle, monkeypatch, mode: str, skims: bool) -> None:
    skimmed: list[int] = []
    skim = InPlaceBackend.skim_prompt
    monkeypatch.setattr(InPlaceBackend, "skim_prompt", lambda self, *what: (skimmed.append(1), skim(self, *what))[1])
    answers = []
    for is_flow in (True, False):
        with Policy.load(bundle, thinking=Thinking(mode=mode)) as policy:  # type: ignore[arg-type]
            policy._is_flow = is_flow
            answers.append([policy.act(seen).actions for seen in some_observations()[:3]])
    assert np.array_equal(*answers)
    assert len(skimmed) == (3 if skims else 0)


def test_thoughts_beside_skim_too_and_are_those_that_are_written_before(bundle) -> None:
    """The words of a held thought go to the head alone, and the thinker has its prompt whole."""
    seen, thoughts, problems = some_observations()[0], set(), set()
    thinking = Thinking(mode="beside", max_age_s=1e6, waits_for_first=False)
    with Policy.load(bundle) as before, Policy.load(bundle, thinking=thinking) as beside:
        expected = before.act(seen).thought
        skim, skimmed = beside._backend.skim, []
        beside._backend.skim = lambda decoding, ids: (skimmed.append(len(ids)), skim(decoding, ids))[1]
        while len(skimmed) < 12:
            chunk = beside.act(seen)
            thoughts.add(chunk.thought)
            problems.add(chunk.thought_use.reason)
    assert thoughts == {None, expected}
    assert problems == {None}


def test_thoughts_beside_can_be_recalled_instead_of_read_again(bundle) -> None:
    """Nothing but prompts is read for the head; where the picture is the thought's own, it sees the same."""
    one = some_observations()[0]
    other = changed(one, image=ANOTHER)
    reading = Thinking(mode="beside", max_age_s=1e6)
    answers = {}
    for recalls in (False, True):
        opened = InPlaceBackend.open(bundle)
        policy = Policy(opened, thinking=replace(reading, recalls=recalls), is_driven=True)
        skim, skimmed = opened.skim, []
        opened.skim = lambda decoding, ids, skim=skim, to=skimmed: (to.append(len(ids)), skim(decoding, ids))[1]
        chunks = [policy.act(seen) for seen in (one, one, other)]  # awaited, begins the next one, acts meanwhile
        while policy.think_on():
            pass
        chunks += [policy.act(seen) for seen in (other, other)]
        assert [chunk.thought_use.status for chunk in chunks] == ["awaited", "held", "held", "fresh", "held"]
        assert len(skimmed) == (0 if recalls else 4)
        answers[recalls] = chunks
        policy.close()
    for read, recalled in zip(answers[False], answers[True], strict=True):
        assert (recalled.thought, recalled.tokens) == (read.thought, read.tokens)
    close = [np.allclose(a.actions, b.actions, atol=1e-5) for a, b in zip(answers[False], answers[True], strict=True)]
    assert close[:2] == [True, True]
    assert not close[2], "a thought about another picture is not read behind this one"
