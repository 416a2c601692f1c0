"""Scorers: right on what was drawn, also when it is soft; wrong on what is nearly right; blind to all but pixels."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from conftest import Run
from headrace.evals.backgrounds import background_faults, read_background
from headrace.evals.colors import ciede2000, difference
from headrace.evals.pictures import edit_mask, from_pipeline
from headrace.evals.poses import keypoint_error
from headrace.evals.references import lookalikes
from headrace.evals.scenes import holds
from headrace.evals.score import Score, paired_difference, scores, wilson
from headrace.evals.sheet import failure_sheet
from headrace.evals.suites import SUITES, Shown, Suite, samples, suite
from headrace.pictures import open_picture
from headrace.pipeline import load
from headrace.world import figures, letters, objects, skeletons, split
from headrace.world.colors import Color
from headrace.world.draw import Pixels, draw
from headrace.world.scene import Background, Box, Figure, Group, Relation, Scene, plain
from headrace.world.tasks import Sample

Change = Callable[[Sample, random.Random], Scene]


def soft(pixels: Pixels) -> Pixels:
    """What an autoencoder does to a picture, about."""
    noise = np.random.default_rng(0).normal(0, 3, pixels.shape)
    blurred = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.6)))
    return np.clip(blurred + noise, 0, 255).astype(np.uint8)


def shown(sample: Sample, scene: Scene | None = None) -> Shown:
    """The picture of a scene, by default the right one, made soft, as an answer to the sample."""
    trip = None if sample.edit is None else soft(draw(sample.references[0]))
    return Shown(soft(draw(scene or sample.target)), sample, trip)


def wrong(one: Suite, change: Change, count: int) -> list[int]:
    """The numbers of those samples whose picture passes, though it was changed."""
    asked = samples(one, count, 128, 128)
    changed = [shown(sample, change(sample, random.Random(number))) for number, sample in enumerate(asked)]
    return [number for number, answer in enumerate(changed) if not one.measures[0].faults(answer)]


# Colours


# The test pairs of Sharma, Wu and Dalal 2005, table 1, with their CIEDE2000 differences.
PAIRS = [
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, 3.1571, -77.2803), (50.0, 0.0, -82.7485), 2.8615),
    ((50.0, 2.8361, -74.0200), (50.0, 0.0, -82.7485), 3.4412),
    ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0000),
    ((50.0, -1.1848, -84.8006), (50.0, 0.0, -82.7485), 1.0000),
    ((50.0, -0.9009, -85.5211), (50.0, 0.0, -82.7485), 1.0000),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, -1.0, 2.0), (50.0, 0.0, 0.0), 2.3669),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0009), 7.1792),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0010), 7.1792),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0011), 7.2195),
    ((50.0, 2.4900, -0.0010), (50.0, -2.4900, 0.0012), 7.2195),
    ((50.0, -0.0010, 2.4900), (50.0, 0.0009, -2.4900), 4.8045),
    ((50.0, -0.0010, 2.4900), (50.0, 0.0010, -2.4900), 4.8045),
    ((50.0, -0.0010, 2.4900), (50.0, 0.0011, -2.4900), 4.7461),
    ((50.0, 2.5, 0.0), (50.0, 0.0, -2.5), 4.3065),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((50.0, 2.5, 0.0), (61.0, -5.0, 29.0), 22.8977),
    ((50.0, 2.5, 0.0), (56.0, -27.0, -3.0), 31.9030),
    ((50.0, 2.5, 0.0), (58.0, 24.0, 15.0), 19.4535),
    ((50.0, 2.5, 0.0), (50.0, 3.1736, 0.5854), 1.0000),
    ((50.0, 2.5, 0.0), (50.0, 3.2972, 0.0), 1.0000),
    ((50.0, 2.5, 0.0), (50.0, 1.8634, 0.5757), 1.0000),
    ((50.0, 2.5, 0.0), (50.0, 3.2592, 0.3350), 1.0000),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((63.0109, -31.0961, -5.8663), (62.8187, -29.7946, -4.0864), 1.2630),
    ((61.2901, 3.7196, -5.3901), (61.4292, 2.2480, -4.9620), 1.8731),
    ((35.0831, -44.1164, 3.7933), (35.0232, -40.0716, 1.5901), 1.8645),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((36.4612, 47.8580, 18.3852), (36.2715, 50.5065, 21.2231), 1.4146),
    ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
    ((90.9257, -0.5406, -0.9208), (88.6381, -0.8985, -0.7239), 1.5381),
    ((6.7747, -0.2908, -2.4247), (5.8714, -0.0985, -2.2286), 0.6377),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


@pytest.mark.parametrize(("first", "second", "expected"), PAIRS)
def test_colour_difference_is_ciede2000(
    first: tuple[float, float, float], second: tuple[float, float, float], expected: float
) -> None:
    assert ciede2000(first, second) == pytest.approx(expected, abs=5e-5)
    assert ciede2000(second, first) == pytest.approx(expected, abs=5e-5)


def test_black_and_white_are_a_hundred_apart() -> None:
    assert difference((0, 0, 0), (255, 255, 255)) == pytest.approx(100, abs=0.01)


# Every suite, on what is right and on what another prompt asked for


@pytest.mark.parametrize("one", SUITES, ids=lambda one: one.name)
def test_drawn_pictures_are_right_and_those_of_others_wrong(one: Suite) -> None:
    asked = samples(one, 2, 128, 128, seed=1000)
    answers = [shown(sample) for sample in asked]
    for measure in one.measures:
        assert [measure.faults(answer) for answer in answers] == [[]] * 2
    assert one.measures[0].faults(replace(answers[0], pixels=answers[1].pixels))


@pytest.mark.parametrize("one", SUITES, ids=lambda one: one.name)
def test_samples_are_kept_from_training(one: Suite) -> None:
    asked = samples(one, 12, 128, 96)
    assert asked == samples(one, 12, 128, 96)
    assert all((sample.target.width, sample.target.height) == (128, 96) for sample in asked)
    assert all(split.admits(sample.target, "eval") for sample in asked)
    assert {sample.language for sample in asked} == {one.language}


def test_french_asks_for_the_same_scenes_as_english() -> None:
    english, french = (samples(suite(name), 12, 128, 128) for name in ("english", "french"))
    assert [sample.target for sample in english] == [sample.target for sample in french]
    assert not {sample.caption for sample in english} & {sample.caption for sample in french}


@pytest.mark.parametrize(("size", "name"), [((192, 128), "relation"), ((256, 256), "pose"), ((96, 160), "text")])
def test_pictures_may_have_other_sizes(size: tuple[int, int], name: str) -> None:
    one = suite(name)
    (sample,) = samples(one, 1, *size)
    assert [measure.faults(shown(sample)) for measure in one.measures] == [[]] * len(one.measures)


# Pictures that are nearly right


def with_thing(scene: Scene, index: int, thing: Group) -> Scene:
    return replace(scene, things=(*scene.things[:index], thing, *scene.things[index + 1 :]))


def another_object(sample: Sample, chance: random.Random) -> Scene:
    index = chance.randrange(len(sample.target.things))
    group = sample.target.things[index]
    assert isinstance(group, Group)
    names = {kind.name for kind in objects.kinds()} - {thing.name for thing in sample.target.things}
    return with_thing(sample.target, index, replace(group, name=chance.choice(sorted(names))))


def mirrored_places(sample: Sample, _: random.Random) -> Scene:
    """Relations turned round: what was left is right, what was above is below; "between" has its middle at an end."""
    scene = sample.target

    def turned(box: Box) -> Box:
        return Box(scene.width - box.right, scene.height - box.bottom, scene.width - box.left, scene.height - box.top)

    groups = [thing for thing in scene.things if isinstance(thing, Group)]
    if scene.relations[0].kind == "between":
        places = [group.boxes for group in groups]
        places[0], places[1] = places[1], places[0]
    else:
        places = [tuple(map(turned, group.boxes)) for group in groups]
    things = tuple(replace(group, boxes=place) for group, place in zip(groups, places, strict=True))
    return replace(scene, things=things, texts=())


def one_less(sample: Sample, chance: random.Random) -> Scene:
    (group,) = sample.target.things
    assert isinstance(group, Group)
    left = list(group.boxes)
    left.pop(chance.randrange(len(left)))
    return with_thing(sample.target, 0, replace(group, boxes=tuple(left)))


def one_is_another(sample: Sample, chance: random.Random) -> Scene:
    """As many things as asked for, but one of them is another object."""
    (group,) = sample.target.things
    assert isinstance(group, Group)
    name = chance.choice([kind.name for kind in objects.kinds() if kind.name != group.name])
    first, rest = replace(group, boxes=group.boxes[:1], name=name), replace(group, boxes=group.boxes[1:])
    return replace(sample.target, things=(first, rest))


def another_letter(sample: Sample, chance: random.Random) -> Scene:
    (text,) = sample.target.texts
    places = [index for index, character in enumerate(text.text) if character != " "]
    index = chance.choice(places)
    letter = chance.choice([character for character in letters.CHARACTERS[:36] if character != text.text[index]])
    said = text.text[:index] + letter + text.text[index + 1 :]
    return replace(
        sample.target, texts=(letters.write(said, text.face, text.size, text.color, text.place, middle(text.box)),)
    )


def one_letter_more(sample: Sample, chance: random.Random) -> Scene:
    (text,) = sample.target.texts
    said = text.text + chance.choice("ABCDEFGH")
    written = letters.write(said, text.face, letters.EASY_SIZE, text.color, text.place, middle(text.box))
    return replace(sample.target, texts=(written,))


def middle(box: Box) -> tuple[float, float]:
    return box.center


def other_background(sample: Sample, _: random.Random) -> Scene:
    """One colour of the background is off by 8 (CIEDE2000)."""
    behind = sample.target.background
    return replace(sample.target, background=replace(behind, colors=(off_by(behind.colors[0], 8), *behind.colors[1:])))


def off_by(color: Color, wanted: float) -> Color:
    """A colour at this distance (CIEDE2000)."""
    away = [255 if channel < 128 else 0 for channel in color.rgb]
    shares = np.linspace(0, 1, 256)
    tried = [tuple(round(c + share * (a - c)) for c, a in zip(color.rgb, away, strict=True)) for share in shares]
    red, green, blue = min(tried, key=lambda one: abs(difference(one, color.rgb) - wanted))
    return Color((red, green, blue))


def distractors(sample: Sample, chance: random.Random) -> Scene:
    """The objects of references in another look, told from their own."""
    things = list(sample.target.things)
    for index, source in enumerate(sample.sources):
        group = things[index]
        if source.image is not None and isinstance(group, Group):
            others = [look for name, look in lookalikes((group.name, group.look))[1:] if name == group.name]
            things[index] = replace(group, look=chance.choice(others))
    return replace(sample.target, things=tuple(things))


def nothing_done(sample: Sample, _: random.Random) -> Scene:
    assert sample.edit is not None
    return sample.edit.before


def another_pose(sample: Sample, chance: random.Random) -> Scene:
    """The character in a pose that is clearly another."""
    (figure,) = sample.target.things
    assert isinstance(figure, Figure)
    while True:
        other = figures.place(figure.character, figure.look, skeletons.any_pose(chance), Box(6, 6, 122, 122))
        if keypoint_error(other.pose, figure.pose) > 0.08 * 128:
            return replace(sample.target, things=(other,))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pose", another_pose),
        ("reference", distractors),
        ("edit", nothing_done),
        ("object", another_object),
        ("relation", another_object),
        ("relation", mirrored_places),
        ("count", one_less),
        ("count", one_is_another),
        ("background", other_background),
        ("text", another_letter),
        ("text", one_letter_more),
    ],
)
def test_what_is_nearly_right_is_wrong(name: str, change: Change) -> None:
    assert wrong(suite(name), change, 2) == []


def test_text_of_another_colour_is_wrong() -> None:
    _, color = suite("text").measures
    for sample in samples(suite("text"), 3, 128, 128):
        (text,) = sample.target.texts
        other = replace(sample.target, texts=(replace(text, color=off_by(text.color, 8)),))
        assert color.faults(shown(sample, other)), text


def test_an_edit_that_changes_the_rest_is_wrong() -> None:
    done, kept = suite("edit").measures
    for number, sample in enumerate(samples(suite("edit"), 3, 128, 128)):
        answer = shown(sample)
        assert done.faults(answer) == []
        assert kept.faults(answer) == []
        # Another picture with the same change: what was to be kept is another.
        other = samples(suite("edit"), 1, 128, 128, seed=500 + number)[0]
        assert kept.faults(replace(answer, pixels=shown(other).pixels))


def test_an_empty_picture_is_wrong_in_every_suite() -> None:
    for one in SUITES:
        (sample,) = samples(one, 1, 128, 128)
        empty = replace(sample.target, background=plain((90, 200, 30)), things=(), texts=())
        for measure in one.measures:
            assert measure.faults(shown(sample, empty)), measure.name


@pytest.mark.parametrize(
    ("relation", "centers", "expected"),
    [
        (Relation("left of", 0, (1,)), [(30, 60), (90, 60)], True),
        (Relation("left of", 0, (1,)), [(90, 60), (30, 60)], False),
        (Relation("left of", 0, (1,)), [(50, 20), (70, 100)], False),
        (Relation("above", 1, (0,)), [(60, 100), (60, 20)], True),
        (Relation("between", 0, (1, 2)), [(64, 60), (110, 64), (20, 64)], True),
        (Relation("between", 0, (1, 2)), [(20, 64), (110, 64), (64, 60)], False),
        (Relation("between", 0, (1, 2)), [(64, 10), (110, 100), (20, 100)], False),
        (Relation("top left", 0), [(30, 30)], True),
        (Relation("top left", 0), [(64, 30)], False),
        (Relation("bottom right", 0), [(30, 30)], False),
    ],
)
def test_relations(relation: Relation, centers: list[tuple[float, float]], expected: bool) -> None:
    assert holds(relation, dict(enumerate(centers)), 128, 128) is expected


@pytest.mark.parametrize(
    "behind",
    [
        Background("gradient", (Color((220, 40, 40)), Color((255, 255, 255))), "diagonal"),
        Background("striped", (Color((20, 20, 20)), Color((60, 205, 200))), "across", 13),
        Background("striped", (Color((255, 160, 200)), Color((45, 100, 225))), "diagonal", 20),
        Background("checked", (Color((255, 222, 60)), Color((50, 165, 75))), "", 17),
    ],
)
def test_patterns_of_the_background_are_told(behind: Background) -> None:
    read = read_background(soft(draw(Scene(128, 96, behind))))
    assert background_faults(read, behind, 5) == []
    assert read.band == pytest.approx(behind.band, abs=0.6)
    assert background_faults(read, replace(behind, kind="plain", direction="", colors=behind.colors[:1]), 5)
    assert bool(background_faults(read, replace(behind, colors=behind.colors[::-1]), 5)) == (behind.kind == "gradient")


# Scores


def test_scores_count_what_is_right() -> None:
    one = suite("object")

    def generate(asked: Sequence[Sample]) -> list[Pixels]:
        return [
            draw(sample.target if number % 3 else replace(sample.target, things=()))
            for number, sample in enumerate(asked)
        ]

    seen: list[int] = []
    (score,) = scores(generate, [one], 6, on_picture=lambda _, number, __: seen.append(number))
    assert (score.right, score.count, score.goal) == (4, 6, 0.85)
    assert [failure.number for failure in score.failures] == [0, 3]
    assert seen == list(range(6))
    sheet = failure_sheet([score])
    assert sheet.width > sheet.height > 128


def test_intervals() -> None:
    # Wilson's interval as in Agresti and Coull 1998: 10 of 10 and 5 of 10.
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    right = Score("french", "m", None, 4, 4, ())
    assert paired_difference(right, right) == (0, 0)


def test_command_scores_and_writes(headrace: Run, tmp_path: Path) -> None:
    arguments = ("--suite", "object", "--suite", "background", "--count", "2")
    result = headrace(
        "eval", *arguments, "--ground-truth", "drawn", "--json", "scores.json", "--failures", "wrong.png", "-o", "all"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "object" in result.stdout
    assert "2/2" in result.stdout
    scored = json.loads((tmp_path / "scores.json").read_text())
    assert [(one["suite"], one["right"], one["count"]) for one in scored["scores"]] == [
        ("object", 2, 2),
        ("background", 2, 2),
    ]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        "background-000.png",
        "background-001.png",
        "object-000.png",
        "object-001.png",
    ]
    assert open_picture(tmp_path / "wrong.png").width > 128


def test_command_scores_a_model(headrace: Run, tmp_path: Path) -> None:
    result = headrace("eval", "--suite", "background", "--count", "2", "--steps", "1", "--json", "scores.json")
    assert result.returncode == 0
    assert json.loads((tmp_path / "scores.json").read_text())["steps"] == 1


def test_masked_edits_leave_the_rest_as_it_was() -> None:
    """And leave enough: all that the edit changes is in the mask, so the right answer is among what can be made."""
    (edits,) = (suite for suite in SUITES if suite.name == "edit")
    asked = [one for one in samples(edits, 12, 128, 128) if one.edit is not None and one.edit.kind != "background"][:2]
    generate = from_pipeline(load("sprite", device="cpu"), steps=1, masked=True)
    for one, made in zip(asked, generate(asked), strict=True):
        assert one.edit is not None
        kept = np.asarray(edit_mask(one.edit)) == 0
        assert 0.05 < kept.mean() < 1
        assert np.array_equal(draw(one.edit.before)[kept], draw(one.edit.after)[kept])
        assert np.array_equal(made[kept], draw(one.edit.before)[kept])
        assert not np.array_equal(made, draw(one.edit.before))


def test_unknown_suite_is_refused(headrace: Run) -> None:
    result = headrace("eval", "--suite", "sound")
    assert result.returncode == 2
    assert "There is no suite 'sound'; there are object, relation" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("one", SUITES, ids=lambda one: one.name)
def test_scorers_are_right_on_soft_pictures_and_at_chance_on_those_of_others(one: Suite) -> None:
    answers = [shown(sample) for sample in samples(one, 200, 128, 128)]
    for measure in one.measures:
        assert sum(not measure.faults(answer) for answer in answers) >= 196
        moved = [replace(answer, pixels=other.pixels) for answer, other in itertools.pairwise(answers)]
        assert sum(not measure.faults(answer) for answer in moved) <= 0.15 * len(moved)
