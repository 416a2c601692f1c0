"""Pictures for the language model: how they are brought to its size and values, and which tokens stand for them."""

from __future__ import annotations

import math

import numpy
import torch
from PIL import Image
from torch import Tensor

from headrace.nn.config import VisionConfig

# CLIP's statistics of colours, by which Pixtral's pictures are normed (transformers, image_processing_pil_pixtral.py).
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)

# A picture's tokens, the end of each of its rows, and its own end (Pixtral 12B, arXiv:2410.07073).
PICTURE, ROW_END, PICTURE_END = "[IMG]", "[IMG_BREAK]", "[IMG_END]"


def vision_size(width: int, height: int, config: VisionConfig) -> tuple[int, int]:
    """The width and height at which the language model sees a picture: multiples of a token's side, rounded up.

    A picture whose longest side is more than `config.image_size` is made smaller, as transformers does.
    """
    ratio = max(width, height) / config.image_size
    if ratio > 1:
        width, height = math.floor(width / ratio), math.floor(height / ratio)
    side = config.token_size
    return -(-max(width, 1) // side) * side, -(-max(height, 1) // side) * side


def prepare_picture(image: Image.Image, config: VisionConfig) -> Tensor:
    """An RGB picture as what the vision tower reads: (3, H, W) in float32, equal to transformers' PIL processor."""
    resized = image.resize(vision_size(*image.size, config), Image.Resampling.BICUBIC)
    values = (numpy.asarray(resized).astype(numpy.float64) * (1 / 255)).astype(numpy.float32)
    normed = (values - numpy.array(MEAN, numpy.float32)) / numpy.array(DEVIATION, numpy.float32)
    return torch.from_numpy(normed).movedim(-1, 0).contiguous()


def picture_text(width: int, height: int, config: VisionConfig) -> str:
    """The tokens that stand for a picture of this size, before it is prepared, as text."""
    wide, high = (side // config.token_size for side in vision_size(width, height, config))
    rows = [PICTURE * wide + ROW_END] * high
    return "".join(rows).removesuffix(ROW_END) + PICTURE_END
