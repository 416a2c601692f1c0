"""A picture made again from the recipe in its file, and compared with it bit by bit."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from headrace.checkpoints.digest import digest, file_sha256
from headrace.checkpoints.lora_choice import LoraChoice, find_lora, split_strength
from headrace.editing import PictureSource, pixel_hash
from headrace.errors import RequestError
from headrace.flow.conventions import find_convention
from headrace.flow.references import prepare_references
from headrace.pictures import encode_picture, open_picture
from headrace.pipeline import Pipeline, Step, load
from headrace.provenance.metadata import read_recipe
from headrace.provenance.watermark import embed_watermark, read_watermark
from headrace.recipe import EditRecord, Recipe


@dataclass(frozen=True)
class Reproduction:
    """What came of making a picture again.

    image: the pixels, with the watermark where the file's have one. recipe: the file's. same: whether all pixels agree,
    those of a JPEG or WebP after the same compression. watermark: the identifier in both, or None. largest_difference:
    of any channel of any pixel, 0 to 255. notes: sentences about what is not as it was, such as the version.
    """

    image: Image.Image
    recipe: Recipe
    same: bool
    watermark: int | None
    largest_difference: int
    notes: tuple[str, ...]


def reproduce(
    path: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    references: Sequence[PictureSource] = (),
    loras: Sequence[LoraChoice] = (),
    image: PictureSource | None = None,
    mask: PictureSource | None = None,
    on_step: Callable[[Step], bool | None] | None = None,
    **loading: Any,
) -> Reproduction:
    """Make the picture in a PNG, JPEG or WebP file again from the recipe inside, and compare.

    The recipe names what else it needs by hash: give it, in any order. model: by default what the recipe calls it.
    references: the pictures that were used. loras: their files; strengths are the recipe's. image, mask: of an edit.
    loading: further arguments of `headrace.load`, but for the precisions.

    Raises RequestError where the file has no recipe, where what it needs is missing or has another hash, and Cancelled.
    """
    recipe = read_recipe(path)
    original = open_picture(path, kind="picture")
    pipeline = load(
        recipe.model if model is None else model,
        precision=recipe.precision,
        text_precision=recipe.text_precision or None,
        **loading,
    )
    if (found := digest(pipeline.checkpoint)) != recipe.model_hash:
        raise RequestError(
            f"{pipeline.checkpoint.name} is not the model that made {path}: its hash is {found[:23]}..., the recipe's "
            f"{recipe.model_hash[:23]}...; name the right one with --model."
        )
    made = pipeline.generate(
        recipe.prompt,
        seed=recipe.seed,
        references=_find_references(recipe, references, pipeline),
        loras=_find_loras(recipe, loras),
        steps=recipe.steps,
        guidance=recipe.guidance,
        convention=recipe.convention,
        fit=recipe.fit,
        reference_size=recipe.reference_size,
        on_step=on_step,
        **_placed(recipe, image, mask),
    )
    notes = [
        f"The recipe's {field.name} is {was!r}, now it is {now!r}."
        for field in fields(Recipe)
        if (was := getattr(recipe, field.name)) != (now := getattr(made.recipe, field.name))
    ]
    remade, identifier = made.image, None
    difference = _difference(remade, original, path)
    if difference and (identifier := _identifier(original)) is not None:
        marked = embed_watermark(remade, identifier)
        remade, difference = marked, _difference(marked, original, path)
    return Reproduction(remade, recipe, difference == 0, identifier, difference, tuple(notes))


def _find_references(recipe: Recipe, references: Sequence[PictureSource], pipeline: Pipeline) -> list[PictureSource]:
    """Those given, in the recipe's order."""
    opened = [open_picture(reference) for reference in references]
    multiple = pipeline.checkpoint.autoencoder_config.token_size
    full = recipe.reference_size == "full"
    # What is made of a reference depends on how many there are: as many are prepared together as there were.
    count = len(recipe.references)
    prepared = [
        prepare_references([one] * count, find_convention(recipe.convention), multiple, recipe.fit, full)[0]
        for one in (opened if count else ())
    ]
    by_hash = dict(zip(map(pixel_hash, prepared), opened, strict=False))
    wanted = {record.sha256: f"{record.width}x{record.height}" for record in recipe.references}
    _check_given("reference", "--ref", "the SHA-256 of its pixels", by_hash, wanted, len(references))
    return [by_hash[record.sha256] for record in recipe.references]


def _find_loras(recipe: Recipe, loras: Sequence[LoraChoice]) -> list[tuple[Path, float]]:
    """Those given, in the recipe's order and with its strengths."""
    files = [find_lora(split_strength(choice)[0]) for choice in loras]
    by_hash = {file_sha256(file): file for file in files}
    wanted = {record.sha256: record.name for record in recipe.loras}
    _check_given("LoRA", "--lora", "its SHA-256", by_hash, wanted, len(loras))
    return [(by_hash[record.sha256], record.strength) for record in recipe.loras]


def _check_given(kind: str, option: str, hashed: str, given: Iterable[str], wanted: dict[str, str], count: int) -> None:
    missing = [f"{name} ({hashed} is {sha256[:16]}...)" for sha256, name in wanted.items() if sha256 not in set(given)]
    if missing:
        plural = "s" if len(wanted) > 1 else ""
        raise RequestError(
            f"The picture was made with {len(wanted)} {kind}{plural}, of which the {count} given lack {missing[0]}; "
            f"name it with {option}."
        )


def _placed(recipe: Recipe, image: PictureSource | None, mask: PictureSource | None) -> dict[str, Any]:
    """The arguments that say what is edited, and at which size."""
    record = recipe.edit
    if record is None:
        return {"size": (recipe.width, recipe.height)}
    if image is None:
        raise RequestError(
            f"The picture is an edit of one with {record.source_width}x{record.source_height} pixels; name that with "
            "--image."
        )
    source = open_picture(image, kind="source")
    if record.mask_sha256 and mask is None:
        raise RequestError("The picture was edited within a mask; name that with --mask.")
    arguments: dict[str, Any] = {
        "image": source,
        "mask": mask if record.mask_sha256 else None,
        "strength": record.strength,
        "feather": record.feather,
    }
    margins = record.left, record.top, record.right, record.bottom
    if source.size != (record.source_width, record.source_height):
        return arguments | {"size": (recipe.width, recipe.height)}  # it was fitted to that size
    _check_source(record, source)
    return arguments | {"outpaint": margins if any(margins) else None}


def _check_source(record: EditRecord, source: Image.Image) -> None:
    if pixel_hash(source) != record.source_sha256:
        raise RequestError(
            f"The source is not the one that was edited: its pixels' SHA-256 is {pixel_hash(source)[:16]}..., the "
            f"recipe's {record.source_sha256[:16]}...; name the right one with --image."
        )


def _identifier(image: Image.Image) -> int | None:
    try:
        found = read_watermark(image)
    except RequestError:  # too small to carry one, or the extra is not installed: it is compared as it is
        return None
    return None if found is None else found.identifier


def _difference(made: Image.Image, original: Image.Image, path: str | os.PathLike[str]) -> int:
    """The largest between two pictures, the first compressed as the file is."""
    with Image.open(path) as file:
        encoded = encode_picture(made, str(file.format), {})
    if made.size != original.size:
        return 255
    again = open_picture(Image.open(io.BytesIO(encoded)))
    return int(np.abs(np.asarray(again, dtype=np.int16) - np.asarray(original, dtype=np.int16)).max())
