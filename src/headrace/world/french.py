"""French captions: the same scenes, with the genders, plurals, contractions and elisions that French asks for."""

from __future__ import annotations

from headrace.world import objects
from headrace.world.colors import Color, hex_notation
from headrace.world.scene import CORNERS, Background, Figure, Group, Relation, Scene, Text, Thing
from headrace.world.wording import Wording, finish

MANY = {"un": "", "le": "les ", "de": "de ", "du": "des "}
"""What the articles become before a number."""

NUMBERS = {2: "deux", 3: "trois", 4: "quatre"}

COLORS: dict[str, tuple[str, str]] = {
    "red": ("rouge", "rouge"),
    "orange": ("orange", "orange"),
    "yellow": ("jaune", "jaune"),
    "green": ("vert", "verte"),
    "turquoise": ("turquoise", "turquoise"),
    "blue": ("bleu", "bleue"),
    "purple": ("violet", "violette"),
    "pink": ("rose", "rose"),
    "brown": ("marron", "marron"),
    "black": ("noir", "noire"),
    "grey": ("gris", "grise"),
    "white": ("blanc", "blanche"),
}
"""The colours' adjectives, masculine and feminine."""

INVARIABLE = {"orange", "turquoise", "marron"}
"""Colours that are called after things take no plural (Académie française); "rose" has become an adjective and does."""

SIZES: dict[str, tuple[tuple[str, str], ...]] = {
    "large": (("grand", "grande"), ("gros", "grosse"), ("grand", "grande")),
    "small": (("petit", "petite"), ("petit", "petite"), ("tout petit", "toute petite")),
}
MEDIUM = "de taille moyenne"

RELATIONS = {
    "left of": ("à gauche de", "sur la gauche de"),
    "right of": ("à droite de", "sur la droite de"),
    "above": ("au-dessus de", "au dessus de"),
    "below": ("en dessous de", "au-dessous de", "sous"),
}

BESIDE_IT = {
    "left of": ("à sa gauche", "à gauche", "sur la gauche"),
    "right of": ("à sa droite", "à droite", "sur la droite"),
    "above": ("au-dessus", "par-dessus"),
    "below": ("en dessous", "au-dessous"),
}
"""For "un chien avec un chat à sa gauche"."""

FACES = {
    "sans": ("sans empattement", "arrondies"),
    "serif": ("à empattements", "avec empattements"),
    "typewriter": ("de machine à écrire", "à chasse fixe"),
}

GRADIENTS = {
    "across": "{first} à gauche et {second} à droite",
    "down": "{first} en haut et {second} en bas",
    "diagonal": "{first} en haut à gauche et {second} en bas à droite",
}

STRIPES = {"across": "verticales", "down": "horizontales", "diagonal": "diagonales"}

CORNER_PLACES = {
    "top left": "en haut à gauche",
    "top right": "en haut à droite",
    "bottom left": "en bas à gauche",
    "bottom right": "en bas à droite",
}

FRAMES = (
    "{things} sur {background}",
    "{things} devant {background}",
    "{things}, {background}",
    "{background} avec {things}",
    "sur {background}, {things}",
    "{background}, et dessus {things}",
    "{things}. Le fond est {behind}",
    "une image avec {background} qui montre {things}",
)

OPENERS = ("", "", "", "", "une image : ", "voici ", "dessine ", "montre-moi ", "fais-moi ", "je voudrais ")

SIDE_FRAMES = (
    "{first} {relation} {second}",
    "{first} {relation} {second}",
    "{first}, {relation} {second}",
    "{first} {placed} {relation} {second}",
    "{second} avec {first} {beside}",
    "{second} et, {beside}, {first}",
)

BETWEEN = ("{0} entre {1} et {2}", "{1} et {2} avec {0} entre les deux", "{0} placé{e}{s} entre {1} et {2}")

CORNER_FRAMES = ("{other} avec {subject} {place}", "{subject} {place} et {other}", "{other} et, {place}, {subject}")

LIGHT_FRAMES = (
    ", le tout éclairé {side}",
    ", avec une lumière qui vient {source}",
    ", lumière venant {source}",
    ". La lumière vient {source}",
)

SOURCES = {"above": "d'en haut", "below": "d'en bas", "left": "de la gauche", "right": "de la droite"}

LIT_SIDES = {"above": "par le haut", "below": "par le bas", "left": "par la gauche", "right": "par la droite"}

