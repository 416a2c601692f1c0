"""Latents as tokens: noise, the order of tokens, and the position each one has.

A latent is (1, C, h, w), one token per 16x16 pixels; the transformer sees it as (1, h * w, C), row by row. Positions
have four axes (t, h, w, l): text counts up l, a picture has its rows and columns, and the k-th reference, from 1, has
t = 10 k (`sampling.py` of black-forest-labs/flux2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.flow.conventions import Convention

REFERENCE_TIME_STEP = 10


def draw_noise(seed: int, shape: tuple[int, int, int], convention: Convention, like: Tensor) -> Tensor:
    """Standard normal noise (1, C, h, w) for one picture, in float32, on the device of `like`.

    seed: 0 to 2**64 - 1. shape: (C, h, w). like: any tensor on the model's device in the model's precision.
    """
    device = torch.device("cpu") if convention.noise == "cpu" else like.device
    generator = torch.Generator(device).manual_seed(seed)
    dtype = torch.float32 if convention.noise == "cpu" else like.dtype
    noise = torch.randn((1, *shape), generator=generator, dtype=dtype, device=device).to(like.device)
    return (noise.to(like.dtype) if convention.rounds_noise else noise).float()


def to_tokens(latent: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C)."""
    return latent.flatten(2).transpose(1, 2)


def from_tokens(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `to_tokens`, for a latent of `height` x `width` tokens."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, height, width)


def text_positions(length: int) -> Tensor:
    """(length, 4) positions of text tokens."""
    positions = torch.zeros(length, 4)
    positions[:, 3] = torch.arange(length)
    return positions


def picture_positions(height: int, width: int, time: int = 0) -> Tensor:
    """(height * width, 4) positions of picture tokens, row by row."""
    return torch.cartesian_prod(
        torch.tensor([float(time)]), torch.arange(float(height)), torch.arange(float(width)), torch.tensor([0.0])
    )


def reference_positions(sizes: list[tuple[int, int]]) -> Tensor:
    """Positions of all references in order, sizes being (height, width) in tokens; `sizes` is not empty."""
    return torch.cat(
        [picture_positions(h, w, REFERENCE_TIME_STEP * index) for index, (h, w) in enumerate(sizes, start=1)]
    )
