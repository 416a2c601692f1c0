"""The recipe: sizes, limits, and its way into and out of JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import RequestError
from headrace.recipe import MAX_AREA, Recipe, ReferenceRecord, check_size, nearest_sizes, parse_size

RECIPE = Recipe(
    model="klein-4b",
    model_hash="sha256:00",
    variant="klein",
    precision="bf16",
    prompt="a cat",
    width=1024,
    height=768,
    steps=4,
    guidance=1.0,
    seed=2**64 - 1,
    convention="diffusers",
    text_length=512,
    version="0.1.0",
    references=(ReferenceRecord("ab", 64, 48),),
)


@given(st.integers(1, 999_999), st.integers(1, 999_999))
def test_two_sizes_that_work_are_found_for_every_size(width: int, height: int) -> None:
    sizes = nearest_sizes(width, height)
    assert len(set(sizes)) == 2
    for size in sizes:
        assert check_size(*size) == size


@given(st.integers(1, 128), st.integers(1, 128))
def test_a_size_that_works_is_its_own_nearest(rows: int, columns: int) -> None:
    assert nearest_sizes(16 * columns, 16 * rows)[0] == (16 * columns, 16 * rows)


def test_the_nearest_sizes_keep_the_shape() -> None:
    assert nearest_sizes(1000, 1000) == [(1008, 1008), (992, 992)]
    assert nearest_sizes(4096, 4096)[0] == (2048, 2048)
    assert nearest_sizes(8192, 1024)[0][0] * nearest_sizes(8192, 1024)[0][1] <= MAX_AREA


@pytest.mark.parametrize("text", ["1024x768", " 1024 X 768 ", "1024×768"])  # noqa: RUF001
def test_a_size_is_read_as_people_write_it(text: str) -> None:
    assert parse_size(text) == (1024, 768)


@pytest.mark.parametrize("text", ["", "1024", "1024x", "-16x16", "16.0x16", "1e3x16", "99999999x16", "١٦x16"])  # noqa: RUF001
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        parse_size(text)


@given(st.text(min_size=1), st.floats(0, 100), st.integers(0, 2**64 - 1))
def test_a_recipe_survives_json(prompt: str, guidance: float, seed: int) -> None:
    recipe = replace(RECIPE, prompt=prompt, guidance=guidance, seed=seed)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "1"},
        {"steps": 4.5},
        {"compiled": 1},
        {"width": True},
        {"references": 3},
        {"references": [{"sha256": "ab"}]},
        {"references": [{"sha256": 1, "width": 16, "height": 16}]},
        {"colour": "blue"},
    ],
)
def test_a_recipe_of_another_kind_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        Recipe.from_dict(RECIPE.as_dict() | change)


@pytest.mark.parametrize("field", ["model", "seed", "prompt"])
def test_a_recipe_with_something_missing_is_refused(field: str) -> None:
    values = RECIPE.as_dict()
    del values[field]
    with pytest.raises(RequestError, match=field):
        Recipe.from_dict(values)
