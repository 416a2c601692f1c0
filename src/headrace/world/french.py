"""French captions: the same scenes, with the genders, plurals, contractions and elisions that French asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.world import objects
from headrace.world.colors import Color, hex_notation, named
from headrace.world.french_words import (
    ADD,
    ASPIRATED,
    BESIDE_IT,
    BETWEEN,
    CHARACTERS,
    COLORS,
    CORNER_FRAMES,
    CORNER_PLACES,
    FACES,
    GRADIENTS,
    INVARIABLE,
    IRREGULAR_PLURALS,
    LIGHT_FRAMES,
    LIT_SIDES,
    MANY,
    MEDIUM,
    NUMBERS,
    OPPOSITE,
    POSED_LIKE,
    POSES,
    RECOLOR,
    RELATIONS,
    SIDE_FRAMES,
    SIZES,
    SOURCES,
    STRIPES,
    TWO_SIDES,
)
from headrace.world.scene import CORNERS, Background, Figure, Group, Relation, Scene, Text
from headrace.world.wording import Mention, Wording


def named_text(text: Text, words: Wording) -> str:
    """ "le mot "BONJOUR"", of a text that is there."""
    return f"le {words.synonym('texte', 'mot')} {quoted(text.text, words)}"


def changed(mention: Mention, images: int, words: Wording) -> dict[str, str]:
    """What a thing of image 1 is called that is to be changed, with "le" and "du"; ``images`` is how many there are."""
    image = " de l'image 1" if words.often(0.6 if images > 1 else 0.12) else ""
    return {
        "old": noun_phrase(mention, words, article="le", plainly=True) + image,
        "of_old": noun_phrase(mention, words, article="du", plainly=True) + image,
    }


def added(mention: Mention, place: str, words: Wording) -> str:
    """ "ajoute un chat à gauche du chien"."""
    said = noun_phrase(mention, words)
    return words.frame(ADD).format(new=said, place=place)


def recolored(old: Mapping[str, str], new: Mention, words: Wording) -> str:
    """ "mets le chat en rouge"."""
    color = _color_of(new, words, plainly=True)
    return words.frame(RECOLOR).format(**old, color="" if color is None else color_word(color, words))


def beside(kind: str, other: Mention, words: Wording) -> str:
    """ "à gauche du chien"."""
    return related(kind, other, words, definite=True, plainly=True)


def noun_phrase(mention: Mention, words: Wording, *, article: str = "un", plainly: bool = False) -> str:
    """ "une petite pomme rouge", "les deux pommes rouges".

    article: "un", "le", "de" (for "d'une pomme") or "du" (for "de la pomme", "du chat"). plainly: without what the
    thing's look does not need said.
    """
    thing = mention.thing
    if mention.source.image is not None:
        return _of_image(mention, mention.source.image, words, article=article)
    feminine, many = is_feminine(mention), mention.count > 1
    before, after = [], []
    if isinstance(thing, Group) and thing.size is not None and not plainly:
        if thing.size == "medium":
            after.append(MEDIUM)
        else:
            before.append(agree(words.synonym(*(pair[feminine] for pair in SIZES[thing.size])), many))
    color = _color_of(mention, words, plainly=plainly)
    if color is not None:
        clothed = isinstance(thing, Figure) and thing.character in ("human", "alien")
        adjective = color_word(color, words, feminine=feminine, many=many)
        after.insert(0, f"en {color_word(color, words)}" if clothed else adjective)
    noun = french_name(mention)
    phrase = " ".join([*before, plural(noun) if many else noun, *after])
    return with_article(phrase, article, feminine=feminine, count=mention.count, words=words)


def _of_image(mention: Mention, number: int, words: Wording, *, article: str) -> str:
    """ "l'image 1", "du chat de l'image 1", "deux copies de l'image 1": always with the definite article."""
    definite = {"un": "le", "le": "le", "de": "du", "du": "du"}[article]
    if mention.source.named or words.often(0.5):
        general = "personnage" if mention.is_figure else "objet"
        own = mention.source.named or words.often(0.5)
        noun = french_name(mention) if own else general
        feminine = own and is_feminine(mention)
        said = with_article(noun, definite if mention.count == 1 else "du", feminine=feminine, count=1, words=words)
        said = f"{said} de l'image {number}"
    else:
        said = f"l'image {number}" if definite == "le" and mention.count == 1 else f"de l'image {number}"
    if mention.count == 1:
        return said
    copies = f"{NUMBERS[mention.count]} copies {said}"
    return copies if definite == "le" else f"de {copies}"


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


def is_feminine(mention: Mention) -> bool:
    """The grammatical gender of the thing's name."""
    return isinstance(mention.thing, Group) and objects.kind(mention.thing.name).feminine


def french_name(mention: Mention) -> str:
    """The thing's name, singular."""
    thing = mention.thing
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


def _color_of(mention: Mention, words: Wording, *, plainly: bool) -> Color | None:
    thing = mention.thing
    if thing.look.tint is not None:
        return thing.look.tint
    if plainly or not isinstance(thing, Group) or thing.look.hue:
        return None
    natural = objects.kind(thing.name).color
    return named(natural) if natural is not None and words.often(0.25) else None


