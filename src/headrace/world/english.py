"""English captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.world import objects
from headrace.world.colors import Color, hex_notation
from headrace.world.english_words import (
    ADD,
    BETWEEN,
    CHARACTERS,
    CHECKED,
    CORNER_FRAMES,
    FACES,
    GRADIENTS,
    IRREGULAR_PLURALS,
    ITS_SIDE,
    LIGHT_FRAMES,
    NUMBERS,
    OPPOSITE,
    POSED_LIKE,
    POSES,
    RECOLOR,
    RELATIONS,
    SIDE_FRAMES,
    SIZES,
    STRIPES,
    TWO_SIDES,
)
from headrace.world.scene import CORNERS, Background, Figure, Group, Relation, Scene, Text
from headrace.world.wording import Mention, Wording


def named_text(text: Text, words: Wording) -> str:
    """ "the word "HELLO"", of a text that is there."""
    return f"the {words.synonym('text', 'word')} {quoted(text.text, words)}"


def changed(mention: Mention, images: int, words: Wording) -> dict[str, str]:
    """What a thing of image 1 is called that is to be changed; ``images`` is how many there are."""
    old = noun_phrase(mention, words, definite=True, plainly=True)
    if words.often(0.6 if images > 1 else 0.12):
        old += words.synonym(" of image 1", " in image 1")
    return {"old": old}


def added(mention: Mention, place: str, words: Wording) -> str:
    """ "add a cat left of the dog"."""
    return words.frame(ADD).format(new=noun_phrase(mention, words), place=place)


def recolored(old: Mapping[str, str], new: Mention, words: Wording) -> str:
    """ "make the cat red"."""
    color = _color_of(new, words, plainly=True)
    return words.frame(RECOLOR).format(**old, color=color)


def beside(kind: str, other: Mention, words: Wording) -> str:
    """ "left of the dog"."""
    return f"{words.synonym(*RELATIONS[kind])} {noun_phrase(other, words, definite=True, plainly=True)}"


def noun_phrase(mention: Mention, words: Wording, *, definite: bool = False, plainly: bool = False) -> str:
    """ "a small red apple", "the two red apples"; plainly: without what the thing's look does not need said."""
    thing = mention.thing
    if mention.source.image is not None:
        return _of_image(mention, mention.source.image, words)
    before = []
    if isinstance(thing, Group) and thing.size is not None and not plainly:
        before.append(words.synonym(*SIZES[thing.size]))
    after = ""
    color = _color_of(mention, words, plainly=plainly)
    if color is not None:
        if thing.look.tint is not None and (words.often(0.12) or not _takes_adjective(mention)):
            after = f" in {color}"
        else:
            before.append(color)
    phrase = " ".join([*before, _name(mention, words)]) + after
    if mention.count > 1:
        number = words.synonym(NUMBERS[mention.count], NUMBERS[mention.count], str(mention.count))
        return f"the {phrase}" if definite and words.often(0.5) else f"{'the ' if definite else ''}{number} {phrase}"
    return f"the {phrase}" if definite else with_article(phrase, words)


def _of_image(mention: Mention, number: int, words: Wording) -> str:
    """ "image 1", "the cat of image 1", "two copies of image 1"."""
    image = f"image {number}"
    if mention.source.named or words.often(0.5):
        what = words.synonym("character" if mention.is_figure else "object", _name(mention, words, singular=True))
        if mention.source.named:
            what = _name(mention, words, singular=True)
        image = f"the {what} {words.synonym('of', 'of', 'from', 'in')} {image}"
    return image if mention.count == 1 else f"{NUMBERS[mention.count]} copies of {image}"


def _name(mention: Mention, words: Wording, *, singular: bool = False) -> str:
    thing = mention.thing
    if isinstance(thing, Figure):
        return words.synonym(*CHARACTERS[thing.character])
    return thing.name if singular or mention.count == 1 else plural(thing.name)


def with_article(phrase: str, words: Wording) -> str:
    """ "apple" -> "an apple"; once in a while without the article, as people write to machines."""
    if words.often(0.05):
        return phrase
    # "#8A2BE2" is read letter by letter, hence "an".
    vowel = phrase[1].lower() in "aef8" if phrase.startswith("#") else phrase[0] in "aeiou"
    return f"{'an' if vowel and not phrase.startswith('uni') else 'a'} {phrase}"


