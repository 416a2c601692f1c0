"""Black Forest Labs' messages for the language model, and how it is shown pictures. Without torch.

Source: `text_encoder.py` and `sampling.py` of black-forest-labs/flux2; `messages.toml` has that of the messages.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

MAX_TOKENS_IN = 2048
MAX_TOKENS_OUT = 512
TEMPERATURE = 0.15
MAX_AREA = 768 * 768


@cache
def messages() -> dict[str, dict[str, str]]:
    """What the language model is told, word for word."""
    return tomllib.loads(files("headrace.text").joinpath("messages.toml").read_text(encoding="utf-8"))


def system_message(pictures: bool) -> str:
    """What the language model is told before it rewrites a prompt, with or without pictures."""
    return messages()["upsampling"]["pictures" if pictures else "text"]


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """RGB pictures from left to right, centred on white, as `sampling.py` concatenates them."""
    from PIL import Image

    if len(pictures) == 1:
        return pictures[0]
    height = max(picture.height for picture in pictures)
    joined = Image.new("RGB", (sum(picture.width for picture in pictures), height), "white")
    left = 0
    for picture in pictures:
        joined.paste(picture, (left, (height - picture.height) // 2))
        left += picture.width
    return joined


def capped(picture: Image.Image, area: int = MAX_AREA) -> Image.Image:
    """The picture, made smaller where it has more than `area` pixels."""
    from PIL import Image

    if picture.width * picture.height <= area:
        return picture
    scale = math.sqrt(area / (picture.width * picture.height))
    size = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS)
