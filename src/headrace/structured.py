"""Prompts with a structure: Black Forest Labs' JSON fields, colours as #RRGGBB, and references named by number.

Source of the fields: Black Forest Labs' prompting guide for FLUX.2 (docs.bfl.ai).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from headrace.errors import RequestError

FIELDS = (
    "scene", "subjects", "style", "color_palette", "lighting", "mood", "background", "composition", "camera",
)  # fmt: skip
SUBJECT_FIELDS = ("description", "position", "action", "pose", "color_palette")
PALETTE = "color_palette"
MAX_DEPTH = 6

COLOR = re.compile(r"#[0-9A-Fa-f]{6}")
# What begins as a colour does; a # and a number, as on a shirt, does not.
COLOR_LIKE = re.compile(r"(?<![\w&#])#(?![0-9]+\b)([0-9A-Fa-f]{3,8})\b")
REFERENCE = re.compile(r"\bimage\s+#?(\d{1,3})\b", re.IGNORECASE)


def structured_prompt(text: str, source: str) -> str:
    """A JSON prompt as one line of text, which is how the model is given it.

    source: what errors call it. Raises RequestError where it is no JSON object, has none of Black Forest Labs' fields,
    or values or colours that these cannot have.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{source} is not valid JSON ({str(error)[:100]}).") from error
    if not isinstance(fields, dict) or not fields.keys() & set(FIELDS):
        raise RequestError(f"{source} is no prompt of FLUX.2: it has none of the fields {', '.join(FIELDS)}.")
    for name, value in fields.items():
        if name == "subjects":
            _check_subjects(value, source)
        else:
            _check_value(value, name, source)
    return json.dumps(fields, ensure_ascii=False)


def doubts(prompt: str, references: int) -> Iterator[str]:
    """Sentences on what the prompt says and probably does not mean: colours misspelt, references that are not there."""
    for match in COLOR_LIKE.finditer(prompt):
        if len(match[1]) != 6:
            yield f"The prompt has the colour {match[0]}, which is not #RRGGBB: the model knows six digits alone."
    missing = sorted({int(match[1]) for match in REFERENCE.finditer(prompt)} - set(range(1, references + 1)))
    if missing and references:
        given = "is 1 reference" if references == 1 else f"are {references} references"
        yield f"The prompt speaks of image {_listed(missing)}, but there {given}."
    elif missing:
        yield f"The prompt speaks of image {_listed(missing)}, but there are no references."


def _check_subjects(value: Any, source: str) -> None:
    if not isinstance(value, list) or not all(isinstance(subject, dict) for subject in value):
        raise RequestError(f"{source} has subjects that are no list of objects with {', '.join(SUBJECT_FIELDS)}.")
    for subject in value:
        for name, entry in subject.items():
            _check_value(entry, name, source)


def _check_value(value: Any, name: str, source: str, depth: int = 0) -> None:
    """Texts, numbers, and lists and objects of them."""
    if depth > MAX_DEPTH:
        raise RequestError(f"{source} is nested too deeply at {name!r}.")
    if isinstance(value, dict):
        for inner, entry in value.items():
            _check_value(entry, inner, source, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            _check_value(entry, name, source, depth + 1)
    elif isinstance(value, str):
        if name == PALETTE and value.startswith("#") and not COLOR.fullmatch(value):
            raise RequestError(f"{source} has the colour {value[:20]!r}; write colours as #RRGGBB.")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{source} has {value!r} as {name!r}, which is no text.")


def _listed(numbers: list[int]) -> str:
    return " and ".join(", ".join(map(str, numbers)).rsplit(", ", 1))