def plural(name: str) -> str:
    """ "strawberry" -> "strawberries"."""
    first, _, last = name.rpartition(" ")
    if last in IRREGULAR_PLURALS:
        many = IRREGULAR_PLURALS[last]
    elif last.endswith("y") and last[-2] not in "aeiou":
        many = last[:-1] + "ies"
    elif last.endswith(("s", "x", "ch", "sh")) or last == "tomato":
        many = last + "es"
    else:
        many = last + "s"
    return f"{first} {many}".strip()


def color_word(color: Color, words: Wording) -> str:
    """The colour's name, else (or once in a while) its notation."""
    if color.name is not None and not words.often(0.03):
        return color.name
    notation = hex_notation(color.rgb)
    return notation if words.often(0.85) else notation.lower()


def _takes_adjective(mention: Mention) -> bool:
    """Whether the colour is of the thing itself, and not of what it wears."""
    return not isinstance(mention.thing, Figure) or mention.thing.character not in ("human", "alien")


def _color_of(mention: Mention, words: Wording, *, plainly: bool) -> str | None:
    thing = mention.thing
    if thing.look.tint is not None:
        return color_word(thing.look.tint, words)
    if plainly or not isinstance(thing, Group) or thing.look.hue:
        return None
    natural = objects.kind(thing.name).color
    return natural if natural is not None and words.often(0.25) else None


def things(scene: Scene, mentioned: Sequence[Mention], words: Wording) -> str:
    phrases = [thing_phrase(mention, words) for mention in mentioned]
    if not scene.relations:
        return " and ".join(phrases)
    relation = scene.relations[0]
    if relation.kind in CORNERS:
        return _corner(relation, phrases, words)
    if relation.kind == "between":
        return words.frame(BETWEEN).format(*(phrases[index] for index in (relation.subject, *relation.others)))
    if len(scene.relations) == 1:
        return _side(relation, mentioned, phrases, words)
    return _two_sides(scene, mentioned, phrases, words)


def thing_phrase(mention: Mention, words: Wording) -> str:
    said = noun_phrase(mention, words)
    if mention.source.pose is not None:
        return f"{said} {words.frame(POSED_LIKE).format(mention.source.pose)}"
    return (
        f"{said} {pose(mention.thing, words)}"
        if isinstance(mention.thing, Figure) and mention.thing.pose.name
        else said
    )


def pose(figure: Figure, words: Wording) -> str:
    """What a figure does: "waving"."""
    return words.synonym(*POSES[figure.pose.name]) if figure.pose.name is not None else ""


def _side(relation: Relation, mentioned: Sequence[Mention], phrases: Sequence[str], words: Wording) -> str:
    (other,) = relation.others
    pronouns = {"it": "them", "its": "their"} if mentioned[other].count > 1 else {"it": "it", "its": "its"}
    frame = words.frame(SIDE_FRAMES)
    return frame.format(
        first=phrases[relation.subject],
        second=phrases[other],
        relation=words.synonym(*RELATIONS[relation.kind]),
        its_side=words.synonym(*ITS_SIDE[relation.kind]).format(**pronouns),
        **pronouns,
    )


def _two_sides(scene: Scene, mentioned: Sequence[Mention], phrases: Sequence[str], words: Wording) -> str:
    first, second = scene.relations
    said = f"{phrases[first.subject]} {words.synonym(*RELATIONS[first.kind])} {phrases[first.others[0]]}"
    new, kind, known = second.subject, second.kind, second.others[0]
    if new in (first.subject, first.others[0]):
        new, kind, known = known, OPPOSITE[kind], new
    there = noun_phrase(mentioned[known], words, definite=True, plainly=True)
    return words.frame(TWO_SIDES).format(said, phrases[new], words.synonym(*RELATIONS[kind]), there)


