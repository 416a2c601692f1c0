"""The colours a scene can name, and ``#RRGGBB`` notation for all others."""

from __future__ import annotations

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


def hex_notation(color: RGB) -> str:
    """``(46, 134, 222)`` -> ``"#2E86DE"``; each channel in 0..255."""
    red, green, blue = color
    return f"#{red:02X}{green:02X}{blue:02X}"
