"""The FLUX.2 autoencoder: a picture to a latent of one 128-channel token per 16x16 pixels, and back.

A convolutional encoder and decoder with one attention in the middle, a 2x2 patchify, and normalisation by the running
statistics of a batch norm. Parameter names are those of Black Forest Labs' `ae.safetensors`.

Everything but the attention works on strips of rows (`headrace.nn.strips`), a small picture being a single one. A layer
takes the strips it is given over, and lets go of each as soon as it can: at the highest resolution, where a picture of
4 MP has half a billion values a layer, never more is alive than a layer's input and output. Values lie channels
last, which the convolutions of CPUs, and of GPUs in half precision, are fastest with.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headrace.nn.attention import attention
from headrace.nn.config import AutoencoderConfig, strip_rows
from headrace.nn.strips import Strips, convolve, cut, drain, group_norm, join, whole, windows

GROUP_NORM_EPS = 1e-6


class ResnetBlock(nn.Module):
    """norm, SiLU, 3x3 convolution, twice; added to the input, through a 1x1 convolution where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_groups, in_channels, eps=GROUP_NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(norm_groups, out_channels, eps=GROUP_NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Strips) -> Strips:
        h = []
        for index, strip in enumerate(convolve(self.conv1, x, activated(self.norm1, x))):
            h.append(strip)
            x[index] = self.nin_shortcut(x[index])
        for index, strip in enumerate(convolve(self.conv2, drain(h), activated(self.norm2, h))):
            x[index] = x[index] + strip
        return x


