"""The linear layer of transformer and language model: a matrix product whose rows do not depend on the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """A linear layer without bias that gives every picture of a batch the bits it would have alone.

    CPU libraries choose their kernel, and with it the order of summation, by the number of rows. So on a CPU each
    picture is a product of its own, which at the sizes of pictures costs nothing. While gradients are recorded the
    batch is one product: there speed matters and bits do not.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, …, in_features) -> (B, …, out_features)."""
        if x.device.type != "cpu" or torch.is_grad_enabled():
            return F.linear(x, self.weight)
        if x.shape[0] == 1:
            return F.linear(x[0], self.weight)[None]
        out = x.new_empty(*x.shape[:-1], self.out_features)
        for picture, target in zip(x, out, strict=True):
            torch.mm(picture.reshape(-1, self.in_features), self.weight.t(), out=target.view(-1, self.out_features))
        return out
