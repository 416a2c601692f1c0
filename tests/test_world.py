"""The drawn world: pictures show exactly what scenes say, captions tell the truth, and nothing is on both sides."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace

import numpy as np
import pytest

from headrace.world import captions, colors, english_words, french, french_words, letters, objects, split, words
from headrace.world.captions import caption
from headrace.world.colors import Color, named
from headrace.world.draw import background, draw, shadow_box
from headrace.world.layout import TOPICS, scene
from headrace.world.looks import CLEAR
from headrace.world.scene import CORNERS, ORDINARY, SIDES, Background, Box, Group, Look, Relation, Scene, plain
from headrace.world.scene import boxes as boxes_of
from headrace.world.wording import Mention, Wording

SEEDS = range(200)
SHAPES = [(128, 128), (96, 96), (256, 96), (96, 192), (256, 256)]


def scenes(side: str = "train", topic: str | None = None, count: int = 200) -> list[Scene]:
    return [scene(seed, side=side, topic=topic) for seed in range(count)]


def one(name: str, count: int = 1, look: Look = ORDINARY, size: str | None = None, *, left: int = 0) -> Group:
    return Group(
        name, look, size, tuple(Box(left + 30 * index, 40, left + 30 * index + 28, 68) for index in range(count))
    )


# Objects


def test_every_object_has_a_picture_that_fills_its_cell() -> None:
    for kind in objects.kinds():
        alpha = np.asarray(objects.picture(kind.name))[..., 3]
        rows, columns = np.nonzero(alpha > 20)
        extent = max(np.ptp(rows), np.ptp(columns)) + 1
        assert extent >= 0.9 * objects.CELL, kind.name
        assert alpha.mean() > 15, kind.name


def test_there_are_a_hundred_objects_with_different_names_and_pictures() -> None:
    names = [kind.name for kind in objects.kinds()]
    assert len(set(names)) == len(names) >= 100
    assert len({kind.french for kind in objects.kinds()}) == len(names)
    assert len({objects.picture(name).tobytes() for name in names}) == len(names)


def test_unknown_object_is_refused() -> None:
    with pytest.raises(KeyError):
        objects.picture("spoon")


def test_looks_change_colours_and_leave_the_outline() -> None:
    ordinary = np.asarray(objects.sprite("car", ORDINARY, 64))
    looks = (Look(named("green")), Look(named("green"), named("pink")), Look(hue=120))
    drawn = [np.asarray(objects.sprite("car", look, 64)) for look in looks]
    for different in drawn:
        assert np.array_equal(different[..., 3], ordinary[..., 3])
        assert np.abs(different[..., :3].astype(int) - ordinary[..., :3])[ordinary[..., 3] > 128].mean() > 15
    assert not any(np.array_equal(first, second) for first, second in itertools.pairwise(drawn))
    mirrored = np.asarray(objects.sprite("car", Look(mirrored=True), 64))
    assert np.array_equal(mirrored, ordinary[:, ::-1])


@pytest.mark.parametrize("name", sorted(colors.NAMED))
def test_a_tinted_object_has_the_tint(name: str) -> None:
    pixels = np.asarray(objects.sprite("heart", Look(named(name)), 96))
    typical = np.median(pixels[pixels[..., 3] == 255][:, :3], axis=0)
    nearest = min(colors.NAMED, key=lambda other: colors.distance(tuple(map(int, typical)), colors.NAMED[other]))
    assert nearest == name


# Scenes and pictures


@pytest.mark.parametrize("size", SHAPES)
def test_scene_is_a_function_of_its_seed(size: tuple[int, int]) -> None:
    first = [scene(seed, *size) for seed in range(40)]
    assert first == [scene(seed, *size) for seed in reversed(range(40))][::-1]
    assert len(set(first)) == len(first)
    assert draw(first[3]).shape == (size[1], size[0], 3)
    assert np.array_equal(draw(first[3]), draw(scene(3, *size)))


@pytest.mark.parametrize("size", SHAPES)
def test_things_and_words_are_inside_the_picture_and_apart(size: tuple[int, int]) -> None:
    width, height = size
    for seed in range(60):
        drawn = scene(seed, width, height)
        boxes = [box for thing in drawn.things for box in boxes_of(thing)]
        boxes += [text.box for text in drawn.texts]
        for index, box in enumerate(boxes):
            assert 0 <= box.left < box.right <= width, drawn
            assert 0 <= box.top < box.bottom <= height, drawn
            assert not any(overlap(box, other) for other in boxes[:index]), drawn


def overlap(first: Box, second: Box) -> bool:
    apart_x = first.right <= second.left or second.right <= first.left
    return not (apart_x or first.bottom <= second.top or second.bottom <= first.top)


def test_the_background_is_exact_wherever_nothing_is() -> None:
    for drawn in scenes():
        pixels = draw(drawn)
        empty = np.ones(pixels.shape[:2], bool)
        for thing in drawn.things:
            for box in boxes_of(thing):
                for covered in (box, shadow_box(box, drawn.light)):
                    empty[max(0, covered.top) : covered.bottom, max(0, covered.left) : covered.right] = False
        for text in drawn.texts:
            for glyph in text.glyphs:
                empty[glyph.box.top : glyph.box.bottom, glyph.box.left : glyph.box.right] = False
        assert empty.any()
        assert np.array_equal(pixels[empty], background(drawn.background, drawn.width, drawn.height)[empty])


def test_every_copy_and_every_letter_is_seen_in_its_box() -> None:
    for drawn in scenes():
        pixels = draw(drawn).astype(int)
        for index, thing in enumerate(drawn.things):
            others = drawn.things[:index] + drawn.things[index + 1 :]
            without = draw(replace(drawn, things=others)).astype(int)
            for box in boxes_of(thing):
                inside = np.s_[box.top : box.bottom, box.left : box.right]
                assert (np.abs(pixels - without)[inside].max(-1) > 8).mean() > 0.08, drawn
        blank = draw(replace(drawn, texts=())).astype(int)
        for text in drawn.texts:
            for glyph in text.glyphs:
                ink = np.abs(pixels - blank)[glyph.box.top : glyph.box.bottom, glyph.box.left : glyph.box.right].max(-1)
                assert ink.max() > 60, text
            for mask, box in letters.coverage(text):
                assert mask.getbbox() == (0, 0, box.width, box.height)


def test_letters_are_filled_with_the_colour_of_the_text() -> None:
    for drawn in scenes(topic="text", count=60):
        (text,) = drawn.texts
        pixels = draw(drawn)[text.box.top : text.box.bottom, text.box.left : text.box.right]
        assert (pixels == text.color.rgb).all(-1).sum() >= 3 * len(text.glyphs), text


def test_text_is_what_can_be_written_and_large_enough() -> None:
    for drawn in scenes(topic="text"):
        (text,) = drawn.texts
        assert "".join(glyph.character for glyph in text.glyphs) == text.text.replace(" ", "")
        assert set(text.text) <= {*letters.CHARACTERS, " "}
        assert len(text.text) <= letters.MAX_LENGTH
        assert text.size >= letters.MIN_SIZE
        lefts = [glyph.box.center[0] for glyph in text.glyphs]
        assert lefts == sorted(lefts)


@pytest.mark.parametrize("face", letters.FACES)
def test_every_letter_of_every_face_has_a_shape_of_its_own(face: str) -> None:
    shapes = {letters.ink(face, 32, character).mask.tobytes() for character in letters.CHARACTERS}
    assert len(shapes) == len(letters.CHARACTERS)
    assert set(words.COMMON) == {word for word in words.COMMON if set(word) <= set(letters.CHARACTERS)}


def test_letters_do_not_touch() -> None:
    for face in letters.FACES:
        for size in (letters.MIN_SIZE, 19, 40):
            glyphs = letters.write(letters.CHARACTERS, face, size, named("red"), "top", (0, 0)).glyphs
            assert all(first.box.right < second.box.left for first, second in itertools.pairwise(glyphs))


def test_relations_hold() -> None:
    for topic in ("relation", "between", "trio", "corner"):
        for drawn in scenes(topic=topic):
            assert drawn.relations
            for relation in drawn.relations:
                assert holds(drawn, relation), (relation, drawn)


def holds(drawn: Scene, relation: Relation) -> bool:
    subject, *others = (boxes_of(drawn.things[index]) for index in (relation.subject, *relation.others))
    if relation.kind in CORNERS:
        x, y = CORNERS[relation.kind]
        (box,) = subject
        center_x, center_y = box.center
        return x * (center_x / drawn.width - 0.5) > 0.2 and y * (center_y / drawn.height - 0.5) > 0.1
    if relation.kind == "between":
        return any(
            all(apart(*pair) for pair in ((others[0], subject), (subject, others[1])))
            or all(apart(*pair) for pair in ((others[1], subject), (subject, others[0])))
            for apart in (left_of, above)
        )
    (other,) = others
    return {
        "left of": lambda: left_of(subject, other),
        "right of": lambda: left_of(other, subject),
        "above": lambda: above(subject, other),
        "below": lambda: above(other, subject),
    }[relation.kind]()


def left_of(first: tuple[Box, ...], second: tuple[Box, ...]) -> bool:
    return max(box.right for box in first) <= min(box.left for box in second)


def above(first: tuple[Box, ...], second: tuple[Box, ...]) -> bool:
    return max(box.bottom for box in first) <= min(box.top for box in second)


def test_counts_are_two_to_four_copies_of_one_size() -> None:
    counts = set()
    for drawn in scenes(topic="count"):
        (group,) = drawn.things
        assert isinstance(group, Group)
        counts.add(len(group.boxes))
        assert len({(box.width, box.height) for box in group.boxes}) == 1
    assert counts == {2, 3, 4}


def test_sizes_are_told_apart() -> None:
    sides: dict[str | None, set[int]] = {}
    for seed in SEEDS:
        drawn = scene(seed, topic="object")
        (group,) = drawn.things
        if not drawn.texts and isinstance(group, Group):
            sides.setdefault(group.size, set()).add(group.boxes[0].width)
    assert max(sides["small"]) < min(sides["medium"]) <= max(sides["medium"]) < min(sides["large"])


def test_colours_beside_each_other_can_be_told_apart() -> None:
    for drawn in scenes():
        backs = [color.rgb for color in drawn.background.colors]
        assert len(backs) == 1 or colors.distance(*backs) >= CLEAR
        for text in drawn.texts:
            assert all(colors.distance(text.color.rgb, back) >= CLEAR for back in backs)
        for thing in drawn.things:
            assert thing.look.tint is None or all(colors.distance(thing.look.tint.rgb, back) >= CLEAR for back in backs)


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        (Background("gradient", (named("red"), named("blue")), "across"), (5, 0), (5, 63)),
        (Background("gradient", (named("red"), named("blue")), "down"), (0, 9), (47, 9)),
        (Background("gradient", (named("red"), named("blue")), "diagonal"), (0, 0), (47, 63)),
        (Background("striped", (named("red"), named("blue")), "across", 8), (30, 3), (30, 11)),
        (Background("striped", (named("red"), named("blue")), "down", 8), (3, 30), (11, 30)),
        (Background("striped", (named("red"), named("blue")), "diagonal", 8), (4, 2), (9, 9)),
        (Background("checked", (named("red"), named("blue")), band=8), (9, 9), (9, 17)),
    ],
)
def test_backgrounds_have_their_colours_where_they_say(
    kind: Background, first: tuple[int, int], second: tuple[int, int]
) -> None:
    pixels = background(kind, 64, 48)
    assert tuple(pixels[first]) == colors.NAMED["red"]
    assert tuple(pixels[second]) == colors.NAMED["blue"]


@pytest.mark.parametrize("light", ["left", "right", "above", "below"])
def test_shadows_fall_away_from_the_light(light: str) -> None:
    drawn = Scene(
        128, 128, plain((200, 200, 200)), (Group("heart", ORDINARY, None, (Box(44, 44, 84, 84),)),), light=light
    )
    dark = 200 - draw(drawn).astype(int).max(axis=-1)
    dark[44:84, 44:84] = 0
    around = {"left": dark[:, :44], "right": dark[:, 84:], "above": dark[:44], "below": dark[84:]}
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}[light]
    sums = {side: int(part.sum()) for side, part in around.items()}
    assert max(sums, key=sums.__getitem__) == opposite
    assert sums[light] < 0.2 * sums[opposite]


# What is kept for evaluation


def test_no_combination_and_no_word_is_on_both_sides() -> None:
    trained = [scene(seed, topic=topic) for topic in TOPICS for seed in range(120)]
    evaluated = [scene(seed, topic=topic, side="eval") for topic in TOPICS for seed in range(30)]
    seen = {combination for drawn in trained for combination in split.combinations(drawn)}
    assert not any(map(split.held_out, seen))
    for drawn in evaluated:
        new = [combination for combination in split.combinations(drawn) if split.held_out(combination)]
        assert new or drawn.texts
        assert not seen & set(new)
        assert all(split.held_out(f"word/{text.text}") for text in drawn.texts)
    assert not {text.text for drawn in trained for text in drawn.texts} & {
        text.text for drawn in evaluated for text in drawn.texts
    }


def test_a_scene_for_evaluation_is_about_something_held_out() -> None:
    for topic, kind in {"relation": "relation", "between": "relation", "count": "count"}.items():
        for seed in range(30):
            about = [one for one in split.combinations(scene(seed, topic=topic, side="eval")) if one.startswith(kind)]
            assert any(map(split.held_out, about))


def test_a_relation_and_its_mirror_image_are_on_the_same_side() -> None:
    for kind, mirrored in {"left of": "right of", "above": "below"}.items():
        things = (one("apple"), one("cat", left=60))
        first = Scene(128, 128, plain((0, 0, 0)), things, (Relation(kind, 0, (1,)),))
        assert split.combinations(first) == split.combinations(replace(first, relations=(Relation(mirrored, 1, (0,)),)))


@pytest.mark.parametrize("language", captions.LANGUAGES)
def test_no_structure_of_a_caption_is_on_both_sides(language: str) -> None:
    drawn = scene(2, topic="relation")
    assert not {caption(drawn, seed, language=language) for seed in range(300)} & {
        caption(drawn, seed, language=language, side="eval") for seed in range(300)
    }


# Captions


@pytest.mark.parametrize("language", captions.LANGUAGES)
def test_captions_are_functions_of_their_seed_and_vary(language: str) -> None:
    drawn = scene(1, topic="relation")
    wordings = [caption(drawn, seed, language=language) for seed in range(60)]
    assert wordings == [caption(drawn, seed, language=language) for seed in range(60)]
    assert len(set(wordings)) > 50


@pytest.mark.parametrize("side", split.SPLITS)
def test_english_captions_name_what_is_drawn_and_nothing_else(side: str) -> None:
    names = {form: kind.name for kind in objects.kinds() for form in (kind.name, captions.english.plural(kind.name))}
    pattern = re.compile(r"\b(" + "|".join(sorted(names, key=len, reverse=True)) + r")\b")
    for seed, drawn in enumerate(scenes(side)):
        said = without_quotes(caption(drawn, seed, side=side))
        found = {names[name] for name in pattern.findall(said.lower())}
        if all(isinstance(thing, Group) for thing in drawn.things):
            assert found == {thing.name for thing in drawn.things if isinstance(thing, Group)}, said


@pytest.mark.parametrize("language", captions.LANGUAGES)
def test_captions_for_evaluation_say_all_that_is_scored(language: str) -> None:
    numbers = {"en": english_words.NUMBERS, "fr": french_words.NUMBERS}[language]
    for seed, drawn in enumerate(scenes("eval")):
        said = caption(drawn, seed, language=language, side="eval").lower()
        shown = [*drawn.background.colors, *(text.color for text in drawn.texts)]
        shown += [thing.look.tint for thing in drawn.things if thing.look.tint is not None]
        for color in shown:
            spoken = {colors.hex_notation(color.rgb).lower()}
            if color.name is not None:
                spoken |= {color.name} if language == "en" else set(french_words.COLORS[color.name])
            assert any(word in said for word in spoken), (said, color)
        for text in drawn.texts:
            assert text.text.lower() in said
        for thing in drawn.things:
            if isinstance(thing, Group) and len(thing.boxes) > 1:
                assert re.search(rf"\b({numbers[len(thing.boxes)]}|{len(thing.boxes)})\b", said), said


def without_quotes(said: str) -> str:
    return re.sub("[\"“«'].*?[\"”»'](?![a-z])", "", said)


@pytest.mark.parametrize("language", captions.LANGUAGES)
def test_captions_name_each_side_of_a_relation_in_its_place(language: str) -> None:
    apple, cat = one("apple"), one("cat", left=60)
    other, word = {"en": ("cat", "left"), "fr": ("chat", "gauche")}[language]
    left = Scene(128, 128, plain(named("blue")), (apple, cat), (Relation("left of", 0, (1,)),))
    for seed in range(100):
        said = caption(left, seed, language=language).lower()
        assert not re.search("right|droite", said)
        # "An apple left of a cat", or "a cat with an apple on its left": whatever follows "of" or "de" is the cat.
        if re.search(rf"{word} (of|de|d'un|du) ", said):
            assert said.index(other) > said.index(word) or " it " in said, said


@pytest.mark.parametrize(
    "structure",
    [
        "en/{things} on {background} | ",
        "en/{things}, {background} | ",
        "en/{things} | ",
        "fr/{things} | ",
        "en/{first} {relation} {second} | {things} | ",
        "en/{first} {relation} {second} | {things} on {background} | ",
        "en/{first} {relation} {second} | {things}, {background} | ",
        "en/{first} {relation} {second} | {0} | {things} on {background} | ",
        "en/{0} | {things} on {background} | ",
        "en/{0} with {1} | {things} on {background} | ",
        "en/{0} between {1} and {2} | {things} on {background} | ",
        "en/{first} {relation} {second} | {things} on {background} | put ",
        "en/in the pose of image {} | {things} | ",
        "en/in the pose of image {} | {things} on {background} | ",
        "en/make the background {predicate} |  | ",
        "en/remove {} |  | ",
        "en/replace {old} by {new} |  | ",
        "en/add {} |  | ",
        "fr/{things} sur {background} | ",
        "fr/{first} {related} | {things} sur {background} | ",
        "fr/{0} | {things} sur {background} | ",
        "fr/{first} {related} | {things} sur {background} | mets ",
        "fr/dans la pose de l'image {} | {things} sur {background} | ",
        "fr/enlève {} |  | ",
        "fr/remplace {old} par {new} |  | ",
    ],
)
def test_plain_wordings_are_for_training(structure: str) -> None:
    assert not split.held_out(f"{captions.STRUCTURES}/{structure}")


# French


def phrase(thing: Group, article: str = "un") -> str:
    """The phrase with numbers as words and without the natural colour, which are free."""
    for seed in range(100):
        said = french.noun_phrase(Mention(thing), Wording(random.Random(seed)), article=article, plainly=True)
        if not re.search(r"\d", said):
            return said
    raise AssertionError


@pytest.mark.parametrize(
    ("name", "singular", "of_the", "of_a", "plural"),
    [
        ("apple", "une pomme", "de la pomme", "d'une pomme", "deux pommes"),
        ("cat", "un chat", "du chat", "d'un chat", "deux chats"),
        ("airplane", "un avion", "de l'avion", "d'un avion", "deux avions"),
        ("star", "une étoile", "de l'étoile", "d'une étoile", "deux étoiles"),
        ("egg", "un œuf", "de l'œuf", "d'un œuf", "deux œufs"),
        ("hamburger", "un hamburger", "du hamburger", "d'un hamburger", "deux hamburgers"),
        ("helicopter", "un hélicoptère", "de l'hélicoptère", "d'un hélicoptère", "deux hélicoptères"),
        ("castle", "un château", "du château", "d'un château", "deux châteaux"),
        ("horse", "un cheval", "du cheval", "d'un cheval", "deux chevaux"),
        ("bus", "un bus", "du bus", "d'un bus", "deux bus"),
        ("backpack", "un sac à dos", "du sac à dos", "d'un sac à dos", "deux sacs à dos"),
        ("camera", "un appareil photo", "de l'appareil photo", "d'un appareil photo", "deux appareils photo"),
        (
            "snowman",
            "un bonhomme de neige",
            "du bonhomme de neige",
            "d'un bonhomme de neige",
            "deux bonshommes de neige",
        ),
        ("teddy bear", "un ours en peluche", "de l'ours en peluche", "d'un ours en peluche", "deux ours en peluche"),
        ("rainbow", "un arc-en-ciel", "de l'arc-en-ciel", "d'un arc-en-ciel", "deux arcs-en-ciel"),
    ],
)
def test_french_articles_elisions_and_plurals(name: str, singular: str, of_the: str, of_a: str, plural: str) -> None:
    assert phrase(one(name)) == singular
    assert phrase(one(name), "du") == of_the
    assert phrase(one(name), "de") == of_a
    assert phrase(one(name, 2)) == plural
    assert phrase(one(name, 2), "de") == f"de {plural}"
    assert phrase(one(name, 2), "du") == f"des {plural}"


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (one("apple", 2, Look(named("red"))), r"deux pommes (rouges|#DC2828)"),
        (one("apple", 1, Look(named("white"))), "une pomme blanche"),
        (one("cat", 1, Look(named("purple"))), "un chat violet"),
        (one("star", 3, Look(named("green"))), "trois étoiles vertes"),
        (one("star", 3, Look(named("brown"))), "trois étoiles marron"),
        (one("car", 2, Look(named("grey"))), "deux voitures grises"),
        (one("bus", 2, Look(named("grey"))), "deux bus gris"),
        (one("car", 2, Look(Color((1, 2, 3)))), r"deux voitures (de couleur )?#010203"),
        (one("rocket", 1, size="large"), "une (grande|grosse) fusée"),
        (one("cat", 2, size="small"), "deux (tout )?petits chats"),
        (one("rocket", 2, size="small"), "deux (toutes )?petites fusées"),
    ],
)
def test_french_adjectives_agree(thing: Group, expected: str) -> None:
    said = {french.noun_phrase(Mention(thing), Wording(random.Random(seed))) for seed in range(12)}
    assert any(re.fullmatch(expected, phrase) for phrase in said), said


def test_french_never_leaves_a_vowel_unelided() -> None:
    for seed, drawn in enumerate(scenes()):
        said = without_quotes(caption(drawn, seed, language="fr").lower())
        assert not re.search(r"\b(le|la|de) (a|e|i|o|u|é|è|œ|hé)", said), said
        assert not re.search(r"\bde (le|les|un|une)\b", said), said


def test_every_direction_is_told_apart() -> None:
    assert set(SIDES) == set(english_words.RELATIONS) == set(french_words.RELATIONS)
