"""The objects of the drawn world: their names in two languages, and their pictures.

The names are in ``assets/objects.tsv``; the pictures are one shipped atlas, made once from Noto Color Emoji by
``build_assets.py``, so that drawing needs no emoji font.
"""

from __future__ import annotations

import csv
import functools
import io
import math
from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt
from PIL import Image

from headrace.world.colors import Color
from headrace.world.scene import Look

CELL = 128
"""Side in pixels of an object's square cell in the atlas; the object touches the cell's edge on its longer axis."""

COLUMNS = 8
"""Cells in a row of the atlas."""

_LUMINANCE = np.array((0.2126, 0.7152, 0.0722), np.float32)


@dataclass(frozen=True)
class ObjectKind:
    """One nameable object. ``color`` is the adjective people would use for it, or None where none is obvious.

    name, french: its names, singular. feminine: the gender of the French one. emoji: the character it was drawn from.
    """

    name: str
    french: str
    feminine: bool
    color: str | None
    emoji: str


@functools.cache
def kinds() -> tuple[ObjectKind, ...]:
    """All objects, in the order of the atlas."""
    rows = csv.DictReader(io.StringIO(asset("objects.tsv").read_text(encoding="utf-8")), delimiter="\t")
    return tuple(
        ObjectKind(row["english"], row["french"], row["gender"] == "f", row["color"] or None, row["emoji"])
        for row in rows
    )


def kind(name: str) -> ObjectKind:
    """The object called ``name``. Raises KeyError for a name that is not in the atlas."""
    return kinds()[_cells()[name]]


@functools.cache
def picture(name: str) -> Image.Image:
    """The object's RGBA picture, ``CELL`` x ``CELL``, transparent around it. Raises KeyError for an unknown name."""
    column, row = _cells()[name] % COLUMNS, _cells()[name] // COLUMNS
    return _atlas().crop((column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL))


@functools.lru_cache(maxsize=4096)
def sprite(name: str, look: Look, side: int) -> Image.Image:
    """The object as it looks, RGBA, ``side`` x ``side`` pixels. Raises KeyError for an unknown name."""
    scaled = picture(name).resize((side, side), Image.Resampling.LANCZOS)
    if look.mirrored:
        scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return recolored(scaled, look)


def recolored(ordinary: Image.Image, look: Look) -> Image.Image:
    """An RGBA picture with the look's colours: hue turned, then tinted."""
    if not look.hue and look.tint is None:
        return ordinary
    pixels = np.asarray(ordinary)
    color: npt.NDArray[np.float32] = pixels[..., :3].astype(np.float32) / np.float32(255)
    alpha = pixels[..., 3]
    if look.hue:
        color = np.asarray(np.clip(color @ _hue_rotation(look.hue), 0, 1), np.float32)
    if look.tint is not None:
        shades = _shades(color, alpha, look.tint)
        if look.lower is not None:
            rows = np.flatnonzero(alpha.max(axis=1) > 20)
            middle = (rows[0] + rows[-1] + 1) // 2
            shades[middle:] = _shades(color, alpha, look.lower)[middle:]
        color = shades
    return Image.fromarray(np.dstack([np.round(color * 255).astype(np.uint8), alpha]), "RGBA")


def _shades(color: npt.NDArray[np.float32], alpha: npt.NDArray[np.uint8], tint: Color) -> npt.NDArray[np.float32]:
    """The picture in shades of one colour, which stands where the picture is of middling lightness."""
    light = color @ _LUMINANCE
    seen = light[alpha > 128]
    middle = float(np.clip(np.median(seen), 0.25, 0.75)) if seen.size else 0.5
    target = np.array(tint.rgb, np.float32) / 255
    below = np.minimum(light / middle, 1)[..., None]
    above = np.maximum((light - middle) / (1 - middle), 0)[..., None]
    # Shades keep a quarter of the colour where the picture is darkest, and go half the way to white where it is
    # lightest; a colour that is itself very dark gets more light, so that the drawing can still be seen in it.
    lift = 0.5 if target.max() > 0.2 else 0.35
    return np.asarray(target * (0.25 + 0.75 * below) + (1 - target) * lift * above, np.float32)


@functools.cache
def _hue_rotation(degrees: int) -> npt.NDArray[np.float32]:
    """Turns hues and keeps luminance (W3C Filter Effects, hue-rotate), as a matrix to the right of a row of RGB."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    base = np.array(((0.213, 0.715, 0.072),) * 3)
    by_cosine = np.array(((0.787, -0.715, -0.072), (-0.213, 0.285, -0.072), (-0.213, -0.715, 0.928)))
    by_sine = np.array(((-0.213, -0.715, 0.928), (0.143, 0.140, -0.283), (-0.787, 0.715, 0.072)))
    return np.asarray((base + cosine * by_cosine + sine * by_sine).T, np.float32)


@functools.cache
def colorfulness(name: str) -> float:
    """How much colour an object has, 0 to 1: the mean of its pixels' saturation (HSV) times their value."""
    pixels = np.asarray(picture(name)).astype(np.float32) / 255
    seen = pixels[..., 3] > 0.5
    return float(np.ptp(pixels[..., :3][seen], axis=-1).mean())


@functools.cache
def _cells() -> dict[str, int]:
    return {entry.name: index for index, entry in enumerate(kinds())}


@functools.cache
def _atlas() -> Image.Image:
    with asset("objects.webp").open("rb") as file:
        return Image.open(file).convert("RGBA")


def asset(name: str) -> resources.abc.Traversable:
    """A file that is shipped with the world."""
    return resources.files("headrace.world") / "assets" / name
