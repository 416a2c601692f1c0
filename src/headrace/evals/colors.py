"""Colour differences as people see them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from headrace.world.colors import lab

RGB = tuple[float, float, float]
Lab = tuple[float, float, float]


def difference(first: RGB | npt.NDArray[np.float32], second: RGB | npt.NDArray[np.float32]) -> float:
    """CIEDE2000 of two sRGB colours, each channel in 0..255: 1 is just visible, 100 is black against white."""
    return ciede2000(*(lab(_clipped(color)) for color in (first, second)))


def _clipped(color: RGB | npt.NDArray[np.float32]) -> RGB:
    red, green, blue = np.clip(np.asarray(color, np.float64), 0, 255).tolist()
    return red, green, blue


def ciede2000(first: Lab, second: Lab) -> float:
    """The CIEDE2000 colour difference with unit weights.

    CIE 142-2001, written after the implementation notes of Sharma, Wu and Dalal, Color Research and Application 30(1),
    2005, whose test pairs it is checked against.
    """
    (l1, a1, b1), (l2, a2, b2) = first, second
    mean_chroma = (math.hypot(a1, b1) + math.hypot(a2, b2)) / 2
    # Near the grey axis a* counts for more.
    stretch = 1 + 0.5 * (1 - _saturation(mean_chroma))
    c1, c2 = math.hypot(stretch * a1, b1), math.hypot(stretch * a2, b2)
    h1, h2 = (math.degrees(math.atan2(b, stretch * a)) % 360 for a, b in ((a1, b1), (a2, b2)))

    grey = c1 * c2 == 0
    turn = 0.0 if grey else (h2 - h1 + 180) % 360 - 180
    if not grey and h2 - h1 == 180:
        turn = 180.0
    d_lightness, d_chroma = l2 - l1, c2 - c1
    d_hue = 2 * math.sqrt(c1 * c2) * math.sin(math.radians(turn) / 2)

    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    if grey:
        hue = h1 + h2
    elif abs(h1 - h2) <= 180:
        hue = (h1 + h2) / 2
    else:
        hue = (h1 + h2 + (360 if h1 + h2 < 360 else -360)) / 2
    weight = (
        1
        - 0.17 * math.cos(math.radians(hue - 30))
        + 0.24 * math.cos(math.radians(2 * hue))
        + 0.32 * math.cos(math.radians(3 * hue + 6))
        - 0.20 * math.cos(math.radians(4 * hue - 63))
    )
    s_lightness = 1 + 0.015 * (lightness - 50) ** 2 / math.sqrt(20 + (lightness - 50) ** 2)
    s_chroma, s_hue = 1 + 0.045 * chroma, 1 + 0.015 * chroma * weight
    rotation = -2 * _saturation(chroma) * math.sin(math.radians(60 * math.exp(-(((hue - 275) / 25) ** 2))))
    by_lightness, by_chroma, by_hue = d_lightness / s_lightness, d_chroma / s_chroma, d_hue / s_hue
    return math.sqrt(by_lightness**2 + by_chroma**2 + by_hue**2 + rotation * by_chroma * by_hue)


def _saturation(chroma: float) -> float:
    return math.sqrt(chroma**7 / (chroma**7 + 25.0**7))
