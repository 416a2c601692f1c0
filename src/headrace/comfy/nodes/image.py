"""Pictures: read, scaled, measured, joined. A picture is (B, H, W, 3) in 0..1, a mask (B, H, W)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, ImageSequence
from torch import Tensor

from headrace.comfy.session import Function, Session
from headrace.errors import RequestError
from headrace.pictures import MAX_FILE_BYTES, MAX_PIXELS, open_bounded, open_picture, read_file

# What a picture without transparency has for a mask.
EMPTY_MASK = (64, 64)
CHANNELS = {"red": 0, "green": 1, "blue": 2}

# Sizes that FLUX.1 Kontext was trained with, which some workflows bring references to (width, height).
KONTEXT_SIZES = (
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104),
    (1024, 1024), (1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752), (1456, 720), (1504, 688),
    (1568, 672),
)  # fmt: skip


def load_image(session: Session, image: str) -> tuple[Tensor, Tensor]:
    """A picture of the input folder and 1 minus its alpha; of an animation, all frames of the first one's size.

    Raises RequestError for what is no picture, or has more than 64 million pixels in all.
    """
    path = session.input_file(image)
    opened = open_bounded(read_file(path, "picture", MAX_FILE_BYTES), f"picture {path}")
    if opened.mode.startswith(("I", "F")):
        pixels = _tensor(open_picture(path, kind="picture"))
        return pixels, torch.zeros(1, *EMPTY_MASK)
    images: list[Tensor] = []
    masks: list[Tensor] = []
    try:
        for frame in ImageSequence.Iterator(opened):
            upright = ImageOps.exif_transpose(frame)
            if images and (upright.height, upright.width) != images[0].shape[1:3]:
                continue
            if (len(images) + 1) * upright.width * upright.height > MAX_PIXELS:
                raise RequestError(f"The picture {path} has more than {MAX_PIXELS // 10**6} million pixels in all.")
            images.append(_tensor(upright.convert("RGB")))
            masks.append(_mask(upright))
    except RequestError:
        raise
    except Exception as error:  # a hostile file can make a decoder raise nearly anything
        raise RequestError(f"The picture {path} is a damaged or cut-off {opened.format} file.") from error
    return torch.cat(images), torch.cat(masks)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float32) / 255)[None]


def _mask(image: Image.Image) -> Tensor:
    if not image.has_transparency_data:
        return torch.zeros(1, *EMPTY_MASK)
    return 1 - torch.from_numpy(np.array(image.convert("RGBA").getchannel("A"), dtype=np.float32) / 255)[None]


def load_image_mask(session: Session, image: str, channel: str) -> tuple[Tensor]:
    """One channel of a picture as a mask."""
    pixels, mask = load_image(session, image)
    return (mask if channel == "alpha" else pixels[..., CHANNELS[channel]].clone(),)


def image_scale(image: Tensor, upscale_method: str, width: int, height: int, crop: str) -> tuple[Tensor]:
    """To width x height pixels; of two sides, one that is 0 follows the other."""
    if not width and not height:
        return (image,)
    rows, columns = image.shape[1:3]
    width = width or max(1, round(columns * height / rows))
    height = height or max(1, round(rows * width / columns))
    return (resized(image, upscale_method, width, height, crop == "center"),)


def image_scale_by(image: Tensor, upscale_method: str, scale_by: float) -> tuple[Tensor]:
    """Both sides by the same factor."""
    width, height = round(image.shape[2] * scale_by), round(image.shape[1] * scale_by)
    return (resized(image, upscale_method, width, height),)


def image_scale_to_total_pixels(
    image: Tensor, upscale_method: str, megapixels: float, resolution_steps: int = 1
) -> tuple[Tensor]:
    """To about so many times 1024 x 1024 pixels, up or down, sides being multiples of `resolution_steps`."""
    scale = math.sqrt(megapixels * 1024 * 1024 / (image.shape[2] * image.shape[1]))
    width = round(image.shape[2] * scale / resolution_steps) * resolution_steps
    height = round(image.shape[1] * scale / resolution_steps) * resolution_steps
    return (resized(image, upscale_method, width, height),)


def flux_kontext_image_scale(image: Tensor) -> tuple[Tensor]:
    """To the one of FLUX.1 Kontext's sizes that is most alike in shape, cropped by the centre."""
    ratio = image.shape[2] / image.shape[1]
    _, width, height = min((abs(ratio - w / h), w, h) for w, h in KONTEXT_SIZES)
    return (resized(image, "lanczos", width, height, centre=True),)


def image_batch(image1: Tensor, image2: Tensor) -> tuple[Tensor]:
    """Both pictures in one batch, the second at the size of the first."""
    if image1.shape[1:] != image2.shape[1:]:
        image2 = resized(image2, "bilinear", image1.shape[2], image1.shape[1], centre=True)
    if image1.is_meta or image2.is_meta:
        image1, image2 = image1.to("meta"), image2.to("meta")
    return (torch.cat([image1, image2]),)


def get_image_size(image: Tensor) -> tuple[int, int, int]:
    """Width, height, and how many pictures there are."""
    return image.shape[2], image.shape[1], image.shape[0]


def resized(image: Tensor, method: str, width: int, height: int, centre: bool = False) -> Tensor:
    """To width x height as ComfyUI scales: without antialiasing, or with Pillow's Lanczos on 256 levels.

    centre: what does not have the new shape is cut off on both sides first. Raises RequestError for a side of 0, or
    for more than 64 million pixels.
    """
    if min(width, height) < 1 or width * height > MAX_PIXELS:
        raise RequestError(
            f"The workflow scales a picture to {width}x{height}; both sides must have at least 1 pixel, and "
            f"both together at most {MAX_PIXELS // 10**6} million."
        )
    pixels = _cropped(image, width / height) if centre else image
    if method == "lanczos" and not pixels.is_meta:
        levels = (pixels * 255).clamp(0, 255).to(torch.uint8).numpy()
        scaled = [Image.fromarray(one).resize((width, height), Image.Resampling.LANCZOS) for one in levels]
        return torch.cat([_tensor(one) for one in scaled])
    mode = "bilinear" if method == "lanczos" else method
    return F.interpolate(pixels.movedim(-1, 1), size=(height, width), mode=mode).movedim(1, -1)


def _cropped(image: Tensor, ratio: float) -> Tensor:
    rows, columns = image.shape[1:3]
    left = max(0, round((columns - columns * (ratio / (columns / rows))) / 2))
    top = max(0, round((rows - rows * ((columns / rows) / ratio)) / 2))
    return image[:, top : rows - top, left : columns - left]


PLAIN: dict[str, Function] = {
    "ImageScale": image_scale,
    "ImageScaleBy": image_scale_by,
    "ImageScaleToTotalPixels": image_scale_to_total_pixels,
    "FluxKontextImageScale": flux_kontext_image_scale,
    "ImageBatch": image_batch,
    "GetImageSize": get_image_size,
}
WITH_SESSION: dict[str, Function] = {
    "LoadImage": load_image,
    "LoadImageMask": load_image_mask,
}
