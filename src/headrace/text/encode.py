"""Token ids to the embeddings that condition the transformer."""

from __future__ import annotations

from torch import Tensor

from headrace.catalog import TextSettings
from headrace.flow.conventions import Convention
from headrace.nn.language_model import LanguageModel
from headrace.text.tokens import PromptTokens


def encode_tokens(
    language_model: LanguageModel, tokens: PromptTokens, settings: TextSettings, convention: Convention
) -> Tensor:
    """One prompt's tokens -> embeddings (1, length, layers * hidden size).

    The states of pad tokens are part of the input the models were trained with; they are fed on as they are, unless the
    convention has zeros in their place, which it only has where padding comes first.
    """
    device = language_model.embed_tokens.weight.device
    mask = tokens.mask.to(device)
    states = language_model.hidden_states(tokens.ids.to(device), mask, settings.layers)
    if convention.pads_text == "zeros" and settings.pad_side == "left":
        states = states * mask.unsqueeze(-1).to(states.dtype)
    return states
