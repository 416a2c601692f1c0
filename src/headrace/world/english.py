"""English captions."""

from __future__ import annotations

from headrace.world import objects
from headrace.world.colors import Color, hex_notation
from headrace.world.scene import CORNERS, Background, Figure, Group, Relation, Scene, Text, Thing
from headrace.world.wording import Wording, finish

NUMBERS = {2: "two", 3: "three", 4: "four"}

SIZES = {"large": ("large", "big", "huge"), "medium": ("medium", "medium-sized"), "small": ("small", "little", "tiny")}

RELATIONS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}

ITS_SIDE = {
    "left of": ("to the left", "on the left", "on {its} left"),
    "right of": ("to the right", "on the right", "on {its} right"),
    "above": ("above {it}", "over {it}"),
    "below": ("below {it}", "under {it}", "beneath {it}"),
}
"""For "a dog with a cat on its left"."""

FACES = {
    "sans": ("sans-serif", "rounded", "sans"),
    "serif": ("serif", "slab-serif"),
    "typewriter": ("typewriter", "monospaced"),
}

GRADIENTS = {
    "across": ("from {first} on the left to {second} on the right", "{first} on the left, {second} on the right"),
    "down": ("from {first} at the top to {second} at the bottom", "{first} at the top, {second} at the bottom"),
    "diagonal": (
        "from {first} in the top left to {second} in the bottom right",
        "{first} in the top left corner, {second} in the bottom right corner",
    ),
}

CHECKED = ("checked", "checkered", "chequered")

STRIPES = {"across": "vertical", "down": "horizontal", "diagonal": "diagonal"}

FRAMES = (
    "{things} on {background}",
    "{things} in front of {background}",
    "{things} against {background}",
    "{things}, {background}",
    "{background} with {things}",
    "on {background}, {things}",
    "{background}, and on it {things}",
    "{things}. The background is {behind}",
    "a picture with {background} that shows {things}",
)

OPENERS = ("", "", "", "", "a picture of ", "an image of ", "a drawing of ", "draw ", "show me ", "please make ")

SIDE_FRAMES = (
    "{first} {relation} {second}",
    "{first} {relation} {second}",
    "{first}, {relation} {second}",
    "{first} placed {relation} {second}",
    "{second} with {first} {its_side}",
    "{second}, and {relation} {it} {first}",
)

BETWEEN = ("{0} between {1} and {2}", "{1} and {2} with {0} between them", "{0} in between {1} and {2}")

CORNER_FRAMES = ("{other} with {subject} {place}", "{subject} {place} and {other}", "{other}, and {place} {subject}")

LIGHT_FRAMES = (", lit from {}", ", with light from {}", ", light coming from {}", ". The light comes from {}")

IRREGULAR_PLURALS = {"fish": "fish", "sheep": "sheep", "snowman": "snowmen", "cactus": "cacti"}


def describe(scene: Scene, words: Wording) -> str:
    """One caption of the scene; all that it says is true."""
    things = _things(scene, words)
    parts = [*([things] if things else []), *(text_phrase(text, words) for text in scene.texts)]
    if len(parts) == 2:
        order = words.frame(("{0} with {1}", "{0} and {1}", "{1}, {0}", "{1} and {0}"))
        shown = order.format(*parts)
    else:
        shown = parts[0] if parts else "nothing"
    frame = words.frame(FRAMES)
    opener = words.frame(OPENERS) if frame.startswith("{things}") else ""
    said = opener + frame.format(
        things=shown,
        background=background_phrase(scene.background, words),
        behind=background_predicate(scene.background, words),
    )
    return finish(said + _light(scene, words), words)


def noun_phrase(thing: Thing, words: Wording, *, definite: bool = False, plainly: bool = False) -> str:
    """ "a small red apple", "the two red apples"; plainly: without what the thing's look does not need said."""
    before = []
    if isinstance(thing, Group) and thing.size is not None and not plainly:
        before.append(words.synonym(*SIZES[thing.size]))
    after = ""
    color = _color_of(thing, words, plainly=plainly)
    if color is not None:
        if thing.look.tint is not None and (words.often(0.12) or not _adjective(thing)):
            after = f" in {color}"
        else:
            before.append(color)
    count = len(thing.boxes) if isinstance(thing, Group) else 1
    name = thing.name if isinstance(thing, Group) else thing.character
    phrase = " ".join([*before, plural(name) if count > 1 else name]) + after
    if count > 1:
        number = words.synonym(NUMBERS[count], NUMBERS[count], str(count))
        return f"the {phrase}" if definite and words.often(0.5) else f"{'the ' if definite else ''}{number} {phrase}"
    return f"the {phrase}" if definite else with_article(phrase)


def with_article(phrase: str) -> str:
    """ "apple" -> "an apple"; "#8A2BE2 apple" is read digit by digit, hence "an"."""
    start = phrase.lstrip("#")[0].lower()
    vowel = start in "aeiou8" if not phrase.startswith("#") else start in "aef8"
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


def _adjective(thing: Thing) -> bool:
    return isinstance(thing, Group) or thing.character != "human"


