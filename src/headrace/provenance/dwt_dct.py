"""The watermark of Black Forest Labs' command line, read: 46 fixed bits by invisible-watermark's method `dwtDct`.

Their code states the message as 48 binary digits and drops the two zeros before it. The bits sit, over and over, in 4x4
blocks of a Haar wavelet's low band of the chroma channel U: in the remainder of the block's largest value. Their code
gives the method fractions, for which OpenCV centres that channel at 0.5; other programs give it bytes, centred at 128.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

_MESSAGE = np.array([int(digit) for digit in f"{0b001010101111111010000111100111001111010100101110:b}"], dtype=np.bool_)
_STEP = 36.0
_BLOCK = 4
_CENTRES = 0.5, 128.0

MIN_AREA = 256 * 256
"""Pixels in the smallest picture that carries it."""

MAX_WRONG_BITS = 6
"""46 random bits are so near to the message with a chance of 1.6e-7."""


def carries_bfl_watermark(image: Image.Image) -> bool:
    """Whether the RGB picture carries the message; it outlives no resizing, cropping or strong compression."""
    if image.width * image.height < MIN_AREA:
        return False
    pixels = np.asarray(image, dtype=np.float64)
    chroma = 0.492 * (pixels[..., 2] - pixels @ (0.299, 0.587, 0.114))
    return any(_wrong_bits(chroma + centre) <= MAX_WRONG_BITS for centre in _CENTRES)


def _wrong_bits(chroma: NDArray[np.float64]) -> int:
    rows, columns = (side // 4 * 4 // 2 // _BLOCK for side in chroma.shape)
    side = 2 * _BLOCK
    blocks = chroma[: rows * side, : columns * side].reshape(rows, _BLOCK, 2, columns, _BLOCK, 2).sum(axis=(2, 5)) / 2
    values = np.abs(blocks.transpose(0, 2, 1, 3).reshape(-1, _BLOCK * _BLOCK)[:, 1:]).max(axis=1)
    ones = values % _STEP > _STEP / 2
    padded = np.pad(ones.astype(np.float64), (0, -len(ones) % len(_MESSAGE)), constant_values=math.nan)
    bits = np.nanmean(padded.reshape(-1, len(_MESSAGE)), axis=0) > 0.5
    return int((bits != _MESSAGE).sum())
