"""A folder with a codec and a tokenizer of letters, and what else a policy without a model needs."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from roboalign.sdk.bundle import PolicySpec
from roboalign.sdk.fast import FastCodec
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.types import ACTION_NAMES, STATE_NAMES, Observation

MARKERS = ("<bos>", "<image>", "<quick>", "<slow>", "<ask>", "<act>", "<think>", "</think>", "<answer>", "</answer>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy")
    steps = np.random.default_rng(0).normal(size=(200, 8, 5)).astype(np.float32)
    codec = FastCodec.fit(steps, rate_hz=10.0, vocab_size=128)
    codec.save(path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    names = (*MARKERS, "<ACTION_START>", "<ACTION_END>", *(f"<ACTION_{i}>" for i in range(codec.vocab_size)))
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture
def spec() -> PolicySpec:
    return PolicySpec(
        horizon=8,
        rate_hz=10.0,
        camera_names=("front",),
        image_size_px=96,
        state_names=STATE_NAMES,
        action_names=ACTION_NAMES,
        action_low=(-1.0,) * 5,
        action_high=(1.0,) * 5,
        prompt=PromptFormat(),
        max_prompt_tokens=96,
        max_thought_tokens=6,
        max_tokens=180,
        hidden_size=4,
        has_head=True,
    )


@pytest.fixture
def ids(folder: Path) -> dict[str, int]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()


@pytest.fixture
def observation() -> Observation:
    return Observation(
        images={"front": np.zeros((96, 96, 3), np.uint8)},
        state=np.array([0.5, 0.0, 0.2, 0.0, 0.05], np.float32),
        joint_pos_rad=np.zeros(7, np.float32),
        instruction="go",
        time_s=0.0,
    )
