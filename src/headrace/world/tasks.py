"""What a model is asked to do: samples of a request, the reference pictures it speaks of, and the picture it asks for.

Every sample is a pure function of its arguments. Pictures are given as scenes, to be drawn by `headrace.world.draw`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headrace.world import figures, layout, looks, objects, skeletons, split
from headrace.world.captions import LANGUAGES, caption, request
from headrace.world.draw import draw
from headrace.world.layout import pick, place, sketch
from headrace.world.scene import (
    Box,
    Figure,
    Group,
    Look,
    Relation,
    Scene,
    Skeleton,
    Thing,
    boxes,
    plain,
)
from headrace.world.wording import Edit, Source

TASKS: dict[str, float] = {"scene": 0.55, "combine": 0.20, "edit": 0.15, "pose": 0.10}
"""What can be asked for, and how often it is where nobody says.

scene: a picture described in words. combine: the objects of one to three references in a new picture. edit: the one
reference with a change. pose: a character in the pose of a reference.
"""

EDITS: dict[str, float] = {
    "background": 0.24,
    "remove": 0.18,
    "replace": 0.24,
    "recolor": 0.12,
    "add": 0.10,
    "add text": 0.09,
    "remove text": 0.03,
}
"""Kinds of edits, and how often each is asked for. What replaces a thing is named, or shown by a second reference."""


@dataclass(frozen=True)
class Sample:
    """One request and its answer.

    task: one of `TASKS`. language: of the caption. references: what image 1, image 2, ... show. sources: for each thing
    of the target, the reference that it, or its pose, comes from. edit: for that task, what is done to the first
    reference.
    """

    task: str
    caption: str
    language: str
    target: Scene
    references: tuple[Scene, ...] = ()
    sources: tuple[Source, ...] = ()
    edit: Edit | None = None


def sample(
    seed: int,
    width: int = 128,
    height: int = 128,
    *,
    side: str = "train",
    task: str | None = None,
    kind: str | None = None,
    language: str | None = None,
) -> Sample:
    """The sample of this seed, whose target has this size.

    side: "train" or "eval"; see `headrace.world.split`. task, language: by lot where None, and so is kind, which is
    - of a scene one of `headrace.world.layout.TOPICS`,
    - of a combination "1", "2" or "3", the number of references,
    - of an edit one of `EDITS`,
    - of a pose "words" or "picture": what tells the character.
    """
    chance = random.Random(f"sample/{side}/{task}/{kind}/{seed}")
    task = task or pick(chance, TASKS)
    language = language or chance.choice(tuple(LANGUAGES))
    wording = chance.getrandbits(48)
    if task == "scene":
        target = layout.scene(chance.getrandbits(48), width, height, side=side, topic=kind)
        unsaid = Sample(task, "", language, target)
    elif task == "edit":
        edit, references = _edit(chance, width, height, side, kind)
        unsaid = Sample(task, "", language, edit.after, references, edit=edit)
    else:
        make = _combination if task == "combine" else _posing
        unsaid = Sample(task, "", language, *make(chance, width, height, side, kind))
    return replace(unsaid, caption=say(unsaid, wording, side=side))


def say(asked: Sample, wording: int, *, side: str = "train") -> str:
    """What the sample asks for, in its language and the wording of this number."""
    if asked.edit is not None:
        return request(asked.edit, wording, language=asked.language, side=side)
    return caption(asked.target, wording, sources=asked.sources, language=asked.language, side=side)


def shuffled(
    seed: int,
    width: int = 128,
    height: int = 128,
    *,
    side: str = "train",
    task: str | None = None,
    kind: str | None = None,
) -> Sample:
    """The sample of this seed with another one's caption: a model that learns from these must score at chance."""
    own = sample(seed, width, height, side=side, task=task, kind=kind)
    other = random.Random(f"shuffled/{seed}").getrandbits(48)
    said = sample(other, width, height, side=side, task=own.task, language=own.language).caption
    return replace(own, caption=said)


def reference_size(task: str, width: int, height: int) -> tuple[int, int]:
    """Width and height of a sample's references: three quarters of the shorter side for objects to be combined.

    Pictures to be edited, skeletons and characters are as large as the target, and so is an edit's second reference.
    """
    if task != "combine":
        return width, height
    side = max(64, round(0.75 * min(width, height) / 16) * 16)
    return side, side


