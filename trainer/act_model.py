"""An ACT-like policy without a language model, on the same demonstrations: the baseline that a VLA has to beat.

Of ACT (Zhao et al., arXiv 2304.13705) it has: convolutional picture features with 2-D sine positions as memory tokens,
the robot state as one more token, a transformer encoder, a decoder whose learned queries are the actions of a chunk,
an L1 loss on normalised actions, and the conditional VAE (an encoder over state and demonstrated chunk gives a style
z; KL weight as published; z = 0 when acting). Departures: a small convolutional stem trained from nothing instead of
pretrained ResNet-18, one camera, a whole chunk executed before the next (no temporal ensembling), and several tasks:
the instruction enters as a learned bag of its words (one vector a known word, summed; unknown words are dropped), which
scales and shifts the picture features (FiLM) and is one memory token. There is no language model and no pretraining.

Shape suffixes: B batch, M memory tokens, T horizon, A action fields, S state fields, E width.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from roboalign.sdk.errors import BundleError, DataError
from roboalign.sdk.evaluation.contenders import ACT_FILE
from roboalign.sdk.prompt import PromptFormat
from roboalign.sdk.types import ActionChunk, FloatArray, ImageArray, Observation, RobotSpec

__all__ = ["ActModel", "ActPolicy", "ActSizes", "act_loss", "open_policy", "pixels"]

_WEIGHTS_FILE = "act.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class ActSizes:
    """What an ACT-like policy is, besides its weights."""

    words: tuple[str, ...]
    """Words that have a vector, most frequent first."""
    horizon: int
    """Actions in a chunk."""
    rate_hz: float
    """Rate at which they are meant to be applied."""
    image_size_px: int
    """Height and width of the picture."""
    action_low: tuple[float, ...]
    """1st percentile of each action field: -1."""
    action_high: tuple[float, ...]
    """99th percentile of each action field: +1."""
    state_mean: tuple[float, ...]
    """Mean of each state field."""
    state_std: tuple[float, ...]
    """Standard deviation of each state field."""
    width: int = 144
    """Width of the transformer (ACT: 512)."""
    num_heads: int = 4
    """Attention heads (ACT: 8)."""
    encoder_layers: int = 3
    """Encoder layers (ACT: 4)."""
    decoder_layers: int = 3
    """Decoder layers (ACT's code runs 7 and uses the first)."""
    style_size: int = 16
    """Length of the style z (ACT: 32)."""
    channels: tuple[int, int, int] = (24, 48, 96)
    """Channels of the picture stem, as in nano."""


class _Film(nn.Module):
    """A residual convolution, scaled and shifted by the instruction."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: torch.Tensor, words_BE: torch.Tensor) -> torch.Tensor:
        scale, shift = self.film(words_BE)[:, :, None, None].chunk(2, dim=1)
        return x + F.relu(self.conv(x) * (1 + scale) + shift)


class ActModel(nn.Module):
    """Pictures, states and instructions in, chunks of actions out."""

    action_low: torch.Tensor
    action_high: torch.Tensor
    state_mean: torch.Tensor
    state_std: torch.Tensor
    place: torch.Tensor

    def __init__(self, sizes: ActSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self._word_index = {word: index for index, word in enumerate(sizes.words)}
        width, (small, middle, large) = sizes.width, sizes.channels
        self.words = nn.Embedding(max(1, len(sizes.words)), width)
        self.stem = nn.Sequential(
            nn.Conv2d(3, small, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(small, middle, 3, stride=2, padding=1)
        )
        self.film1 = _Film(middle, width)
        self.down = nn.Conv2d(middle, large, 3, stride=2, padding=1)
        self.film2 = _Film(large, width)
        self.cell_in, self.state_in = nn.Linear(large, width), nn.Linear(len(sizes.state_mean), width)
        self.style_state = nn.Linear(len(sizes.state_mean), width)
        self.style_action = nn.Linear(len(sizes.action_low), width)
        self.style_place = nn.Parameter(0.02 * torch.randn(sizes.horizon + 2, width))
        self.style = nn.TransformerEncoder(_encoder_layer(sizes), 2, enable_nested_tensor=False)
        self.style_out, self.style_in = nn.Linear(width, 2 * sizes.style_size), nn.Linear(sizes.style_size, width)
        self.role = nn.Parameter(0.02 * torch.randn(3, width))
        self.encoder = nn.TransformerEncoder(_encoder_layer(sizes), sizes.encoder_layers, enable_nested_tensor=False)
        layer = nn.TransformerDecoderLayer(width, sizes.num_heads, 3 * width, 0.1, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, sizes.decoder_layers)
        self.query = nn.Parameter(0.02 * torch.randn(sizes.horizon, width))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(sizes.action_low)))
        for name in ("action_low", "action_high", "state_mean", "state_std"):
            self.register_buffer(name, torch.tensor(getattr(sizes, name)), persistent=False)
        self.register_buffer("place", _sine_places(-(-sizes.image_size_px // 8) // 2, width), persistent=False)

    def normalize(self, actions_BTA: torch.Tensor) -> torch.Tensor:
        """Returns actions in their units as numbers around -1..1."""
        return (actions_BTA - self.action_low) / (self.action_high - self.action_low) * 2 - 1

    def bag(self, instructions: list[str]) -> torch.Tensor:
        """Returns float32[B, E], the sum of the vectors of the known words of each instruction."""
        clean = PromptFormat().clean_text
        known = [[self._word_index[w] for w in clean(t).split() if w in self._word_index] for t in instructions]
        offsets = torch.tensor([0, *np.cumsum([len(row) for row in known])[:-1]], dtype=torch.int64)
        flat = torch.tensor([index for row in known for index in row], dtype=torch.int64)
        return F.embedding_bag(flat, self.words.weight, offsets, mode="sum")

    def infer_style(self, state_BS: torch.Tensor, normal_BTA: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mean and log-variance [B, Z] of the style of demonstrated chunks (normalised)."""
        state = self.style_state(self._scaled(state_BS)).unsqueeze(1)
        tokens = torch.cat((torch.zeros_like(state), state, self.style_action(normal_BTA)), dim=1) + self.style_place
        mean, log_var = self.style_out(self.style(tokens)[:, 0]).chunk(2, dim=1)
        return mean, log_var

    def forward(
        self, pixels_B3HW: torch.Tensor, state_BS: torch.Tensor, words_BE: torch.Tensor, style_BZ: torch.Tensor
    ) -> torch.Tensor:
        """Returns normalised chunks [B, T, A]."""
        x = self.film1(F.relu(self.stem(pixels_B3HW)), words_BE)
        x = self.film2(F.relu(self.down(x)), words_BE)
        x = F.avg_pool2d(x, 2)
        cells = self.cell_in(x.flatten(2).transpose(1, 2)) + self.place
        others = torch.stack((self.state_in(self._scaled(state_BS)), words_BE, self.style_in(style_BZ)), dim=1)
        memory_BME = self.encoder(torch.cat((others + self.role, cells), dim=1))
        return self.out(self.decoder(self.query.expand(len(memory_BME), -1, -1), memory_BME))

    @torch.inference_mode()
    def predict(self, images: ImageArray, states: FloatArray, instructions: list[str]) -> torch.Tensor:
        """Returns chunks [B, T, A] in their units, with the mean style z = 0."""
        style = torch.zeros((len(images), self.sizes.style_size))
        normal = self(pixels(images), torch.from_numpy(states), self.bag(instructions), style)
        return (normal + 1) / 2 * (self.action_high - self.action_low) + self.action_low

    def _scaled(self, state_BS: torch.Tensor) -> torch.Tensor:
        return (state_BS - self.state_mean) / self.state_std

    def save(self, directory: Path) -> None:
        """Writes the weights and sizes into a folder that exists."""
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, directory / _WEIGHTS_FILE)
        text = json.dumps(asdict(self.sizes), indent=2, sort_keys=True)
        (directory / ACT_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> ActModel:
        """Reads what `save` wrote; raises BundleError when a file is absent or damaged."""
        try:
            raw = json.loads((directory / ACT_FILE).read_text(encoding="utf-8"))
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
            model = cls(ActSizes(**values))
            model.load_state_dict(load_file(directory / _WEIGHTS_FILE))
        except (TypeError, ValueError, RuntimeError, OSError, SafetensorError) as err:
            raise BundleError(f"the ACT-like policy in {directory} is damaged: {err}; copy the folder again") from err
        return model.eval()


def pixels(images: ImageArray) -> torch.Tensor:
    """Returns float32[B, 3, H, W] around 0 from uint8[B, H, W, 3]."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255.0 - 0.5) / 0.25


def _encoder_layer(sizes: ActSizes) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        sizes.width, sizes.num_heads, 3 * sizes.width, 0.1, batch_first=True, norm_first=True
    )


def _sine_places(side: int, width: int) -> torch.Tensor:
    """Returns float32[side * side, E]: half of the width says the row, half the column."""
    half = width // 2
    place = torch.arange(side)[:, None] * torch.exp(torch.linspace(0.0, -4.0, half // 2))
    waves = torch.cat((place.sin(), place.cos()), dim=1)
    rows, columns = waves.repeat_interleave(side, dim=0), waves.repeat(side, 1)
    return torch.cat((rows, columns), dim=1)


def act_loss(
    model: ActModel,
    images: torch.Tensor,
    state_BS: torch.Tensor,
    words_BE: torch.Tensor,
    actions_BTA: torch.Tensor,
    noise_BZ: torch.Tensor,
    *,
    style_weight: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (loss, its L1 part): mean absolute error of the chunk, plus the weighted KL of the style to N(0, 1)."""
    target = model.normalize(actions_BTA)
    mean, log_var = model.infer_style(state_BS, target)
    found = model(images, state_BS, words_BE, mean + noise_BZ * (0.5 * log_var).exp())
    distance = F.l1_loss(found, target)
    kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(dim=1).mean()
    return distance + style_weight * kl, distance


class ActPolicy:
    """The policy as `roboalign eval` plays it: a whole chunk for each observation, z = 0, no randomness."""

    def __init__(self, model: ActModel, spec: RobotSpec) -> None:
        self._model, self._camera = model, spec.camera_names[0]

    def reset(self) -> None:
        """Does nothing: there is no memory."""

    def act(self, observation: Observation) -> ActionChunk:
        """Returns the next chunk; DataError when the observation lacks the picture or has another size."""
        image = observation.images.get(self._camera)
        size = self._model.sizes.image_size_px
        if image is None or image.shape != (size, size, 3):
            found = "no picture" if image is None else f"a picture {image.shape[1]} x {image.shape[0]}"
            raise DataError(f"the observation has {found} of camera {self._camera!r}, expected {size} x {size} px")
        chunk = self._model.predict(image[None], observation.state[None].astype(np.float32), [observation.instruction])
        return ActionChunk(actions=chunk[0].numpy(), rate_hz=self._model.sizes.rate_hz, source="act")

    def close(self) -> None:
        """Does nothing."""


def open_policy(folder: Path, spec: RobotSpec) -> ActPolicy:
    """Returns the policy in a folder for a robot; `roboalign.sdk.evaluation` calls it by name."""
    torch.set_num_threads(1)
    return ActPolicy(ActModel.load(folder), spec)
