"""Token by token: how the language model continues a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headrace.nn.language_model import KeyValueCache, LanguageModel, PictureFeatures


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    temperature: 0 takes the most likely one; else logits are divided by it before the softmax. top_p: among the most
    likely tokens that together reach this probability (Holtzman et al. 2020); 1 is all of them. stop: the tokens that
    end a text, and are not part of it.
    """

    temperature: float
    max_tokens: int
    stop: frozenset[int]
    top_p: float = 1.0
    seed: int = 0


@torch.inference_mode()
def write_tokens(
    language_model: LanguageModel,
    token_ids: Sequence[int],
    sampling: Sampling,
    device: torch.device,
    layers: Callable[[], Iterable[nn.Module]] | None = None,
    pictures: PictureFeatures | None = None,
) -> Iterator[int]:
    """The tokens that follow `token_ids`, one by one, until a stop token or `max_tokens` of them.

    layers: one pass of what the model is to run, asked for at every token (default: its own). Drawing is done on the
    CPU in float32 with a generator of its own, so that it is the same on every device whose logits are.
    """
    cache = KeyValueCache(len(token_ids) + sampling.max_tokens)
    generator = torch.Generator().manual_seed(sampling.seed)
    given = torch.tensor([token_ids], device=device)
    for _ in range(sampling.max_tokens):
        run = language_model.layers if layers is None else layers()
        logits = language_model(given, cache=cache, layers=run, pictures=pictures, last=True)
        token = choose_token(logits[0, -1].float().cpu(), sampling, generator)
        if token in sampling.stop:
            return
        yield token
        given, pictures = torch.tensor([[token]], device=device), None


def choose_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One of the tokens whose logits (vocabulary,) are given, in float32 on the CPU."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_p >= 1:
        return int(torch.multinomial(probabilities, 1, generator=generator))
    ordered, order = probabilities.sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    kept = ordered.where(before < sampling.top_p, 0.0)
    return int(order[torch.multinomial(kept, 1, generator=generator)])
