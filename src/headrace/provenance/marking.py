"""Marking a finished picture, in the only order that holds: pixels, watermark, metadata, signature."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.errors import RequestError
from headrace.provenance.credentials import Ingredient, sign_picture
from headrace.provenance.fingerprint import fingerprint
from headrace.provenance.metadata import encode_with_recipe, encode_without_recipe
from headrace.provenance.payload import IDENTIFIER_BITS
from headrace.provenance.watermark import check_markable, embed_watermark, read_watermark

if TYPE_CHECKING:
    from PIL import Image

    from headrace.provenance.certificates import Signer
    from headrace.recipe import Recipe


@dataclass(frozen=True)
class Marked:
    """A marked picture file.

    data: its bytes. identifier: of its watermark, None where it has none. fingerprint: of its looks, as `Register.add`
    takes it. notes: sentences about what could not be done.
    """

    data: bytes
    identifier: int | None
    fingerprint: int
    notes: tuple[str, ...] = ()


def mark(
    image: Image.Image,
    recipe: Recipe,
    file_format: str,
    *,
    watermark: bool = True,
    identifier: int | None = None,
    private: bool = False,
    signer: Signer | None = None,
    ingredients: Sequence[Ingredient] = (),
) -> Marked:
    """The picture as a file: with a watermark, with its recipe inside, and signed.

    file_format: PNG, JPEG or WEBP. watermark: leave it out when False; a picture that is too small for one, or from
    which it cannot be read again, goes without it, which a note says. identifier: of the watermark, 0 to 65,535; by
    default the recipe's (`recipe_identifier`), or a random one where it is private. private: neither prompt, model nor
    any other part of the recipe is written. signer: nothing is signed without one. ingredients: the files that the
    recipe's source and references came from; the signature covers them.

    Raises RequestError where the extra `provenance` is missing or the recipe is too long for a JPEG, and HeadraceError
    where the signer fails.
    """
    image = image.convert("RGB")
    notes = []
    if watermark:
        try:
            check_markable(*image.size)
        except RequestError as error:
            watermark, identifier = False, None
            notes.append(str(error))
    if watermark:
        if identifier is None:
            identifier = secrets.randbits(IDENTIFIER_BITS) if private else recipe_identifier(recipe)
        marked = embed_watermark(image, identifier)
        found = read_watermark(marked, ladder=(1.0,))
        if found is not None and found.identifier == identifier:
            image = marked
        else:
            identifier = None
            notes.append("A watermark does not hold in this picture, so it goes without one.")
    looks = fingerprint(image)
    encode = encode_without_recipe if private else encode_with_recipe
    data = encode(image, recipe, file_format)
    if signer is not None:
        data = sign_picture(data, file_format, recipe, signer, ingredients, identifier, looks, private)
    return Marked(data, identifier, looks, tuple(notes))


def recipe_identifier(recipe: Recipe) -> int:
    """The 16 bits by which a watermark names its recipe: the first of the SHA-256 of its JSON, keys sorted."""
    document = json.dumps(recipe.as_dict(), sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(document.encode("ascii")).digest()[: IDENTIFIER_BITS // 8], "big")
