"""Structured prompts, colours, and references that are spoken of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import load
from headrace.cli.prompts import read_prompt
from headrace.errors import RequestError
from headrace.structured import doubts, structured_prompt

WHOLE: dict[str, Any] = {
    "scene": "a café at night",
    "subjects": [{"description": "a cat", "position": "left", "color_palette": ["#FF8800", "teal"]}],
    "style": "photograph",
    "color_palette": ["#2C3E50"],
    "camera": {"angle": "low", "lens": "35mm", "ISO": 400},
}


def test_a_structured_prompt_is_one_line_with_all_its_fields(tmp_path: Path) -> None:
    file = tmp_path / "prompt.json"
    file.write_text(json.dumps(WHOLE, indent=4), encoding="utf-8")
    prompt = read_prompt(None, file)
    assert "\n" not in prompt
    assert "café" in prompt
    assert json.loads(prompt) == WHOLE
    (tmp_path / "prompt.txt").write_text('{"any": "text"}')
    assert read_prompt(None, tmp_path / "prompt.txt") == '{"any": "text"}'


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"scene": None}, "no text"),
        ({"scene": True}, "no text"),
        ({"color_palette": ["#12"]}, "write colours as #RRGGBB"),
        ({"subjects": [{"color_palette": "#12345G"}]}, "write colours as #RRGGBB"),
        ({"subjects": {"description": "a cat"}}, "no list of objects"),
        ({"subjects": ["a cat"]}, "no list of objects"),
    ],
)
def test_a_wrong_value_is_named(changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        structured_prompt(json.dumps(WHOLE | changed), "prompt.json")


@pytest.mark.parametrize("text", ["", "a cat", "[]", "{}", '{"prompt": "a cat"}', "[" * 5000, '{"scene":' * 2000])
def test_what_is_no_prompt_of_flux_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        structured_prompt(text, "prompt.json")


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner)))
def test_any_json_is_taken_or_refused(value: Any) -> None:
    try:
        prompt = structured_prompt(json.dumps({"scene": value}), "prompt.json")
    except RequestError:
        return
    assert json.loads(prompt) == {"scene": value}


def test_what_is_doubtful_is_said() -> None:
    assert list(doubts("image 1 beside image 2, in #FF0000, with the number #23", 2)) == []
    assert list(doubts("image 3 beside Image 1", 2)) == ["The prompt speaks of image 3, but there are 2 references."]
    assert "image 2 and 3, but there is 1 reference" in next(doubts("image 2, image 3", 1))
    assert "but there are no references" in next(doubts("put image 1 on the left", 0))
    assert "#F80, which is not #RRGGBB" in next(doubts("walls in #F80", 0))
    with pytest.warns(UserWarning, match="speaks of image 2"):
        load("sprite", device="cpu").generate("image 2", size=(32, 32), steps=1)


def test_the_names_of_references_start_at_one() -> None:
    assert "image 0" in next(doubts("image 0 beside image 1", 1))
