"""What is written in pictures: common words, names, and strings without meaning, so that spelling has to be learned."""

from __future__ import annotations

import functools
import random

from headrace.world import letters, objects
from headrace.world.split import on_side

COMMON = tuple(objects.asset("words.txt").read_text(encoding="utf-8").split())
"""Words that people write, English ones before French ones."""

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ACCENTED = "".join(character for character in letters.CHARACTERS if character > "Z")
_CONSONANTS = "BCDFGHJKLMNPQRSTVWXZ"
_VOWELS = "AEIOUY"


def word(chance: random.Random, split: str, longest: int = letters.MAX_LENGTH) -> str:
    """A text of this side of the split, of at most ``longest`` characters."""
    while True:
        text = chance.choices((_common, _name, _syllables, _letters, _number, _two), (30, 12, 22, 18, 10, 8))[0](chance)
        if len(text) <= longest and on_side(f"word/{text}", split):
            return text


def _common(chance: random.Random) -> str:
    return chance.choice(COMMON)


@functools.cache
def _names() -> tuple[str, ...]:
    names = {name.upper() for kind in objects.kinds() for name in (kind.name, kind.french)}
    return tuple(sorted(name for name in names if set(name) <= set(letters.CHARACTERS)))


def _name(chance: random.Random) -> str:
    return chance.choice(_names())


def _syllables(chance: random.Random) -> str:
    text = ""
    for _ in range(chance.choices((1, 2, 3, 4), (2, 5, 3, 1))[0]):
        text += (
            chance.choice(_CONSONANTS)
            + chance.choice(_VOWELS)
            + (chance.choice(_CONSONANTS) if chance.random() < 0.4 else "")
        )
    return text


def _letters(chance: random.Random) -> str:
    length = chance.choices(range(1, 13), (2, 4, 6, 6, 6, 5, 3, 2, 1, 1, 1, 1))[0]
    return "".join(chance.choice(_ACCENTED if chance.random() < 0.12 else _ALPHABET) for _ in range(length))


def _number(chance: random.Random) -> str:
    digits = "".join(chance.choice("0123456789") for _ in range(chance.choices(range(1, 7), (3, 5, 4, 5, 1, 1))[0]))
    return digits if chance.random() < 0.6 else chance.choice(_ALPHABET) + digits


def _two(chance: random.Random) -> str:
    return f"{_common(chance)} {chance.choice((_common, _number))(chance)}"
