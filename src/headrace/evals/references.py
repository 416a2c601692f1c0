"""What of the reference pictures a new picture keeps: their own objects, and all that an edit was not about."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from headrace.evals.backgrounds import Backdrop, background_faults
from headrace.evals.lettering import read_text
from headrace.evals.scenes import kind_of, locate, text_faults, thing_faults
from headrace.evals.sprites import Canvas, Kind, Place, rivals, seen
from headrace.world import objects
from headrace.world.colors import NAMED, distance, named
from headrace.world.draw import Pixels, draw, shadow_box
from headrace.world.looks import CLEAR, distractors
from headrace.world.scene import ORDINARY, Box, Group, Look, Scene, Thing
from headrace.world.tasks import Sample, untouched
from headrace.world.wording import Edit

DISTRACTORS = 6
"""Other looks of an object that its own is told from."""

SAME = 0.92
"""Two looks cannot be told apart where one explains this share of what the other does, somewhere near."""

PORTRAIT = 40
"""Side of an object's picture in which its looks are compared, in pixels."""

CLOSER = 0.5
"""What was removed is gone if the picture there is nearer to what should be left, by this, than to what was there."""

DECIBELS = 3.0
"""How far the untouched part of a picture may be under its round trip through the autoencoder."""

ROUNDING = 1.0
"""A mean square difference, out of 255 squared, that is nothing."""

EDGE = 3
"""Pixels this near to changed ones are not called untouched: an autoencoder mixes them."""


def own_faults(canvas: Canvas, sample: Sample) -> list[str]:
    """Which objects that references show are not in the picture in their own look.

    Each has to explain its place better than other looks of the same object do, which differ visibly, and than every
    other object as it ordinarily looks.
    """
    shown = [
        (thing, source.image is not None)
        for thing, source in zip(sample.target.things, sample.sources, strict=True)
        if isinstance(thing, Group)
    ]
    kinds = [kind_of(group) for group, _ in shown]
    against = [lookalikes(kind) if own else rivals(kind, kinds) for kind, (_, own) in zip(kinds, shown, strict=True)]
    _, missing = locate(canvas, [group for group, _ in shown], against)
    return [fault for index, fault in missing.items() if shown[index][1]]


def lookalikes(own: Kind) -> list[Kind]:
    """An object in its own look, first, and what it must be told from: itself in other looks, and other objects."""
    name, look = own
    others = distractors(random.Random(f"distractors/{name}/{look}"), name, look, DISTRACTORS)
    simple = (ORDINARY, replace(look, mirrored=not look.mirrored))
    looks = [own, *((name, other) for other in dict.fromkeys((*others, *simple)) if other != look)]
    # A cat is nearly its own mirror image: what cannot be told where place and size are free is left out.
    gains = _portrait(own).gains(Place(0, 0, PORTRAIT, 0, 1), looks)
    told = [kind for kind, gain in zip(looks, gains, strict=True) if gain < SAME * gains[0]]
    return [own, *told, *((kind.name, ORDINARY) for kind in objects.kinds() if kind.name != name)]


def _portrait(kind: Kind) -> Canvas:
    """An object alone on grey."""
    grey = Image.new("RGB", (PORTRAIT, PORTRAIT), (128, 128, 128))
    behind = np.asarray(grey, np.float32)
    sprite = objects.sprite(*kind, PORTRAIT)
    grey.paste(sprite, (0, 0), sprite)
    return Canvas(np.asarray(grey), Backdrop("plain", (behind[0, 0],), "", 0, behind))


