"""Latents: empty, from pictures and back, masked."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.comfy.models import Vae, open_autoencoder
from headrace.comfy.session import Function, Session
from headrace.comfy.values import Latent
from headrace.errors import RequestError

PIXELS_A_SIDE = 16
# Of the models before FLUX.2, whose empty latents stand for one of ours of the same size in pixels.
OLDER_PIXELS_A_SIDE = 8


def empty_flux2_latent(width: int, height: int, batch_size: int) -> tuple[Latent]:
    """Zeros for pictures of about this size."""
    return (Latent(torch.zeros(batch_size, 128, height // PIXELS_A_SIDE, width // PIXELS_A_SIDE)),)


def empty_sd3_latent(width: int, height: int, batch_size: int) -> tuple[Latent]:
    """As `empty_flux2_latent`, in the shape of an older model."""
    return (_older(16, width, height, batch_size),)


def empty_latent(width: int, height: int, batch_size: int) -> tuple[Latent]:
    """As `empty_flux2_latent`, in the shape of an older model."""
    return (_older(4, width, height, batch_size),)


def _older(channels: int, width: int, height: int, batch: int) -> Latent:
    side = OLDER_PIXELS_A_SIDE
    return Latent(torch.zeros(batch, channels, height // side, width // side), side)


def fitted(latent: Latent, channels: int) -> Latent:
    """An empty latent of an older model as one of FLUX.2, of the same size in pixels; any other as it is."""
    samples = latent.samples
    if samples.is_meta or (samples.shape[1] == channels and latent.pixels_a_side == PIXELS_A_SIDE) or samples.any():
        return latent
    ratio = latent.pixels_a_side / PIXELS_A_SIDE
    rows, columns = round(samples.shape[2] * ratio), round(samples.shape[3] * ratio)
    return replace(latent, samples=torch.zeros(samples.shape[0], channels, rows, columns), pixels_a_side=PIXELS_A_SIDE)


def vae_encode(session: Session, pixels: Tensor, vae: Vae) -> tuple[Latent]:
    """Pictures, cropped by the centre to whole tokens, as latents."""
    return (Latent(session.stage.encode_pixels(vae, _cropped(pixels, vae))),)


def vae_encode_for_inpaint(
    session: Session, pixels: Tensor, vae: Vae, mask: Tensor, grow_mask_by: int
) -> tuple[Latent]:
    """Pictures as latents, grey where `mask` is to be made anew, and the mask grown by so many pixels."""
    rows, columns = pixels.shape[1:3]
    fitted_mask = F.interpolate(mask[:, None], size=(rows, columns), mode="bilinear")
    pixels = _cropped(pixels, vae)
    fitted_mask = _cropped(fitted_mask.movedim(1, -1), vae).movedim(-1, 1)
    grown = fitted_mask
    if grow_mask_by:
        kernel = torch.ones(1, 1, grow_mask_by, grow_mask_by, device=mask.device)
        grown = F.conv2d(fitted_mask.round(), kernel, padding=math.ceil((grow_mask_by - 1) / 2)).clamp(0, 1)
    keep = (1 - fitted_mask.round()).movedim(1, -1)
    if pixels.is_meta:
        keep = keep.to("meta")
    encoded = session.stage.encode_pixels(vae, (pixels - 0.5) * keep + 0.5)
    return (Latent(encoded, mask=grown[..., : pixels.shape[1], : pixels.shape[2]].round()),)


def _cropped(pixels: Tensor, vae: Vae) -> Tensor:
    """The middle of (B, H, W, C), sides being multiples of the autoencoder's token size."""
    _, config = open_autoencoder(vae.file)
    size, (rows, columns) = config.token_size, pixels.shape[1:3]
    if min(rows, columns) < size:
        raise RequestError(f"The workflow encodes a picture of {columns}x{rows}; both sides must have at least {size}.")
    top, left = rows % size // 2, columns % size // 2
    return pixels[:, top : top + rows // size * size, left : left + columns // size * size]


def set_latent_noise_mask(samples: Latent, mask: Tensor) -> tuple[Latent]:
    """A latent of which only what the mask covers is made anew."""
    return (replace(samples, mask=mask.reshape(-1, 1, *mask.shape[-2:])),)


def vae_decode(session: Session, samples: Latent, vae: Vae) -> tuple[Tensor]:
    """Latents as pictures."""
    return (session.stage.decode(vae, samples.samples),)


PLAIN: dict[str, Function] = {
    "EmptyFlux2LatentImage": empty_flux2_latent,
    "EmptySD3LatentImage": empty_sd3_latent,
    "EmptyLatentImage": empty_latent,
    "SetLatentNoiseMask": set_latent_noise_mask,
}
WITH_SESSION: dict[str, Function] = {
    "VAEEncode": vae_encode,
    "VAEEncodeForInpaint": vae_encode_for_inpaint,
    "VAEDecode": vae_decode,
}
