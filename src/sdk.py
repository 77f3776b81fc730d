"""Short name of `roboalign.sdk`: the same objects, and nothing of its own.

`import sdk; sdk.Policy` and `from roboalign import sdk; sdk.Policy` are one class. There are no submodules here; write
`from roboalign.sdk.sim import ...`.
"""

from typing import TYPE_CHECKING

from roboalign import sdk as _sdk

if TYPE_CHECKING:
    from roboalign.sdk import *  # noqa: F403  (what a type checker should see)

__all__ = _sdk.__all__


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_sdk, name)


def __dir__() -> list[str]:
    return sorted(__all__)
