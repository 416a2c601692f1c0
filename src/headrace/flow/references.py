"""Reference pictures: brought to a size the model takes, never enlarged, and encoded to tokens."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from headrace.errors import RequestError
from headrace.flow.conventions import FULL_AREA, MEGAPIXEL, Convention
from headrace.flow.latents import to_tokens
from headrace.nn.autoencoder import Autoencoder
from headrace.pictures import extended


def prepare_references(
    images: list[Image.Image], convention: Convention, multiple: int, fit: str = "crop", full: bool = False
) -> list[Image.Image]:
    """RGB pictures at the size the model sees: scaled down to the convention's area, sides brought to a `multiple`.

    fit: to the one below (crop), above (pad, repeating the outermost pixels) or nearest (stretch). full: one that is
    alone has the largest area whatever the convention. Raises RequestError where nothing would be left.
    """
    area = convention.single_reference_area if len(images) == 1 else MEGAPIXEL
    if full and len(images) == 1:
        area = FULL_AREA
    return [_prepare(image, area, multiple, fit, number) for number, image in enumerate(images, start=1)]


def _prepare(image: Image.Image, area: int, multiple: int, fit: str, number: int) -> Image.Image:
    if image.width * image.height > area:
        scale = math.sqrt(area / (image.width * image.height))
        size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    if fit == "pad":
        right, bottom = -image.width % multiple, -image.height % multiple
        return extended(image, right // 2, bottom // 2, right - right // 2, bottom - bottom // 2)
    if fit == "stretch":
        width, height = (max(1, round(side / multiple)) * multiple for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
    width, height = image.width // multiple * multiple, image.height // multiple * multiple
    if not (width and height):
        raise RequestError(
            f"Reference {number} would be used at {image.width}x{image.height} pixels; both sides must have at least "
            f"{multiple}, so choose a larger or less narrow picture."
        )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def mask_to_tokens(mask: Image.Image, token_size: int) -> Tensor:
    """Grey mask, sides multiples of `token_size` -> (1, h * w, 1): 1 for the tokens any of whose pixels are lit."""
    lit = torch.from_numpy(np.array(mask)).float()[None, None] / 255
    return to_tokens(F.max_pool2d(lit, token_size))


def image_to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> (1, 3, H, W) in [-1, 1], float32."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)
    return (pixels / 255 * 2 - 1).unsqueeze(0)


def tensor_to_image(decoded: Tensor, rounds: bool) -> Image.Image:
    """(1, 3, H, W), about [-1, 1] -> RGB picture: values beyond are clamped, then rounded or cut off to 256 levels."""
    values = (decoded[0].float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0) * 255
    values = values.round() if rounds else values
    return Image.fromarray(values.to(torch.uint8).cpu().numpy())


def encode_picture(image: Image.Image, autoencoder: Autoencoder) -> Tensor:
    """RGB picture, sides multiples of 16 -> its tokens (1, h * w, C) in the autoencoder's precision."""
    weight = autoencoder.encoder.conv_in.weight
    return to_tokens(autoencoder.encode(image_to_tensor(image).to(weight.device, weight.dtype)))
