"""The camera: view and projection matrices, computed once, and pictures from PyBullet."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from roboalign.sdk.errors import RobotError
from roboalign.sdk.randomization.domain import DomainSample
from roboalign.sdk.randomization.viewpoint import Lamp, Viewpoint, move_camera, move_lamp
from roboalign.sdk.sim.layout import PANDA_TABLE, TableLayout
from roboalign.sdk.sim.renderer import is_blank, quiet
from roboalign.sdk.types import ImageArray

__all__ = ["Camera", "front_camera", "show_camera"]

_LAMP = Lamp(direction=(1.5, 0.5, 2.0), ambient=0.6, diffuse=0.45)
_OFF = DomainSample.off()


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
        is_varied: bool = True,
    ) -> None:
        """Stores the camera; one that is not varied stays where it is, whatever the randomisation does."""
        self.eye_m = eye_m
        self.aim_m = aim_m
        self.fov_deg = fov_deg
        self.size_px = size_px
        self.has_shadow = has_shadow
        self.is_varied = is_varied
        self._drawn_for: Viewpoint | None = None
        self._matrices: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())

    def viewpoint(self, domain: DomainSample = _OFF) -> Viewpoint:
        """Returns where the camera is and what it aims at in an episode."""
        plain = Viewpoint(eye_m=self.eye_m, aim_m=self.aim_m, up=(0.0, 0.0, 1.0), fov_deg=self.fov_deg)
        return move_camera(plain, domain) if self.is_varied else plain

    def render(self, p: ModuleType, client: int, domain: DomainSample = _OFF) -> tuple[ImageArray, NDArray[np.int32]]:
        """Returns uint8[H, W, 3] RGB and int32[H, W] body ids (-1 where nothing is).

        Of the randomisation, camera pose, field of view and light are in the picture; what a sensor adds is not.

        Raises:
            RobotError: The whole picture has one colour, so the renderer has failed or the camera sees nothing.
        """
        viewpoint = self.viewpoint(domain)
        if viewpoint != self._drawn_for:
            view = p.computeViewMatrix(viewpoint.eye_m, viewpoint.aim_m, viewpoint.up)
            self._matrices = (view, p.computeProjectionMatrixFOV(viewpoint.fov_deg, 1.0, 0.1, 4.0))
            self._drawn_for = viewpoint
        view, projection = self._matrices
        lamp = move_lamp(_LAMP, domain)
        with quiet(client):
            _, _, rgba, _, mask = p.getCameraImage(
                self.size_px,
                self.size_px,
                viewMatrix=view,
                projectionMatrix=projection,
                renderer=p.ER_TINY_RENDERER,  # a client that has the EGL plugin draws with that all the same
                shadow=int(self.has_shadow),
                lightDirection=lamp.direction,
                lightAmbientCoeff=lamp.ambient,
                lightDiffuseCoeff=lamp.diffuse,
                lightSpecularCoeff=0.0,
                physicsClientId=client,
            )
        shape = (self.size_px, self.size_px)
        rgb = np.ascontiguousarray(np.asarray(rgba, np.uint8).reshape(*shape, 4)[:, :, :3])
        if is_blank(rgb):
            found = f"the picture of {self.size_px} px from {viewpoint.eye_m} has one colour, {rgb[0, 0].tolist()}"
            raise RobotError(f"{found}; check where the camera looks, or use SimWorld(renderer='tiny')")
        return rgb, np.asarray(mask, np.int32).reshape(shape)


def front_camera(size_px: int = 96, table: TableLayout = PANDA_TABLE) -> Camera:
    """Returns the camera `front`: opposite to the robot, above the table, the workspace filling the picture."""
    view = table.front
    return Camera(eye_m=view.eye_m, aim_m=view.aim_m, fov_deg=view.fov_deg, size_px=size_px)


def show_camera(size_px: int = 320, table: TableLayout = PANDA_TABLE) -> Camera:
    """Returns a wider camera from the side for films that people look at."""
    view = table.show
    return Camera(
        eye_m=view.eye_m, aim_m=view.aim_m, fov_deg=view.fov_deg, size_px=size_px, has_shadow=True, is_varied=False
    )
