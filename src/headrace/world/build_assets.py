"""Makes the shipped pictures and fonts from what others publish. Only needed to change the set of objects or faces.

``python -m headrace.world.build_assets EMOJI CLDR FONTS`` with the path of

- ``NotoColorEmoji.ttf`` (Debian's package ``fonts-noto-color-emoji``),
- the unpacked npm package ``cldr-annotations-full``, against which the objects' names are checked,
- a folder with the files of `FACES` (npm packages ``@expo-google-fonts/nunito``, ``roboto-slab``, ``courier-prime``).

Needs ``fonttools``, which nothing else here does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from headrace.world.letters import CHARACTERS
from headrace.world.objects import CELL, COLUMNS, ObjectKind, kinds

BITMAP_SIZE = 109
"""The only size at which the emoji font's bitmaps can be drawn."""

FACES = {
    "sans": "Nunito_800ExtraBold.ttf",
    "serif": "RobotoSlab_800ExtraBold.ttf",
    "typewriter": "CourierPrime_700Bold.ttf",
}


def cell(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The emoji as an RGBA cell: cut to what is drawn, centred in a square, scaled to the cell."""
    canvas = Image.new("RGBA", (2 * BITMAP_SIZE, 2 * BITMAP_SIZE), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((20, 20), character, font=font, embedded_color=True)
    drawn = canvas.crop(canvas.getbbox())
    side = max(drawn.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return square.resize((CELL, CELL), Image.Resampling.LANCZOS)


def build_atlas(font_file: Path, folder: Path) -> None:
    """Writes ``objects.webp``: a cell for each object, row by row."""
    font = ImageFont.truetype(str(font_file), BITMAP_SIZE)
    rows = -(-len(kinds()) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * CELL, rows * CELL), (0, 0, 0, 0))
    for index, kind in enumerate(kinds()):
        atlas.paste(cell(kind.emoji, font), ((index % COLUMNS) * CELL, (index // COLUMNS) * CELL))
    atlas.save(folder / "objects.webp", lossless=True, quality=100, method=6)


def names_not_in_cldr(package: Path, objects: Sequence[ObjectKind]) -> list[str]:
    """Names that are neither a name or a keyword of their emoji in CLDR, nor a word of either."""
    unknown = []
    for language in ("en", "fr"):
        text = (package / "annotations" / language / "annotations.json").read_text(encoding="utf-8")
        annotations = json.loads(text)["annotations"]["annotations"]
        for kind in objects:
            entry = annotations[kind.emoji.removesuffix("\ufe0f")]
            name = kind.name if language == "en" else kind.french
            if not any(f" {name} " in f" {known} " for known in (*entry["tts"], *entry["default"])):
                unknown.append(f"{kind.emoji} {language}: {name}")
    return unknown


def build_faces(fonts: Path, folder: Path) -> None:
    """Writes the faces with nothing in them but the letters that are used."""
    from fontTools import subset

    for face, file in FACES.items():
        options = subset.Options(layout_features=[], hinting=False, name_IDs=[0, 1, 2, 13, 14])
        font = subset.load_font(str(fonts / file), options)
        subsetter = subset.Subsetter(options)
        subsetter.populate(text=CHARACTERS + " ")
        subsetter.subset(font)
        subset.save_font(font, str(folder / f"{face}.ttf"), options)


if __name__ == "__main__":
    emoji, cldr, faces = map(Path, sys.argv[1:])
    assets = Path(__file__).parent / "assets"
    if strangers := names_not_in_cldr(cldr, kinds()):
        sys.exit("CLDR does not know these names: " + ", ".join(strangers))
    build_atlas(emoji, assets)
    build_faces(faces, assets)
