"""A scene as pixels."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from headrace.world import figures, letters, objects, skeletons
from headrace.world.scene import LIGHTS, Background, Box, Group, Look, Scene, Thing

Pixels = npt.NDArray[np.uint8]

SHADOW_STRENGTH = 0.42
"""How much of the light the middle of a shadow takes away."""


class _Copy(NamedTuple):
    """A copy of an object, or a figure, ready to be pasted: RGBA sprite, coverage of its shadow, the sprite's box."""

    sprite: Image.Image
    shadow: Image.Image
    box: Box


def draw(scene: Scene) -> Pixels:
    """The RGB picture of a scene, (height, width, 3).

    Every pixel outside the boxes of things, shadows (`shadow_box`), letters and skeletons is exactly the background's.
    """
    return np.asarray(picture(scene))


def picture(scene: Scene) -> Image.Image:
    """The same as an image."""
    image = Image.fromarray(background(scene.background, scene.width, scene.height))
    copies = [copy for thing in scene.things for copy in _copies(thing)]
    for copy in copies:
        place = shadow_box(copy.box, scene.light)
        image.paste((0, 0, 0), (place.left, place.top), copy.shadow)
    for copy in copies:
        image.paste(copy.sprite, (copy.box.left, copy.box.top), copy.sprite)
    for skeleton in scene.skeletons:
        skeletons.paste_skeleton(image, skeleton)
    for text in scene.texts:
        for mask, box in letters.coverage(text):
            image.paste(text.color.rgb, (box.left, box.top), mask)
    return image


def background(kind: Background, width: int, height: int) -> Pixels:
    """The background alone, (height, width, 3). Gradients are linear in sRGB; edges across pixels are antialiased."""
    first = np.array(kind.colors[0].rgb, np.float32)
    if kind.kind == "plain":
        return np.full((height, width, 3), kind.colors[0].rgb, np.uint8)
    second = np.array(kind.colors[1].rgb, np.float32)
    share = np.broadcast_to(_share_of_second(kind, width, height), (height, width))
    return np.round(first + (second - first) * share[..., None]).astype(np.uint8)


def _share_of_second(kind: Background, width: int, height: int) -> npt.NDArray[np.float32]:
    x = np.arange(width, dtype=np.float32)[None, :]
    y = np.arange(height, dtype=np.float32)[:, None]
    if kind.kind == "checked":
        return ((x // kind.band + y // kind.band) % 2).astype(np.float32)
    if kind.kind == "gradient":
        along = {"across": (1, 0), "down": (0, 1), "diagonal": (1, 1)}[kind.direction]
        return np.asarray(
            (along[0] * x + along[1] * y) / (along[0] * (width - 1) + along[1] * (height - 1)), np.float32
        )
    if kind.direction == "diagonal":
        # How far inside a stripe of the second colour, in pixels, cut off smoothly at its edge.
        phase = ((x + y) / math.sqrt(2)) % (2 * kind.band)
        return np.clip(kind.band / 2 + 0.5 - np.abs(phase - 1.5 * kind.band), 0, 1)
    along_axis = x if kind.direction == "across" else y
    return (along_axis // kind.band % 2).astype(np.float32)


def shadow_box(box: Box, light: str) -> Box:
    """Where the shadow of a copy or a figure in ``box`` may darken the picture; parts may be outside the picture."""
    side = max(box.width, box.height)
    x, y = _shadow_offset(side, light)
    margin = _shadow_margin(side)
    return Box(box.left + x - margin, box.top + y - margin, box.right + x + margin, box.bottom + y + margin)


def _copies(thing: Thing) -> Iterator[_Copy]:
    if isinstance(thing, Group):
        for box in thing.boxes:
            shadow = _object_shadow(thing.name, thing.look.mirrored, box.width)
            yield _Copy(objects.sprite(thing.name, thing.look, box.width), shadow, box)
    else:
        sprite = figures.sprite(thing)
        yield _Copy(sprite, _shadow(sprite), thing.box)


def _shadow_offset(side: int, light: str) -> tuple[int, int]:
    toward_x, toward_y = LIGHTS[light]
    return round(-0.13 * toward_x * side), round((-0.09 * toward_y if toward_y else 0.05) * side)


def _shadow_margin(side: int) -> int:
    return math.ceil(0.15 * side) + 1


@functools.lru_cache(maxsize=4096)
def _object_shadow(name: str, mirrored: bool, side: int) -> Image.Image:
    return _shadow(objects.sprite(name, Look(mirrored=mirrored), side))


def _shadow(sprite: Image.Image) -> Image.Image:
    side = max(sprite.size)
    margin = _shadow_margin(side)
    padded = Image.new("L", (sprite.width + 2 * margin, sprite.height + 2 * margin))
    strength = sprite.getchannel("A").point([round(SHADOW_STRENGTH * value) for value in range(256)])
    padded.paste(strength, (margin, margin))
    return padded.filter(ImageFilter.GaussianBlur(0.04 * side))
