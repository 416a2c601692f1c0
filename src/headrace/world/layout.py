"""Invents scenes: what is in a picture, and where, as a pure function of a seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping

from headrace.world import figures, letters, objects, skeletons, split, words
from headrace.world.colors import Color, distance, lightness
from headrace.world.looks import background, color, look
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
    boxes,
)

TOPICS: dict[str, float] = {
    "object": 0.24,
    "count": 0.17,
    "relation": 0.25,
    "between": 0.06,
    "corner": 0.09,
    "trio": 0.06,
    "text": 0.13,
    "figure": 0.07,
}
"""What a scene can be about, and how often it is.

object: one. count: two to four copies of one. relation: two objects. between: three. corner: one, with or without
another in the middle. trio: three with two relations. text: words, with at most one object. figure: a character
in a pose that has a name, alone or beside an object. Scenes about something else have words in them now and then, too.
"""

SIZES: dict[str | None, tuple[float, float, float]] = {
    "large": (0.74, 0.48, 0.38),
    "medium": (0.50, 0.36, 0.30),
    "small": (0.32, 0.26, 0.22),
    None: (0.74, 0.44, 0.36),
}
"""Side of an object's cell as a share of the shorter side of the room for objects, where one, two or more are shown."""

SMALLEST = 0.17
"""The smallest cell of an object, as a share of the picture's shorter side."""

READABLE = {"plain": (40, 25), "gradient": (40, 25), "striped": (50, 32), "checked": (50, 32)}
"""How far the colour of text is at least from the background's (CIELAB), and in lightness alone, by kind."""


class _Crowded(Exception):  # noqa: N818
    """What was drawn by lot does not go into the picture; draw again."""


def scene(seed: int, width: int = 128, height: int = 128, *, side: str = "train", topic: str | None = None) -> Scene:
    """The scene of this seed at ``width`` x ``height`` pixels. The result depends on nothing but the arguments.

    side: "train" or "eval": no combination and no word is on both (`headrace.world.split`). topic: one of `TOPICS`; by
    default one of them by lot.
    """
    chance = random.Random(f"scene/{side}/{topic}/{seed}")
    while True:
        proposed = sketch(chance, width, height, side, topic)
        if split.admits(proposed, side):
            return proposed


def sketch(chance: random.Random, width: int, height: int, side: str, topic: str | None = None) -> Scene:
    """Any scene that can be drawn, whose words are of this side and whose combinations may be of either."""
    while True:
        try:
            return _propose(chance, width, height, side, topic or pick(chance, TOPICS))
        except _Crowded:
            continue


def _propose(chance: random.Random, width: int, height: int, side: str, topic: str) -> Scene:
    behind = background(chance, width, height)
    margin = round(0.045 * min(width, height))
    room = Box(margin, margin, width - margin, height - margin)
    texts: tuple[Text, ...] = ()
    things: tuple[Thing, ...] = ()
    relations: tuple[Relation, ...] = ()
    alone = topic == "text" and chance.random() < 0.5
    if topic == "text" or chance.random() < 0.12:
        text = _text(chance, side, behind, room, alone=alone)
        texts = (text,)
        room = beside(text, room)
    if topic == "object" or (topic == "text" and not alone):
        things = (_one(chance, behind, room),)
    elif topic == "count":
        things = (place(chance, _kind(chance), look(chance, behind), chance.randint(2, 4), room, room, jitter=0.06),)
    elif topic == "relation":
        things, relations = _related(chance, behind, room)
    elif topic in ("between", "trio"):
        things, relations = _three(chance, behind, room, topic)
    elif topic == "figure":
        things, relations = _with_figure(chance, behind, room)
    elif topic == "corner":
        things, relations = _in_corner(chance, behind, room)
    smallest = min((max(box.width, box.height) for thing in things for box in boxes(thing)), default=width)
    if smallest < SMALLEST * min(width, height):
        raise _Crowded
    light = pick(chance, {"above": 0.55, "left": 0.19, "right": 0.19, "below": 0.07})
    return Scene(width, height, behind, things, relations, texts, light)


def _text(chance: random.Random, side: str, behind: Background, room: Box, *, alone: bool) -> Text:
    """Words that can be read, at the top or the bottom, in the middle of an otherwise empty picture, or in a corner."""
    face = chance.choice(letters.FACES)
    text = words.word(chance, side)
    largest = 0.42 if alone else 0.24
    size = round(chance.uniform(0.11, largest) * min(room.width, room.height))
    size = max(size, letters.EASY_SIZE)
    while (extent := letters.extent(text, face, size))[0] > room.width:
        size -= 1
        if size < letters.MIN_SIZE:
            raise _Crowded
    places = {"top": 4.0, "bottom": 4.0}
    if alone:
        places["middle"] = 5
    if extent[0] <= 0.5 * room.width:
        places |= dict.fromkeys(CORNERS, 0.7)
    place = pick(chance, places)
    x, y = CORNERS.get(place, (0, {"top": -1, "middle": 0, "bottom": 1}.get(place, 0)))
    slack_x, slack_y = room.width - extent[0], room.height - extent[1]
    center = room.left + extent[0] / 2 + slack_x * (1 + x) / 2, room.top + extent[1] / 2 + slack_y * (1 + y) / 2
    return letters.write(text, face, size, _ink(chance, behind), place, center)


def _ink(chance: random.Random, behind: Background) -> Color:
    for _ in range(40):
        ink = color(chance)
        if readable(ink, behind):
            return ink
    raise _Crowded


