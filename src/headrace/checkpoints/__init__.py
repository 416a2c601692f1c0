"""Files in and out: what a checkpoint is, where it comes from, and how it gets into memory.

Nothing here imports torch until something is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from headrace.checkpoints.components import Component
from headrace.checkpoints.digest import digest
from headrace.checkpoints.inspect import Inspection, inspect
from headrace.checkpoints.listing import ListedModel, listed_models
from headrace.checkpoints.open import Checkpoint, open_checkpoint
from headrace.quant.formats import Bits, block_linears, choose_formats

if TYPE_CHECKING:
    import torch
    from torch import nn

    from headrace.nn.autoencoder import Autoencoder
    from headrace.nn.language_model import LanguageModel
    from headrace.nn.transformer import Transformer

Network = TypeVar("Network", bound="nn.Module")

__all__ = [
    "Checkpoint",
    "Inspection",
    "ListedModel",
    "build_network",
    "digest",
    "inspect",
    "listed_models",
    "load_autoencoder",
    "load_language_model",
    "load_transformer",
    "open_checkpoint",
]


def load_transformer(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str, bits: Bits | None = None
) -> Transformer:
    """The transformer in its final place and precision, in evaluation mode and without gradients.

    bits: "fp8" or "int8" for the linear layers of its blocks.
    """
    from headrace.nn.transformer import Transformer

    return _load(lambda: Transformer(checkpoint.transformer_config), checkpoint.transformer, dtype, device, bits)


def load_autoencoder(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str) -> Autoencoder:
    """The autoencoder in its final place and precision, in evaluation mode and without gradients."""
    from headrace.nn.autoencoder import Autoencoder

    return _load(lambda: Autoencoder(checkpoint.autoencoder_config), checkpoint.autoencoder, dtype, device, None)


def load_language_model(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str, bits: Bits | None = None
) -> LanguageModel:
    """The text encoder up to the last layer used, in evaluation mode and without gradients.

    bits: "fp8" or "int8" for the linear layers of its layers.
    """
    from headrace.nn.language_model import LanguageModel

    config, layers = checkpoint.language_model_config, max(checkpoint.text.layers)
    norm = layers == config.num_layers
    return _load(
        lambda: LanguageModel(config, layers=layers, norm=norm), checkpoint.language_model, dtype, device, bits
    )


def _load(
    build: Callable[[], Network],
    component: Component,
    dtype: torch.dtype,
    device: torch.device | str,
    bits: Bits | None,
) -> Network:
    from headrace.checkpoints.load import fill_module

    network = build_network(build, component, dtype, bits)
    fill_module(network, component, device)
    return network


def build_network(build: Callable[[], Network], component: Component, dtype: torch.dtype, bits: Bits | None) -> Network:
    """What `build` makes, on the meta device and in its final dtypes: quantised layers in their place, nothing read."""
    import torch

    from headrace.quant.apply import quantise

    with torch.device("meta"):
        network = build().to(dtype)
    shapes = {name: assembly.shape for name, assembly in component.plan.items()}
    quantise(network, choose_formats(bits, block_linears(shapes), component.formats))
    return network
