"""The drawn world: scenes are functions of their seed, pictures show them, captions tell the truth."""

from __future__ import annotations

import re

import numpy as np
import pytest

from headrace.world import colors, objects
from headrace.world.captions import caption
from headrace.world.draw import draw, pixels
from headrace.world.scene import RELATIONS, Scene, scene

SEEDS = range(300)


def test_every_object_has_a_picture_that_fills_its_cell() -> None:
    for kind in objects.kinds():
        alpha = np.asarray(objects.picture(kind.name))[..., 3]
        rows, columns = np.nonzero(alpha > 20)
        extent = max(np.ptp(rows), np.ptp(columns)) + 1
        assert extent >= 0.9 * objects.CELL, kind.name
        assert alpha.mean() > 15, kind.name


def test_objects_have_different_names_and_pictures() -> None:
    names = [kind.name for kind in objects.kinds()]
    assert len(set(names)) == len(names) >= 40
    assert len({objects.picture(name).tobytes() for name in names}) == len(names)


def test_unknown_object_is_refused() -> None:
    with pytest.raises(KeyError):
        objects.picture("spoon")


@pytest.mark.parametrize("size", [(128, 128), (160, 96), (96, 160)])
def test_scene_is_a_function_of_its_seed(size: tuple[int, int]) -> None:
    first = [scene(seed, *size) for seed in SEEDS]
    assert first == [scene(seed, *size) for seed in reversed(SEEDS)][::-1]
    assert len(set(first)) > 0.99 * len(first)
    assert np.array_equal(pixels(first[0]), pixels(scene(0, *size)))


def test_streams_are_series_of_their_own() -> None:
    assert sum(scene(seed) == scene(seed, stream="eval") for seed in SEEDS) < 3


@pytest.mark.parametrize("size", [(128, 128), (160, 96), (96, 160)])
def test_objects_are_inside_the_picture_and_apart(size: tuple[int, int]) -> None:
    width, height = size
    for seed in SEEDS:
        drawn = scene(seed, width, height)
        for placed in drawn.objects:
            assert placed.left in range(width - placed.side + 1)
            assert placed.top in range(height - placed.side + 1)
        if drawn.relation is not None:
            first, second = drawn.objects
            toward_x, toward_y = RELATIONS[drawn.relation]
            assert toward_x * (first.left - second.left) + toward_y * (first.top - second.top) >= first.side


def test_background_is_exact_and_objects_are_drawn() -> None:
    for seed in SEEDS:
        drawn = scene(seed)
        image = pixels(drawn)
        outside = np.ones(image.shape[:2], bool)
        for placed in drawn.objects:
            inside = np.s_[placed.top : placed.top + placed.side, placed.left : placed.left + placed.side]
            outside[inside] = False
            assert (image[inside] != drawn.background).any(axis=-1).mean() > 0.1
        assert (image[outside] == drawn.background).all()


def test_named_backgrounds_have_the_named_colour() -> None:
    for seed in SEEDS:
        drawn = scene(seed)
        if drawn.background_name is not None:
            assert colors.NAMED[drawn.background_name] == drawn.background


def test_captions_name_what_is_drawn_and_nothing_else() -> None:
    names = {kind.name for kind in objects.kinds()}
    for seed in SEEDS:
        drawn = scene(seed)
        text = caption(drawn, seed).lower()
        words = set(re.findall(r"[a-z]+", text))
        shown = {placed.name for placed in drawn.objects}
        assert words & names == shown, text
        notation = colors.hex_notation(drawn.background).lower()
        assert notation in text or (drawn.background_name or notation) in words, text
        for placed in drawn.objects:
            if placed.size in ("small", "medium"):
                assert words & {"small", "little", "tiny", "medium"}, text


def test_captions_keep_the_order_of_the_relation() -> None:
    pairs = [drawn for drawn in map(scene, SEEDS) if drawn.relation is not None]
    assert pairs
    for index, drawn in enumerate(pairs):
        text = caption(drawn, index).lower()
        first, second = (text.index(placed.name) for placed in drawn.objects)
        words = text[min(first, second) : max(first, second)]
        assert first < second, text
        wording = {"left of": "left", "right of": "right", "above": "above|over|top", "below": "below|under|beneath"}
        assert re.search(wording[drawn.relation or ""], words), text


def test_captions_vary_and_are_functions_of_their_seed() -> None:
    drawn = scene(4)
    wordings = [caption(drawn, seed) for seed in range(50)]
    assert wordings == [caption(drawn, seed) for seed in range(50)]
    assert len(set(wordings)) > 20


def test_picture_has_the_size_of_the_scene() -> None:
    assert draw(Scene(48, 32, (1, 2, 3), None, (), None)).size == (48, 32)
