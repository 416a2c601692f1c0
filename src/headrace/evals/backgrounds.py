"""What is behind everything, read from the pixels of a picture: kind, colours, direction and width of its bands."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from headrace.evals.colors import difference
from headrace.world.draw import Pixels
from headrace.world.scene import Background

Floats = npt.NDArray[np.float32]

COARSE = 64
"""Shorter side of the picture in which patterns are looked for, in pixels."""

MARGIN = 0.045
"""Share of the shorter side that is free of things and words along the edges of a picture."""

OFF = 40.0
"""An RGB distance from which on a pixel is taken to show something else than the background."""

BETTER = 0.85
"""Another kind than plain is believed if it leaves at most this share of the error."""

VISIBLE = 10.0
"""Two colours nearer than this (CIEDE2000) are no pattern."""

_DIRECTIONS = ("across", "down", "diagonal")


@dataclass(frozen=True)
class Backdrop:
    """A background as it was read.

    kind, direction, band: as of `headrace.world.scene.Background`, but the band need not be whole. colors: RGB in
    0..255. pixels: the background alone, (height, width, 3).
    """

    kind: str
    colors: tuple[Floats, ...]
    direction: str
    band: float
    pixels: Floats


@dataclass(frozen=True)
class _Pattern:
    """Stripes or checks; lengths as shares of the shorter side."""

    kind: str
    direction: str
    band: float
    phase: tuple[float, float]


def read_background(pixels: Pixels | Floats) -> Backdrop:
    """The background of a picture (height, width, 3), told from its margin first and then from all of it."""
    full = np.asarray(pixels, np.float32)
    coarse = shrink(full, COARSE / min(full.shape[:2]))
    ring = _ring(*coarse.shape[:2])
    weights = np.where(ring, 1.0, 0.15).astype(np.float32)

    def error(guess: Floats) -> float:
        squares = np.minimum(np.square(coarse - guess).sum(-1), OFF**2)
        return float((weights * squares).sum() / weights.sum())

    color = np.median(coarse[ring], axis=0)
    least = error(np.broadcast_to(color, coarse.shape)) * BETTER
    best: tuple[str, str] | _Pattern = ("plain", "")
    ends: tuple[Floats, ...] = (color,)
    for direction in _DIRECTIONS:
        first, second = _line(coarse, _course(direction, *coarse.shape[:2]), ring)
        share = _course(direction, *coarse.shape[:2])[..., None]
        if (left := error(first + (second - first) * share)) < least and difference(first, second) > VISIBLE:
            least, best, ends = left, ("gradient", direction), (first, second)
    first, second = _two_colors(coarse[ring])
    if difference(first, second) > VISIBLE:
        pattern, swapped = _likeliest(coarse, first, second)
        if swapped:
            first, second = second, first
        share = _share(pattern, *coarse.shape[:2])[..., None]
        if error(first + (second - first) * share) < least:
            best, ends = pattern, (first, second)

    if isinstance(best, _Pattern):
        return _finished(full, best, *ends)
    kind, direction = best
    ring = _ring(*full.shape[:2])
    if kind == "plain":
        color = _center(full[ring], ends[0])
        return Backdrop(kind, (color,), "", 0, np.broadcast_to(color, full.shape))
    course = _course(direction, *full.shape[:2])
    first, second = _line(full, course, ring)
    return Backdrop(kind, (first, second), direction, 0, first + (second - first) * course[..., None])


def background_faults(read: Backdrop, asked: Background, tolerance: float) -> list[str]:
    """What of the background is not as asked for; colours may differ by ``tolerance`` (CIEDE2000)."""
    if (read.kind, read.direction) != (asked.kind, asked.direction):
        return [f"background is {_called(read.kind, read.direction)}, not {_called(asked.kind, asked.direction)}"]
    wanted = [np.array(color.rgb, np.float32) for color in asked.colors]
    # Nobody says where stripes and checks begin.
    orders = [read.colors] if asked.kind in ("plain", "gradient") else [read.colors, read.colors[::-1]]
    off = min(max(map(difference, order, wanted)) for order in orders)
    return [f"background colour is off by ΔE {off:.1f}"] if off > tolerance else []


def shrink(picture: Floats, scale: float) -> Floats:
    """The picture (height, width, channels) at ``scale``, each pixel the mean of what it covers."""
    height, width = picture.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size == (width, height):
        return picture
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    channels = [np.asarray(Image.fromarray(channel).resize(size, how)) for channel in np.moveaxis(picture, -1, 0)]
    return np.stack(channels, axis=-1)


def fast_length(length: int) -> int:
    """The next length whose only prime factors are 2, 3 and 5: Fourier transforms are fast for those."""
    while 2**20 * 3**12 * 5**8 % length:
        length += 1
    return length


def _called(kind: str, direction: str) -> str:
    return f"{kind} {direction}".strip()


def _ring(height: int, width: int) -> npt.NDArray[np.bool_]:
    margin = max(2, round(MARGIN * min(height, width)))
    ring = np.ones((height, width), bool)
    ring[margin:-margin, margin:-margin] = False
    return ring


def _course(direction: str, height: int, width: int) -> Floats:
    """How far along a gradient each pixel is, 0 to 1."""
    x = np.linspace(0, width - 1, width, dtype=np.float32)[None, :]
    y = np.linspace(0, height - 1, height, dtype=np.float32)[:, None]
    along_x, along_y = {"across": (1, 0), "down": (0, 1), "diagonal": (1, 1)}[direction]
    course = (along_x * x + along_y * y) / (along_x * (width - 1) + along_y * (height - 1))
    return np.broadcast_to(course, (height, width)).astype(np.float32)


def _line(picture: Floats, course: Floats, ring: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """The colours at both ends of the gradient that the ring's pixels lie on, whatever a few of them show."""
    along, seen = course[ring], picture[ring]
    weights = np.ones(len(along), np.float32)
    first = second = seen[0]
    for _ in range(5):
        basis = np.stack((1 - along, along), axis=1)
        weighted = basis * weights[:, None]
        solved = np.linalg.solve(weighted.T @ basis + 1e-3 * np.eye(2), weighted.T @ seen).astype(np.float32)
        first, second = solved
        distance = np.linalg.norm(seen - basis @ solved, axis=1)
        weights = (1 / (1 + np.square(distance / 8))).astype(np.float32)
    return first, second


