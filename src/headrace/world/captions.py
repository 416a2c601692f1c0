"""What people would write to ask for a scene, in English and French, in many wordings."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import ModuleType

from headrace.world import english, french, split
from headrace.world.scene import Scene
from headrace.world.wording import Edit, Source, Wording

LANGUAGES: dict[str, ModuleType] = {"en": english, "fr": french}

STRUCTURES = "structure 28"
"""Goes into the hash of a structure; the number was chosen so that the plainest wordings are for training."""


def caption(
    scene: Scene, seed: int, *, sources: Sequence[Source] = (), language: str = "en", side: str = "train"
) -> str:
    """One caption of the scene; ``seed`` picks the wording. All it says is true of the scene.

    sources: of the scene's things, where reference pictures show them. language: "en" or "fr". side: "train" or "eval";
    no structure of a caption is used on both sides, and for evaluation nothing is left unsaid that is scored, while in
    training a colour, a typeface or a place may be left to the model.
    """
    return _worded(lambda words: str(LANGUAGES[language].describe(scene, words, sources)), seed, language, side)


def request(edit: Edit, seed: int, *, language: str = "en", side: str = "train") -> str:
    """One wording of a change to a picture; the rest as for `caption`."""
    return _worded(lambda words: str(LANGUAGES[language].edit(edit, words)), seed, language, side)


def _worded(say: Callable[[Wording], str], seed: int, language: str, side: str) -> str:
    chance = random.Random(f"caption/{language}/{side}/{seed}")
    while True:
        words = Wording(chance, complete=side == "eval")
        said = say(words)
        if split.on_side(structure_key(language, words), side):
            return said


def structure_key(language: str, words: Wording) -> str:
    """What decides whether captions of this structure are for training or for evaluation."""
    return f"{STRUCTURES}/{language}/{' | '.join(words.structure)}"
