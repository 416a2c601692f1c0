"""A batch cut into shards, each differentiated in a thread of its own.

Threads within operations wait for each other at every operation, which costs most of the time when other programs use
the cores too; shards meet once a step. The number of shards is part of a run's configuration, so its bits do not depend
on how many cores there are. Call ``torch.set_num_threads(1)`` before training this way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

COUNT = 2
"""Shards of a batch, where a run does not say otherwise."""

Loss = Callable[[], tuple[Tensor, Tensor]]
"""Computes one shard: its loss, and another scalar that is only to be reported."""


def backward(
    pool: ThreadPoolExecutor, losses: Sequence[Loss], parameters: Sequence[nn.Parameter]
) -> tuple[float, float]:
    """Sets each parameter's gradient to the mean over the shards; returns the means of loss and reported scalar.

    The shards are summed in their order, whichever is done first.
    """

    def differentiate(loss: Loss) -> tuple[float, float, tuple[Tensor | None, ...]]:
        value, reported = loss()
        return value.item(), reported.item(), torch.autograd.grad(value, parameters, allow_unused=True)

    done = list(pool.map(differentiate, losses))
    for parameter, *gradients in zip(parameters, *(one[2] for one in done), strict=True):
        parts = [gradient for gradient in gradients if gradient is not None]
        parameter.grad = torch.stack(parts).mean(0) if parts else None
    return sum(one[0] for one in done) / len(done), sum(one[1] for one in done) / len(done)