def untouched(change: Edit) -> npt.NDArray[np.bool_]:
    """Which pixels are the same before and after, (height, width)."""
    return np.asarray((draw(change.before) == draw(change.after)).all(axis=-1))


def _combination(
    chance: random.Random, width: int, height: int, side: str, kind: str | None
) -> tuple[Scene, tuple[Scene, ...], tuple[Source, ...]]:
    count = int(kind or pick(chance, {"1": 0.35, "2": 0.45, "3": 0.20}))
    topics = {
        1: {"object": 0.3, "corner": 0.2, "count": 0.15, "relation": 0.35},
        2: {"relation": 0.8, "corner": 0.2},
        3: {"between": 0.5, "trio": 0.5},
    }[count]
    while True:
        target = sketch(chance, width, height, side, pick(chance, topics))
        groups = [thing for thing in target.things if isinstance(thing, Group)]
        if len(groups) < max(count, len(target.things)) or len({group.name for group in groups}) < len(groups):
            continue
        shown = chance.sample(range(len(groups)), count)
        sources = [Source()] * len(groups)
        references = []
        for number, index in enumerate(shown, start=1):
            own = looks.variant(chance, groups[index].name)
            groups[index] = Group(groups[index].name, own, None, groups[index].boxes)
            reference, crowded = _shown(chance, groups[index], *reference_size("combine", width, height))
            references.append(reference)
            sources[index] = Source(number, named=crowded)
        target = replace(target, things=tuple(groups))
        if _seen(target) and split.admits(target, side):
            return target, tuple(references), tuple(sources)


def _shown(chance: random.Random, group: Group, width: int, height: int) -> tuple[Scene, bool]:
    """A picture of the object, and whether another object is in it too."""
    room = Box(3, 3, width - 3, height - 3)
    while True:
        behind = looks.background(chance, width, height) if chance.random() < 0.3 else plain(looks.color(chance))
        things: tuple[Group, ...] = (place(chance, group.name, group.look, 1, room, room, jitter=0.06),)
        crowded = chance.random() < 0.15
        if crowded:
            other = chance.choice([kind.name for kind in objects.kinds() if kind.name != group.name])
            halves = layout.parts(room, 2, across=True)
            names = [(group.name, group.look), (other, looks.look(chance, behind, other))]
            chance.shuffle(names)
            things = tuple(
                place(chance, name, look, 1, half, room, jitter=0.04, crowd=2)
                for (name, look), half in zip(names, halves, strict=True)
            )
        scene = Scene(width, height, behind, things)
        if _seen(scene):
            return scene, crowded


def _seen(scene: Scene) -> bool:
    """Whether all tinted things and words can be seen on the background."""
    tints = [tint for thing in scene.things for tint in (thing.look.tint, thing.look.lower) if tint is not None]
    return all(looks.clear_of(tint, scene.background) for tint in tints) and all(
        layout.readable(text.color, scene.background) for text in scene.texts
    )


def _posing(
    chance: random.Random, width: int, height: int, side: str, kind: str | None
) -> tuple[Scene, tuple[Scene, ...], tuple[Source, ...]]:
    margin = round(0.03 * min(width, height))
    room = Box(margin, margin, width - margin, height - margin)
    by_picture = (kind or pick(chance, {"words": 0.4, "picture": 0.6})) == "picture"
    while True:
        behind = looks.background(chance, width, height)
        character = chance.choice(tuple(figures.CHARACTERS))
        look = looks.look(chance, behind)
        if by_picture:
            look = Look(looks.color(chance), looks.color(chance) if chance.random() < 0.6 else None)
        pose = skeletons.any_pose(chance)
        if chance.random() < 0.25:
            pose = replace(skeletons.named_pose(chance, chance.choice(tuple(skeletons.POSES))), name=None)
        figure = figures.place(character, look, pose, layout.shrunk(chance, room))
        light = chance.choice(("above", "above", "left", "right"))
        target = Scene(width, height, behind, (figure,), light=light)
        if _seen(target) and split.admits(target, side):
            break
    radius = chance.uniform(1.0, 2.2) * min(width, height) / 128
    skeleton = Scene(width, height, plain((0, 0, 0)), skeletons=(Skeleton(figure.pose, radius),))
    if not by_picture:
        return target, (skeleton,), (Source(pose=1),)
    model = _model(chance, figure, width, height)
    if chance.random() < 0.6:
        return target, (skeleton, model), (Source(2, pose=1),)
    return target, (model, skeleton), (Source(1, pose=2),)