def _center(seen: Floats, near: Floats) -> Floats:
    """The colour that most of the pixels are about, beginning with a guess."""
    for _ in range(3):
        kept = seen[np.linalg.norm(seen - near, axis=1) < OFF]
        if not len(kept):
            break
        near = np.median(kept, axis=0)
    return np.asarray(near, np.float32)


def _two_colors(seen: Floats) -> tuple[Floats, Floats]:
    """The two colours that the pixels are about."""
    middle = seen.mean(axis=0)
    _, _, axes = np.linalg.svd(seen - middle, full_matrices=False)
    along = (seen - middle) @ axes[0]
    low, high = seen[np.argsort(along)[[len(along) // 10, -len(along) // 10]]]
    for _ in range(6):
        nearer_high = np.linalg.norm(seen - high, axis=1) < np.linalg.norm(seen - low, axis=1)
        if nearer_high.all() or not nearer_high.any():
            break
        low, high = np.median(seen[~nearer_high], axis=0), np.median(seen[nearer_high], axis=0)
    return low, high


def _likeliest(coarse: Floats, first: Floats, second: Floats) -> tuple[_Pattern, bool]:
    """The pattern of two colours that agrees best with the pixels, and whether the colours have to be exchanged."""
    line = second - first
    share = np.clip((coarse - first) @ line / (line @ line), 0, 1)
    off = np.linalg.norm(coarse - first - share[..., None] * line, axis=-1)
    sure = (2 * share - 1) * np.exp(-np.square(off / 30) / 2)
    patterns, signs = _bank(*coarse.shape[:2])
    agreement = signs @ sure.ravel().astype(np.float32)
    best = int(np.abs(agreement).argmax())
    return patterns[best], bool(agreement[best] < 0)


@functools.lru_cache(maxsize=4)
def _bank(height: int, width: int) -> tuple[list[_Pattern], Floats]:
    """Patterns of all widths and phases, and what they look like: -1 for the first colour, 1 for the second."""
    patterns = []
    for band in np.geomspace(0.075, 0.25, 22):
        phases = [band * step / 4 for step in range(4)]
        for direction in _DIRECTIONS:
            patterns += [_Pattern("striped", direction, band, (phase, 0)) for phase in phases]
        patterns += [_Pattern("checked", "", band, pair) for pair in itertools.product(phases, phases)]
    looks = [2 * _share(pattern, height, width) - 1 for pattern in patterns]
    return patterns, np.stack(looks).reshape(len(looks), -1)


def _finished(full: Floats, pattern: _Pattern, first: Floats, second: Floats) -> Backdrop:
    """The pattern found in the coarse picture, fitted to all pixels."""
    height, width = full.shape[:2]

    def error(tried: _Pattern, seen: Floats) -> float:
        guess = first + (second - first) * _share(tried, height, width)[..., None]
        return float(np.minimum(np.square(seen - guess).sum(-1), OFF**2).sum())

    step = 0.25 * pattern.band
    for _ in range(5):
        moves = itertools.product(
            (-0.3 * step, 0, 0.3 * step), (-step, 0, step), (-step, 0, step) if pattern.kind == "checked" else (0,)
        )
        tried = [
            _Pattern(
                pattern.kind, pattern.direction, pattern.band + wider, (pattern.phase[0] + x, pattern.phase[1] + y)
            )
            for wider, x, y in moves
        ]
        pattern = min(tried, key=lambda one: error(one, full))
        step /= 2
    # Colours come from the middles of bands, where nothing of the other colour has run in.
    share, inner = _share(pattern, height, width), _share(pattern, height, width, inset=2)
    ring = _ring(height, width)
    ends = []
    for inside, color in ((inner < 0.01, first), (inner > 0.99, second)):
        seen = full[inside & ring]
        ends.append(_center(seen if len(seen) > 40 else full[inside], color))
    first, second = ends
    return Backdrop(
        pattern.kind,
        (first, second),
        pattern.direction,
        pattern.band * min(height, width),
        first + (second - first) * share[..., None],
    )


def _share(pattern: _Pattern, height: int, width: int, inset: float = 0) -> Floats:
    """How much of the second colour each pixel has, (height, width).

    inset: so many pixels on either side of an edge belong to neither colour, and have 0.5.
    """
    unit = min(height, width)
    band = pattern.band * unit
    x = (np.arange(width, dtype=np.float32) + 0.5 - pattern.phase[0] * unit)[None, :]
    y = (np.arange(height, dtype=np.float32) + 0.5)[:, None]

    def inside(along: npt.NDArray[np.floating]) -> Floats:
        """Pixels to the nearest edge, positive in bands of the second colour."""
        turned = (along / band + 0.5) % 2 - 1
        return np.asarray(band * (np.abs(turned) - 0.5), np.float32)

    if pattern.kind == "checked":
        across, down = inside(x), inside(y - pattern.phase[1] * unit)
        depth = np.minimum(np.abs(across), np.abs(down)) * np.sign(-across * down)
    elif pattern.direction == "across":
        depth = inside(x)
    elif pattern.direction == "down":
        depth = inside(y - pattern.phase[0] * unit)
    else:
        depth = inside((x + y - 1 / 2) / math.sqrt(2))
    depth = np.sign(depth) * np.maximum(np.abs(depth) - inset, 0) if inset else depth
    return np.broadcast_to(np.clip(depth + 0.5, 0, 1), (height, width)).astype(np.float32)