def _color_of(thing: Thing, words: Wording, *, plainly: bool) -> str | None:
    if thing.look.tint is not None:
        return color_word(thing.look.tint, words)
    if plainly or not isinstance(thing, Group) or thing.look.hue:
        return None
    natural = objects.kind(thing.name).color
    return natural if natural is not None and words.often(0.25) else None


def _things(scene: Scene, words: Wording) -> str:
    phrases = [_thing(thing, words) for thing in scene.things]
    if not scene.relations:
        return " and ".join(phrases)
    relation = scene.relations[0]
    if relation.kind in CORNERS:
        return _corner(relation, phrases, words)
    if relation.kind == "between":
        between = words.frame(BETWEEN)
        return between.format(*(phrases[index] for index in (relation.subject, *relation.others)))
    if len(scene.relations) == 1:
        return _side(scene, relation, phrases, words)
    return _two_sides(scene, phrases, words)


def _thing(thing: Thing, words: Wording) -> str:
    return noun_phrase(thing, words) + (f" {pose(thing, words)}" if isinstance(thing, Figure) else "")


def pose(figure: Figure, words: Wording) -> str:
    """What a figure does: "waving"."""
    return words.synonym(*POSES[figure.pose.name]) if figure.pose.name is not None else ""


POSES: dict[str, tuple[str, ...]] = {
    "standing": ("standing", "standing still", "standing upright"),
    "waving": ("waving", "waving a hand", "waving hello"),
    "arms up": ("with both arms up", "raising both arms", "with raised arms"),
    "arms out": ("with arms stretched out", "in a T-pose", "stretching out both arms"),
    "hands on hips": ("with hands on hips", "with both hands on the hips"),
    "running": ("running", "on the run"),
    "jumping": ("jumping", "doing a star jump", "jumping for joy"),
    "dancing": ("dancing", "in a dance"),
}


def _side(scene: Scene, relation: Relation, phrases: list[str], words: Wording) -> str:
    (other,) = relation.others
    pronouns = {"it": "them", "its": "their"} if is_plural(scene.things[other]) else {"it": "it", "its": "its"}
    frame = words.frame(SIDE_FRAMES)
    return frame.format(
        first=phrases[relation.subject],
        second=phrases[other],
        relation=words.synonym(*RELATIONS[relation.kind]),
        its_side=words.synonym(*ITS_SIDE[relation.kind]).format(**pronouns),
        **pronouns,
    )


def is_plural(thing: Thing) -> bool:
    """Whether there is more than one copy."""
    return isinstance(thing, Group) and len(thing.boxes) > 1


def _two_sides(scene: Scene, phrases: list[str], words: Wording) -> str:
    first, second = scene.relations
    said = f"{phrases[first.subject]} {words.synonym(*RELATIONS[first.kind])} {phrases[first.others[0]]}"
    there = noun_phrase(scene.things[second.others[0]], words, definite=True, plainly=True)
    new = second.subject if second.subject not in (first.subject, first.others[0]) else second.others[0]
    kind = second.kind if new == second.subject else OPPOSITE[second.kind]
    if new != second.subject:
        there = noun_phrase(scene.things[second.subject], words, definite=True, plainly=True)
    joint = words.frame(("{0}, and {1} {2} {3}", "{0}, with {1} {2} {3}", "{0}; {2} {3}, {1}", "{0} and {1} {2} {3}"))
    return joint.format(said, phrases[new], words.synonym(*RELATIONS[kind]), there)


OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _corner(relation: Relation, phrases: list[str], words: Wording) -> str:
    vertical, horizontal = relation.kind.split()
    place = words.synonym(
        f"in the {vertical} {horizontal} corner",
        f"in the {vertical}-{horizontal} corner",
        f"in the {'upper' if vertical == 'top' else 'lower'} {horizontal} corner",
        f"at the {vertical} {horizontal}",
    )
    subject = phrases[relation.subject]
    others = [phrase for index, phrase in enumerate(phrases) if index != relation.subject]
    if not others:
        return f"{subject} {place}"
    frame = words.frame(CORNER_FRAMES)
    return frame.format(other=others[0], subject=subject, place=place)


def background_phrase(background: Background, words: Wording) -> str:
    """ "a purple background", "a background with vertical red and white stripes"."""
    if background.kind == "plain":
        plain = words.synonym("", "", "", "", "", "plain ", "solid ")
        return with_article(f"{plain}{color_word(background.colors[0], words)} background")
    first, second = _two_colors(background, words)
    if background.kind == "gradient":
        kind = words.synonym("a gradient background", "a gradient", "a background with a gradient")
        return f"{kind} {words.synonym(*GRADIENTS[background.direction])}".format(first=first, second=second)
    if background.kind == "checked":
        adjective = words.synonym(*CHECKED)
        return words.synonym(
            with_article(f"{first} and {second} {adjective} background"),
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


def _light(scene: Scene, words: Wording) -> str:
    if not scene.things or not (words.often(0.12) if scene.light == "above" else words.says(0.9)):
        return ""
    source = {"left": "the left", "right": "the right"}.get(scene.light, scene.light)
    return words.frame(LIGHT_FRAMES).format(source)
