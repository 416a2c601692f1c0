"""What the language model is asked: a conversation, with or without pictures, as tokens."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from headrace.errors import RequestError
from headrace.nn.config import VisionConfig
from headrace.nn.language_model import PictureFeatures
from headrace.text.templates import TEMPLATES
from headrace.text.tokens import PromptTokenizer
from headrace.text.vision import PICTURE, picture_text

# Text, or an RGB picture.
Part = str | Image.Image


@dataclass(frozen=True)
class Question:
    """The tokens of a conversation whose next part is the model's, and its pictures in order."""

    token_ids: tuple[int, ...]
    pictures: tuple[Image.Image, ...]

    def features(self, seen: Sequence[Tensor], config: VisionConfig, device: torch.device) -> PictureFeatures | None:
        """What stands in the pictures' places: `seen` has the features of each."""
        if not seen:
            return None
        places = torch.tensor([self.token_ids], device=device) == config.picture_token
        return PictureFeatures(torch.cat(list(seen)), places)


def ask(
    tokenizer: PromptTokenizer, system: str, said: Sequence[Sequence[Part]], vision: VisionConfig | None, limit: int
) -> Question:
    """A conversation of a system message and what the user said, each as parts in order.

    vision: the model's eyes, needed where a part is a picture. limit: at most so many tokens; what is too long loses
    its end, with a warning, but for the template's. Raises RequestError where the tokenizer does not know the
    conversation's tokens, or the pictures alone are too long.
    """
    template = TEMPLATES[tokenizer.settings.template]
    pictures = tuple(part for parts in said for part in parts if not isinstance(part, str))
    ids = _tokens(tokenizer, template.opening + template.system[0] + system + template.system[1])
    for parts in said:
        spelled = [
            part.replace(PICTURE, "") if isinstance(part, str) else picture_text(*part.size, _eyes(vision))
            for part in parts
        ]
        ids += _tokens(tokenizer, template.user[0] + "".join(spelled) + template.user[1])
    end = _tokens(tokenizer, template.reply)
    if len(ids) + len(end) > limit:
        warnings.warn(
            f"The prompt is {len(ids) + len(end) - limit} tokens too long for the {limit} that the language model is "
            "given; its end was cut off.",
            stacklevel=2,
        )
        end = _tokens(tokenizer, template.user[1]) + end
        ids = ids[: limit - len(end)]
    question = Question((*ids, *end), pictures)
    if vision is not None:
        _check_places(question, vision)
    return question


def stop_tokens(tokenizer: PromptTokenizer) -> frozenset[int]:
    """The ids of the tokens that end an answer. Raises RequestError where the tokenizer does not know them."""
    return frozenset(token_id(tokenizer, name) for name in TEMPLATES[tokenizer.settings.template].stops)


def token_id(tokenizer: PromptTokenizer, name: str) -> int:
    """The id of one token. Raises RequestError where there is no such token."""
    found = tokenizer.tokenizer.token_to_id(name)
    if found is None:
        raise RequestError(f"The tokenizer does not know the token {name!r}, without which nothing can be written.")
    return int(found)


def _tokens(tokenizer: PromptTokenizer, text: str) -> list[int]:
    return list(tokenizer.tokenizer.encode(text, add_special_tokens=False).ids)


def _eyes(vision: VisionConfig | None) -> VisionConfig:
    if vision is None:
        raise RequestError("The language model has no eyes, so it cannot be shown a picture.")
    return vision


def _check_places(question: Question, vision: VisionConfig) -> None:
    """Raises RequestError unless every picture has all of its places."""
    wanted = sum(picture_text(*picture.size, vision).count(PICTURE) for picture in question.pictures)
    there = question.token_ids.count(vision.picture_token)
    if there != wanted:
        raise RequestError(
            f"The pictures need {wanted} tokens {PICTURE} and got {there}: the tokenizer is not the model's, or the "
            "prompt is too long."
        )
