"""Prompt to token ids of a fixed length."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from headrace.catalog import TextSettings
from headrace.checkpoints.text_encoders import TEKKEN
from headrace.checkpoints.weights import read_json, read_weights
from headrace.errors import RequestError
from headrace.text.templates import TEMPLATES
from headrace.text.vocabularies import gguf_tokenizer, tekken_tokenizer


@dataclass(frozen=True)
class PromptTokens:
    """ids and mask, both (1, length) int64; the mask is 0 at pad tokens."""

    ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class PromptTokenizer:
    """A tokenizer together with the template, length and padding its model was trained with."""

    tokenizer: Tokenizer
    settings: TextSettings
    pad_id: int

    def __call__(self, prompt: str) -> PromptTokens:
        """Wrap the prompt in the template and tokenize it to exactly `settings.length` tokens.

        A prompt that is too long loses its end, with a warning; the template's end is always kept.
        """
        template, length = TEMPLATES[self.settings.template], self.settings.length
        text = prompt.replace(template.removes, "") if template.removes else prompt
        ids = self._encode(template.prefix + text + template.suffix, template.post_processes)
        if len(ids) > length:
            suffix = self._encode(template.suffix, False)
            warnings.warn(
                f"The prompt is {len(ids) - length} tokens too long for the model's {length}; its end was cut off.",
                stacklevel=2,
            )
            ids = ids[: max(length - len(suffix), 0)] + suffix[-length:]
        padding = [self.pad_id] * (length - len(ids))
        mask = [1] * len(ids)
        if self.settings.pad_side == "left":
            ids, mask = padding + ids, [0] * len(padding) + mask
        else:
            ids, mask = ids + padding, mask + [0] * len(padding)
        return PromptTokens(torch.tensor([ids]), torch.tensor([mask]))

    def _encode(self, text: str, post_processes: bool) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=post_processes).ids)


def load_tokenizer(file: Path, settings: TextSettings) -> PromptTokenizer:
    """Read `tokenizer.json` and the name of the pad token beside it, or the tokenizer inside a file of weights.

    Raises RequestError where they cannot be used.
    """
    tokenizer = _read(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    name = _pad_token(file.with_name("tokenizer_config.json")) if file.suffix == ".json" else None
    name = name or TEMPLATES[settings.template].pad_token
    # Half of a surrogate pair is text to JSON, but not to the tokenizer.
    pad_id = None if any("\ud800" <= character <= "\udfff" for character in name) else tokenizer.token_to_id(name)
    if pad_id is None:
        raise RequestError(f"The tokenizer {file} does not know its own pad token {name!r}; it is not the model's.")
    return PromptTokenizer(tokenizer, settings, pad_id)


def _read(file: Path) -> Tokenizer:
    if file.suffix != ".json":
        weights = read_weights(file)
        entry = weights.tensors.get(TEKKEN)
        return gguf_tokenizer(file) if entry is None else tekken_tokenizer(entry)
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for every kind of bad file
        raise RequestError(f"The tokenizer {file} cannot be read ({error}).") from error


def _pad_token(config_file: Path) -> str | None:
    """The pad token's text; transformers writes it plain or as a record with its content."""
    if not config_file.is_file():
        return None
    token = read_json(config_file).get("pad_token")
    text = token.get("content") if isinstance(token, dict) else token
    if token is not None and not isinstance(text, str):
        raise RequestError(f"{config_file} sets a pad_token that is neither a text nor a record with one as content.")
    return text
