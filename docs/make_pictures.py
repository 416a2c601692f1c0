"""Makes the pictures of docs/editing.md and docs/pose.md, by sprite: `python docs/make_pictures.py`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

import headrace
from headrace import pose

IMAGES = Path(__file__).parent / "images"
GAP = 8


def sheet(pictures: list[Image.Image], path: Path) -> None:
    """The pictures in a row, at twice their size."""
    width = sum(picture.width for picture in pictures) + GAP * (len(pictures) - 1)
    row = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + GAP
    row.resize((2 * row.width, 2 * row.height), Image.Resampling.LANCZOS).save(path, quality=85, method=6)


def editing() -> None:
    """A source, inpainted, outpainted and redrawn."""
    pipe = headrace.load("sprite")
    source = pipe.generate("a cat left of a dog on a green background", seed=3).image
    mask = Image.new("L", source.size)
    mask.paste(255, (64, 0, 128, 128))
    apple = "a cat left of a red apple on a green background"
    made = [
        pipe.generate(apple, image=source, mask=mask, seed=3),
        pipe.generate("a cat left of a dog on a green background", image=source, outpaint=(32, 0, 32, 0), seed=3),
        *(pipe.generate(apple, image=source, strength=strength, seed=3) for strength in (0.5, 0.8)),
    ]
    sheet([source, *(picture.image for picture in made)], IMAGES / "editing.webp")


def poses() -> None:
    """The two people that the tests draw."""
    people = pose.open_poses(Path(__file__).parents[1] / "tests" / "data" / "pose" / "people.json")
    pose.draw_poses(people).save(IMAGES / "pose.webp", quality=85, method=6)


if __name__ == "__main__":
    editing()
    poses()
