"""A picture too large to be held many times over, as strips of its rows.

A convolution needs one row of the strips beside its own, and a group norm the mean and variance of the whole picture.
With both, strips give what the picture gives as one, without seams, and besides the strips themselves only a few
intermediate results of a single one are alive.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Strips = list[Tensor]
"""The rows of a picture from top to bottom, each (1, C, rows, W); one strip alone may be a batch."""


def cut(strips: Iterable[Tensor], rows: int) -> Strips:
    """Strips of at most so many rows, as views. While gradients are recorded they stay whole: see `group_norm`."""
    if torch.is_grad_enabled():
        return list(strips)
    return [strip[:, :, first : first + rows] for strip in strips for first in range(0, strip.shape[2], rows)]


def join(strips: Iterable[Tensor], rows: int) -> Strips:
    """Strips of at least so many rows but for the last one, and of an even number of them."""
    joined, parts = [], []
    for strip in strips:
        parts.append(strip)
        height = sum(part.shape[2] for part in parts)
        if height >= rows and height % 2 == 0:
            joined.append(whole(parts))
            parts = []
    return joined + ([whole(parts)] if parts else [])


def whole(strips: Strips) -> Tensor:
    """The picture, (B, C, H, W)."""
    return strips[0] if len(strips) == 1 else torch.cat(strips, dim=2)


def drain(strips: Strips) -> Iterator[Tensor]:
    """The strips from top to bottom, none of which is kept in the list."""
    strips.reverse()
    while strips:
        yield strips.pop()


def windows(strips: Iterable[Tensor], above: int = 1) -> Iterator[tuple[Tensor, bool, bool]]:
    """Each strip with the row below it and `above` (0 or 1) rows over it, where there are any.

    Yields with it whether it is the picture's first and whether it is its last.
    """
    ahead = iter(strips)
    strip: Tensor | None = next(ahead)
    over: Strips = []
    first = True
    while strip is not None:
        below = next(ahead, None)
        window = whole([*over, strip] if below is None else [*over, strip, below[:, :, :1]])
        if above and below is not None:
            over = [strip[:, :, -1:].clone()]
        strip = below
        yield window, first, below is None
        first = False


def convolve(
    conv: nn.Conv2d, strips: Iterable[Tensor], before: Callable[[Tensor], Tensor], scale: int = 1
) -> Iterator[Tensor]:
    """conv(before(picture)) strip by strip, for a convolution of 3x3 with padding 1.

    before: what is done to the values one by one, or what makes `scale` rows of each.
    """
    for window, first, last in windows(strips):
        yield _convolve(conv, before(window), first, last, scale)


def _convolve(conv: nn.Conv2d, rows: Tensor, first: bool, last: bool, scale: int) -> Tensor:
    if first and last:
        return conv(rows)
    # One row of the neighbours is needed, or zeros where there are none.
    rows = rows[:, :, 0 if first else scale - 1 : None if last or scale == 1 else 1 - scale]
    if first or last:
        rows = F.pad(rows, (0, 0, int(first), int(last)))
    return F.conv2d(rows, conv.weight, conv.bias, padding=(0, 1))


def group_norm(norm: nn.GroupNorm, strips: Strips) -> Callable[[Tensor], Tensor]:
    """The group norm of the whole picture, as a function of any of its rows.

    Statistics of several strips are not differentiable.
    """
    if len(strips) == 1:
        return norm
    # A batch norm's kernels, with the statistics of groups: they give a channel's in one pass over a strip, and take
    # them in float32 whatever the values are.
    channels, device = norm.num_channels, strips[0].device
    means, variances = torch.zeros(2, len(strips), channels, device=device)
    for strip, mean, variance in zip(strips, means, variances, strict=True):
        F.batch_norm(strip, mean, variance, training=True, momentum=1.0)
    counts = torch.tensor([float(strip.shape[2] * strip.shape[3]) for strip in strips], device=device)[:, None]
    variances *= (counts - 1) / counts  # of the values themselves, not an estimate from a sample
    shares = counts / counts.sum()

    def of_groups(values: Tensor) -> Tensor:
        grouped = (values * shares).sum(0).view(norm.num_groups, -1).mean(1)
        return grouped.repeat_interleave(channels // norm.num_groups)

    mean = of_groups(means)
    variance = of_groups(variances + (means - mean).square())
    return functools.partial(
        F.batch_norm,
        running_mean=mean,
        running_var=variance,
        weight=norm.weight.float(),
        bias=norm.bias.float(),
        eps=norm.eps,
    )
