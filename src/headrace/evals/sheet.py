"""A sheet of the pictures that are wrong, each beside one that would be right, with its prompt and what is wrong."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from headrace.evals.score import Score
from headrace.world.draw import picture

COLUMNS = 4
SHOWN = 128
"""Longer side of each picture on the sheet, in pixels."""

_GAP, _LINE, _LINES = 8, 13, 6


def failure_sheet(scores: Sequence[Score], most: int = 24) -> Image.Image:
    """The first ``most`` failures of each score, made at the left, drawn at the right; references are not shown."""
    failures = [(score, failure) for score in scores for failure in score.failures[:most]]
    font = ImageFont.load_default(11)
    width, height = 2 * SHOWN + 3 * _GAP, SHOWN + _LINES * _LINE + 2 * _GAP
    rows = max(1, -(-len(failures) // COLUMNS))
    sheet = Image.new("RGB", (COLUMNS * width, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (score, failure) in enumerate(failures):
        left, top = index % COLUMNS * width + _GAP, index // COLUMNS * height + _GAP
        pair = Image.fromarray(failure.shown.pixels), picture(failure.shown.sample.target)
        for column, image in enumerate(pair):
            image.thumbnail((SHOWN, SHOWN))
            sheet.paste(image, (left + column * (SHOWN + _GAP), top))
        said = f"{score.suite} {failure.number}: {'; '.join(failure.faults)}"
        lines = textwrap.wrap(said, 46)[:2] + textwrap.wrap(failure.shown.sample.caption, 46)
        pen.multiline_text((left, top + SHOWN + 2), "\n".join(lines[:_LINES]), "black", font, spacing=1)
    return sheet
