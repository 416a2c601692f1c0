"""An invisible watermark that outlives metadata: 64 bits in the pixels of the whole picture.

RivaGAN's networks see the picture at two fixed sizes, whatever its own: scaled to the area of 192x192 for the first 32
bits, and to that of 128x128 with rows and columns exchanged for the others, so that neither disturbs the other. What is
to be added is scaled up to the picture. A picture that was resized therefore reads as it did before; for one that was
cut or bordered the detector tries a ladder of scales.

The networks were trained on films. In drawings and flat colours their encoder leaves a quarter to a half of the bits
wrong; what it would add is therefore corrected, a few times, along the decoder's own gradient, until every bit is clear
in the whole picture and in parts of it. Photographs hardly need that.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headrace.errors import RequestError
from headrace.provenance import payload

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MIN_AREA = 128 * 128
"""Pixels in the smallest picture that is marked."""

MIN_READ_AREA = 64 * 64
"""Pixels in the smallest picture in which one is looked for: what may be left of one that was marked."""

MAX_RATIO = 8
"""Of the longer side to the shorter one."""

# Sides of the squares in whose area the networks work. The time goes with that area, not with the picture's.
_FIRST_SIDE, _SECOND_SIDE = 192, 128

# How strong each word's residual is, as the root of its mean square, of -1 to 1: together 40.5 dB.
_ROOT_MEAN_SQUARE = 2 * 10 ** (-43.5 / 20)
# No pixel is changed by more than so many times that.
_PEAK = 8.0

# Corrections: how many at most, how large each is against the residual, and the evidence that is enough for a bit.
_CORRECTIONS, _RATE, _ENOUGH = 8, 0.3, 3.0
# Parts of the picture in which bits are to be clear too: their left, top, right and bottom, in eighths.
_PARTS = ((0, 0, 8, 8), (0, 0, 6, 6), (2, 0, 8, 6), (0, 2, 6, 8), (2, 2, 8, 8), (1, 1, 7, 7))

LADDER = (1.0, 0.93, 0.87, 0.81, 0.76, 0.71, 0.66, 1.08)
"""What is left of a picture's side, of which the detector sees a part; above 1 where a border was added."""


@dataclass(frozen=True)
class Watermark:
    """What was read: the identifier, how many of the 64 bits were wrong, and at which rung of the ladder."""

    identifier: int
    wrong_bits: int
    scale: float


def weights_file(network: str) -> Path:
    """The "encoder" or "decoder" of RivaGAN. Raises RequestError where the package is not installed."""
    package = importlib.util.find_spec("imwatermark")
    folders = map(Path, (package.submodule_search_locations or ()) if package else ())
    files = [path for path in (folder / f"rivagan_{network}.onnx" for folder in folders) if path.is_file()]
    if not files:
        raise RequestError("Watermarks need one more package: pip install 'headrace[provenance]'.")
    return files[0]


