"""The camera: view and projection matrices, computed once, and pictures from PyBullet's software renderer."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.types import ImageArray

__all__ = ["Camera", "front_camera", "show_camera"]

_EYE_M = (1.20, 0.0, 0.85)
_AIM_M = (0.515, 0.0, 0.045)
_FOV_DEG = 20.5


class Camera:
    """A pinhole camera fixed in the base frame; the image's right side is +y for the cameras below."""

    def __init__(
        self,
        *,
        eye_m: tuple[float, float, float],
        aim_m: tuple[float, float, float],
        fov_deg: float,
        size_px: int,
        has_shadow: bool = False,
    ) -> None:
        self.eye_m = eye_m
        self.aim_m = aim_m
        self.fov_deg = fov_deg
        self.size_px = size_px
        self.has_shadow = has_shadow
        self._matrices: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def render(self, p: ModuleType, client: int) -> tuple[ImageArray, NDArray[np.int32]]:
        """Returns uint8[H, W, 3] RGB and int32[H, W] body ids (-1 where nothing is)."""
        if self._matrices is None:
            view = p.computeViewMatrix(self.eye_m, self.aim_m, (0, 0, 1))
            self._matrices = (view, p.computeProjectionMatrixFOV(self.fov_deg, 1.0, 0.1, 4.0))
        view, projection = self._matrices
        _, _, rgba, _, mask = p.getCameraImage(
            self.size_px,
            self.size_px,
            viewMatrix=view,
            projectionMatrix=projection,
            renderer=p.ER_TINY_RENDERER,
            shadow=int(self.has_shadow),
            lightDirection=(1.5, 0.5, 2.0),
            lightAmbientCoeff=0.6,
            lightDiffuseCoeff=0.45,
            lightSpecularCoeff=0.0,
            physicsClientId=client,
        )
        shape = (self.size_px, self.size_px)
        rgb = np.ascontiguousarray(np.asarray(rgba, np.uint8).reshape(*shape, 4)[:, :, :3])
        return rgb, np.asarray(mask, np.int32).reshape(shape)


def front_camera(size_px: int = 96) -> Camera:
    """Returns the camera `front`: opposite to the robot, above the table, the workspace filling the picture."""
    return Camera(eye_m=_EYE_M, aim_m=_AIM_M, fov_deg=_FOV_DEG, size_px=size_px)


def show_camera(size_px: int = 320) -> Camera:
    """Returns a wider camera from the side for films that people look at."""
    return Camera(eye_m=(1.25, 0.75, 0.75), aim_m=(0.42, 0.0, 0.15), fov_deg=38.0, size_px=size_px, has_shadow=True)
