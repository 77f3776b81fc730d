"""Which renderer draws a world's pictures: PyBullet's software renderer Tiny, or OpenGL through its EGL plugin.

On a CPU the plugin is faster from about 300 px on, below that Tiny is (ms a frame at 224, 320 and 640 px: EGL 18, 19,
39; Tiny 11, 21, 81). Their pictures differ: EGL always draws shadows and highlights. The plugin has traps, which are
dealt with here and in `bodies`: loaded after a body it draws nothing but one colour and reports no error; a second one
in the same process makes both go blank; once loaded it draws whatever renderer is asked for; it leaves out meshes that
are given as vertices; and it prints to standard output.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np

from roboalign.sdk.errors import ConfigError, RobotError
from roboalign.sdk.types import ImageArray

__all__ = ["EGL_SIZE_PX", "RENDERERS", "close_client", "has_egl", "is_blank", "open_client", "quiet"]

RENDERERS = ("auto", "tiny", "egl")
"""Names of the renderers; `auto` is EGL for large pictures where it works, else Tiny."""
EGL_SIZE_PX = 320
"""Pictures of at least this size are drawn by EGL under `auto`."""

_PROBE_PX = 32
_log = logging.getLogger(__name__)
_egl_clients: list[int] = []


def open_client(p: ModuleType, renderer: str, size_px: int) -> int:
    """Opens a physics client whose pictures are drawn by the renderer, and returns its id.

    Under `auto`, a plugin that is missing, in use or blank is logged, and the client draws with Tiny.

    Raises:
        ConfigError: There is no renderer of this name.
        RobotError: `egl` was asked for and does not work.
    """
    if renderer not in RENDERERS:
        raise ConfigError(f"renderer is {renderer!r}; choose one of {', '.join(RENDERERS)}")
    client = int(p.connect(p.DIRECT))
    if renderer == "tiny" or (renderer == "auto" and size_px < EGL_SIZE_PX):
        return client
    problem = _load_egl(p, client)
    if problem is None:
        return client
    close_client(p, client)
    if renderer == "egl":
        raise RobotError(f"the EGL renderer cannot be used: {problem}; choose renderer 'tiny'")
    _log.warning("pictures of %d px are drawn by the software renderer, because EGL cannot: %s", size_px, problem)
    return int(p.connect(p.DIRECT))


def close_client(p: ModuleType, client: int) -> None:
    """Closes a client that `open_client` opened."""
    with _stdout_to_stderr() if client in _egl_clients else contextlib.nullcontext():
        p.disconnect(physicsClientId=client)
    if client in _egl_clients:
        _egl_clients.remove(client)


def is_blank(image: ImageArray) -> bool:
    """True when every pixel of uint8[H, W, 3] has the same colour."""
    return bool((image == image[0, 0]).all())


def has_egl(client: int) -> bool:
    """True when the client's pictures are drawn by the EGL plugin."""
    return client in _egl_clients


@contextlib.contextmanager
def quiet(client: int) -> Iterator[None]:
    """While the plugin draws for this client, what it prints goes to standard error."""
    with _stdout_to_stderr() if client in _egl_clients else contextlib.nullcontext():
        yield


def _load_egl(p: ModuleType, client: int) -> str | None:
    """Loads the plugin into a client without bodies and draws a trial picture; returns what is wrong, or None."""
    if _egl_clients:
        return "another simulation in this process uses it, and two would both go blank; use one process for each"
    found = importlib.util.find_spec("eglRenderer")
    if found is None or found.origin is None:
        return "this build of pybullet has no eglRenderer plugin"
    _egl_clients.append(client)
    with _stdout_to_stderr():
        plugin = p.loadPlugin(found.origin, "_eglRendererPlugin", physicsClientId=client)
        if plugin < 0:
            return "the plugin does not load; on Debian: apt install libegl1 libegl-mesa0 libgl1-mesa-dri"
        trial = _draw_trial(p, client)
    p.resetSimulation(physicsClientId=client)
    if is_blank(trial):
        return "it draws one colour only; on Debian: apt install libegl1 libegl-mesa0 libgl1-mesa-dri"
    return None


def _draw_trial(p: ModuleType, client: int) -> ImageArray:
    """Returns a picture of a red box in front of nothing."""
    box = p.createVisualShape(p.GEOM_BOX, halfExtents=(0.1,) * 3, rgbaColor=(1, 0, 0, 1), physicsClientId=client)
    p.createMultiBody(0, -1, box, physicsClientId=client)
    rgba = p.getCameraImage(
        _PROBE_PX,
        _PROBE_PX,
        viewMatrix=p.computeViewMatrix((1, 0, 0.5), (0, 0, 0), (0, 0, 1)),
        projectionMatrix=p.computeProjectionMatrixFOV(40, 1, 0.1, 4),
        renderer=p.ER_BULLET_HARDWARE_OPENGL,
        physicsClientId=client,
    )[2]
    return np.asarray(rgba, np.uint8).reshape(_PROBE_PX, _PROBE_PX, 4)[:, :, :3]


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Sends what C code prints to standard error: a command's standard output is for its result."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    libc.fflush(None)
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        libc.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
