"""Figures, skeletons and tasks: what references show is what targets show, and edits touch nothing else."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest

from headrace.pose.skeleton import COLORS
from headrace.world import captions, figures, looks, objects, skeletons, split
from headrace.world.colors import named
from headrace.world.draw import draw, shadow_box
from headrace.world.scene import ORDINARY, Box, Figure, Group, Look, Pose, Scene, Skeleton, plain
from headrace.world.scene import boxes as boxes_of
from headrace.world.tasks import EDITS, TASKS, Sample, reference_size, sample, shuffled, untouched

BLACK = plain((0, 0, 0))


def samples(task: str, count: int = 60, *, side: str = "train", kind: str | None = None) -> list[Sample]:
    return [sample(seed, task=task, side=side, kind=kind) for seed in range(count)]


# Skeletons


def test_skeletons_have_openpose_colours_at_their_joints() -> None:
    pose = skeletons.moved(skeletons.named_pose(random.Random(1), "arms out"), 400, (256, 160))
    pixels = draw(Scene(512, 512, BLACK, skeletons=(Skeleton(pose, 4),)))
    for point, color in zip(pose.keypoints, COLORS, strict=True):
        assert point is not None
        assert tuple(pixels[int(point[1]), int(point[0])]) == color


def test_limbs_have_60_percent_of_their_colour() -> None:
    pose = skeletons.moved(skeletons.named_pose(random.Random(1), "arms out"), 400, (256, 160))
    pixels = draw(Scene(512, 512, BLACK, skeletons=(Skeleton(pose, 4),)))
    elbow, wrist = pose.keypoints[3], pose.keypoints[4]
    assert elbow is not None
    assert wrist is not None
    middle = pixels[int((elbow[1] + wrist[1]) / 2), int((elbow[0] + wrist[0]) / 2)]
    assert tuple(middle) == tuple(round(0.6 * channel) for channel in COLORS[3])


def test_joints_that_are_not_seen_are_not_drawn() -> None:
    pose = skeletons.moved(skeletons.any_pose(random.Random(1)), 100, (64, 40))
    for index in (4, 0):
        points = list(pose.keypoints)
        points[index] = None
        part = Skeleton(Pose(tuple(points)), 1.5)
        with_all = draw(Scene(128, 128, BLACK, skeletons=(Skeleton(pose, 1.5),)))
        assert (draw(Scene(128, 128, BLACK, skeletons=(part,))) != with_all).any()
    none = Pose((None,) * 17 + ((20.0, 20.0),))
    assert draw(Scene(64, 64, BLACK, skeletons=(Skeleton(none, 2),))).any(axis=-1).sum() < 40


def test_a_skeleton_stays_in_its_box() -> None:
    for seed in range(20):
        pose = skeletons.moved(skeletons.any_pose(random.Random(seed)), 90, (64, 50))
        skeleton = Skeleton(pose, 1.8)
        box = skeletons.skeleton_box(skeleton)
        pixels = draw(Scene(128, 128, BLACK, skeletons=(skeleton,)))
        pixels = pixels.copy()
        pixels[max(0, box.top) : box.bottom, max(0, box.left) : box.right] = 0
        assert not pixels.any()


# Figures


@pytest.mark.parametrize("character", figures.CHARACTERS)
def test_a_figure_is_drawn_inside_its_box_and_about_its_keypoints(character: str) -> None:
    chance = random.Random(5)
    for _ in range(8):
        figure = figures.place(character, ORDINARY, skeletons.any_pose(chance), Box(4, 4, 124, 124))
        assert 4 <= figure.box.left < figure.box.right <= 124
        assert 4 <= figure.box.top < figure.box.bottom <= 124
        alpha = np.asarray(figures.sprite(figure))[..., 3]
        box = figure.box
        wider = replace(figure, box=Box(box.left - 5, box.top - 5, box.right + 5, box.bottom + 5))
        assert np.array_equal(np.asarray(figures.sprite(wider))[..., 3], np.pad(alpha, 5))
        for point in figure.pose.keypoints:
            assert point is not None
            x, y = int(point[0]) - figure.box.left, int(point[1]) - figure.box.top
            assert alpha[y, x] > 200


def test_a_figure_has_the_colours_of_its_look() -> None:
    pose = skeletons.named_pose(random.Random(0), "standing")
    for character in figures.CHARACTERS:
        figure = figures.place(character, Look(named("red"), named("green")), pose, Box(0, 0, 128, 128))
        pixels = np.asarray(figures.sprite(figure))[..., :3]
        half = pixels.shape[0] // 2
        assert (pixels[:half] == named("red").rgb).all(-1).sum() > 30
        assert (pixels[half:] == named("green").rgb).all(-1).sum() > 30


def test_poses_with_names_are_told_apart() -> None:
    def joints(name: str, seed: int) -> np.ndarray:
        return np.array(skeletons.named_pose(random.Random(seed), name).keypoints[2:14])

    for first in skeletons.POSES:
        for second in skeletons.POSES:
            if first < second:
                distances = [np.abs(joints(first, a) - joints(second, b)).max() for a in range(6) for b in range(6)]
                assert min(distances) > 0.06, (first, second)


# Samples


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_is_a_function_of_its_arguments(task: str) -> None:
    first = samples(task, 20)
    assert first == [sample(seed, task=task) for seed in reversed(range(20))][::-1]
    assert len({one.caption for one in first}) == len(first)
    assert all(one.language in captions.LANGUAGES for one in first)


@pytest.mark.parametrize("size", [(128, 128), (256, 96), (96, 192)])
@pytest.mark.parametrize("task", TASKS)
def test_targets_and_references_have_their_sizes(task: str, size: tuple[int, int]) -> None:
    for seed in range(12):
        one = sample(seed, *size, task=task)
        assert (one.target.width, one.target.height) == size
        assert all((shown.width, shown.height) == reference_size(task, *size) for shown in one.references)


def test_tasks_are_drawn_by_their_weights() -> None:
    drawn = [sample(seed).task for seed in range(300)]
    for task, share in TASKS.items():
        assert abs(drawn.count(task) / len(drawn) - share) < 0.09


def test_the_very_objects_of_the_references_are_in_the_target() -> None:
    for one in samples("combine"):
        assert 1 <= len(one.references) <= 3
        assert sorted(source.image for source in one.sources if source.image) == list(range(1, len(one.references) + 1))
        for thing, source in zip(one.target.things, one.sources, strict=True):
            assert isinstance(thing, Group)
            if source.image is not None:
                shown = [other for other in one.references[source.image - 1].things if isinstance(other, Group)]
                assert (thing.name, thing.look) in {(other.name, other.look) for other in shown}
                assert source.named == (len(shown) > 1)
                assert str(source.image) in one.caption


@pytest.mark.parametrize("count", ["1", "2", "3"])
def test_the_number_of_references_can_be_asked_for(count: str) -> None:
    assert all(len(one.references) == int(count) for one in samples("combine", 10, kind=count))


def test_how_the_character_is_told_can_be_asked_for() -> None:
    assert all(len(one.references) == 1 for one in samples("pose", 10, kind="words"))
    assert all(len(one.references) == 2 for one in samples("pose", 10, kind="picture"))


def test_distractors_are_told_from_the_object_and_from_each_other() -> None:
    for seed, kind in enumerate(objects.kinds()[::6]):
        chance = random.Random(seed)
        own = looks.variant(chance, kind.name)
        others = looks.distractors(chance, kind.name, own, 4)
        for index, first in enumerate((own, *others)):
            for second in (own, *others)[:index]:
                assert looks.difference(kind.name, first, second) >= looks.ALIKE


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_touches_nothing_but_what_it_is_about(kind: str) -> None:
    for one in samples("edit", 25, kind=kind):
        edit = one.edit
        assert edit is not None
        assert one.references[0] == edit.before
        assert one.target == edit.after != edit.before
        same = untouched(edit)
        assert not same.all()
        if kind == "background":
            continue
        # All that differs lies in the boxes, the shadows and the letters of what was changed.
        touched = np.zeros_like(same)
        for scene, other in ((edit.before, edit.after), (edit.after, edit.before)):
            for thing in scene.things:
                if thing not in other.things:
                    for box in boxes_of(thing):
                        for part in (box, shadow_box(box, scene.light)):
                            touched[max(0, part.top) : part.bottom, max(0, part.left) : part.right] = True
            for text in scene.texts:
                if text not in other.texts:
                    touched[text.box.top : text.box.bottom, text.box.left : text.box.right] = True
        assert (same | touched).all()


def test_edits_do_what_their_kind_says() -> None:
    for kind in EDITS:
        for one in samples("edit", 20, kind=kind):
            edit = one.edit
            assert edit is not None
            before, after = edit.before, edit.after
            change = len(after.things) - len(before.things), len(after.texts) - len(before.texts)
            assert change == {"remove": (-1, 0), "add": (1, 0), "add text": (0, 1), "remove text": (0, -1)}.get(
                kind, (0, 0)
            )
            assert (before.background != after.background) == (kind == "background")
            if kind in ("replace", "recolor"):
                old, new = before.things[edit.index], after.things[edit.index]
                assert boxes_of(old) == boxes_of(new)
                same_name = isinstance(old, Figure) or (isinstance(new, Group) and old.name == new.name)
                assert same_name == (kind == "recolor")
                if edit.source.image is not None:
                    assert (new.name, new.look) in {(thing.name, thing.look) for thing in one.references[1].things}


def test_the_target_takes_the_pose_of_the_skeleton_and_the_looks_of_the_character() -> None:
    for one in samples("pose"):
        (figure,), (source,) = one.target.things, one.sources
        assert isinstance(figure, Figure)
        assert source.pose is not None
        (skeleton,) = one.references[source.pose - 1].skeletons
        assert skeleton.pose == figure.pose
        assert str(source.pose) in one.caption
        if source.image is not None:
            (model,) = one.references[source.image - 1].things
            assert isinstance(model, Figure)
            assert (model.character, model.look) == (figure.character, figure.look)
            assert model.pose != figure.pose


def test_skeletons_of_references_are_inside_the_picture() -> None:
    for one in samples("pose"):
        for reference in one.references:
            for skeleton in reference.skeletons:
                points = [point for point in skeleton.pose.keypoints if point is not None]
                assert all(0 <= x < reference.width and 0 <= y < reference.height for x, y in points)
                assert all(math.isfinite(x + y) for x, y in points)


# Both sides


@pytest.mark.parametrize("task", TASKS)
def test_no_sample_for_training_shows_what_is_held_out(task: str) -> None:
    for one in samples(task, 80):
        scenes = [one.target, *([one.edit.before] if one.edit else [])]
        assert not any(split.held_out(combination) for scene in scenes for combination in split.combinations(scene))
        assert not any(split.held_out(f"word/{text.text}") for scene in scenes for text in scene.texts)


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_for_evaluation_is_about_something_held_out(task: str) -> None:
    for one in samples(task, 25, side="eval"):
        held_out = [combination for combination in split.combinations(one.target) if split.held_out(combination)]
        assert held_out or one.target.texts
        assert all(split.held_out(f"word/{text.text}") for text in one.target.texts)


@pytest.mark.parametrize("language", captions.LANGUAGES)
@pytest.mark.parametrize("kind", EDITS)
def test_every_edit_has_wordings_on_both_sides(kind: str, language: str) -> None:
    said = {side: set() for side in split.SPLITS}
    for side in split.SPLITS:
        edit = sample(3, task="edit", kind=kind, side="train").edit
        assert edit is not None
        said[side] = {captions.request(edit, seed, language=language, side=side).lower() for seed in range(60)}
    assert len(said["train"]) > 15
    assert len(said["eval"]) > 2
    assert not said["train"] & said["eval"]


# Captions


def test_shuffled_samples_keep_the_pictures_and_lose_the_caption() -> None:
    for seed in range(30):
        own, mixed = sample(seed), shuffled(seed)
        assert replace(mixed, caption=own.caption) == own
        assert mixed.caption != own.caption


ELISIONS = re.compile(r"\b(le|la|de|que) (a|e|i|o|u|é|è|œ|hé)|\bde (le|les|un|une)\b|\b(à|de) le\b", re.IGNORECASE)


@pytest.mark.parametrize("task", TASKS)
def test_french_requests_are_elided_and_contracted(task: str) -> None:
    for seed in range(120):
        said = re.sub('["“«].*?["”»]', "", sample(seed, task=task, language="fr").caption)
        assert not ELISIONS.search(said), said


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", {"remove the cat", "erase the cat and change nothing else", "now delete the cat"}),
        ("fr", {"enlève le chat", "retire le chat, et garde tout le reste", "maintenant, supprime le chat"}),
    ],
)
def test_plain_requests_are_for_training(language: str, expected: set[str]) -> None:
    cat = Group("cat", ORDINARY, None, (Box(10, 40, 40, 70),))
    dog = Group("dog", ORDINARY, None, (Box(70, 40, 100, 70),))
    before = Scene(128, 128, plain(named("blue")), (cat, dog))
    change = captions.Edit("remove", before, replace(before, things=(dog,)))
    said = {captions.request(change, seed, language=language).lower().rstrip(".") for seed in range(600)}
    assert len(said & expected) >= 2, sorted(said)
