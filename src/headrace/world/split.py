"""What training never sees: combinations and words kept for evaluation, by a hash, so that both sides agree for ever.

A combination is two or more parts of a scene that a model could learn by heart together, written as one string. One in
`HELD_OUT_ONE_IN` is held out. A scene for training has none of those, one for evaluation is about one: see `admits`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator

from headrace.world.scene import CORNERS, Figure, Group, Relation, Scene, Thing

SPLITS = ("train", "eval")

HELD_OUT_ONE_IN = 8

KINDS = ("relation", "figure", "count", "color", "background")
"""Kinds of combinations; a scene is about those of the first kind that it has."""


@functools.lru_cache(maxsize=1 << 16)
def held_out(combination: str) -> bool:
    """Whether a combination, a word or a wording is kept for evaluation."""
    digest = hashlib.blake2b(combination.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


def on_side(combination: str, split: str) -> bool:
    """Whether something that only one side may have belongs to ``split``."""
    return held_out(combination) == (split == "eval")


def combinations(scene: Scene) -> tuple[str, ...]:
    """All combinations in a scene, each beginning with its kind. The order of left and right does not matter."""
    found = [_relation(scene, relation) for relation in scene.relations if relation.kind not in CORNERS]
    for thing in scene.things:
        found.extend(_of_thing(scene, thing))
    return tuple(found)


def admits(scene: Scene, split: str) -> bool:
    """Whether a scene may be used on this side.

    For training none of its combinations is held out; for evaluation some of the kind it is about must be, so that no
    two scenes of the two sides agree in all that they show. Words are on one side or the other anyway.
    """
    if not all(on_side(f"word/{text.text}", split) for text in scene.texts):
        return False
    found = combinations(scene)
    if split == "train":
        return not any(map(held_out, found))
    for kind in KINDS:
        if about := [combination for combination in found if combination.startswith(f"{kind}/")]:
            return any(map(held_out, about))
    return bool(scene.texts)


def _of_thing(scene: Scene, thing: Thing) -> Iterator[str]:
    name = _name(thing)
    if isinstance(thing, Group) and len(thing.boxes) > 1:
        yield f"count/{name}/{len(thing.boxes)}"
    if isinstance(thing, Figure) and thing.pose.name is not None:
        yield f"figure/{name}/{thing.pose.name}"
    if thing.look.tint is not None and thing.look.tint.name is not None:
        yield f"color/{name}/{thing.look.tint.name}"
    for color in scene.background.colors:
        if color.name is not None:
            yield f"background/{name}/{color.name}"


def _relation(scene: Scene, relation: Relation) -> str:
    subject, others = _name(scene.things[relation.subject]), [_name(scene.things[other]) for other in relation.others]
    if relation.kind == "between":
        return f"relation/{subject}/between/{'/'.join(sorted(others))}"
    (other,) = others
    # "A right of B" is "B left of A": both are held out or neither.
    mirrored = {"right of": "left of", "below": "above"}.get(relation.kind)
    return f"relation/{other}/{mirrored}/{subject}" if mirrored else f"relation/{subject}/{relation.kind}/{other}"


def _name(thing: Thing) -> str:
    return thing.name if isinstance(thing, Group) else f"{thing.character} figure"