class AttentionBlock(nn.Module):
    """Self-attention over all positions with a single head as wide as the features."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=GROUP_NORM_EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # Contiguous, or torch would fall back to an attention that holds the scores of all positions with all others.
        q, k, v = (part(h).flatten(2).transpose(1, 2).unsqueeze(1).contiguous() for part in (self.q, self.k, self.v))
        h = attention(q, k, v)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve the resolution; the padding goes to the right and bottom only, as in the published weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Strips) -> Strips:
        rows = strip_rows(self.conv.out_channels, x[0].shape[3] // 2)
        halves = (self.conv(F.pad(rows, (0, 1, 0, int(last)))) for rows, _, last in windows(drain(x), above=0))
        return join(halves, rows)


class Upsample(nn.Module):
    """Double the resolution by repeating pixels, then smooth with a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Strips) -> Strips:
        parts = cut(drain(x), strip_rows(self.conv.out_channels, 2 * x[0].shape[3]) // 2)
        return list(convolve(self.conv, drain(parts), self.repeat, scale=2))

    @staticmethod
    def repeat(x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Middle(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, norm_groups)
        self.attn_1 = AttentionBlock(channels, norm_groups)
        self.block_2 = ResnetBlock(channels, channels, norm_groups)

    def forward(self, x: Strips) -> Strips:
        rows = x[0].shape[2]
        attended = self.attn_1(whole(list(drain(self.block_1(x)))))
        return self.block_2(cut([attended], rows))


class Level(nn.Module):
    """Residual blocks at one resolution, `widths` being the channels before, between and after them."""

    def __init__(self, widths: list[int], norm_groups: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(i, o, norm_groups) for i, o in itertools.pairwise(widths))
        self.downsample: nn.Module = nn.Identity()
        self.upsample: nn.Module = nn.Identity()

    def forward(self, x: Strips) -> Strips:
        for block in self.block:
            x = block(x)
        return self.upsample(self.downsample(x))


class Encoder(nn.Module):
    """Picture (B, 3, H, W) to the moments of the latent's posterior, (B, 2 * latent_channels, H/8, W/8)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        groups, widths = config.norm_groups, config.channels
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        for index, width in enumerate(widths):
            level = Level([widths[max(index - 1, 0)]] + [width] * config.layers_per_block, groups)
            if index < len(widths) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = Middle(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=GROUP_NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        if one_by_one(image):
            return torch.cat([self(one[None]) for one in image])
        strips = cut([channels_last(image)], strip_rows(self.conv_in.out_channels, image.shape[3]))
        h = list(convolve(self.conv_in, drain(strips), unchanged))
        for level in self.down:
            h = level(h)
        h = self.mid(h)
        return self.quant_conv(whole(list(convolve(self.conv_out, drain(h), activated(self.norm_out, h)))))


class Decoder(nn.Module):
    """Latent (B, latent_channels, H/8, W/8) to picture (B, 3, H, W). `up.0` is the full resolution, run last."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        groups, widths = config.norm_groups, config.decoder_channels or config.channels
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        self.up = nn.ModuleList()
        for index, width in enumerate(widths):
            above = widths[min(index + 1, len(widths) - 1)]
            level = Level([above] + [width] * (config.layers_per_block + 1), groups)
            if index > 0:
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=GROUP_NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        if one_by_one(latent):
            return torch.cat([self(one[None]) for one in latent])
        rows = strip_rows(self.conv_in.out_channels, latent.shape[3])
        strips = cut([self.post_quant_conv(channels_last(latent))], rows)
        h = self.mid(list(convolve(self.conv_in, drain(strips), unchanged)))
        for level in reversed(self.up):
            h = level(h)
        return whole(list(convolve(self.conv_out, drain(h), activated(self.norm_out, h))))


def activated(norm: nn.GroupNorm, strips: Strips) -> Callable[[Tensor], Tensor]:
    """SiLU of the whole picture's group norm, as a function of any of its rows."""
    normalise = group_norm(norm, strips)
    return lambda rows: F.silu(normalise(rows))


def one_by_one(batch: Tensor) -> bool:
    """Whether pictures of a batch go through one after another: always, unless learning. The bits are those of each."""
    return batch.shape[0] > 1 and not torch.is_grad_enabled()


def channels_last(x: Tensor) -> Tensor:
    """The same values, the channels of a pixel side by side."""
    return x.contiguous(memory_format=torch.channels_last)


def unchanged(rows: Tensor) -> Tensor:
    """The rows themselves."""
    return rows


class LatentStatistics(nn.Module):
    """Mean and variance of each token channel, kept as a batch norm without affine part keeps them."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def normalise(self, tokens: Tensor) -> Tensor:
        """(B, C, h, w) -> the same with zero mean and unit variance a channel."""
        mean, deviation = self._moments(tokens)
        return (tokens - mean) / deviation

    def denormalise(self, tokens: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        mean, deviation = self._moments(tokens)
        return tokens * deviation + mean

    def _moments(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.running_mean.view(1, -1, 1, 1).to(tokens.dtype)
        deviation = torch.sqrt(self.running_var.view(1, -1, 1, 1) + self.eps).to(tokens.dtype)
        return mean, deviation


def patchify(latent: Tensor) -> Tensor:
    """(B, C, 2h, 2w) -> (B, 4C, h, w), each 2x2 patch becoming channels in the order (channel, row, column)."""
    return F.pixel_unshuffle(latent, 2)


def unpatchify(tokens: Tensor) -> Tensor:
    """The inverse of `patchify`."""
    return F.pixel_shuffle(tokens, 2)


class Autoencoder(nn.Module):
    """Encoder, decoder and the statistics that bring latents to unit variance."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.bn = LatentStatistics(config.token_channels, config.batch_norm_eps)

    def encode(self, image: Tensor) -> Tensor:
        """Picture (B, 3, H, W) in [-1, 1] -> normalised, patchified latent (B, 128, H/16, W/16): the mean."""
        mean, _ = self.encode_moments(image)
        return self.bn.normalise(patchify(mean))

    def decode(self, latent: Tensor) -> Tensor:
        """Normalised, patchified latent (B, 128, H/16, W/16) -> picture (B, 3, H, W), about [-1, 1], not clamped."""
        return self.decoder(unpatchify(self.bn.denormalise(latent)))

    def encode_moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Picture (B, 3, H, W) in [-1, 1] -> mean and log-variance of the raw latent, each (B, 32, H/8, W/8)."""
        mean, log_variance = self.encoder(image).chunk(2, dim=1)
        return mean, log_variance

    def decode_latent(self, latent: Tensor) -> Tensor:
        """Raw latent (B, 32, H/8, W/8) -> picture (B, 3, H, W)."""
        return self.decoder(latent)
