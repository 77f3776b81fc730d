"""roboalign: from a vision-language model to a robot that reasons before it acts.

The rooms are `roboalign.sdk` (what runs on the robot), `roboalign.trainer`, `roboalign.export` and `roboalign.drivers`.
Importing this package loads none of them.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
