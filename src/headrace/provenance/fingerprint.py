"""ISCC Content-Code Image (ISO 24138:2024): 64 bits that stay nearly the same while a picture looks the same.

Thirty lines here rather than the package iscc-core, which brings a dozen others along; the tests hold its vectors.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import numpy as np

from headrace.errors import RequestError

if TYPE_CHECKING:
    from PIL import Image

BITS = 64

_SIDE, _KEPT = 32, 8
# Of the code's text: main type content, subtype image, version 0, 64 bits; four bits each.
_HEADER = bytes([0x21, 0x01])
_PREFIX = "ISCC:"


def fingerprint(image: Image.Image) -> int:
    """The 64 bits of an RGB picture as a number, the first bit the highest."""
    from PIL import Image

    grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    return hash_pixels(np.asarray(grey).ravel().tolist())


def hash_pixels(pixels: list[int]) -> int:
    """The same of 32x32 grey pixels, row by row: whether each low coefficient of their DCT is above the median."""
    index = np.arange(_SIDE)
    cosines = np.cos(np.pi * np.outer(index[:_KEPT], index + 0.5) / _SIDE)
    # Rounded, because what should be zero would otherwise be above or below it by chance.
    coefficients = (cosines @ np.array(pixels, dtype=np.float64).reshape(_SIDE, _SIDE) @ cosines.T).ravel().round(6)
    return int.from_bytes(np.packbits(coefficients > np.median(coefficients)).tobytes(), "big")


def to_iscc(value: int) -> str:
    """64 bits -> `ISCC:EEA...`."""
    return _PREFIX + base64.b32encode(_HEADER + value.to_bytes(BITS // 8, "big")).decode().rstrip("=")


def from_iscc(text: str) -> int:
    """`ISCC:EEA...` -> 64 bits. Raises RequestError for any other code."""
    code = text.removeprefix(_PREFIX).upper()
    try:
        data = base64.b32decode(code + "=" * (-len(code) % 8))
    except ValueError as error:
        raise RequestError(f"{text!r} is no ISCC code.") from error
    if not data.startswith(_HEADER) or len(data) != len(_HEADER) + BITS // 8:
        raise RequestError(f"{text!r} is no ISCC content code of a picture with 64 bits.")
    return int.from_bytes(data[len(_HEADER) :], "big")