POSES: dict[str, tuple[str, ...]] = {
    "standing": ("debout", "qui se tient debout", "qui se tient droit"),
    "waving": ("qui fait signe", "qui salue de la main", "qui fait coucou"),
    "arms up": ("les bras en l'air", "les deux bras levés", "qui lève les bras"),
    "arms out": ("les bras écartés", "les bras tendus sur les côtés", "qui écarte les bras"),
    "hands on hips": ("les mains sur les hanches", "avec les mains sur les hanches"),
    "running": ("qui court", "en train de courir"),
    "jumping": ("qui saute", "en train de sauter", "qui saute de joie"),
    "dancing": ("qui danse", "en train de danser"),
}

CHARACTERS = {
    "human": "humain",
    "robot": "robot",
    "bear": "ours",
    "rabbit": "lapin",
    "astronaut": "astronaute",
    "alien": "extraterrestre",
}

ASPIRATED = {"hamburger"}
"""Nouns whose h forbids elision: "le hamburger"."""

IRREGULAR_PLURALS = {
    "bonhomme de neige": "bonshommes de neige",
    "chauve-souris": "chauves-souris",
    "arc-en-ciel": "arcs-en-ciel",
    "cerf-volant": "cerfs-volants",
}


def describe(scene: Scene, words: Wording) -> str:
    """One caption of the scene; all that it says is true."""
    things = _things(scene, words)
    parts = [*([things] if things else []), *(text_phrase(text, words) for text in scene.texts)]
    if len(parts) == 2:
        shown = words.frame(("{0} avec {1}", "{0} et {1}", "{1}, {0}", "{1} et {0}")).format(*parts)
    else:
        shown = parts[0] if parts else "rien"
    frame = words.frame(FRAMES)
    opener = words.frame(OPENERS) if frame.startswith("{things}") else ""
    said = opener + frame.format(
        things=shown,
        background=background_phrase(scene.background, words),
        behind=background_predicate(scene.background, words),
    )
    return finish(said + _light(scene, words), words)


def noun_phrase(thing: Thing, words: Wording, *, article: str = "un", plainly: bool = False) -> str:
    """ "une petite pomme rouge", "les deux pommes rouges".

    article: "un", "le", "de" (for "d'une pomme") or "du" (for "de la pomme", "du chat"). plainly: without what the
    thing's look does not need said.
    """
    feminine = is_feminine(thing)
    count = len(thing.boxes) if isinstance(thing, Group) else 1
    many = count > 1
    before, after = [], []
    if isinstance(thing, Group) and thing.size is not None and not plainly:
        if thing.size == "medium":
            after.append(MEDIUM)
        else:
            before.append(agree(words.synonym(*(pair[feminine] for pair in SIZES[thing.size])), many))
    color = _color_of(thing, words, plainly=plainly)
    if color is not None:
        clothed = isinstance(thing, Figure) and thing.character == "human"
        adjective = color_word(color, words, feminine=feminine, many=many)
        after.insert(0, f"en {color_word(color, words)}" if clothed else adjective)
    noun = french_name(thing)
    phrase = " ".join([*before, plural(noun) if many else noun, *after])
    return with_article(phrase, article, feminine=feminine, count=count, words=words)


def with_article(phrase: str, article: str, *, feminine: bool, count: int, words: Wording) -> str:
    """Puts "un", "le", "de" or "du" before a phrase, agreed, contracted and elided."""
    elided = begins_with_vowel(phrase)
    if count > 1:
        number = words.synonym(NUMBERS[count], NUMBERS[count], str(count))
        return f"{MANY[article]}{number} {phrase}"
    if article in ("un", "de"):
        indefinite = "une" if feminine else "un"
        return f"{indefinite} {phrase}" if article == "un" else f"d'{indefinite} {phrase}"
    if elided:
        return f"l'{phrase}" if article == "le" else f"de l'{phrase}"
    definite = "la" if feminine else "le"
    if article == "le":
        return f"{definite} {phrase}"
    return f"de la {phrase}" if feminine else f"du {phrase}"


def begins_with_vowel(phrase: str) -> bool:
    """Whether "le", "la" and "de" lose their vowel before the phrase: also before a mute h."""
    first = phrase.split()[0]
    return first[0] in "aeiouyàâéèêëîïôöùûüœ" or (first[0] == "h" and first.rstrip("s") not in ASPIRATED)


def is_feminine(thing: Thing) -> bool:
    """The grammatical gender of the thing's name."""
    return isinstance(thing, Group) and objects.kind(thing.name).feminine


def is_plural(thing: Thing) -> bool:
    """Whether there is more than one copy."""
    return isinstance(thing, Group) and len(thing.boxes) > 1


