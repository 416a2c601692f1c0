"""How visible the edge of a mask is in an edited picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from headrace.pipeline import Pipeline

Mask = NDArray[np.bool_]

PROMPTS = (
    "a cat left of a dog on a green background",
    "a red apple above a pear on a blue background",
    "a large rocket on a purple background",
    "a car right of a tree on a yellow background",
)
SEEDS = (1, 2)
NEAR = 4
"""What is beside an edge is at most so many pixels from it."""


@dataclass(frozen=True)
class Seam:
    """Steps between neighbouring pixels across the mask's edge, over those beside it: 1 where nothing shows.

    source: in the source picture itself. edited: in the results.
    """

    mask: str
    feather: int
    source: float
    edited: float


def measure_seams(pipeline: Pipeline, feathers: tuple[int, ...]) -> Iterator[Seam]:
    """Pictures of two prompts at once are made, and parts of them made anew with another seed, one row a mask."""
    size = pipeline.checkpoint.default_size
    made = [pipeline.generate(prompt, seed=seed) for prompt in PROMPTS for seed in SEEDS]
    sources = [picture.image for picture in made]
    for name, mask in masks(size).items():
        inside = np.asarray(mask) > 0
        before = float(np.mean([contrast(source, inside) for source in sources]))
        for feather in feathers:
            edited = [
                pipeline.generate(
                    picture.recipe.prompt,
                    image=picture.image,
                    mask=mask,
                    feather=feather,
                    seed=picture.recipe.seed + 1000,
                ).image
                for picture in made
            ]
            yield Seam(name, feather, before, float(np.mean([contrast(picture, inside) for picture in edited])))


def masks(size: tuple[int, int]) -> dict[str, Image.Image]:
    """The right half, along the edges of tokens; the same between them; a circle."""
    width, height = size
    drawn = {name: Image.new("L", size, 0) for name in ("along tokens", "between tokens", "circle")}
    half = width // 2 // 16 * 16
    drawn["along tokens"].paste(255, (half, 0, width, height))
    drawn["between tokens"].paste(255, (half - 8, 0, width, height))
    ImageDraw.Draw(drawn["circle"]).ellipse((width // 4, height // 4, width * 3 // 4, height * 3 // 4), fill=255)
    return drawn


def contrast(picture: Image.Image, inside: Mask) -> float:
    """The mean step between neighbours across the mask's edge, over the mean of those beside it."""
    pixels = np.asarray(picture, np.float32)
    across: list[NDArray[np.float32]] = []
    beside: list[NDArray[np.float32]] = []
    for axis in (0, 1):
        steps = np.abs(np.diff(pixels, axis=axis)).mean(axis=2)
        crossing = np.diff(inside, axis=axis)
        near = crossing.copy()
        for distance in range(1, NEAR + 1):
            ahead, behind = _moved(crossing, distance, axis), _moved(crossing, -distance, axis)
            near |= ahead | behind
        across.append(steps[crossing])
        beside.append(steps[near & ~crossing])
    return float(np.concatenate(across).mean() / max(np.concatenate(beside).mean(), 1e-6))


def _moved(flags: Mask, distance: int, axis: int) -> Mask:
    """The flags so many places further along the axis; what comes in from outside is not set."""
    result = np.roll(flags, distance, axis)
    edge: list[slice] = [slice(None), slice(None)]
    edge[axis] = slice(0, distance) if distance > 0 else slice(distance, None)
    result[tuple(edge)] = False
    return result
