"""The options that say what becomes of pictures that are given: sources, masks, references."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.options import with_options
from headrace.errors import RequestError
from headrace.pictures import open_mask, open_picture
from headrace.recipe import (
    DEFAULT_FEATHER,
    FITS,
    MAX_FEATHER,
    REFERENCE_SIZES,
    EditRecord,
    ReferenceRecord,
    check_denoising_strength,
    check_feather,
    parse_outpaint,
    parse_size,
)

if TYPE_CHECKING:
    from PIL import Image

    OpenedReference = tuple[Path, Image.Image]

_FILE = click.Path(path_type=Path)

_OPTIONS = (
    click.option(
        "--pose",
        type=_FILE,
        metavar="FILE",
        help="Keypoints (JSON) or a photo, drawn as a skeleton at --size: image 1 of the prompt, before all --ref.",
    ),
    click.option("--image", type=_FILE, metavar="FILE", help="A picture to edit; the result has its exact size."),
    click.option(
        "--mask",
        type=_FILE,
        metavar="FILE",
        help="Of the source's size, white where it is to be made anew; all else keeps the source's own pixels.",
    ),
    click.option("--outpaint", metavar="L,T,R,B", help="Pixels to be made left, above, right of and below the source."),
    click.option(
        "--strength",
        type=float,
        metavar="0..1",
        help="Redraw the source partly: which part of the steps is taken. Default with --mask or --outpaint: 1.",
    ),
    click.option(
        "--feather",
        type=int,
        metavar="PIXELS",
        help=f"The source fades out over so many inside the mask's edge: up to {MAX_FEATHER}. "
        f"Default: {DEFAULT_FEATHER}.",
    ),
    click.option(
        "--fit",
        type=click.Choice(FITS),
        default=FITS[0],
        show_default=True,
        help="How references come to multiples of 16, and the source to --size; with pad its margins are made.",
    ),
    click.option(
        "--ref-size",
        "reference_size",
        type=click.Choice(REFERENCE_SIZES),
        default=REFERENCE_SIZES[0],
        show_default=True,
        help="full: up to 2024x2024 pixels of a reference that is alone, instead of 1 megapixel.",
    ),
)
_NAMES = ("image", "mask", "outpaint", "strength", "feather", "fit", "reference_size")


def editing_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options to a command, which gets those for a source as `editing`: arguments for `Pipeline.stream`.

    Its `references` become pairs of a path and the picture there, the pose first.
    """

    @functools.wraps(command)
    def gathered(**values: Any) -> None:
        editing = {name: values.pop(name) for name in _NAMES}
        references = _open_references(values.pop("pose"), values.pop("references"), values["size"])
        command(**values, references=references, editing=_opened(editing))

    return with_options(gathered, _OPTIONS)


def _open_references(pose: Path | None, paths: Sequence[Path], size: str | None) -> list[OpenedReference]:
    if any(str(path) == "-" for path in (pose, *paths)):
        raise RequestError("A reference cannot come from standard input; name a file with --ref.")
    references = [(path, open_picture(path)) for path in paths]
    if pose is None:
        return references
    from headrace.pose import draw_poses, open_poses

    return [(pose, draw_poses(open_poses(pose, None if size is None else parse_size(size)))), *references]


def _opened(editing: dict[str, Any]) -> dict[str, Any]:
    """The same with the pictures opened; what cannot be is refused before torch is imported. Raises RequestError."""
    for name in ("image", "mask"):
        if str(editing[name]) == "-":
            raise RequestError(f"The {name} cannot come from standard input; name a file with --{name}.")
    if editing["outpaint"] is not None:
        editing["outpaint"] = parse_outpaint(editing["outpaint"])
    if editing["strength"] is not None:
        check_denoising_strength(editing["strength"])
    if editing["feather"] is not None:
        check_feather(editing["feather"])
    if editing["mask"] is not None:
        editing["mask"] = open_mask(editing["mask"])
    if editing["image"] is not None:
        editing["image"] = open_picture(editing["image"], kind="source")
    return editing


def report_references(references: Sequence[OpenedReference], records: Sequence[ReferenceRecord]) -> None:
    """Says on standard error at which size each reference was used."""
    for number, ((path, _), record) in enumerate(zip(references, records, strict=True), start=1):
        click.echo(f"image {number}: {path}, used at {record.width}x{record.height}", err=True)


def report_source(record: EditRecord, opened: tuple[int, int]) -> None:
    """Says on standard error at which size the source was used, whose own is `opened`."""
    used = record.source_width, record.source_height
    own = "its own size" if used == opened else f"its own is {opened[0]}x{opened[1]}"
    click.echo(f"source: used at {used[0]}x{used[1]} ({own}), strength {record.strength:g}", err=True)
