"""`nano`: a vision-language model of about two million parameters that trains on a laptop CPU."""

from roboalign.trainer.nano.backbone import NanoBackbone
from roboalign.trainer.nano.configuration import NanoConfig
from roboalign.trainer.nano.modeling import NanoForConditionalGeneration, NanoVision
from roboalign.trainer.nano.processing import NanoImageProcessor, NanoProcessor, train_tokenizer

__all__ = [
    "NanoBackbone",
    "NanoConfig",
    "NanoForConditionalGeneration",
    "NanoImageProcessor",
    "NanoProcessor",
    "NanoVision",
    "train_tokenizer",
]
