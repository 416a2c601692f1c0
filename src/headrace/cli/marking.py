"""The options that say how a picture is marked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.options import with_options
from headrace.pictures import MAX_FILE_BYTES, open_bounded, read_file
from headrace.provenance.metadata import encode_with_recipe, encode_without_recipe

if TYPE_CHECKING:
    from headrace.pipeline import Picture
    from headrace.provenance.certificates import Signer
    from headrace.provenance.credentials import Ingredient

_FILE = click.Path(path_type=Path)

_OPTIONS = (
    click.option("--mark", is_flag=True, help="Put a watermark into the pixels, and sign the file."),
    click.option(
        "--private", is_flag=True, help="Write neither prompt nor recipe, only that a model made the picture."
    ),
    click.option(
        "--sign-with",
        type=(_FILE, _FILE),
        metavar="CERT KEY",
        help="PEM files to sign with, which implies --mark. Default: a test certificate of this machine's own.",
    ),
)


@dataclass(frozen=True)
class Marking:
    """How pictures are marked. signer: None where neither watermark nor signature is asked for."""

    private: bool
    signer: Signer | None
    ingredients: tuple[Ingredient, ...]

    def encode(self, picture: Picture, file_format: str) -> tuple[bytes, tuple[str, ...]]:
        """The picture's file, and sentences about what could not be done."""
        if self.signer is None:
            encode = encode_without_recipe if self.private else encode_with_recipe
            return encode(picture.image, picture.recipe, file_format), ()
        from headrace.provenance.marking import mark

        marked = mark(
            picture.image,
            picture.recipe,
            file_format,
            private=self.private,
            signer=self.signer,
            ingredients=self.ingredients,
        )
        return marked.data, marked.notes


def marking_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options to a command, which gets what they ask for as `marking`.

    It stands before `editing_options`, because it looks at the files that those name before they are opened.
    """

    @functools.wraps(command)
    def gathered(**values: Any) -> None:
        asked, private, sign_with = values.pop("mark"), values.pop("private"), values.pop("sign_with")
        used = [(path, False) for path in values["references"]]
        if values["image"] is not None:
            used.insert(0, (values["image"], True))
        signer = _signer(sign_with) if asked or sign_with else None
        ingredients = [_ingredient(path, edited) for path, edited in used] if signer is not None else []
        found = tuple(ingredient for ingredient in ingredients if ingredient is not None)
        command(**values, marking=Marking(private, signer, found))

    return with_options(gathered, _OPTIONS)


def _signer(sign_with: tuple[Path, Path] | None) -> Signer:
    from headrace.provenance.certificates import local_signer, open_signer
    from headrace.provenance.watermark import weights_file

    weights_file("encoder")  # so that what is not installed is said before anything is computed

    return local_signer() if sign_with is None else open_signer(*sign_with)


def _ingredient(path: Path, edited: bool) -> Ingredient | None:
    """The file as an ingredient; None where its format is none of C2PA's."""
    from headrace.provenance.credentials import MEDIA_TYPES, Ingredient

    if str(path) == "-":
        return None
    data = read_file(path, "source" if edited else "reference", MAX_FILE_BYTES)
    file_format = open_bounded(data, str(path)).format
    return Ingredient(data, file_format, path.name, edited) if file_format in MEDIA_TYPES else None
