"""The ways to say things in English, from which `headrace.world.english` builds captions."""

from __future__ import annotations

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

WITH = "with"

WITH_TEXT = ("{0} with {1}", "{0} and {1}", "{1}, {0}", "{1} and {0}", "{0}", "{0}")
"""Things with words; where the words are not among them, they come at the end of the caption."""

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

TWO_SIDES = ("{0}, and {1} {2} {3}", "{0}, with {1} {2} {3}", "{0}; {2} {3}, {1}", "{0} and {1} {2} {3}")

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

PUT = ("put ", "put ", "place ", "show ", "combine the pictures: ", "")

CHANGE_BACKGROUND = (
    "make the background {predicate}",
    "change the background to {phrase}",
    "replace the background by {phrase}",
    "the background should be {predicate}",
    "give it {phrase}",
    "turn the background into {phrase}",
)

REMOVE = (
    "remove {}",
    "delete {}",
    "erase {}",
    "take away {}",
    "get rid of {}",
    "take out {}",
    "the same picture without {}",
)

REPLACE = (
    "replace {old} by {new}",
    "replace {old} with {new}",
    "swap {old} for {new}",
    "put {new} in place of {old}",
    "turn {old} into {new}",
    "instead of {old}, show {new}",
)

RECOLOR = (
    "make {old} {color}",
    "paint {old} {color}",
    "colour {old} {color}",
    "change the color of {old} to {color}",
    "turn {old} {color}",
)

ADD = ("add {new} {place}", "put {new} {place}", "place {new} {place}", "draw {new} {place}", "{place}, add {new}")

ASKED = ("", "", "please ", "now ", "could you ")
"""Before an edit that begins with a verb."""

NOT_VERBS = ("the ", "instead ", "{place}")

KEEPING = ("", "", ", and keep everything else", ", leave the rest as it is", " and change nothing else")
"""After an edit."""

THE_TEXT = "the text"

ADD_TEXT = ("add {}", "write {}", "put {} on it", "add {} to the picture", "the same picture with {}")

POSED_LIKE = (
    "in the pose of image {}",
    "in the same pose as image {}",
    "with the pose of image {}",
    "posed like image {}",
    "in the pose of the skeleton of image {}",
    "posed like the skeleton in image {}",
)

POSES: dict[str, tuple[str, ...]] = {
    "standing": ("standing", "standing still", "standing upright"),
    "waving": ("waving", "waving a hand", "waving hello"),
    "arms up": ("with both arms up", "raising both arms", "with raised arms"),
    "arms out": ("with arms stretched out", "in a T-pose", "stretching out both arms"),
    "hands on hips": ("with hands on hips", "with both hands on the hips"),
    "running": ("running", "on the run"),
    "jumping": ("jumping", "leaping into the air", "jumping for joy"),
    "dancing": ("dancing", "in a dance"),
}

CHARACTERS = {
    "human": ("human", "person"),
    "robot": ("robot",),
    "bear": ("bear",),
    "rabbit": ("rabbit", "bunny"),
    "astronaut": ("astronaut",),
    "alien": ("alien",),
}

IRREGULAR_PLURALS = {"fish": "fish", "sheep": "sheep", "snowman": "snowmen", "cactus": "cacti"}
