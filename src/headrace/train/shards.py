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

Loss = Callable[[], tuple[Tensor, dict[str, float]]]
"""Computes one shard's loss, and figures about it that are only to be logged."""


def backward(pool: ThreadPoolExecutor, losses: Sequence[Loss], parameters: Sequence[nn.Parameter]) -> dict[str, float]:
    """Sets each parameter's gradient to the mean over the shards; returns the means of the loss and the other figures.

    The shards are summed in their order, whichever is done first.
    """

    def differentiate(loss: Loss) -> tuple[dict[str, float], tuple[Tensor | None, ...]]:
        value, figures = loss()
        return {"loss": value.item()} | figures, torch.autograd.grad(value, parameters, allow_unused=True)

    done = list(pool.map(differentiate, losses))
    for parameter, *gradients in zip(parameters, *(gradients for _, gradients in done), strict=True):
        parts = [gradient for gradient in gradients if gradient is not None]
        parameter.grad = torch.stack(parts).mean(0) if parts else None
    return mean([figures for figures, _ in done])


def mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure over rows that have the same ones; NaN says that a row has nothing to say."""
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64).nanmean().item() for name in rows[0]}
