"""The preview matrix of an autoencoder, fitted on drawn scenes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.checkpoints import Checkpoint, load_autoencoder
from headrace.flow.preview import PreviewMatrix, fit
from headrace.flow.references import image_to_tensor
from headrace.nn.autoencoder import Autoencoder
from headrace.world.draw import picture
from headrace.world.layout import scene

# Scenes that no model was trained on.
HELD_OUT = 1_000_000_000


@dataclass(frozen=True)
class FittedPreview:
    """decibels: PSNR of its pictures against the real ones at their size, on scenes that were not fitted."""

    matrix: PreviewMatrix
    decibels: float


@torch.inference_mode()
def fit_preview(checkpoint: Checkpoint, scenes: int, size: tuple[int, int]) -> FittedPreview:
    """A matrix from so many scenes of (width, height) pixels; a quarter as many more are kept to measure it."""
    autoencoder = load_autoencoder(checkpoint, torch.float32, torch.device("cpu"))
    pairs = list(_pairs(autoencoder, scenes + max(1, scenes // 4), size))
    latents, pictures = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    matrix = fit(latents[:scenes], pictures[:scenes], autoencoder.bn)
    foreseen = torch.einsum("dc,bchw->bdhw", matrix.weight, latents[scenes:]) + matrix.bias.view(1, -1, 1, 1)
    error = F.mse_loss(foreseen.clamp(0, 1), pictures[scenes:])
    return FittedPreview(matrix, -10 * math.log10(float(error)))


def _pairs(autoencoder: Autoencoder, count: int, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Raw latents and the pictures at their size, in 0..1, one scene at a time."""
    for seed in range(HELD_OUT, HELD_OUT + count):
        image = image_to_tensor(picture(scene(seed, *size)))
        mean, _ = autoencoder.encode_moments(image)
        yield mean, F.interpolate((image + 1) / 2, size=mean.shape[2:], mode="area")
