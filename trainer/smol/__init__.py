"""`smol`: a really pretrained language model (SmolLM2-135M-Instruct) behind the nano vision stem and a connector."""

from roboalign.trainer.smol.backbone import SmolBackbone
from roboalign.trainer.smol.configuration import SmolConfig
from roboalign.trainer.smol.modeling import SmolForConditionalGeneration
from roboalign.trainer.smol.processing import SmolProcessor
from roboalign.trainer.smol.weights import find_gguf, start_smol

__all__ = [
    "SmolBackbone",
    "SmolConfig",
    "SmolForConditionalGeneration",
    "SmolProcessor",
    "find_gguf",
    "start_smol",
]
