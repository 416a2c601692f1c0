"""Files in and out: what a checkpoint is, where it comes from, and how it gets into memory.

Nothing here imports torch until something is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.checkpoints.digest import digest
from headrace.checkpoints.inspect import Inspection, inspect
from headrace.checkpoints.listing import ListedModel, listed_models
from headrace.checkpoints.open import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    import torch

    from headrace.nn.autoencoder import Autoencoder
    from headrace.nn.language_model import LanguageModel
    from headrace.nn.transformer import Transformer

__all__ = [
    "Checkpoint",
    "Inspection",
    "ListedModel",
    "digest",
    "inspect",
    "listed_models",
    "load_autoencoder",
    "load_language_model",
    "load_transformer",
    "open_checkpoint",
]


def load_transformer(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str) -> Transformer:
    """The transformer in its final place and precision, in evaluation mode and without gradients."""
    import torch

    from headrace.checkpoints.load import fill_module
    from headrace.nn.transformer import Transformer

    with torch.device("meta"):
        network = Transformer(checkpoint.transformer_config)
    fill_module(network, checkpoint.transformer.plan, checkpoint.transformer.tensors, dtype, device)
    return network


def load_autoencoder(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str) -> Autoencoder:
    """The autoencoder in its final place and precision, in evaluation mode and without gradients."""
    import torch

    from headrace.checkpoints.load import fill_module
    from headrace.nn.autoencoder import Autoencoder

    with torch.device("meta"):
        network = Autoencoder(checkpoint.autoencoder_config)
    fill_module(network, checkpoint.autoencoder.plan, checkpoint.autoencoder.tensors, dtype, device)
    return network


def load_language_model(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device | str) -> LanguageModel:
    """The text encoder up to the last layer used, in evaluation mode and without gradients."""
    import torch

    from headrace.checkpoints.load import fill_module
    from headrace.nn.language_model import LanguageModel

    config, layers = checkpoint.language_model_config, max(checkpoint.text.layers)
    with torch.device("meta"):
        network = LanguageModel(config, layers=layers, norm=layers == config.num_layers)
    fill_module(network, checkpoint.language_model.plan, checkpoint.language_model.tensors, dtype, device)
    return network
