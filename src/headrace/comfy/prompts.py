"""What ComfyUI's page does to texts before it sends them: choices in prompts, and values of nodes in file names."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n\r\u2028\u2029]*", re.DOTALL)
_ESCAPED = re.compile(r"\\([{}|])")
_REFERENCE = re.compile(r"%([^%]+)%")
_NOT_IN_FILE_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')


def choose(text: str, draw: random.Random) -> str:
    r"""Replaces each `{a|b}`, innermost first, by one of its choices, and leaves out `//` and `/* */` comments.

    A backslash before one of `{}|` makes it stand for itself. A brace that is never closed ends with the text.
    """
    blocks: list[tuple[list[str], list[str]]] = []  # for each open brace: what came before it, the choices so far
    current: list[str] = []
    letters = iter(_COMMENT.sub("", text))
    for letter in letters:
        if letter == "\\":
            current += (letter, next(letters, ""))
        elif letter == "{":
            blocks.append((current, []))
            current = []
        elif letter == "|" and blocks:
            blocks[-1][1].append("".join(current))
            current = []
        elif letter == "}" and blocks:
            current = _close(blocks.pop(), current, draw)
        else:
            current.append(letter)
    while blocks:
        current = _close(blocks.pop(), current, draw)
    return _ESCAPED.sub(r"\1", "".join(current))


def _close(block: tuple[list[str], list[str]], last: list[str], draw: random.Random) -> list[str]:
    before, choices = block
    before.append(draw.choice([*choices, "".join(last)]))
    return before


def fill_in(text: str, value_of: Callable[[str, str], object]) -> str:
    """Replaces each `%NODE.INPUT%` by that value, made fit for a file name; what has none stays, as `%date:...%` does.

    value_of: the value of a node's input, by name or title of the node; None where there is none.
    """

    def replacement(match: re.Match[str]) -> str:
        node, dot, name = match[1].partition(".")
        value = value_of(node, name) if dot and "." not in name else None
        return match[0] if value is None else _NOT_IN_FILE_NAMES.sub("_", _as_page_writes(value))

    return _REFERENCE.sub(replacement, text)


def _as_page_writes(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
