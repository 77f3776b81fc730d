from pathlib import Path

from roboalign.trainer.align_config import AlignConfig, grpo_config
from roboalign.trainer.recipes.paper import PAPER_ALIGN, PAPER_SFT_SAMPLES


def test_the_papers_alignment_has_its_numbers(tmp_path) -> None:
    """512 prompts with 5 replies a rollout, 640 replies an update, one pass over at most 1 % of the samples."""
    config = AlignConfig(data=Path("data"), sft=Path("sft"), out=tmp_path / "out", recipe="paper", **PAPER_ALIGN)
    args = grpo_config(config, tmp_path)
    assert args.num_generations == 5
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 640
    assert args.per_device_train_batch_size * args.steps_per_generation == 5 * 512
    assert args.learning_rate == 1e-6
    assert config.steps / config.updates_per_rollout * config.prompts_per_rollout == config.num_prompts == 12_800
    assert config.num_prompts <= 0.01 * PAPER_SFT_SAMPLES
    assert config.reward == "prefix"
    assert not config.is_constrained