def check_markable(width: int, height: int, smallest: int = MIN_AREA) -> None:
    """Raises RequestError where a picture of this size cannot carry a watermark; smallest: how many pixels it needs."""
    if width * height < smallest:
        side = math.isqrt(smallest)
        raise RequestError(
            f"A picture of {width}x{height} is too small for a watermark; it needs as many pixels as {side}x{side} has."
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise RequestError(
            f"A picture of {width}x{height} is too narrow for a watermark; one side may be {MAX_RATIO} times the other."
        )


def embed_watermark(image: Image.Image, identifier: int) -> Image.Image:
    """The RGB picture with an identifier of 0 to 65,535 in its pixels.

    Raises RequestError where it is too small, or the extra `provenance` is not installed.
    """
    from PIL import Image

    check_markable(*image.size)
    bits = payload.encode(identifier)
    pixels, marked = np.asarray(image, dtype=np.float32), image
    added = np.zeros_like(pixels)
    for word in range(2):
        size = image.size if word else (image.height, image.width)
        residual = _residual(_view(marked, 1.0, word), bits[word * 32 : word * 32 + 32], size)
        added += _scaled(residual.transpose(1, 0, 2) if word else residual, image.size)
        marked = Image.fromarray((pixels + added).round().clip(0, 255).astype(np.uint8))
    return marked


def read_watermark(image: Image.Image, ladder: Sequence[float] = LADDER) -> Watermark | None:
    """What the RGB picture carries, or None.

    Of pictures without a watermark about one in 400,000 is thought to have one: that is the chance of random bits, over
    all scales. Raises RequestError where the picture is too small to tell, or the extra `provenance` is not installed.
    """
    check_markable(*image.size, MIN_READ_AREA)
    for scale in ladder:
        identifier, wrong_bits = payload.decode(read_word(image, scale))
        if wrong_bits <= payload.MAX_WRONG_BITS:
            return Watermark(identifier, wrong_bits, scale)
    return None


def read_word(image: Image.Image, scale: float) -> NDArray[np.bool_]:
    """(64,) the bits that the networks see, taking the RGB picture's sides for `scale` times what they were."""
    import torch

    from headrace.provenance.rivagan import evidence

    with torch.inference_mode():
        words = [evidence(_view(image, scale, word)).mean(dim=(2, 3))[0] > 0 for word in range(2)]
    return np.asarray(torch.cat(words).numpy(), dtype=np.bool_)


def _residual(frame: Tensor, bits: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.float32]:
    """What is to be added to (1, 3, rows, columns), as (rows, columns, 3) of 0 to 255; size: the picture's own."""
    import torch
    import torch.nn.functional as F

    from headrace.provenance import rivagan

    signs = torch.from_numpy(np.where(bits, np.float32(1), np.float32(-1)))
    with torch.inference_mode():
        residual = _limited(rivagan.residual(frame, signs))
    with torch.inference_mode(mode=False), torch.enable_grad():
        frame, residual, signs = frame.clone(), residual.clone(), signs.clone()
        for _ in range(_CORRECTIONS):
            residual = residual.detach().requires_grad_()
            margins = signs * _means(rivagan.evidence((frame + _carried(residual, size)).clamp(-1, 1)))
            if bool((margins[0] > _ENOUGH).all() and (margins > 0).all()):
                break
            (gradient,) = torch.autograd.grad(F.softplus((_ENOUGH - margins) / 2).sum(), residual)
            step = gradient * (_RATE * _ROOT_MEAN_SQUARE / gradient.square().mean().sqrt().clamp(min=1e-30))
            residual = _limited(residual.detach() - step)
    return np.ascontiguousarray(residual.detach()[0].permute(1, 2, 0).numpy() * np.float32(127.5))


def _means(evidence: Tensor) -> Tensor:
    """(1, 32, rows, columns) -> (parts, 32)."""
    import torch

    rows, columns = evidence.shape[2:]
    parts = [
        evidence[..., rows * top // 8 : rows * bottom // 8, columns * left // 8 : columns * right // 8]
        for left, top, right, bottom in _PARTS
    ]
    return torch.cat([part.mean(dim=(2, 3)) for part in parts])


def _limited(residual: Tensor) -> Tensor:
    """At the strength that a residual has, no pixel of it much above."""
    scaled = residual * (_ROOT_MEAN_SQUARE / residual.square().mean().sqrt())
    return scaled.clamp(-_PEAK * _ROOT_MEAN_SQUARE, _PEAK * _ROOT_MEAN_SQUARE)


def _carried(residual: Tensor, size: tuple[int, int]) -> Tensor:
    """What is left of a residual after a picture of (rows, columns) carried it, where that is the smaller one."""
    import torch.nn.functional as F

    own = residual.shape[2], residual.shape[3]
    if size[0] >= own[0] and size[1] >= own[1]:
        return residual
    small = F.interpolate(residual, size=size, mode="bicubic", antialias=True)
    return F.interpolate(small, size=own, mode="bicubic")


def _view(image: Image.Image, scale: float, word: int) -> Tensor:
    """What the networks see for a word: (1, 3, rows, columns) or, for the second, (1, 3, columns, rows), -1 to 1."""
    import torch
    from PIL import Image

    factor = scale * (_SECOND_SIDE if word else _FIRST_SIDE) / math.sqrt(image.width * image.height)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS), dtype=np.float32) / np.float32(127.5)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose((2, 1, 0) if word else (2, 0, 1))) - 1)[None]


def _scaled(residual: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """(rows, columns, 3) at another size."""
    from PIL import Image

    channels = (Image.fromarray(np.ascontiguousarray(residual[..., channel])) for channel in range(3))
    return np.stack([np.asarray(channel.resize(size, Image.Resampling.BICUBIC)) for channel in channels], axis=-1)
