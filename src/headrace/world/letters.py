"""Words in pictures: three typefaces, letters at whole pixels, so that every letter's box is exact."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFont

from headrace.world.colors import Color
from headrace.world.objects import asset
from headrace.world.scene import Box, Glyph, Text

FACES = ("sans", "serif", "typewriter")

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789ÀÂÄÇÉÈÊËÎÏÔÖÙÛÜÁÍÓÚÑ"
"""All that can be written, beside the space."""

MAX_LENGTH = 12
"""Characters in a text at most, spaces included."""

MIN_SIZE = 12
"""The smallest font size in pixels, for texts that do not fit otherwise; capitals are 8 or 9 pixels high."""

EASY_SIZE = 14
"""The smallest font size in pixels otherwise: every accent can be told."""


class Ink(NamedTuple):
    """A letter's coverage (mode "L"), cut to its ink, with its place relative to the pen and the baseline."""

    mask: Image.Image
    left: int
    top: int
    advance: int


@functools.cache
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    file = io.BytesIO(asset(f"{face}.ttf").read_bytes())
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=8192)
def ink(face: str, size: int, character: str) -> Ink:
    """One letter of a face at a font size in pixels."""
    font = _font(face, size)
    bitmap, (left, top) = font.getmask2(character, mode="L", anchor="ls")
    mask = Image.frombytes("L", bitmap.size, bytes(bitmap))
    box = mask.getbbox()
    advance = round(font.getlength(character))
    if box is None:
        return Ink(Image.new("L", (0, 0)), 0, 0, advance)
    # A column stays free after each letter, and none begins before the pen: small letters must not run together.
    left = max(0, left + box[0])
    return Ink(mask.crop(box), left, top + box[1], max(advance, left + box[2] - box[0] + 1))


def write(text: str, face: str, size: int, color: Color, place: str, center: tuple[float, float]) -> Text:
    """The text with the middle of its ink's box at ``center``, to the nearest pixel."""
    glyphs = tuple(_set(text, face, size, 0, 0))
    box = _around(glyphs)
    origin = round(center[0] - (box.left + box.right) / 2), round(center[1] - (box.top + box.bottom) / 2)
    moved = tuple(_set(text, face, size, *origin))
    return Text(text, face, color, place, size, origin, moved, _around(moved))


def extent(text: str, face: str, size: int) -> tuple[int, int]:
    """Width and height in pixels of the text's ink."""
    box = _around(tuple(_set(text, face, size, 0, 0)))
    return box.width, box.height


def coverage(text: Text) -> Iterator[tuple[Image.Image, Box]]:
    """Each letter's coverage, mode "L", and where it goes."""
    for glyph in text.glyphs:
        yield ink(text.face, text.size, glyph.character).mask, glyph.box


def _set(text: str, face: str, size: int, x: int, y: int) -> Iterator[Glyph]:
    for character in text:
        letter = ink(face, size, character)
        if letter.mask.width:
            left, top = x + letter.left, y + letter.top
            yield Glyph(character, Box(left, top, left + letter.mask.width, top + letter.mask.height))
        x += letter.advance


def _around(glyphs: tuple[Glyph, ...]) -> Box:
    edges = np.array([(g.box.left, g.box.top, g.box.right, g.box.bottom) for g in glyphs])
    left, top = edges[:, :2].min(axis=0)
    right, bottom = edges[:, 2:].max(axis=0)
    return Box(int(left), int(top), int(right), int(bottom))
