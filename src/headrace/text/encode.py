"""Token ids to the embeddings that condition the transformer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from headrace.catalog import TextSettings
from headrace.flow.conventions import Convention
from headrace.nn.language_model import LanguageModel
from headrace.text.tokens import PromptTokens


def encode_tokens(
    language_model: LanguageModel,
    tokens: PromptTokens,
    settings: TextSettings,
    convention: Convention,
    device: torch.device,
    layers: Iterable[nn.Module] | None = None,
) -> Tensor:
    """One prompt's tokens -> embeddings (1, length, layers * hidden size).

    device: the language model's. layers: what it is to run, in order (default: its own).

    The states of pad tokens are part of the input the models were trained with; they are fed on as they are, unless the
    convention has zeros in their place, which it only has where padding comes first.
    """
    mask = tokens.mask.to(device)
    states = language_model.hidden_states(tokens.ids.to(device), mask, settings.layers, layers)
    if convention.pads_text == "zeros" and settings.pad_side == "left":
        states = states * mask.unsqueeze(-1).to(states.dtype)
    return states
