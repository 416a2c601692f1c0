"""Colours, backgrounds and the looks of things, by lot."""

from __future__ import annotations

import functools
import random

import numpy as np

from headrace.world import objects
from headrace.world.colors import NAMED, Color, distance, named
from headrace.world.scene import ORDINARY, Background, Look, plain

CLEAR = 32.0
"""The least distance (CIELAB) at which a colour is told from another beside it."""

ALIKE = 22.0
"""Two looks of an object are told apart from this root mean square difference of their pixels on, out of 255."""

_KINDS = {"plain": 0.64, "gradient": 0.14, "striped": 0.11, "checked": 0.11}


def color(chance: random.Random) -> Color:
    """A named colour, or now and then any at all."""
    if chance.random() < 0.85:
        return named(chance.choice(tuple(NAMED)))
    return Color((chance.randrange(256), chance.randrange(256), chance.randrange(256)))


def clear_of(tint: Color, behind: Background) -> bool:
    """Whether something of this colour can be seen on the background."""
    return all(distance(tint.rgb, other.rgb) >= CLEAR for other in behind.colors)


def background(chance: random.Random, width: int, height: int) -> Background:
    """Any background; its colours can be told from each other."""
    (kind,) = chance.choices(tuple(_KINDS), tuple(_KINDS.values()))
    first = color(chance)
    if kind == "plain":
        return plain(first)
    second = color(chance)
    while distance(first.rgb, second.rgb) < CLEAR:
        second = color(chance)
    if kind == "gradient":
        return Background(kind, (first, second), chance.choice(("across", "down", "diagonal")))
    band = round(chance.uniform(0.09, 0.19) * min(width, height))
    if kind == "checked":
        return Background(kind, (first, second), band=band)
    return Background(kind, (first, second), chance.choice(("across", "down", "diagonal")), band)


def look(chance: random.Random, behind: Background, name: str | None = None) -> Look:
    """How a thing looks that is asked for in words: as ever, or, one in four, in shades of a colour.

    name: of the object, whose own colour is no other look; None for a figure.
    """
    tinted = tint(chance, behind, name) if chance.random() < 0.25 else None
    return ORDINARY if tinted is None else Look(tinted)


def tint(chance: random.Random, behind: Background, name: str | None = None) -> Color | None:
    """A colour for a thing that can be seen on the background and is not the object's own; None where none is found."""
    own = None if name is None else objects.kind(name).color
    for _ in range(20):
        tried = color(chance)
        if clear_of(tried, behind) and (own is None or tried.name != own):
            return tried
    return None


def variant(chance: random.Random, name: str) -> Look:
    """A look that makes an object one of its own: other hues, one colour, two colours; any of them mirrored or not."""
    while True:
        kind = chance.choices(("ordinary", "hue", "tint", "two"), (15, 30, 25, 30))[0]
        mirrored = chance.random() < 0.5
        if kind == "ordinary":
            return Look(mirrored=mirrored)
        if kind == "hue" and objects.colorfulness(name) > 0.3:
            return Look(hue=chance.randrange(40, 321, 20), mirrored=mirrored)
        first, second = color(chance), color(chance)
        if kind == "tint":
            return Look(first, mirrored=mirrored)
        if kind == "two" and distance(first.rgb, second.rgb) >= CLEAR:
            return Look(first, second, mirrored=mirrored)


def distractors(chance: random.Random, name: str, own: Look, count: int) -> tuple[Look, ...]:
    """Other looks of the object, each told apart from ``own`` and from the others."""
    found: list[Look] = []
    while len(found) < count:
        other = variant(chance, name)
        if all(difference(name, other, known) >= ALIKE for known in (own, *found)):
            found.append(other)
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def difference(name: str, first: Look, second: Look) -> float:
    """Root mean square difference of an object's pixels in two looks, on grey, where either is opaque; 0 to 255."""
    one, other = (np.asarray(objects.sprite(name, look, 32)).astype(np.float64) for look in (first, second))
    shown = np.maximum(one[..., 3], other[..., 3]) > 128
    on_grey = [128 + (rgba[..., :3] - 128) * rgba[..., 3:] / 255 for rgba in (one, other)]
    return float(np.sqrt(np.square(on_grey[0] - on_grey[1])[shown].mean()))
