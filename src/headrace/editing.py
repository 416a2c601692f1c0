"""A source picture that is to be edited: brought to its size, with what of it is to be made anew.

Nothing here needs torch: a request that cannot be is refused before anything is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from headrace.errors import RequestError
from headrace.pictures import extended, open_mask, open_picture
from headrace.recipe import (
    DEFAULT_FEATHER,
    MAX_AREA,
    EditRecord,
    check_denoising_strength,
    check_feather,
    check_fit,
    check_outpaint,
    check_pair,
    check_size,
    nearest_sizes,
    parse_outpaint,
    parse_size,
)

PictureSource = Image.Image | str | PathLike[str]
Margins = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Edit:
    """A source as it is used.

    canvas: RGB, what the model is given: sides multiples of a token's, the picture at its top left. size: of the
    picture, (width, height). mask: grey, of the canvas' size, 255 where the picture is to be made; None where it is to
    be made everywhere. weights: grey, of the picture's size, how much of the made picture shows; None as for the mask.
    """

    canvas: Image.Image
    size: tuple[int, int]
    mask: Image.Image | None
    weights: Image.Image | None
    record: EditRecord

    def finish(self, made: Image.Image) -> Image.Image:
        """The picture from what the model made of the canvas: outside the mask every pixel is the source's own."""
        area = (0, 0, *self.size)
        if self.weights is None:
            return made.crop(area)
        return Image.composite(made.crop(area), self.canvas.crop(area), self.weights)


def make_edit(
    image: PictureSource | None,
    mask: PictureSource | None,
    outpaint: str | Sequence[int] | None,
    strength: float | None,
    feather: int | None,
    fit: str,
    size: str | tuple[int, int] | None,
    multiple: int,
) -> Edit | None:
    """The edit that the arguments of `Pipeline.stream` ask for, or None where there is no source.

    multiple: pixels along a token's side. Raises RequestError for arguments that cannot be, or not together.
    """
    check_fit(fit)
    if image is None:
        given = {"mask": mask, "outpaint": outpaint, "strength": strength, "feather": feather}
        for name, value in given.items():
            if value is not None:
                raise RequestError(f"There is no picture that the {name} could apply to; give one with image.")
        return None
    if feather is not None:
        check_feather(feather)
    margins = (0, 0, 0, 0)
    if outpaint is not None:
        margins = parse_outpaint(outpaint) if isinstance(outpaint, str) else check_outpaint(outpaint)
        if size is not None:
            raise RequestError("The outpaint decides the size; leave the size out.")
    source = open_picture(image, kind="source")
    masked = None if mask is None else _matching_mask(mask, source)
    if size is not None:
        wanted = check_size(*(parse_size(size) if isinstance(size, str) else check_pair(size)), multiple)
        source, masked, margins = _fitted(source, masked, wanted, fit)
    if masked is not None and masked.getextrema()[1] == 0 and not any(margins):
        raise RequestError("The mask is black all over, so nothing would be made; paint white what is to be made.")
    if feather is None:
        feather = 0 if masked is None and not any(margins) else DEFAULT_FEATHER
    record = EditRecord(
        pixel_hash(source),
        source.width,
        source.height,
        "" if masked is None else pixel_hash(masked),
        *margins,
        strength=check_denoising_strength(_default_strength(masked, margins) if strength is None else strength),
        feather=feather,
    )
    return _laid_out(source, masked, margins, record, multiple)


def pixel_hash(image: Image.Image) -> str:
    """What identifies a picture's pixels, and their arrangement."""
    return hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).hexdigest()


def _default_strength(mask: Image.Image | None, margins: Margins) -> float:
    if mask is None and not any(margins):
        raise RequestError(
            "Nothing says what is to become of the source picture: give a mask, an outpaint or a strength; or name it "
            "as a reference instead."
        )
    return 1.0


def _matching_mask(mask: PictureSource, source: Image.Image) -> Image.Image:
    opened = open_mask(mask)
    if opened.size != source.size:
        raise RequestError(
            f"The mask has {opened.width}x{opened.height} pixels and the source {source.width}x{source.height}; they "
            "must be of one size."
        )
    return opened


def _fitted(
    source: Image.Image, mask: Image.Image | None, size: tuple[int, int], fit: str
) -> tuple[Image.Image, Image.Image | None, Margins]:
    """Source and mask at this size: cropped by the centre, stretched, or smaller with margins that are to be made."""
    if fit == "crop":
        cropped = None if mask is None else ImageOps.fit(mask, size, Image.Resampling.NEAREST)
        return ImageOps.fit(source, size, Image.Resampling.LANCZOS), cropped, (0, 0, 0, 0)
    inner = size
    if fit == "pad":
        scale = min(size[0] / source.width, size[1] / source.height)
        inner = (
            max(1, min(size[0], round(source.width * scale))),
            max(1, min(size[1], round(source.height * scale))),
        )
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    margins = left, top, size[0] - inner[0] - left, size[1] - inner[1] - top
    scaled = None if mask is None else mask.resize(inner, Image.Resampling.NEAREST)
    return source.resize(inner, Image.Resampling.LANCZOS), scaled, margins


def _laid_out(
    source: Image.Image, mask: Image.Image | None, margins: Margins, record: EditRecord, multiple: int
) -> Edit:
    left, top, right, bottom = margins
    width, height = source.width + left + right, source.height + top + bottom
    spare = -width % multiple, -height % multiple
    if (width + spare[0]) * (height + spare[1]) > MAX_AREA:
        nearest = nearest_sizes(width, height, multiple)[0]
        advice = "add less to it" if any(margins) else f"give a size for it, such as {nearest[0]}x{nearest[1]}"
        raise RequestError(f"The picture would have {width}x{height} pixels, more than 4 megapixels; {advice}.")
    canvas = extended(source, left, top, right + spare[0], bottom + spare[1])
    if mask is None and not any(margins):
        if record.feather:
            raise RequestError("A feather softens the edge of a mask or an outpaint, and there is neither.")
        return Edit(canvas, (width, height), None, None, record)
    whole = Image.new("L", (width, height), 255)
    whole.paste(Image.new("L", source.size, 0) if mask is None else mask, (left, top))
    return Edit(canvas, (width, height), extended(whole, 0, 0, *spare), _feathered(whole, record.feather), record)


def _feathered(mask: Image.Image, feather: int) -> Image.Image:
    """255 inside the mask, falling towards its edge over `feather` pixels, and 0 outside of it."""
    inside = np.asarray(mask) > 0
    levels = inside.astype(np.int32)
    for _ in range(feather):
        inside = _eroded(_eroded(inside).T).T
        levels += inside
    return Image.fromarray((levels * 255 // (feather + 1)).astype(np.uint8))


def _eroded(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What has all its neighbours in its column inside; what is beyond the picture counts as inside."""
    result = inside.copy()
    result[1:] &= inside[:-1]
    result[:-1] &= inside[1:]
    return result
