"""Puts quantised linear layers into a network that was built on the meta device, before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from headrace.quant.formats import Format, Split
from headrace.quant.linear import SplitLinear, quantised_linear


def quantise(network: nn.Module, formats: Mapping[str, Format]) -> None:
    """Replace the linear layers named in `formats` by empty quantised ones on the meta device."""
    for name, form in formats.items():
        parent_name, _, own_name = name.rpartition(".")
        parent = network.get_submodule(parent_name)
        linear = getattr(parent, own_name)
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"{name} is not a linear layer")
        with torch.device("meta"):
            setattr(parent, own_name, _quantised(linear, form))


def _quantised(linear: nn.Linear, form: Format) -> nn.Module:
    if not isinstance(form, Split):
        return quantised_linear(linear.in_features, linear.out_features, form)
    pieces: list[nn.Module] = []
    for rows, piece in form.pieces:
        if piece is None:
            pieces.append(nn.Linear(linear.in_features, rows, bias=False, dtype=linear.weight.dtype))
        else:
            pieces.append(quantised_linear(linear.in_features, rows, piece))
    return SplitLinear(pieces, form)
