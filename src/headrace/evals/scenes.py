"""What of a drawn scene a picture does not show: things, their number, their relations, their words and colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from headrace.evals.colors import difference
from headrace.evals.lettering import FAINT as FAINT_TEXT
from headrace.evals.lettering import Reading
from headrace.evals.sprites import FAINT, Canvas, Kind, Place, rivals, seen
from headrace.world.scene import CORNERS, SIDES, Group, Relation, Scene, Text

Point = tuple[float, float]

ALIKE = 0.4
"""Another copy explains at least so much of its contrast with the background, which need not be the same everywhere."""

SLIGHT = 0.05
"""Another copy lowers the differences to the picture at least by this share of what the first does."""

CLEARLY = 1.2
"""A copy is another object if that explains its place better by this."""

LEFT_OVER = 0.5
"""Something else is in the picture if a cell's pixels differ by this share of what a copy's did."""


def kind_of(group: Group) -> Kind:
    """The sprite of a group's copies."""
    return group.name, group.look


def thing_faults(canvas: Canvas, scene: Scene) -> list[str]:
    """Which objects of the scene are not in the picture, and which of its relations do not hold."""
    groups = [thing for thing in scene.things if isinstance(thing, Group)]
    kinds = [kind_of(group) for group in groups]
    centers, missing = locate(canvas, groups, [rivals(kind, kinds) for kind in kinds])
    if missing:
        return list(missing.values())
    names = [group.name for group in groups]
    return [
        f"{names[relation.subject]} is not {relation.kind} {' and '.join(names[index] for index in relation.others)}"
        for relation in scene.relations
        if not holds(relation, centers, scene.width, scene.height)
    ]


def locate(
    canvas: Canvas, groups: Sequence[Group], against: Sequence[Sequence[Kind]]
) -> tuple[dict[int, Point], dict[int, str]]:
    """The middle of each group's copies, or what is wrong with it, by the group's number.

    against: for each group its sprite, first, and those it must be told from. What is found is painted out, so that it
    does not mislead the search for the others.
    """
    alone = len(groups) == 1 and len(groups[0].boxes) == 1
    centers: dict[int, Point] = {}
    missing: dict[int, str] = {}
    for _ in range(2):
        for index, group in enumerate(groups):
            if index in centers:
                continue
            place, fault = seen(canvas, kind_of(group), against[index], alone=alone)
            if place is None:
                missing[index] = fault
            else:
                centers[index] = _middle(canvas, group, place)
                missing.pop(index, None)
        if not missing or not centers:
            break
    return centers, missing


def holds(relation: Relation, centers: Mapping[int, Point], width: int, height: int) -> bool:
    """Whether things whose middles are at ``centers`` are in this relation, and clearly so."""
    unit = min(width, height)
    x, y = centers[relation.subject]
    if relation.kind in CORNERS:
        toward_x, toward_y = CORNERS[relation.kind]
        return toward_x * (x / width - 0.5) > 0.06 and toward_y * (y / height - 0.5) > 0.06
    others = [centers[other] for other in relation.others]
    if relation.kind == "between":
        (x1, y1), (x2, y2) = others
        length = math.dist(*others)
        along = ((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / max(1.0, length**2)
        beside = abs((x - x1) * (y2 - y1) - (y - y1) * (x2 - x1)) / max(1.0, length)
        return 0.2 < along < 0.8 and beside < 0.25 * unit
    toward_x, toward_y = SIDES[relation.kind]
    ((other_x, other_y),) = others
    along = (x - other_x) * toward_x + (y - other_y) * toward_y
    beside = abs((x - other_x) * toward_y) + abs((y - other_y) * toward_x)
    return along > 0.12 * unit and along > beside


def count_faults(canvas: Canvas, group: Group) -> list[str]:
    """Whether the picture shows so many copies of the object, and nothing else. What is found is painted out."""
    kind = kind_of(group)
    places = copies(canvas, kind, len(group.boxes) + 2)
    if not places:
        return [f"no {group.name}"]
    against = rivals(kind)
    gains = np.stack([canvas.gains(place, against) for place in places])
    # Small copies need not be the likeliest object each by itself, but together; none may clearly be another.
    for found, share in ((gains.sum(axis=0), 1.0), *((own, CLEARLY) for own in gains)):
        best = int(found.argmax())
        if best != 0 and found[best] > share * found[0]:
            return [f"{against[best][0]} in place of {group.name}"]
    if len(places) != len(group.boxes):
        return [f"{len(places)} copies of {group.name}, not {len(group.boxes)}"]
    before = min(canvas.difference(place) for place in places)
    for place in places:
        canvas.paint_out(kind, place)
    if canvas.unexplained(places[0].side) > LEFT_OVER * before:
        return ["something else is there"]
    return []


def copies(canvas: Canvas, kind: Kind, most: int) -> list[Place]:
    """The places of an object's copies, all of about one size, at most so many."""
    (first,) = canvas.find(kind)
    if first.explained < FAINT:
        return []
    return _alike(canvas, kind, first, most)


def _alike(canvas: Canvas, kind: Kind, first: Place, most: int) -> list[Place]:
    """Places of about the size of the first where the object explains about as much of its contrast."""
    share = first.side / canvas.unit
    found = canvas.find(kind, most, sides=(0.8 * share, 1.25 * share))
    return [place for place in found if place.explained > ALIKE and place.gain > SLIGHT * first.gain]


def _middle(canvas: Canvas, group: Group, place: Place) -> Point:
    """The middle of all copies of a group, of which one is at ``place``; they are painted out."""
    kind, places = kind_of(group), [place]
    if len(group.boxes) > 1:
        places = _alike(canvas, kind, place, len(group.boxes)) or places
    for one in places:
        canvas.paint_out(kind, one)
    x, y = zip(*(one.center for one in places), strict=True)
    return sum(x) / len(x), sum(y) / len(y)


def text_faults(reading: Reading, text: Text) -> list[str]:
    """Whether each letter of a text can be read, and no more."""
    if reading.explained < FAINT_TEXT:
        return ["no text"]
    wanted = "".join(glyph.character for glyph in text.glyphs)
    return [] if reading.text == wanted else [f"reads {reading.text}"]


def text_color_faults(reading: Reading, text: Text, tolerance: float) -> list[str]:
    """Whether a text has its colour, to ``tolerance`` (CIEDE2000)."""
    if reading.explained < FAINT_TEXT:
        return ["no text"]
    off = difference(reading.color, text.color.rgb)
    return [f"text colour is off by ΔE {off:.1f}"] if off > tolerance else []
