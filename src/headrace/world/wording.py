"""Choices between ways of saying something. All the variety of a caption comes from one seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field


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
