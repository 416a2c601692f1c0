"""A rough look at a latent: every point of it becomes one pixel, by one matrix for all."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from headrace.errors import RequestError
from headrace.nn.autoencoder import LatentStatistics, unpatchify
from headrace.pictures import read_file, write_file

FILE = "preview.safetensors"
MAX_FILE_BYTES = 2**20


@dataclass(frozen=True)
class PreviewMatrix:
    """From a raw latent's C channels to colours in 0..1: weight (3, C), bias (3,).

    mean, deviation: (4 C,), of the normalised latent's channels, as the autoencoder has them.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor

    def picture(self, latent: Tensor) -> Image.Image:
        """Normalised latent (1, 4 C, h, w) -> RGB picture of 2 w x 2 h pixels, an eighth of the real one's."""
        latent = latent.float()
        shape = (1, -1, 1, 1)
        raw = unpatchify(latent * self.deviation.to(latent).view(shape) + self.mean.to(latent).view(shape))
        colors = torch.einsum("dc,chw->hwd", self.weight.to(latent), raw[0]) + self.bias.to(latent)
        return Image.fromarray((colors.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def fit(latents: Tensor, pictures: Tensor, statistics: LatentStatistics) -> PreviewMatrix:
    """The matrix that comes nearest to the pictures, by least squares.

    latents: raw, (B, C, h, w). pictures: (B, 3, h, w) in 0..1, reduced to that size.
    """
    points = latents.double().permute(0, 2, 3, 1).flatten(0, 2)
    points = torch.cat([points, torch.ones(len(points), 1, dtype=points.dtype)], dim=1)
    colors = pictures.double().permute(0, 2, 3, 1).flatten(0, 2)
    solved = torch.linalg.lstsq(points, colors).solution.float()
    deviation = torch.sqrt(statistics.running_var.float() + statistics.eps)
    return PreviewMatrix(solved[:-1].T.contiguous(), solved[-1].clone(), statistics.running_mean.float(), deviation)


def write_matrix(matrix: PreviewMatrix, path: Path) -> None:
    """Raises RequestError where that place cannot be written to."""
    write_file(path, save({field.name: getattr(matrix, field.name) for field in fields(matrix)}))


def read_matrix(path: Path, token_channels: int) -> PreviewMatrix:
    """The matrix in a file, for latents of so many channels. Raises RequestError where it is none for them."""
    channels = token_channels // 4
    wanted = {"weight": (3, channels), "bias": (3,), "mean": (token_channels,), "deviation": (token_channels,)}
    try:
        tensors = load(read_file(path, "preview matrix", MAX_FILE_BYTES))
    except (SafetensorError, ValueError, KeyError) as error:
        raise RequestError(f"The preview matrix {path} is not a safetensors file.") from error
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != wanted:
        raise RequestError(f"The preview matrix {path} is for another autoencoder; headrace train preview fits one.")
    return PreviewMatrix(**tensors)


def find_matrix(autoencoder: Path) -> Path | None:
    """The file that lies in the folder of an autoencoder's file, or in the one above."""
    candidates = (autoencoder.parent / FILE, autoencoder.parent.parent / FILE)
    return next((path for path in candidates if path.is_file()), None)