def edit_faults(pixels: Pixels, backdrop: Backdrop, edit: Edit, tolerance: float) -> list[str]:
    """Whether the edit was done; colours of a background may be off by ``tolerance`` (CIEDE2000)."""
    canvas, after = Canvas(pixels, backdrop), edit.after
    if edit.kind == "background":
        return background_faults(backdrop, after.background, tolerance)
    if edit.kind == "add text":
        (text,) = after.texts
        return text_faults(read_text(pixels, backdrop, text), text)
    if edit.kind == "add":
        return thing_faults(canvas, after)
    if edit.kind == "replace":
        return _replaced(canvas, edit)
    changed = ~untouched(edit)
    left = _error(pixels, draw(after), changed)
    if edit.kind == "recolor":
        nearest = min(_other_tints(edit), key=lambda look: _error(pixels, draw(_with_look(edit, look)), changed))
        return [] if left <= _error(pixels, draw(_with_look(edit, nearest)), changed) else ["it has another colour"]
    return [] if left < CLOSER * _error(pixels, draw(edit.before), changed) else ["it is still there"]


def _replaced(canvas: Canvas, edit: Edit) -> list[str]:
    new = edit.after.things[edit.index]
    assert isinstance(new, Group)
    kind = kind_of(new)
    others = [kind_of(thing) for thing in edit.before.things if isinstance(thing, Group)]
    place, fault = seen(canvas, kind, lookalikes(kind) if edit.source.image is not None else rivals(kind, others))
    if place is None:
        return [fault]
    near = min(math.dist(place.center, box.center) for box in new.boxes)
    return [] if near < 0.5 * new.boxes[0].width else [f"{new.name} is in another place"]


def _other_tints(edit: Edit) -> list[Look]:
    """How the thing looked before, and in every colour that can be told from the one asked for."""
    asked = edit.after.things[edit.index].look.tint
    assert asked is not None
    return [edit.before.things[edit.index].look] + [
        Look(named(name)) for name, color in NAMED.items() if distance(color, asked.rgb) >= CLEAR
    ]


def _with_look(edit: Edit, look: Look) -> Scene:
    things: list[Thing] = list(edit.after.things)
    things[edit.index] = replace(things[edit.index], look=look)
    return replace(edit.after, things=tuple(things))


def untouched_faults(pixels: Pixels, backdrop: Backdrop, edit: Edit, round_trip: Pixels) -> list[str]:
    """Whether what the edit is not about is as it was, as well as the autoencoder can have it, to `DECIBELS`.

    Where something was to be added, its place is the model's choice, and is left out where it is found.
    """
    same = untouched(edit)
    for box in _added(pixels, backdrop, edit):
        same[max(0, box.top) : max(0, box.bottom), max(0, box.left) : max(0, box.right)] = False
    for edge in range(EDGE, -1, -1):
        part = _eroded(same, edge)
        if part.sum() >= 64:
            break
    else:
        return []
    before = draw(edit.before)
    worst = max(_error(round_trip, before, part), ROUNDING)
    error = _error(pixels, before, part)
    under = 10 * math.log10(max(error, ROUNDING) / worst)
    return [f"the untouched part is {under:.1f} dB under its round trip"] if under > DECIBELS else []


def _added(pixels: Pixels, backdrop: Backdrop, edit: Edit) -> list[Box]:
    after = edit.after
    if edit.kind == "add text":
        box = read_text(pixels, backdrop, after.texts[0]).drawn.box
        return [Box(box.left - EDGE, box.top - EDGE, box.right + EDGE, box.bottom + EDGE)]
    if edit.kind not in ("add", "replace"):
        return []
    new = after.things[edit.index]
    assert isinstance(new, Group)
    found = Canvas(pixels, backdrop).find(kind_of(new), len(new.boxes))
    return [shadow_box(place.box, after.light) for place in found if place.explained > CLOSER]


def _error(pixels: Pixels, other: Pixels, part: npt.NDArray[np.bool_]) -> float:
    """The mean square difference of channels over a part of the picture."""
    return float(np.square(pixels[part].astype(np.float32) - other[part]).mean())


def _eroded(part: npt.NDArray[np.bool_], edge: int) -> npt.NDArray[np.bool_]:
    """Without the pixels that are within ``edge`` of others, across or down."""
    height, width = part.shape
    padded = np.pad(part, edge, constant_values=True)
    reach = range(2 * edge + 1)
    rows = np.all([padded[shift : shift + height] for shift in reach], axis=0)
    return np.asarray(np.all([rows[:, shift : shift + width] for shift in reach], axis=0))