def french_name(thing: Thing) -> str:
    """The thing's name, singular."""
    return objects.kind(thing.name).french if isinstance(thing, Group) else CHARACTERS[thing.character]


def plural(noun: str) -> str:
    """ "château" -> "châteaux"; of "noix de coco" and the like only the first word changes."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    for joint in (" de ", " à ", " en "):
        if joint in noun:
            first, rest = noun.split(joint, 1)
            return f"{plural(first)}{joint}{rest}"
    first, _, rest = noun.partition(" ")
    if rest:
        return f"{plural(first)} {rest}"
    if noun.endswith(("s", "x", "z")):
        return noun
    if noun.endswith(("eau", "eu")):
        return noun + "x"
    if noun.endswith("al"):
        return noun[:-2] + "aux"
    return noun + "s"


def agree(adjective: str, many: bool) -> str:
    """The adjective, already of the right gender, in the plural where there are many."""
    if not many or adjective.endswith(("s", "x")) or adjective in INVARIABLE:
        return adjective
    return " ".join(word if word == "tout" else word + "s" for word in adjective.split())


def color_word(color: Color, words: Wording, *, feminine: bool = False, many: bool = False) -> str:
    """The colour's adjective, agreed, else (or once in a while) its notation."""
    if color.name is not None and not words.often(0.03):
        return agree(COLORS[color.name][feminine], many)
    notation = hex_notation(color.rgb)
    return notation if words.often(0.85) else notation.lower()


def pose(figure: Figure, words: Wording) -> str:
    """What a figure does: "qui court"."""
    return words.synonym(*POSES[figure.pose.name]) if figure.pose.name is not None else ""


def _color_of(thing: Thing, words: Wording, *, plainly: bool) -> Color | None:
    if thing.look.tint is not None:
        return thing.look.tint
    if plainly or not isinstance(thing, Group) or thing.look.hue:
        return None
    natural = objects.kind(thing.name).color
    return Color((0, 0, 0), natural) if natural is not None and words.often(0.25) else None


def _thing(thing: Thing, words: Wording, article: str = "un") -> str:
    said = noun_phrase(thing, words, article=article)
    return f"{said} {pose(thing, words)}" if isinstance(thing, Figure) else said


def _things(scene: Scene, words: Wording) -> str:
    things = scene.things
    if not scene.relations:
        return " et ".join(_thing(thing, words) for thing in things)
    relation = scene.relations[0]
    if relation.kind in CORNERS:
        return _corner(scene, relation, words)
    if relation.kind == "between":
        subject, first, second = (_thing(things[index], words) for index in (relation.subject, *relation.others))
        subject_thing = things[relation.subject]
        return words.frame(BETWEEN).format(subject, first, second, **_endings(subject_thing))
    if len(scene.relations) == 1:
        return _side(scene, relation, words)
    return _two_sides(scene, words)


def _endings(thing: Thing) -> dict[str, str]:
    return {"e": "e" if is_feminine(thing) else "", "s": "s" if is_plural(thing) else ""}


def related(kind: str, other: Thing, words: Wording, *, definite: bool = False, plainly: bool = False) -> str:
    """ "à gauche d'une pomme", "sous le chat"."""
    relation = words.synonym(*RELATIONS[kind])
    if relation.endswith(" de"):
        article = "du" if definite else "de"
        said = noun_phrase(other, words, article=article, plainly=plainly)
        relation = relation.removesuffix(" de")
    else:
        said = noun_phrase(other, words, article="le" if definite else "un", plainly=plainly)
    return f"{relation} {said}" + (f" {pose(other, words)}" if isinstance(other, Figure) and not plainly else "")


def _side(scene: Scene, relation: Relation, words: Wording) -> str:
    subject, other = scene.things[relation.subject], scene.things[relation.others[0]]
    frame = words.frame(SIDE_FRAMES)
    if "{beside}" in frame:
        beside = words.synonym(*BESIDE_IT[relation.kind])
        beside = beside.replace(" sa ", " leur ") if is_plural(other) else beside
        return frame.format(first=_thing(subject, words), second=_thing(other, words), beside=beside)
    placed = words.synonym("placé{e}{s}", "situé{e}{s}").format(**_endings(subject))
    said = frame.replace("{relation} {second}", "{related}")
    return said.format(first=_thing(subject, words), placed=placed, related=related(relation.kind, other, words))


