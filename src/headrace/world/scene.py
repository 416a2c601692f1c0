"""A scene: everything that a drawn picture shows, as a pure function of a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from headrace.world import colors, objects
from headrace.world.colors import RGB

SIZES: dict[str, float] = {"large": 0.72, "medium": 0.5, "small": 0.32}
"""Side of an object's square as a share of the picture's shorter side."""

PAIR_SHARE = 0.42
"""The same for each object of a pair."""

RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
"""Relation of the first object to the second, and the direction (x, y) of the first from the centre."""

JITTER = 0.04
"""How far an object may stand from its nominal place, as a share of the picture's shorter side."""


@dataclass(frozen=True)
class PlacedObject:
    """An object in a picture: ``left``, ``top`` and ``side`` in pixels of its square; ``size`` is None in a pair."""

    name: str
    size: str | None
    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Scene:
    """What one picture shows. ``relation`` says where the first object is, seen from the second; None for one object.

    ``background_name`` is the background's name where it has one, else None; ``background`` is exact in both cases.
    """

    width: int
    height: int
    background: RGB
    background_name: str | None
    objects: tuple[PlacedObject, ...]
    relation: str | None


def scene(seed: int, width: int = 128, height: int = 128, *, stream: str = "train") -> Scene:
    """The scene of this seed at ``width`` x ``height`` pixels. The result depends on nothing but the arguments.

    Each stream ("train", "eval", ...) is a series of its own; the world is small enough for a scene to be in both.
    """
    draw = random.Random(f"scene/{stream}/{seed}")
    background_name: str | None
    background_name, background = draw.choice(tuple(colors.NAMED.items()))
    if draw.random() < 0.12:
        background_name = None
        background = (draw.randrange(256), draw.randrange(256), draw.randrange(256))
    names = [kind.name for kind in objects.kinds()]
    if draw.random() < 0.25:
        relation = draw.choice(tuple(RELATIONS))
        first, second = draw.sample(names, 2)
        toward_x, toward_y = RELATIONS[relation]
        placed = (
            _place(draw, first, None, PAIR_SHARE, width, height, toward_x, toward_y),
            _place(draw, second, None, PAIR_SHARE, width, height, -toward_x, -toward_y),
        )
        return Scene(width, height, background, background_name, placed, relation)
    size = draw.choices(tuple(SIZES), weights=(6, 2, 2))[0]
    single = _place(draw, draw.choice(names), size, SIZES[size], width, height, 0, 0)
    return Scene(width, height, background, background_name, (single,), None)


def _place(
    draw: random.Random,
    name: str,
    size: str | None,
    share: float,
    width: int,
    height: int,
    toward_x: int,
    toward_y: int,
) -> PlacedObject:
    shorter = min(width, height)
    side = round(share * shorter)
    reach = (PAIR_SHARE / 2 + JITTER) * shorter
    left = width / 2 + toward_x * reach + draw.uniform(-JITTER, JITTER) * shorter - side / 2
    top = height / 2 + toward_y * reach + draw.uniform(-JITTER, JITTER) * shorter - side / 2
    return PlacedObject(name, size, round(left), round(top), side)