def _corner(relation: Relation, phrases: Sequence[str], words: Wording) -> str:
    place = corner_place(relation.kind, words)
    subject = phrases[relation.subject]
    others = [phrase for index, phrase in enumerate(phrases) if index != relation.subject]
    if not others:
        return f"{subject} {place}"
    return words.frame(CORNER_FRAMES).format(other=others[0], subject=subject, place=place)


def corner_place(corner: str, words: Wording) -> str:
    vertical, horizontal = corner.split()
    return words.synonym(
        f"in the {vertical} {horizontal} corner",
        f"in the {vertical}-{horizontal} corner",
        f"in the {'upper' if vertical == 'top' else 'lower'} {horizontal} corner",
        f"at the {vertical} {horizontal}",
    )


def background_phrase(background: Background, words: Wording) -> str:
    """ "a purple background", "a background with vertical red and white stripes"."""
    if background.kind == "plain":
        plain = words.synonym("", "", "", "", "", "plain ", "solid ")
        return with_article(f"{plain}{color_word(background.colors[0], words)} background", words)
    first, second = _two_colors(background, words)
    if background.kind == "gradient":
        kind = words.synonym("a gradient background", "a gradient", "a background with a gradient")
        return f"{kind} {words.synonym(*GRADIENTS[background.direction])}".format(first=first, second=second)
    if background.kind == "checked":
        adjective = words.synonym(*CHECKED)
        return words.synonym(
            with_article(f"{first} and {second} {adjective} background", words),
            f"a {adjective} background in {first} and {second}",
            f"a checkerboard of {first} and {second}",
        )
    way = STRIPES[background.direction]
    return words.synonym(
        f"a background with {way} {first} and {second} stripes",
        f"a background of {way} stripes in {first} and {second}",
        f"a {way}ly striped background in {first} and {second}",
    )


def background_predicate(background: Background, words: Wording) -> str:
    """The background as what follows "the background is": "purple", "checked in red and white"."""
    if background.kind == "plain":
        return color_word(background.colors[0], words)
    first, second = _two_colors(background, words)
    if background.kind == "gradient":
        return f"a gradient {words.synonym(*GRADIENTS[background.direction])}".format(first=first, second=second)
    if background.kind == "checked":
        return f"{words.synonym(*CHECKED)} in {first} and {second}"
    return f"{STRIPES[background.direction]}ly striped in {first} and {second}"


def _two_colors(background: Background, words: Wording) -> tuple[str, str]:
    """The colours in words: a gradient's from start to end, those of stripes and checks in any order."""
    first, second = (color_word(color, words) for color in background.colors)
    return (second, first) if background.kind != "gradient" and words.often(0.5) else (first, second)


def text_phrase(text: Text, words: Wording) -> str:
    """ "the word "HELLO" in red serif letters at the top"."""
    kind = "text" if " " in text.text or words.often(0.5) else "word"
    if text.text.isdigit():
        kind = words.synonym("text", "number")
    said = words.synonym(f"the {kind} ", f"the {kind} ", "the letters ", "") + quoted(text.text, words)
    color = color_word(text.color, words) if words.says(0.85) else ""
    face = words.synonym(*FACES[text.face]) if words.says(0.6) else ""
    style = " ".join(filter(None, (color, face)))
    if face:
        style = f" in {style} letters"
    elif color:
        style = words.synonym(f" in {color}", f" in {color} letters", f" written in {color}")
    return said + style + (f" {_place(text, words)}" if words.says(0.85) else "")


def quoted(text: str, words: Wording) -> str:
    """The text in quotation marks."""
    return words.synonym('"{}"', '"{}"', "“{}”", "'{}'").format(text)


def _place(text: Text, words: Wording) -> str:
    if text.place in CORNERS:
        return words.synonym(f"in the {text.place} corner", f"at the {text.place}")
    if text.place == "middle":
        return words.synonym("in the middle", "in the centre", "in the center")
    return words.synonym(f"at the {text.place}", f"at the {text.place} of the picture")


def lighting(scene: Scene, words: Wording) -> str:
    if not scene.things or not (words.often(0.12) if scene.light == "above" else words.says(0.9)):
        return ""
    source = {"left": "the left", "right": "the right"}.get(scene.light, scene.light)
    return words.frame(LIGHT_FRAMES).format(source)
