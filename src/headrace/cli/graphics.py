"""Pictures in a terminal: in kitty's, iTerm2's or the sixel protocol where it has one of them, else in half-blocks.

Sources: https://sw.kovidgoyal.net/kitty/graphics-protocol, https://iterm2.com/documentation-images.html, and the VT330/
VT340 programmer reference, chapter 14, for sixels.
"""

from __future__ import annotations

import base64
import io
import os
import re
import select
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from PIL import Image

    from headrace.pipeline import Step
    from headrace.recipe import Recipe

# A cell is taken to be twice as high as wide, with so many pixels.
CELL_WIDTH, CELL_HEIGHT = 10, 20
COLUMNS, ROWS = 48, 20
_KITTY_CHUNK = 4096
_SIXEL_COLORS = 256
_ANSWER_SECONDS = 0.3

Draw = Callable[["Image.Image", int, int], str]


def choose_protocol(environment: Mapping[str, str], attributes: str) -> Draw:
    """How to draw in a terminal, from its environment and its answer to "primary device attributes" (`ESC [ c`)."""
    program, kind = environment.get("TERM_PROGRAM", ""), environment.get("TERM", "")
    if "TMUX" in environment or kind.startswith("screen"):  # which pass none of the protocols on
        return draw_half_blocks
    if "kitty" in kind or program == "ghostty" or environment.keys() & {"KITTY_WINDOW_ID", "KONSOLE_VERSION"}:
        return draw_kitty
    if program in ("iTerm.app", "WezTerm", "mintty"):
        return draw_iterm2
    answer = re.search(r"\x1b\[\?([0-9;]*)c", attributes)
    return draw_sixel if answer and "4" in answer[1].split(";") else draw_half_blocks


def ask_attributes(terminal: TextIO) -> str:
    """The terminal's answer to "primary device attributes"; empty where there is none at once."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        return ""
    try:
        keyboard = sys.stdin.fileno()
        before = termios.tcgetattr(keyboard)
    except (AttributeError, OSError, ValueError, termios.error):  # closed, or no terminal
        return ""
    answer = ""
    try:
        tty.setcbreak(keyboard)
        terminal.write("\x1b[c")
        terminal.flush()
        while not answer.endswith("c") and select.select([keyboard], [], [], _ANSWER_SECONDS)[0]:
            answer += os.read(keyboard, 64).decode("ascii", "replace")
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
    return answer


class Screen:
    """A place of fixed size in a terminal, where each picture takes the last one's place."""

    def __init__(self, terminal: TextIO, draw: Draw, shape: tuple[int, int]) -> None:
        """shape: (width, height) of the pictures, in any unit."""
        scale = min(COLUMNS * CELL_WIDTH / shape[0], ROWS * CELL_HEIGHT / shape[1])
        self._terminal, self._draw = terminal, draw
        self._columns = max(1, round(shape[0] * scale / CELL_WIDTH))
        self._rows = max(1, round(shape[1] * scale / CELL_HEIGHT))
        self._drawn = False

    def show(self, picture: Image.Image, line: str) -> None:
        """Draws the picture, and a line below it."""
        # Room is made before anything is drawn, so that the terminal does not scroll under it.
        up = f"\x1b[{self._rows + 1}A"
        start = up if self._drawn else "\n" * (self._rows + 1) + up
        content = self._draw(picture, self._columns, self._rows)
        self._terminal.write(f"{start}\r\x1b7{content}\x1b8\x1b[{self._rows}B\r\x1b[K{line}\n")
        self._terminal.flush()
        self._drawn = True


def step_viewer(terminal: TextIO) -> Callable[[Step], None]:
    """What shows every step's first picture in this terminal."""
    draw = choose_protocol(os.environ, ask_attributes(terminal))
    screens: dict[tuple[Recipe, ...], Screen] = {}

    def show(step: Step) -> None:
        picture = step.sketch(0)
        if step.recipes not in screens:
            screens.clear()
            screens[step.recipes] = Screen(terminal, draw, picture.size)
        screens[step.recipes].show(picture, f"step {step.index + 1} of {step.steps}")

    return show


def picture_viewer(terminal: TextIO) -> Callable[[Image.Image], None]:
    """What shows finished pictures in this terminal, one below the other."""
    draw = choose_protocol(os.environ, ask_attributes(terminal))
    return lambda picture: Screen(terminal, draw, picture.size).show(picture, "")


def draw_kitty(picture: Image.Image, columns: int, rows: int) -> str:
    """In kitty's protocol: as PNG, in chunks, always as the same image, so that the last one is replaced."""
    data = base64.standard_b64encode(_png(picture)).decode("ascii")
    chunks = [data[start : start + _KITTY_CHUNK] for start in range(0, len(data), _KITTY_CHUNK)]
    keys = [f"a=T,f=100,i=2024,p=1,q=2,C=1,c={columns},r={rows},", *[""] * (len(chunks) - 1)]
    return "".join(
        f"\x1b_G{key}m={int(number < len(chunks))};{chunk}\x1b\\"
        for number, (key, chunk) in enumerate(zip(keys, chunks, strict=True), start=1)
    )


def draw_iterm2(picture: Image.Image, columns: int, rows: int) -> str:
    """In iTerm2's protocol, as PNG."""
    data = _png(picture)
    text = base64.standard_b64encode(data).decode("ascii")
    return f"\x1b]1337;File=inline=1;size={len(data)};width={columns};height={rows};preserveAspectRatio=0:{text}\x07"


def draw_sixel(picture: Image.Image, columns: int, rows: int) -> str:
    """In sixels: bands of six rows, colour by colour, in a palette of 256."""
    import numpy
    from PIL import Image

    size = columns * CELL_WIDTH, rows * CELL_HEIGHT
    indexed = picture.resize(size, Image.Resampling.BILINEAR).quantize(_SIXEL_COLORS, dither=Image.Dither.NONE)
    pixels, palette = numpy.asarray(indexed), indexed.getpalette() or []
    parts = [f'\x1bPq"1;1;{size[0]};{size[1]}']
    for color in range(len(palette) // 3):
        red, green, blue = (round(channel * 100 / 255) for channel in palette[3 * color : 3 * color + 3])
        parts.append(f"#{color};2;{red};{green};{blue}")
    for top in range(0, size[1], 6):
        band = pixels[top : top + 6]
        weights = (1 << numpy.arange(len(band)))[:, None]
        lines = []
        for color in numpy.unique(band).tolist():
            columns_of = ((band == color) * weights).sum(axis=0)
            lines.append(f"#{color}" + "".join(chr(63 + bits) for bits in columns_of.tolist()))
        parts.append("$".join(lines) + "-")
    return "".join(parts) + "\x1b\\"


def draw_half_blocks(picture: Image.Image, columns: int, rows: int) -> str:
    """As upper half blocks in 24-bit colours, two pixels a cell."""
    from PIL import Image

    small = picture.convert("RGB").resize((columns, 2 * rows), Image.Resampling.BOX)
    lines = []
    for row in range(rows):
        cells = []
        for column in range(columns):
            upper, lower = (small.getpixel((column, 2 * row + half)) for half in (0, 1))
            colors = ";".join(map(str, (38, 2, *_rgb(upper), 48, 2, *_rgb(lower))))
            cells.append(f"\x1b[{colors}m▀")
        lines.append("".join(cells) + "\x1b[0m")
    return "\x1b[B\r".join(lines)


def _rgb(pixel: object) -> tuple[int, ...]:
    assert isinstance(pixel, tuple)
    return pixel


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
