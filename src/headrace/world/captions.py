"""What people would write to ask for a scene: English captions in many wordings."""

from __future__ import annotations

import random

from headrace.world import colors, objects
from headrace.world.scene import PlacedObject, Scene

_SINGLE = (
    "{object} on {background}",
    "{object} on {background}",
    "{object} on {background}",
    "{object}, {background}",
    "{object} in front of {background}",
    "{background} with {object}",
    "a picture of {object} on {background}",
    "an image of {object}, {background}",
    "a drawing of {object} on {background}",
)

_PAIR = (
    "{first} {relation} {second} on {background}",
    "{first} {relation} {second}, {background}",
    "{first} is {relation} {second}, {background}",
    "a picture of {first} {relation} {second} on {background}",
    "{background}, {first} {relation} {second}",
)

_RELATION_WORDINGS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}

_SIZE_WORDINGS = {
    "large": ("large", "big", "huge"),
    "medium": ("medium", "medium-sized"),
    "small": ("small", "little", "tiny"),
}


def caption(scene: Scene, seed: int) -> str:
    """One English caption of the scene; seed picks the wording. All it says is true of the scene."""
    draw = random.Random(f"caption/{seed}")
    background = _background(scene, draw)
    if scene.relation is None:
        (single,) = scene.objects
        text = draw.choice(_SINGLE).format(object=_noun_phrase(single, draw), background=background)
    else:
        first, second = scene.objects
        text = draw.choice(_PAIR).format(
            first=_noun_phrase(first, draw),
            relation=draw.choice(_RELATION_WORDINGS[scene.relation]),
            second=_noun_phrase(second, draw),
            background=background,
        )
    if draw.random() < 0.15:
        text = text[0].upper() + text[1:]
    if draw.random() < 0.1:
        text += "."
    return text


def _noun_phrase(placed: PlacedObject, draw: random.Random) -> str:
    """ "a small red apple": the size is left out only where it is the ordinary one."""
    words = []
    if placed.size in ("medium", "small") or (placed.size == "large" and draw.random() < 0.25):
        words.append(draw.choice(_SIZE_WORDINGS[placed.size]))
    color = objects.kind(placed.name).color
    if color is not None and draw.random() < 0.25:
        words.append(color)
    words.append(placed.name)
    return _with_article(" ".join(words), draw)


def _background(scene: Scene, draw: random.Random) -> str:
    name = scene.background_name
    if name is None or draw.random() < 0.03:
        notation = colors.hex_notation(scene.background)
        name = notation if draw.random() < 0.85 else notation.lower()
    plain = "plain " if draw.random() < 0.12 else ""
    return _with_article(f"{plain}{name} background", draw)


def _with_article(phrase: str, draw: random.Random) -> str:
    if draw.random() < 0.12:
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
