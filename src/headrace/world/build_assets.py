"""Makes ``assets/objects.webp`` and ``assets/objects.json`` from the Noto Color Emoji font.

Run ``python -m headrace.world.build_assets FONT`` with the path of ``NotoColorEmoji.ttf`` (Debian's package
``fonts-noto-color-emoji``). Only needed to change the set of objects: the result is shipped.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from headrace.world.objects import CELL

BITMAP_SIZE = 109
"""The only size at which the font's bitmaps can be drawn."""

COLUMNS = 8

OBJECTS: tuple[tuple[str, str | None, str], ...] = (
    ("apple", "red", "🍎"),
    ("banana", "yellow", "🍌"),
    ("strawberry", "red", "🍓"),
    ("watermelon", None, "🍉"),
    ("pineapple", "yellow", "🍍"),
    ("carrot", "orange", "🥕"),
    ("mushroom", "red", "🍄"),
    ("pizza", None, "🍕"),
    ("hamburger", None, "🍔"),
    ("cupcake", None, "🧁"),
    ("donut", "brown", "🍩"),
    ("cat", None, "🐱"),
    ("dog", None, "🐶"),
    ("frog", "green", "🐸"),
    ("panda", None, "🐼"),
    ("pig", "pink", "🐷"),
    ("fox", "orange", "🦊"),
    ("lion", None, "🦁"),
    ("penguin", None, "🐧"),
    ("owl", "brown", "🦉"),
    ("duck", None, "🦆"),
    ("fish", "blue", "🐟"),
    ("octopus", "red", "🐙"),
    ("butterfly", "orange", "🦋"),
    ("ladybug", "red", "🐞"),
    ("turtle", "green", "🐢"),
    ("rose", "red", "🌹"),
    ("sunflower", "yellow", "🌻"),
    ("cactus", "green", "🌵"),
    ("tree", "green", "🌳"),
    ("star", "yellow", "⭐"),
    ("moon", "yellow", "🌙"),
    ("heart", "red", "❤️"),
    ("rocket", None, "🚀"),
    ("car", "red", "🚗"),
    ("bus", "blue", "🚌"),
    ("airplane", "blue", "✈️"),
    ("house", None, "🏠"),
    ("castle", "grey", "🏰"),
    ("umbrella", "purple", "☂️"),
    ("balloon", "red", "🎈"),
    ("guitar", "red", "🎸"),
    ("clock", "red", "⏰"),
    ("key", "yellow", "🔑"),
    ("crown", "yellow", "👑"),
    ("robot", "grey", "🤖"),
    ("ghost", "white", "👻"),
    ("snowman", "white", "⛄"),
)


def cell(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The emoji as an RGBA cell: cut to what is drawn, centred in a square, scaled to the cell."""
    canvas = Image.new("RGBA", (2 * BITMAP_SIZE, 2 * BITMAP_SIZE), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((20, 20), character, font=font, embedded_color=True)
    drawn = canvas.crop(canvas.getbbox())
    side = max(drawn.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return square.resize((CELL, CELL), Image.Resampling.LANCZOS)


def build(font_file: Path, folder: Path) -> None:
    """Writes the atlas and its list into ``folder``."""
    font = ImageFont.truetype(str(font_file), BITMAP_SIZE)
    rows = -(-len(OBJECTS) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * CELL, rows * CELL), (0, 0, 0, 0))
    for index, (_, _, character) in enumerate(OBJECTS):
        atlas.paste(cell(character, font), ((index % COLUMNS) * CELL, (index // COLUMNS) * CELL))
    atlas.save(folder / "objects.webp", lossless=True, quality=100, method=6)
    listing = {"objects": [{"name": name, "color": color} for name, color, _ in OBJECTS]}
    (folder / "objects.json").write_text(json.dumps(listing, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(__file__).parent / "assets")
