"""Invents scenes: what is in a picture, and where, as a pure function of a seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from headrace.world import letters, objects, split, words
from headrace.world.colors import NAMED, RGB, Color, distance, named
from headrace.world.scene import (
    CORNERS,
    ORDINARY,
    SIDES,
    Background,
    Box,
    Group,
    Look,
    Relation,
    Scene,
    Text,
    Thing,
    plain,
)

TOPICS: dict[str, float] = {
    "object": 0.24,
    "count": 0.17,
    "relation": 0.25,
    "between": 0.06,
    "corner": 0.09,
    "trio": 0.06,
    "text": 0.13,
}
"""What a scene can be about, and how often it is.

object: one. count: two to four copies of one. relation: two objects. between: three. corner: one, with or without
another in the middle. trio: three with two relations. text: words, with at most one object. Scenes about something else
have words in them now and then, too.
"""

SIZES: dict[str, tuple[float, float, float]] = {
    "large": (0.72, 0.48, 0.38),
    "medium": (0.50, 0.36, 0.30),
    "small": (0.32, 0.26, 0.22),
}
"""Side of an object's cell as a share of the shorter side of the room for objects, where one, two or more are shown."""

SMALLEST = 0.17
"""The smallest cell of an object, as a share of the picture's shorter side."""

CLEAR = 32.0
"""The least distance (CIELAB) at which a colour is told from another beside it."""


class _Crowded(Exception):  # noqa: N818
    """What was drawn by lot does not go into the picture; draw again."""


def scene(seed: int, width: int = 128, height: int = 128, *, side: str = "train", topic: str | None = None) -> Scene:
    """The scene of this seed at ``width`` x ``height`` pixels. The result depends on nothing but the arguments.

    side: "train" or "eval": no combination and no word is on both (`headrace.world.split`). topic: one of `TOPICS`; by
    default one of them by lot.
    """
    chance = random.Random(f"scene/{side}/{topic}/{seed}")
    while True:
        try:
            proposed = _propose(chance, width, height, side, topic or _pick(chance, TOPICS))
        except _Crowded:
            continue
        if split.admits(proposed, side):
            return proposed


def _propose(chance: random.Random, width: int, height: int, side: str, topic: str) -> Scene:
    behind = background(chance, width, height)
    margin = round(0.03 * min(width, height))
    room = Box(margin, margin, width - margin, height - margin)
    texts: tuple[Text, ...] = ()
    things: tuple[Thing, ...] = ()
    relations: tuple[Relation, ...] = ()
    alone = topic == "text" and chance.random() < 0.5
    if topic == "text" or chance.random() < 0.12:
        text = some_text(chance, side, behind, room, alone=alone)
        texts = (text,)
        room = beside(text, room)
    if topic == "object" or (topic == "text" and not alone):
        things = (_one(chance, behind, room),)
    elif topic == "count":
        things = (_place(chance, _kind(chance), look(chance, behind), chance.randint(2, 4), room, room, jitter=0.06),)
    elif topic == "relation":
        things, relations = _related(chance, behind, room)
    elif topic in ("between", "trio"):
        things, relations = _three(chance, behind, room, topic)
    elif topic == "corner":
        things, relations = _in_corner(chance, behind, room)
    smallest = min((box.width for thing in things for box in thing_boxes(thing)), default=width)
    if smallest < SMALLEST * min(width, height):
        raise _Crowded
    light = _pick(chance, {"above": 0.55, "left": 0.19, "right": 0.19, "below": 0.07})
    return Scene(width, height, behind, things, relations, texts, light)


def background(chance: random.Random, width: int, height: int) -> Background:
    """Any background; its colours can be told from each other."""
    kind = _pick(chance, {"plain": 0.64, "gradient": 0.14, "striped": 0.11, "checked": 0.11})
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


def color(chance: random.Random) -> Color:
    """A named colour, or now and then any at all."""
    return named(chance.choice(tuple(NAMED))) if chance.random() < 0.85 else Color(_any(chance))


def look(chance: random.Random, behind: Background, name: str | None = None) -> Look:
    """How an object looks in a scene that is asked for in words: as ever, or in shades of a colour."""
    if chance.random() < 0.75:
        return ORDINARY
    for _ in range(20):
        tint = color(chance)
        if all(distance(tint.rgb, other.rgb) >= CLEAR for other in behind.colors) and (
            name is None or tint.name != objects.kind(name).color
        ):
            return Look(tint)
    return ORDINARY


