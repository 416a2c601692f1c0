"""What people would write to ask for a scene, in English and French, in many wordings."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

from headrace.world import english, english_words, french, french_words, split
from headrace.world.scene import CORNERS, Scene
from headrace.world.wording import Edit, Mention, Source, Wording, finish, mentions


class Language(NamedTuple):
    """What a language says of the parts of a caption, and its tables of wordings."""

    phrases: ModuleType
    tables: ModuleType


LANGUAGES = {"en": Language(english, english_words), "fr": Language(french, french_words)}

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
    return _worded(lambda words: _describe(LANGUAGES[language], scene, words, sources), seed, language, side)


def request(edit: Edit, seed: int, *, language: str = "en", side: str = "train") -> str:
    """One wording of a change to a picture; the rest as for `caption`."""
    return _worded(lambda words: _edit(LANGUAGES[language], edit, words), seed, language, side)


def _worded(say: Callable[[Wording], str], seed: int, language: str, side: str) -> str:
    chance = random.Random(f"caption/{language}/{side}/{seed}")
    while True:
        words = Wording(chance, complete=side == "eval")
        said = say(words)
        if split.on_side(structure_key(language, words), side):
            return said


def _describe(language: Language, scene: Scene, words: Wording, sources: Sequence[Source]) -> str:
    phrases, tables = language
    things = phrases.things(scene, mentions(scene, sources), words)
    text = phrases.text_phrase(scene.texts[0], words) if scene.texts else ""
    joint = words.frame(tables.WITH_TEXT) if things and text else "{0}{1}"
    shown = joint.format(things, text)
    # A background of one colour may be left to the model.
    says_background = scene.background.kind != "plain" or words.says(0.94)
    frame = words.frame(tables.FRAMES if says_background else ("{things}",))
    put_together = any(source.image is not None for source in sources)
    opener = words.frame(tables.PUT if put_together else tables.OPENERS) if frame.startswith("{things}") else ""
    said = opener + frame.format(
        things=shown,
        background=phrases.background_phrase(scene.background, words),
        behind=phrases.background_predicate(scene.background, words),
    )
    if "{1}" not in joint:
        said += f", {tables.WITH} {text}"
    return finish(said + phrases.lighting(scene, words), words)


def _edit(language: Language, change: Edit, words: Wording) -> str:
    tables = language.tables
    said = _change(language, change, words)
    asked = "" if words.structure[0].startswith(tables.NOT_VERBS) else words.frame(tables.ASKED)
    return finish(asked + said + words.frame(tables.KEEPING), words)


def _change(language: Language, change: Edit, words: Wording) -> str:
    phrases, tables = language
    after = change.after
    if change.kind == "background":
        return words.frame(tables.CHANGE_BACKGROUND).format(
            predicate=phrases.background_predicate(after.background, words),
            phrase=phrases.background_phrase(after.background, words),
        )
    if change.kind == "add text":
        return words.frame(tables.ADD_TEXT).format(phrases.text_phrase(after.texts[0], words))
    if change.kind == "remove text":
        named = phrases.named_text(change.before.texts[0], words)
        return words.frame(tables.REMOVE).format(words.synonym(tables.THE_TEXT, named))
    if change.kind == "add":
        (relation,) = after.relations
        if relation.kind in CORNERS:
            place = phrases.corner_place(relation.kind, words)
        else:
            place = phrases.beside(relation.kind, Mention(after.things[relation.others[0]]), words)
        return phrases.added(Mention(after.things[change.index]), place, words)
    old = phrases.changed(Mention(change.before.things[change.index]), change.images, words)
    if change.kind == "remove":
        return words.frame(tables.REMOVE).format(old["old"])
    new = Mention(after.things[change.index], change.source)
    if change.kind == "recolor":
        return phrases.recolored(old, new, words)
    return words.frame(tables.REPLACE).format(**old, new=phrases.thing_phrase(new, words))


def structure_key(language: str, words: Wording) -> str:
    """What decides whether captions of this structure are for training or for evaluation."""
    return f"{STRUCTURES}/{language}/{' | '.join(words.structure)}"