def thing_phrase(mention: Mention, words: Wording) -> str:
    return noun_phrase(mention, words) + _posed(mention, words)


def _posed(mention: Mention, words: Wording) -> str:
    if mention.source.pose is not None:
        return " " + words.frame(POSED_LIKE).format(mention.source.pose)
    return f" {pose(mention.thing, words)}" if isinstance(mention.thing, Figure) and mention.thing.pose.name else ""


def things(scene: Scene, mentioned: Sequence[Mention], words: Wording) -> str:
    if not scene.relations:
        return " et ".join(thing_phrase(mention, words) for mention in mentioned)
    relation = scene.relations[0]
    if relation.kind in CORNERS:
        return _corner(relation, mentioned, words)
    if relation.kind == "between":
        said = (thing_phrase(mentioned[index], words) for index in (relation.subject, *relation.others))
        return words.frame(BETWEEN).format(*said, placed=_placed(mentioned[relation.subject], words))
    if len(scene.relations) == 1:
        return _side(relation, mentioned, words)
    return _two_sides(scene, mentioned, words)


def _placed(mention: Mention, words: Wording) -> str:
    """ "placée", agreed; where the phrase is about a picture and not the thing, words that need not agree."""
    if mention.source.image is not None:
        return "qui est" if mention.count == 1 else "qui sont"
    return words.synonym("placé", "situé") + ("e" if is_feminine(mention) else "") + ("s" if mention.count > 1 else "")


def related(kind: str, other: Mention, words: Wording, *, definite: bool = False, plainly: bool = False) -> str:
    """ "à gauche d'une pomme", "sous le chat"."""
    relation = words.synonym(*RELATIONS[kind])
    if relation.endswith(" de"):
        article = "du" if definite else "de"
        said = noun_phrase(other, words, article=article, plainly=plainly)
        relation = relation.removesuffix(" de")
    else:
        said = noun_phrase(other, words, article="le" if definite else "un", plainly=plainly)
    return f"{relation} {said}" + ("" if plainly else _posed(other, words))


def _side(relation: Relation, mentioned: Sequence[Mention], words: Wording) -> str:
    subject, other = mentioned[relation.subject], mentioned[relation.others[0]]
    frame = words.frame(SIDE_FRAMES)
    if "{beside}" in frame:
        beside = words.synonym(*BESIDE_IT[relation.kind])
        beside = beside.replace(" sa ", " leur ") if other.count > 1 else beside
        return frame.format(first=thing_phrase(subject, words), second=thing_phrase(other, words), beside=beside)
    return frame.format(
        first=thing_phrase(subject, words),
        placed=_placed(subject, words),
        related=related(relation.kind, other, words),
    )


def _two_sides(scene: Scene, mentioned: Sequence[Mention], words: Wording) -> str:
    first, second = scene.relations
    said = f"{thing_phrase(mentioned[first.subject], words)} {related(first.kind, mentioned[first.others[0]], words)}"
    new, kind, known = second.subject, second.kind, second.others[0]
    if new in (first.subject, first.others[0]):
        new, kind, known = known, OPPOSITE[kind], new
    place = related(kind, mentioned[known], words, definite=True, plainly=True)
    return words.frame(TWO_SIDES).format(said, thing_phrase(mentioned[new], words), place)


def _corner(relation: Relation, mentioned: Sequence[Mention], words: Wording) -> str:
    place = corner_place(relation.kind, words)
    subject = thing_phrase(mentioned[relation.subject], words)
    others = [thing_phrase(mention, words) for index, mention in enumerate(mentioned) if index != relation.subject]
    if not others:
        return f"{subject} {place}"
    return words.frame(CORNER_FRAMES).format(other=others[0], subject=subject, place=place)


def corner_place(corner: str, words: Wording) -> str:
    where = CORNER_PLACES[corner]
    superior = where.replace("en haut à", "supérieur").replace("en bas à", "inférieur")
    return words.synonym(where, f"dans le coin {where}", f"dans le coin {superior}", f"tout {where}")


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
    if article == "un" and words.often(0.05):
        return f"fond {look}"
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
    said = kind + quoted(text.text, words)
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


def quoted(text: str, words: Wording) -> str:
    """The text in quotation marks."""
    return words.synonym('"{}"', '"{}"', "« {} »", "“{}”").format(text)


def _place(text: Text, words: Wording) -> str:
    if text.place in CORNERS:
        return words.synonym(CORNER_PLACES[text.place], f"dans le coin {CORNER_PLACES[text.place]}")
    if text.place == "middle":
        return words.synonym("au milieu", "au centre")
    where = {"top": "en haut", "bottom": "en bas"}[text.place]
    return words.synonym(where, f"{where} de l'image")


def lighting(scene: Scene, words: Wording) -> str:
    if not scene.things or not (words.often(0.12) if scene.light == "above" else words.says(0.9)):
        return ""
    return words.frame(LIGHT_FRAMES).format(side=LIT_SIDES[scene.light], source=SOURCES[scene.light])
