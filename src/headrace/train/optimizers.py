"""Muon for matrices, Adam for everything else.

Muon (Jordan et al. 2024) makes the update of a weight matrix orthogonal. Both networks here learned from several times
fewer samples with it than with Adam alone; a convolution counts as the matrix of its output channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Optimizers:
    """``muon`` works on ``matrices``, views of ``weights`` as matrices; ``adam`` on all other parameters.

    Muon is expensive enough to be worth two threads, hence two halves.
    """

    weights: tuple[nn.Parameter, ...]
    matrices: tuple[nn.Parameter, ...]
    muon: tuple[torch.optim.Optimizer, ...]
    adam: torch.optim.Optimizer

    def all(self) -> list[torch.optim.Optimizer]:
        """In the order in which their states are stored."""
        return [*self.muon, self.adam]

    def step(self, pool: ThreadPoolExecutor, share: float, *, muon_rate: float, adam_rate: float) -> None:
        """One update from the gradients, at ``share`` of each rate; the gradients are then dropped."""
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for optimizer in self.all():
            for group in optimizer.param_groups:
                group["lr"] = share * (adam_rate if optimizer is self.adam else muon_rate)
        list(pool.map(lambda optimizer: optimizer.step(), self.all()))
        for weight in self.weights:
            weight.grad = None
        self.adam.zero_grad(set_to_none=True)


def build(named: Iterable[tuple[str, nn.Parameter]], adam_only: tuple[str, ...]) -> Optimizers:
    """Muon for weights of two or more dimensions, except where a part of the name is in ``adam_only``."""
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        is_matrix = parameter.ndim >= 2 and not any(part in name for part in adam_only)
        (weights if is_matrix else others).append(parameter)
    matrices = [nn.Parameter(weight.detach().view(weight.shape[0], -1)) for weight in weights]
    return Optimizers(
        tuple(weights),
        tuple(matrices),
        tuple(
            torch.optim.Muon(half, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            for half in (matrices[::2], matrices[1::2])
            if half
        ),
        torch.optim.Adam(others, betas=(0.9, 0.99)),
    )
