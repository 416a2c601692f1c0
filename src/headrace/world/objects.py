"""The objects of the drawn world: their names and their pictures.

The pictures are one shipped atlas, made once from Noto Color Emoji by ``build_assets.py``; drawing needs no font.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources

from PIL import Image

CELL = 128
"""Side in pixels of an object's square cell in the atlas; the object touches the cell's edge on its longer axis."""


@dataclass(frozen=True)
class ObjectKind:
    """One nameable object. ``color`` is the adjective people would use for it, or None where none is obvious."""

    name: str
    color: str | None


@functools.cache
def kinds() -> tuple[ObjectKind, ...]:
    """All objects, in the order of the atlas."""
    listing = json.loads(_asset("objects.json").read_text(encoding="utf-8"))
    return tuple(ObjectKind(entry["name"], entry["color"]) for entry in listing["objects"])


def kind(name: str) -> ObjectKind:
    """The object called ``name``. Raises KeyError for a name that is not in the atlas."""
    return kinds()[_cells()[name]]


@functools.cache
def picture(name: str) -> Image.Image:
    """The object's RGBA picture, ``CELL`` x ``CELL``, transparent around it. Raises KeyError for an unknown name."""
    column, row = _cells()[name] % _columns(), _cells()[name] // _columns()
    return _atlas().crop((column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL))


@functools.cache
def _cells() -> dict[str, int]:
    return {entry.name: index for index, entry in enumerate(kinds())}


@functools.cache
def _atlas() -> Image.Image:
    with _asset("objects.webp").open("rb") as file:
        return Image.open(file).convert("RGBA")


def _columns() -> int:
    return _atlas().width // CELL


def _asset(name: str) -> resources.abc.Traversable:
    return resources.files("headrace.world") / "assets" / name
