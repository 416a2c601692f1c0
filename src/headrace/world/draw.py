"""A scene as pixels."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from PIL import Image

from headrace.world import objects
from headrace.world.scene import Scene


def draw(scene: Scene) -> Image.Image:
    """The RGB picture of a scene; every pixel that no object touches has exactly the background's colour."""
    picture = Image.new("RGB", (scene.width, scene.height), scene.background)
    for placed in scene.objects:
        scaled = _scaled(placed.name, placed.side)
        picture.paste(scaled, (placed.left, placed.top), scaled)
    return picture


def pixels(scene: Scene) -> npt.NDArray[np.uint8]:
    """The same as an array of shape (height, width, 3)."""
    return np.asarray(draw(scene))


@functools.lru_cache(maxsize=1024)
def _scaled(name: str, side: int) -> Image.Image:
    return objects.picture(name).resize((side, side), Image.Resampling.LANCZOS)
