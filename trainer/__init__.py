"""How a model is made: the stages `base`, `sft`, `align` and `head`, each one file that reads top to bottom.

This package imports nothing; take `roboalign.trainer.sft` and its neighbours by name. `trainer.nano` and `trainer.qwen`
are the two backbones, `trainer.recipes` holds complete settings, `trainer.backend` lets `sdk.Policy` act with torch.
"""
