"""The colours a scene can name, and ``#RRGGBB`` notation for all others."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

RGB = tuple[int, int, int]

NAMED: dict[str, RGB] = {
    "red": (220, 40, 40),
    "orange": (255, 145, 25),
    "yellow": (255, 222, 60),
    "green": (50, 165, 75),
    "turquoise": (60, 205, 200),
    "blue": (45, 100, 225),
    "purple": (140, 65, 190),
    "pink": (255, 160, 200),
    "brown": (130, 85, 50),
    "black": (20, 20, 20),
    "grey": (140, 140, 140),
    "white": (255, 255, 255),
}


@dataclass(frozen=True)
class Color:
    """A colour and, where it is one of `NAMED`, its name; a colour without a name is called by its notation."""

    rgb: RGB
    name: str | None = None


def named(name: str) -> Color:
    """The colour called ``name``. Raises KeyError for a name that is not in `NAMED`."""
    return Color(NAMED[name], name)


def hex_notation(color: RGB) -> str:
    """``(46, 134, 222)`` -> ``"#2E86DE"``; each channel in 0..255."""
    red, green, blue = color
    return f"#{red:02X}{green:02X}{blue:02X}"


def distance(first: RGB, second: RGB) -> float:
    """The Euclidean distance in CIELAB (CIE 1976); about 2 is just visible, 100 is black against white."""
    return math.dist(lab(first), lab(second))


def lightness(color: RGB) -> float:
    """CIELAB's L*, from 0 for black to 100 for white."""
    return lab(color)[0]


@functools.lru_cache(maxsize=4096)
def lab(color: tuple[float, float, float]) -> tuple[float, float, float]:
    """sRGB, each channel in 0..255 and not necessarily whole, -> CIELAB under D65 (IEC 61966-2-1, CIE 15)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (channel / 255 for channel in color)]
    red, green, blue = linear
    x, y, z = (
        value ** (1 / 3) if value > 216 / 24389 else (24389 / 27 * value + 16) / 116
        for value in (
            (0.4124564 * red + 0.3575761 * green + 0.1804375 * blue) / 0.95047,
            0.2126729 * red + 0.7151522 * green + 0.0721750 * blue,
            (0.0193339 * red + 0.1191920 * green + 0.9503041 * blue) / 1.08883,
        )
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)
