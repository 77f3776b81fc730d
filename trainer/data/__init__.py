"""What a model is trained on: sources, mixtures of them, and pages that show their samples.

This package imports nothing; take `roboalign.trainer.data.mixture` and its neighbours by name.
"""