def _two_sides(scene: Scene, words: Wording) -> str:
    first, second = scene.relations
    things = scene.things
    said = f"{_thing(things[first.subject], words)} {related(first.kind, things[first.others[0]], words)}"
    known = (first.subject, first.others[0])
    if second.subject in known:
        new, kind, there = second.others[0], OPPOSITE[second.kind], second.subject
    else:
        new, kind, there = second.subject, second.kind, second.others[0]
    place = related(kind, things[there], words, definite=True, plainly=True)
    joint = words.frame(("{0}, et {1} {2}", "{0}, avec {1} {2}", "{0} ; {2}, {1}", "{0} et {1} {2}"))
    return joint.format(said, _thing(things[new], words), place)


OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _corner(scene: Scene, relation: Relation, words: Wording) -> str:
    where = CORNER_PLACES[relation.kind]
    place = words.synonym(where, f"dans le coin {where}", f"dans le coin {where.removeprefix('en ')}", f"tout {where}")
    place = place.replace("coin haut à", "coin supérieur").replace("coin bas à", "coin inférieur")
    subject = _thing(scene.things[relation.subject], words)
    others = [_thing(thing, words) for index, thing in enumerate(scene.things) if index != relation.subject]
    if not others:
        return f"{subject} {place}"
    frame = words.frame(CORNER_FRAMES)
    return frame.format(other=others[0], subject=subject, place=place)


def background_phrase(background: Background, words: Wording, *, article: str = "un") -> str:
    """ "un fond violet", "le fond à rayures verticales rouges et blanches"."""
    if background.kind == "plain":
        (color,) = background.colors
        style = words.synonym("", "", "", "", "", "uni ") + (
            words.synonym("", "de couleur ") if color.name is None else ""
        )
        look = style + color_word(color, words)
    elif background.kind == "gradient":
        course = _course(background, words)
        look = words.synonym(f"en dégradé, {course}", f"dégradé, {course}", f"{course}, en dégradé")
    else:
        look = _pattern(background, words)
    return with_article(f"fond {look}", article, feminine=False, count=1, words=words)


def background_predicate(background: Background, words: Wording) -> str:
    """The background as what follows "le fond est": "violet", "à carreaux rouges et blancs"."""
    if background.kind == "plain":
        return color_word(background.colors[0], words)
    if background.kind == "gradient":
        return words.synonym("en dégradé, ", "") + _course(background, words)
    return _pattern(background, words)


def _course(background: Background, words: Wording) -> str:
    first, second = (color_word(color, words) for color in background.colors)
    return GRADIENTS[background.direction].format(first=first, second=second)


def _pattern(background: Background, words: Wording) -> str:
    """Stripes or checks, whose colours can be named in any order."""
    feminine = background.kind == "striped"
    pair = [color_word(color, words, feminine=feminine, many=True) for color in background.colors]
    said = " et ".join(reversed(pair) if words.often(0.5) else pair)
    if background.kind == "checked":
        return words.synonym("à carreaux ", "en damier, à carreaux ") + said
    return f"{words.synonym('à rayures', 'à rayures', 'à bandes')} {STRIPES[background.direction]} {said}"


def text_phrase(text: Text, words: Wording) -> str:
    """ "le mot "BONJOUR" en lettres rouges en haut"."""
    kind = "le texte" if " " in text.text or words.often(0.5) else "le mot"
    if text.text.isdigit():
        kind = words.synonym("le texte", "le nombre")
    kind = words.synonym(f"{kind} ", f"{kind} ", "les lettres ", "")
    said = kind + words.synonym('"{}"', '"{}"', "« {} »", "“{}”").format(text.text)
    face = words.synonym(*FACES[text.face]) if words.says(0.6) else ""
    colored = words.says(0.85)
    if face:
        color = color_word(text.color, words, feminine=True, many=True) + " " if colored else ""
        said += f" en lettres {color}{face}"
    elif colored:
        color = color_word(text.color, words)
        letters = color_word(text.color, words, feminine=True, many=True)
        said += words.synonym(f" en {color}", f" en lettres {letters}", f" écrit en {color}")
    return said + (f" {_place(text, words)}" if words.says(0.85) else "")


def _place(text: Text, words: Wording) -> str:
    if text.place in CORNERS:
        return words.synonym(CORNER_PLACES[text.place], f"dans le coin {CORNER_PLACES[text.place]}")
    if text.place == "middle":
        return words.synonym("au milieu", "au centre")
    where = {"top": "en haut", "bottom": "en bas"}[text.place]
    return words.synonym(where, f"{where} de l'image")


def _light(scene: Scene, words: Wording) -> str:
    if not scene.things or not (words.often(0.12) if scene.light == "above" else words.says(0.9)):
        return ""
    return words.frame(LIGHT_FRAMES).format(side=LIT_SIDES[scene.light], source=SOURCES[scene.light])