def some_text(chance: random.Random, side: str, behind: Background, room: Box, *, alone: bool) -> Text:
    """Words that can be read, at the top or the bottom, in the middle of an otherwise empty picture, or in a corner."""
    face = chance.choice(letters.FACES)
    text = words.word(chance, side)
    largest = 0.42 if alone else 0.24
    size = round(chance.uniform(0.11, largest) * min(room.width, room.height))
    size = max(size, letters.MIN_SIZE)
    while (extent := letters.extent(text, face, size))[0] > room.width:
        size -= 1
        if size < letters.MIN_SIZE:
            raise _Crowded
    places = {"top": 4.0, "bottom": 4.0}
    if alone:
        places["middle"] = 5
    if extent[0] <= 0.5 * room.width:
        places |= dict.fromkeys(CORNERS, 0.7)
    place = _pick(chance, places)
    x, y = CORNERS.get(place, (0, {"top": -1, "middle": 0, "bottom": 1}.get(place, 0)))
    slack_x, slack_y = room.width - extent[0], room.height - extent[1]
    center = room.left + extent[0] / 2 + slack_x * (1 + x) / 2, room.top + extent[1] / 2 + slack_y * (1 + y) / 2
    return letters.write(text, face, size, _ink(chance, behind), place, center)


def _ink(chance: random.Random, behind: Background) -> Color:
    """A colour in which text can be read on the background."""
    backs = [one.rgb for one in behind.colors]
    if behind.kind == "gradient":
        (red, green, blue), (other_red, other_green, other_blue) = backs
        backs.append(((red + other_red) // 2, (green + other_green) // 2, (blue + other_blue) // 2))
    for _ in range(40):
        ink = color(chance)
        if all(distance(ink.rgb, back) >= 45 for back in backs):
            return ink
    raise _Crowded


def beside(text: Text, room: Box) -> Box:
    """The part of the room that the text leaves free."""
    gap = max(2, round(0.03 * room.height))
    if text.place.startswith("top"):
        return Box(room.left, text.box.bottom + gap, room.right, room.bottom)
    return Box(room.left, room.top, room.right, text.box.top - gap)


def _kind(chance: random.Random) -> str:
    return chance.choice(objects.kinds()).name


def _one(chance: random.Random, behind: Background, room: Box) -> Group:
    name = _kind(chance)
    return _place(chance, name, look(chance, behind, name), 1, room, room, size=_size(chance), jitter=0.08)


def _size(chance: random.Random) -> str | None:
    return chance.choice(tuple(SIZES)) if chance.random() < 0.3 else None


def _related(chance: random.Random, behind: Background, room: Box) -> tuple[tuple[Thing, ...], tuple[Relation, ...]]:
    relation = chance.choice(tuple(SIDES))
    first, second = chance.sample(objects.kinds(), 2)
    names = (first.name, second.name)
    looks = [look(chance, behind, name) for name in names]
    if chance.random() < 0.08:
        names = (first.name, first.name)
        looks = [look(chance, behind, first.name), ORDINARY]
        if looks[0] == ORDINARY:
            raise _Crowded
        chance.shuffle(looks)
    x, y = SIDES[relation]
    cells = _halves(room, across=x != 0)
    if max(x, y) > 0:
        cells = cells[::-1]
    placed = [
        _place(chance, name, one, _count(chance), cell, room, size=_size(chance), jitter=0.05, crowd=2)
        for name, one, cell in zip(names, looks, cells, strict=True)
    ]
    return tuple(placed), (Relation(relation, 0, (1,)),)


def _three(
    chance: random.Random, behind: Background, room: Box, topic: str
) -> tuple[tuple[Thing, ...], tuple[Relation, ...]]:
    across = (
        room.width >= room.height
        if max(room.width, room.height) > 1.3 * min(room.width, room.height)
        else (chance.random() < 0.5)
    )
    cells = _parts(room, 3, across=across)
    names = [kind.name for kind in chance.sample(objects.kinds(), 3)]
    if topic == "between":
        order = (cells[1], *chance.sample((cells[0], cells[2]), 2))
        relations: tuple[Relation, ...] = (Relation("between", 0, (1, 2)),)
    elif chance.random() < 0.5:
        order = cells
        kind = "left of" if across else "above"
        relations = (Relation(kind, 0, (1,)), Relation(kind, 1, (2,)))
    else:
        # Two beside each other, and the third above or below the first.
        upper, lower = _halves(room, across=False)
        third_above = chance.random() < 0.5
        pair, other = (lower, upper) if third_above else (upper, lower)
        left, right = _halves(pair, across=True)
        first_left = chance.random() < 0.5
        column = _halves(other, across=True)[0 if first_left else 1]
        order = (left, right, column) if first_left else (right, left, column)
        relations = (
            Relation("left of" if first_left else "right of", 0, (1,)),
            Relation("above" if third_above else "below", 2, (0,)),
        )
    placed = [
        _place(chance, name, look(chance, behind, name), 1, cell, room, jitter=0.03, crowd=3)
        for name, cell in zip(names, order, strict=True)
    ]
    return tuple(placed), relations


def _in_corner(chance: random.Random, behind: Background, room: Box) -> tuple[tuple[Thing, ...], tuple[Relation, ...]]:
    corner = chance.choice(tuple(CORNERS))
    x, y = CORNERS[corner]
    first, second = (kind.name for kind in chance.sample(objects.kinds(), 2))
    side = round(chance.uniform(0.28, 0.36) * min(room.width, room.height))
    left = room.left if x < 0 else room.right - side
    top = room.top if y < 0 else room.bottom - side
    small = Group(first, look(chance, behind, first), None, (Box(left, top, left + side, top + side),))
    if chance.random() < 0.4:
        return (small,), (Relation(corner, 0),)
    # The other is kept out of the corner's row and column where there is room for it, else out of the corner.
    free = Box(
        room.left + (side if x < 0 else 0),
        room.top + (side if y < 0 else 0),
        room.right - (side if x > 0 else 0),
        room.bottom - (side if y > 0 else 0),
    )
    big = _place(chance, second, look(chance, behind, second), 1, free, room, jitter=0.03, crowd=2)
    return (big, small), (Relation(corner, 1),)


def _count(chance: random.Random) -> int:
    return chance.choices((1, 2, 3, 4), (78, 12, 6, 4))[0]


def _place(
    chance: random.Random,
    name: str,
    how: Look,
    count: int,
    cell: Box,
    room: Box,
    *,
    jitter: float,
    size: str | None = None,
    crowd: int | None = None,
) -> Group:
    """``count`` copies side by side or in rows, about the middle of ``cell``.

    jitter: how far from there at most, as a share of the room's shorter side. crowd: how many things there are, which
    decides how large a size is. Raises _Crowded where the size asked for does not go in.
    """
    rows = _rows(chance, count, cell)
    crowded = min(crowd or count, 3) - 1
    unit = min(room.width, room.height)
    slot = min(cell.width / max(rows), cell.height / len(rows))
    wanted = SIZES[size or ("medium" if crowded else "large")][crowded] * unit
    side = int(min(wanted, 0.96 * slot))
    if size is not None and side < 0.95 * wanted:
        raise _Crowded
    pitch = min(slot, side * chance.uniform(1.06, 1.25))
    width, height = side + pitch * (max(rows) - 1), side + pitch * (len(rows) - 1)
    slack_x, slack_y = max(0.0, (cell.width - width) / 2), max(0.0, (cell.height - height) / 2)
    reach = jitter * unit
    left = cell.center[0] - width / 2 + chance.uniform(-1, 1) * min(slack_x, reach)
    top = cell.center[1] - height / 2 + chance.uniform(-1, 1) * min(slack_y, reach)
    boxes = []
    for row, copies in enumerate(rows):
        start = left + (max(rows) - copies) * pitch / 2
        for column in range(copies):
            x, y = int(start + column * pitch), int(top + row * pitch)
            boxes.append(Box(x, y, x + side, y + side))
    return Group(name, how, size, tuple(boxes))


_ROWS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((1,),),
    2: ((2,), (1, 1)),
    3: ((3,), (1, 1, 1), (1, 2), (2, 1)),
    4: ((4,), (1, 1, 1, 1), (2, 2)),
}
"""Ways to arrange so many copies: how many stand in each row."""


def _rows(chance: random.Random, count: int, cell: Box) -> tuple[int, ...]:
    ways = {rows: min(cell.width / max(rows), cell.height / len(rows)) for rows in _ROWS[count]}
    best = max(ways.values())
    return chance.choice([rows for rows, slot in ways.items() if slot >= 0.7 * best])


def _halves(room: Box, *, across: bool) -> tuple[Box, ...]:
    return _parts(room, 2, across=across)


def _parts(room: Box, count: int, *, across: bool) -> tuple[Box, ...]:
    edges = [index / count for index in range(count + 1)]
    if across:
        x = [room.left + round(edge * room.width) for edge in edges]
        return tuple(Box(a, room.top, b, room.bottom) for a, b in itertools.pairwise(x))
    y = [room.top + round(edge * room.height) for edge in edges]
    return tuple(Box(room.left, a, room.right, b) for a, b in itertools.pairwise(y))


def thing_boxes(thing: Thing) -> Sequence[Box]:
    """The box of each copy of an object, or the one of a figure."""
    return thing.boxes if isinstance(thing, Group) else (thing.box,)


def _any(chance: random.Random) -> RGB:
    return chance.randrange(256), chance.randrange(256), chance.randrange(256)


def _pick(chance: random.Random, weights: dict[str, float]) -> str:
    return chance.choices(tuple(weights), tuple(weights.values()))[0]
