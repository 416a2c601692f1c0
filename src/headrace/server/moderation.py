"""What is not to be made: a look at the prompt before, and at the picture after; a word list, and a place for more."""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from headrace.errors import RequestError
from headrace.pictures import read_file

if TYPE_CHECKING:
    from PIL import Image

MAX_LIST_BYTES = 4 * 2**20


class Policy(Protocol):
    """Both return reasons why not, none where all is well. tolerance: 0 (strict) to 5, as the request has it."""

    def prompt(self, text: str, tolerance: int) -> Sequence[str]: ...

    def picture(self, image: Image.Image, tolerance: int) -> Sequence[str]: ...


class Blocklist:
    """Words that a prompt may not have. entries: (words, up to which tolerance they count)."""

    def __init__(self, entries: Sequence[tuple[str, int]]) -> None:
        self._entries = [
            (re.compile(rf"(?<!\w){re.escape(_folded(words))}(?!\w)"), tolerance) for words, tolerance in entries
        ]

    def prompt(self, text: str, tolerance: int) -> Sequence[str]:
        folded = _folded(text)
        found = any(most >= tolerance and pattern.search(folded) for pattern, most in self._entries)
        return ["Blocklist"] if found else []

    def picture(self, image: Image.Image, tolerance: int) -> Sequence[str]:
        return []


def read_blocklist(path: Path) -> Blocklist:
    """A list of words or phrases, one a line; `#` begins a comment.

    `WORDS | N` lets requests with a safety_tolerance of more than N pass. Raises RequestError.
    """
    try:
        lines = read_file(path, "blocklist", MAX_LIST_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise RequestError(f"The blocklist {path} is not UTF-8 text.") from error
    entries = []
    for number, line in enumerate(lines, 1):
        words, _, most = line.partition("#")[0].partition("|")
        if not words.strip():
            continue
        if most.strip() and not re.fullmatch(r"[0-5]", most.strip()):
            raise RequestError(f"Line {number} of the blocklist {path} is not WORDS or WORDS | TOLERANCE (0 to 5).")
        entries.append((words.strip(), int(most) if most.strip() else 5))
    return Blocklist(entries)


def load_policies(blocklist: Path | None, policy: str | None) -> list[Policy]:
    """What a server was told to look at. policy: "module:name" of a Policy. Raises RequestError."""
    policies: list[Policy] = [] if blocklist is None else [read_blocklist(blocklist)]
    if policy is not None:
        module, _, name = policy.partition(":")
        try:
            policies.append(getattr(importlib.import_module(module), name))
        except (ImportError, AttributeError, ValueError) as error:
            raise RequestError(f"The policy {policy} is not MODULE:NAME of something that can be imported.") from error
    return policies


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
