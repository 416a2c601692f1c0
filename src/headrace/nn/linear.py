"""The linear layer of transformer and language model, which quantisation replaces by others."""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """A linear layer without bias; FLUX.2's transformer and language models have no other."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
