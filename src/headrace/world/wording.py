"""Choices between ways of saying something. All the variety of a caption comes from one seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.world.scene import Figure, Group, Scene, Thing


@dataclass(frozen=True)
class Source:
    """Where a thing of a scene comes from, as numbers of reference pictures counted from 1.

    image: the picture that shows this very thing; None where words describe it. named: whether the thing's name has to
    be said, because the picture shows other things too. pose: the picture whose pose a figure takes.
    """

    image: int | None = None
    named: bool = False
    pose: int | None = None


NOWHERE = Source()


@dataclass(frozen=True)
class Mention:
    """A thing to be spoken of, and where it comes from."""

    thing: Thing
    source: Source = NOWHERE

    @property
    def count(self) -> int:
        return len(self.thing.boxes) if isinstance(self.thing, Group) else 1

    @property
    def is_figure(self) -> bool:
        return isinstance(self.thing, Figure)


def mentions(scene: Scene, sources: Sequence[Source] = ()) -> tuple[Mention, ...]:
    """The things of a scene with their sources, which may be left out where there are none."""
    return tuple(map(Mention, scene.things, sources or [NOWHERE] * len(scene.things)))


@dataclass(frozen=True)
class Edit:
    """A change of one picture, the first reference, into another.

    kind: one of `headrace.world.tasks.EDITS`. index: the thing concerned, in ``before``, or in ``after`` where it is
    added. source: of what comes in its place. images: how many reference pictures there are.
    """

    kind: str
    before: Scene
    after: Scene
    index: int = 0
    source: Source = NOWHERE
    images: int = 1


@dataclass
class Wording:
    """The choices made for one caption.

    complete: whether everything that is scored has to be said. structure: the choices of structure so far (frames,
    openers, wordings of relations); whether captions of one structure are for training or for evaluation is decided
    from these, while synonyms, articles and capitals are free on both sides.
    """

    chance: random.Random
    complete: bool = False
    structure: list[str] = field(default_factory=list)

    def frame(self, options: Sequence[str]) -> str:
        """One of the options, as part of the caption's structure."""
        option = self.chance.choice(options)
        self.structure.append(option)
        return option

    def synonym(self, *options: str) -> str:
        """One of the options, free on both sides."""
        return self.chance.choice(options)

    def often(self, share: float) -> bool:
        """True in so many of the cases."""
        return self.chance.random() < share

    def says(self, share: float) -> bool:
        """Whether to say something that may be left out in training: always, where the caption has to be complete."""
        return self.complete or self.often(share)


def finish(text: str, words: Wording) -> str:
    """Now and then a capital at the beginning and a full stop at the end."""
    if ". " in text or words.often(0.2):
        text = text[0].upper() + text[1:]
    if ". " in text or words.often(0.15):
        text += "."
    return text
