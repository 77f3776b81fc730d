"""What a bundle for the CPU sees with: the picture's tokens are PyTorch's, however much of the prompt is heard anew."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from roboalign.bench.models import SIZES, bench_spec, lively_model, make_prompt, write_bench_manifest
from roboalign.export.graph_set import write_graphs
from roboalign.sdk.backends.in_place import InPlaceBackend
from roboalign.sdk.backends.sight import HearingSight, Sight, WholeSight
from roboalign.sdk.bundle import find_bundle, read_bundle
from roboalign.sdk.types import FloatArray
from roboalign.trainer.flow import FlowHead, FlowHeadConfig
from roboalign.trainer.nano import NanoForConditionalGeneration
from roboalign.trainer.smol.configuration import SmolConfig
from roboalign.trainer.smol.modeling import SmolForConditionalGeneration

TINY = SIZES["tiny"]


def smol_model() -> SmolForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"hidden_size": TINY.hidden, "intermediate_size": TINY.intermediate, "num_hidden_layers": TINY.layers}
    config = SmolConfig(
        vocab_size=1024,
        head_dim=TINY.head_dim,
        num_key_value_heads=1,
        vision_width=32,
        vision_channels=(16, 32, 32),
        **sizes,  # type: ignore[arg-type]
    )
    return SmolForConditionalGeneration(config).eval()


@pytest.fixture(scope="module", params=["nano", "smol"])
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[NanoForConditionalGeneration, Path]:
    """A model and its bundle."""
    model = lively_model(TINY) if request.param == "nano" else smol_model()
    spec, folder = bench_spec(TINY), tmp_path_factory.mktemp(request.param)
    head = FlowHead(
        FlowHeadConfig(
            hidden_size=TINY.hidden,
            layer=1,
            horizon=spec.horizon,
            action_low=spec.action_low,
            action_high=spec.action_high,
            state_mean=(0.0,) * 5,
            state_std=(1.0,) * 5,
        )
    )
    graphs = write_graphs(model, head, spec, folder, "fp32", reads_in_place=True)
    (folder / "config.json").write_text(model.config.to_json_string())
    write_bench_manifest(folder, spec, graphs, "fp32", "tiny")
    return model, folder


@pytest.fixture
def sight(made: tuple[NanoForConditionalGeneration, Path]) -> Iterator[Sight]:
    backend = InPlaceBackend.open(made[1])
    yield backend._sight
    backend.close()


def picture(seed: int) -> FloatArray:
    drawn: FloatArray = np.random.default_rng(seed).standard_normal((3, 96, 96), dtype=np.float32)
    return drawn


def ids_of(*, at: int | None = None, num_words: int = 40) -> np.ndarray:
    """A prompt of so many words, one of which is another."""
    ids = np.array(make_prompt(num_words + 26), np.int64)
    if at is not None:
        ids[at] = 9
    return ids


PROMPTS = (
    ids_of(at=20),
    ids_of(at=1),
    ids_of(at=39),
    ids_of(num_words=31),
    ids_of(num_words=45),
    ids_of(num_words=3),
    ids_of(num_words=40),
)


def test_the_picture_s_tokens_are_those_of_pytorch_with_any_prompt_before(made, sight) -> None:
    for index, ids in enumerate(PROMPTS):
        pixels = picture(index)
        first, rows = sight.see(ids, pixels)
        merged = made[0].model.merge(torch.from_numpy(ids)[None], torch.from_numpy(pixels)[None], None)[0][0]
        expected = merged[first : first + len(rows)].detach().numpy()
        assert (len(rows), list(ids).index(3)) == (24, first)
        assert np.abs(rows - expected).max() < 1e-4 * np.abs(expected).max()


def test_words_that_are_kept_give_the_same_bits_as_all_words_heard_anew(made, sight) -> None:
    anew = InPlaceBackend.open(made[1])
    for ids in PROMPTS:
        rows = sight.see(ids, picture(0))[1]
        anew.forget()
        assert np.array_equal(rows, anew._sight.see(ids, picture(0))[1])
    anew.close()


def test_only_what_is_near_the_first_other_word_is_heard_again(made, sight, monkeypatch) -> None:
    heard: list[int] = []
    run = sight._hear.run
    monkeypatch.setattr(sight._hear, "run", lambda feed: (heard.append(feed["tokens"].shape[1]), run(feed))[1])
    length = len(ids_of())
    for ids in (ids_of(), ids_of(), ids_of(at=30), ids_of(at=30)):
        sight.see(ids, picture(len(heard)))
    assert heard == [length, length - 26]
    sight.forget()
    sight.see(ids_of(at=30), picture(0))
    assert heard[2:] == [length]


def test_a_word_two_before_the_picture_matters(sight) -> None:
    """The control: rows that ignore the words would pass above if the models did."""
    rows = [sight.see(ids_of(at=at), picture(0))[1] for at in (None, 38)]
    assert isinstance(sight, HearingSight)
    assert not np.allclose(*rows, atol=1e-5)


def test_a_bundle_of_an_older_version_hears_every_word_whenever_it_looks() -> None:
    """The shipped bundle for the SO-101 has `see`."""
    bundle = read_bundle(find_bundle("nano-so101"))
    backend = InPlaceBackend(bundle)
    assert isinstance(backend._sight, WholeSight)
    ids = [1, *[40] * 10, *[3] * 24, 5, 7]
    first, rows = backend._sight.see(np.array(ids), picture(0))
    assert (first, rows.shape) == (11, (24, backend.spec.hidden_size))
    decoding = backend.prefill(ids, picture(0))
    assert np.isfinite(decoding.logits).all()
    backend.close()


def test_a_compiled_step_reads_what_the_graphs_read(made) -> None:
    """The constants of each kind of model are found in its configuration."""
    rows = []
    for compiles in (False, True):
        backend = InPlaceBackend(read_bundle(made[1]), compiles=compiles)
        assert backend.is_compiled == compiles
        decoding = backend.prefill(ids_of().tolist(), picture(0))
        for word in (40, 50, 60):
            backend.step(decoding, word)
        rows.append(decoding.logits.copy())
    assert np.allclose(*rows, atol=1e-4 * np.abs(rows[0]).max())
