"""Puts quantised linear layers into a network that was built on the meta device, before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from headrace.quant.formats import Format
from headrace.quant.linear import Fp8Linear, Int8Linear


def quantise(network: nn.Module, formats: Mapping[str, Format]) -> None:
    """Replace the linear layers named in `formats` by empty quantised ones on the meta device."""
    for name, form in formats.items():
        parent_name, _, own_name = name.rpartition(".")
        parent = network.get_submodule(parent_name)
        linear = getattr(parent, own_name)
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"{name} is not a linear layer")
        with torch.device("meta"):
            if form.bits == "fp8":
                quantised: nn.Module = Fp8Linear(linear.in_features, linear.out_features, form)
            else:
                quantised = Int8Linear(linear.in_features, linear.out_features)
        setattr(parent, own_name, quantised)
