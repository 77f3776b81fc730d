"""What the passes of a published model would take on a board, for `roboalign eval --latency BOARD/MODEL`.

Predicted by the roofline of `prediction.py`, never measured: NVFP4 weights where the board has them, else INT4.
"""

from __future__ import annotations

from roboalign.export.prediction import predict
from roboalign.export.shapes import model_size
from roboalign.export.targets import find_target
from roboalign.sdk.errors import ConfigError
from roboalign.sdk.evaluation.latency import LatencyProfile

__all__ = ["board_latency"]


def board_latency(text: str) -> LatencyProfile:
    """Returns the profile that `agx-thor/qwen2.5-vl-7b` or `prefill=S,token=S,action=S` means.

    Raises:
        ConfigError: Board or model is unknown, or the roofline says nothing about them.
    """
    board, slash, model = text.partition("/")
    if not slash:
        return LatencyProfile.parse(text)
    target, size = find_target(board), model_size(model)
    precision = "nvfp4" if "nvfp4" in target.attained_tflops else "int4"
    predicted = predict(size, target, precision)
    if predicted is None or predicted.vision_ms is None or predicted.head_ms is None:
        raise ConfigError(f"nothing is known about the speed of {model} on {board}; give prefill=S,token=S,action=S")
    return LatencyProfile(
        prefill_s=1e-3 * (predicted.vision_ms + predicted.prefill_ms),
        token_s=1.0 / predicted.tokens_per_s,
        action_s=1e-3 * predicted.head_ms,
        name=f"{text} in {precision}, predicted",
    )