def readable(ink: Color, behind: Background) -> bool:
    """Whether text of this colour can be read on the background."""
    backs = [one.rgb for one in behind.colors]
    if behind.kind == "gradient":
        (red, green, blue), (other_red, other_green, other_blue) = backs
        backs.append(((red + other_red) // 2, (green + other_green) // 2, (blue + other_blue) // 2))
    apart, lighter = READABLE[behind.kind]
    return all(
        distance(ink.rgb, back) >= apart and abs(lightness(ink.rgb) - lightness(back)) >= lighter for back in backs
    )


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
    return place(chance, name, look(chance, behind, name), 1, room, room, size=_size(chance), jitter=0.08)


def _size(chance: random.Random) -> str | None:
    return chance.choice(("large", "medium", "small")) if chance.random() < 0.3 else None


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
        place(chance, name, one, _count(chance), cell, room, size=_size(chance), jitter=0.05, crowd=2)
        for name, one, cell in zip(names, looks, cells, strict=True)
    ]
    return tuple(placed), (Relation(relation, 0, (1,)),)


def _three(
    chance: random.Random, behind: Background, room: Box, topic: str
) -> tuple[tuple[Thing, ...], tuple[Relation, ...]]:
    across = chance.random() < 0.5
    if max(room.width, room.height) > 1.3 * min(room.width, room.height):
        across = room.width > room.height
    cells = parts(room, 3, across=across)
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
        place(chance, name, look(chance, behind, name), 1, cell, room, jitter=0.03, crowd=3)
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
    # The other is kept out of the corner's row and column.
    free = Box(
        room.left + (side if x < 0 else 0),
        room.top + (side if y < 0 else 0),
        room.right - (side if x > 0 else 0),
        room.bottom - (side if y > 0 else 0),
    )
    big = place(chance, second, look(chance, behind, second), 1, free, room, jitter=0.03, crowd=2)
    return (big, small), (Relation(corner, 1),)


def _with_figure(
    chance: random.Random, behind: Background, room: Box
) -> tuple[tuple[Thing, ...], tuple[Relation, ...]]:
    pose = skeletons.named_pose(chance, chance.choice(tuple(skeletons.POSES)))
    character = chance.choice(tuple(figures.CHARACTERS))
    if chance.random() < 0.6:
        return (figures.place(character, look(chance, behind), pose, shrunk(chance, room)),), ()
    relation = chance.choice(("left of", "right of"))
    cells = _halves(room, across=True)
    first, second = cells if relation == "left of" else cells[::-1]
    figure = figures.place(character, look(chance, behind), pose, first)
    name = _kind(chance)
    other = place(chance, name, look(chance, behind, name), 1, second, room, jitter=0.05, crowd=2)
    return (figure, other), (Relation(relation, 0, (1,)),)


def shrunk(chance: random.Random, room: Box) -> Box:
    """A part of the room that is a little smaller and anywhere in it."""
    share = chance.uniform(0.86, 1)
    width, height = int(room.width * share), int(room.height * share)
    left, top = room.left + chance.randint(0, room.width - width), room.top + chance.randint(0, room.height - height)
    return Box(left, top, left + width, top + height)


def _count(chance: random.Random) -> int:
    return chance.choices((1, 2, 3, 4), (78, 12, 6, 4))[0]


def place(
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
    """``count`` copies side by side or in rows, about the middle of ``cell``, which is a part of ``room``.

    jitter: how far from there at most, as a share of the room's shorter side. size: None for the ordinary one, made
    smaller where it does not go in. crowd: how many things there are, which decides how large a size is; by default as
    many as there are copies. Raises _Crowded where a size that is asked for does not go in.
    """
    rows = _rows(chance, count, cell)
    crowded = min(crowd or count, 3) - 1
    unit = min(room.width, room.height)
    slot = min(cell.width / max(rows), cell.height / len(rows))
    wanted = SIZES[size][crowded] * unit
    side = int(min(wanted, 0.96 * slot))
    if size is not None and side < 0.95 * wanted:
        raise _Crowded
    pitch = min(slot, side * chance.uniform(1.06, 1.25))
    width, height = side + pitch * (max(rows) - 1), side + pitch * (len(rows) - 1)
    slack_x, slack_y = max(0.0, (cell.width - width) / 2), max(0.0, (cell.height - height) / 2)
    reach = jitter * unit
    left = cell.center[0] - width / 2 + chance.uniform(-1, 1) * min(slack_x, reach)
    top = cell.center[1] - height / 2 + chance.uniform(-1, 1) * min(slack_y, reach)
    cells = []
    for row, copies in enumerate(rows):
        start = left + (max(rows) - copies) * pitch / 2
        for column in range(copies):
            x, y = int(start + column * pitch), int(top + row * pitch)
            cells.append(Box(x, y, x + side, y + side))
    return Group(name, how, size, tuple(cells))


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
    return parts(room, 2, across=across)


def parts(room: Box, count: int, *, across: bool) -> tuple[Box, ...]:
    """The room in so many equal parts, from left to right or from top to bottom."""
    edges = [index / count for index in range(count + 1)]
    if across:
        x = [room.left + round(edge * room.width) for edge in edges]
        return tuple(Box(a, room.top, b, room.bottom) for a, b in itertools.pairwise(x))
    y = [room.top + round(edge * room.height) for edge in edges]
    return tuple(Box(room.left, a, room.right, b) for a, b in itertools.pairwise(y))


def pick(chance: random.Random, weights: Mapping[str, float]) -> str:
    """One of the keys, as often as its weight says."""
    return chance.choices(tuple(weights), tuple(weights.values()))[0]
