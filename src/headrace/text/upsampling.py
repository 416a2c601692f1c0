"""What the language model is asked, for a richer prompt and for a check, as Black Forest Labs asks it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from headrace.errors import RequestError
from headrace.nn.config import VisionConfig
from headrace.text.conversation import Part, Question, ask
from headrace.text.messages import MAX_TOKENS_IN, capped, messages, side_by_side, system_message
from headrace.text.tokens import PromptTokenizer

CHECKED_AREA = 512 * 512
# More than any prompt that is accepted has.
UNBOUNDED = 2**20


def upsampling_question(
    tokenizer: PromptTokenizer, prompt: str, pictures: Sequence[Image.Image], vision: VisionConfig | None
) -> Question:
    """What the language model is asked for a richer prompt.

    pictures: the references in RGB, which are shown as one; a model without eyes is only told that there are some.
    """
    said: list[list[Part]] = [[prompt]]
    if pictures and vision is not None:
        said.insert(0, [capped(side_by_side(pictures))])
    return ask(tokenizer, system_message(bool(pictures)), said, vision, MAX_TOKENS_IN)


def prompt_question(tokenizer: PromptTokenizer, prompt: str) -> Question:
    """What the language model is asked about a prompt, to be answered by yes (something is the matter) or no.

    Raises RequestError where the prompt is too long to be asked about whole.
    """
    told = messages()["check"]
    question = ask(tokenizer, told["system"], [[told["prompt"].replace("{prompt}", prompt)]], None, UNBOUNDED)
    if len(question.token_ids) > MAX_TOKENS_IN:
        raise RequestError("The prompt is too long to be checked; shorten it.")
    return question


def picture_question(tokenizer: PromptTokenizer, picture: Image.Image, vision: VisionConfig) -> Question:
    """What the language model is asked about an RGB picture, which it sees at 512^2 pixels; as `prompt_question`."""
    told = messages()["check"]
    scale = math.sqrt(CHECKED_AREA / (picture.width * picture.height))
    size = max(1, int(scale * picture.width)), max(1, int(scale * picture.height))
    parts: list[Part] = [told["picture"], picture.resize(size), told["picture_question"]]
    return ask(tokenizer, told["system"], [parts], vision, MAX_TOKENS_IN)