def _model(chance: random.Random, figure: Figure, width: int, height: int) -> Scene:
    """A picture of the character, as it looks, in another pose."""
    margin = round(0.04 * min(width, height))
    room = Box(margin, margin, width - margin, height - margin)
    pose = skeletons.named_pose(chance, chance.choice(tuple(skeletons.POSES)))
    while True:
        behind = plain(looks.color(chance))
        scene = Scene(width, height, behind, (figures.place(figure.character, figure.look, pose, room),))
        if _seen(scene):
            return scene


def _edit(
    chance: random.Random, width: int, height: int, side: str, kind: str | None
) -> tuple[Edit, tuple[Scene, ...]]:
    kind = kind or pick(chance, EDITS)
    while True:
        tried = _tried_edit(chance, width, height, side, kind)
        if tried is None:
            continue
        edit, references = tried
        fit = _seen(edit.after) and edit.before != edit.after and split.admits(edit.after, side)
        if fit and (side == "eval" or split.admits(edit.before, side)):
            return edit, references


def _tried_edit(
    chance: random.Random, width: int, height: int, side: str, kind: str
) -> tuple[Edit, tuple[Scene, ...]] | None:
    """An edit of a picture, where the picture that came by lot allows it."""
    if kind in ("add text", "remove text"):
        return _edit_of_text(sketch(chance, width, height, side, chance.choice(("text", None))), kind)
    topics = {"remove": ("relation", "between", "trio", "corner", "figure"), "add": ("relation", "corner")}.get(kind)
    before = sketch(chance, width, height, side, chance.choice(topics) if topics else None)
    if kind == "background":
        behind = looks.background(chance, width, height)
        return Edit(kind, before, replace(before, background=behind)), (before,)
    names = [_called(thing) for thing in before.things]
    if not names or len(set(names)) < len(names) or (kind in ("add", "remove") and len(names) == 1):
        return None
    index = chance.randrange(len(names))
    if kind == "remove":
        return Edit(kind, before, _without(before, index), index), (before,)
    if kind == "add":
        # What is added is the thing that the relation is about.
        index = before.relations[0].subject
        bare = _without(before, index)
        return Edit(kind, bare, before, index), (bare,)
    thing = before.things[index]
    if kind == "recolor":
        tint = looks.tint(chance, before.background, thing.name if isinstance(thing, Group) else None)
        if tint is None or tint == thing.look.tint:
            return None
        return Edit(kind, before, _with(before, index, replace(thing, look=Look(tint))), index), (before,)
    return _replacement(chance, before, index, names) if isinstance(thing, Group) else None


def _edit_of_text(with_text: Scene, kind: str) -> tuple[Edit, tuple[Scene, ...]] | None:
    if not with_text.texts or not with_text.things:
        return None
    without = replace(with_text, texts=())
    before, after = (without, with_text) if kind == "add text" else (with_text, without)
    return Edit(kind, before, after), (before,)


def _replacement(chance: random.Random, before: Scene, index: int, names: list[str]) -> tuple[Edit, tuple[Scene, ...]]:
    """Another object in the place of one, told by its name or shown by a second reference."""
    places = boxes(before.things[index])
    name = chance.choice([kind.name for kind in objects.kinds() if kind.name not in names])
    if len(places) > 1 or chance.random() < 0.5:
        new = Group(name, looks.look(chance, before.background, name), None, places)
        return Edit("replace", before, _with(before, index, new), index), (before,)
    new = Group(name, looks.variant(chance, name), None, places)
    reference, crowded = _shown(chance, new, before.width, before.height)
    source = Source(2, named=crowded)
    return Edit("replace", before, _with(before, index, new), index, source, images=2), (before, reference)


def _called(thing: Thing) -> str:
    return thing.name if isinstance(thing, Group) else thing.character


def _with(scene: Scene, index: int, thing: Thing) -> Scene:
    return replace(scene, things=(*scene.things[:index], thing, *scene.things[index + 1 :]))


def _without(scene: Scene, index: int) -> Scene:
    kept = [number for number in range(len(scene.things)) if number != index]
    relations = tuple(
        Relation(relation.kind, kept.index(relation.subject), tuple(map(kept.index, relation.others)))
        for relation in scene.relations
        if index not in (relation.subject, *relation.others)
    )
    return replace(scene, things=tuple(scene.things[number] for number in kept), relations=relations)
