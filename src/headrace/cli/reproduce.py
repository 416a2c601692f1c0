"""`headrace reproduce`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from headrace.cli.options import with_options
from headrace.cli.terminal import printable
from headrace.pictures import check_output
from headrace.provenance.metadata import read_recipe, save_picture

_FILE = click.Path(path_type=Path)

_PARTS = (
    click.option("--model", metavar="NAME|FOLDER|FILE|HUB_ID", help="Default: what the recipe calls it."),
    click.option("--autoencoder", metavar="FILE|FOLDER", help="As it was given to generate."),
    click.option("--text-encoder", metavar="FILE|FOLDER", help="As it was given to generate."),
    click.option("--tokenizer", metavar="FOLDER", help="As it was given to generate."),
    click.option("--variant", type=click.Choice(["base", "distilled", "kv"]), help="As it was given to generate."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True),
    click.option("--memory", metavar="SIZE", help="What the run may take at most, as 6GB or 6GiB."),
    click.option("--host-memory", metavar="SIZE", help="With a GPU: what may be pinned of the host's memory."),
)


@click.command()
@click.argument("picture", type=_FILE, metavar="FILE")
@click.option("-o", "--output", type=_FILE, metavar="FILE", help="Write what was made: .png, .jpg or .webp.")
@click.option("--ref", "references", type=_FILE, multiple=True, metavar="FILE", help="A reference that was used.")
@click.option("--lora", "loras", multiple=True, metavar="PLACE", help="A LoRA that was used; its strength is known.")
@click.option("--image", type=_FILE, metavar="FILE", help="The picture that was edited.")
@click.option("--mask", type=_FILE, metavar="FILE", help="The mask within which it was edited.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead.")
def _reproduce(picture: Path, output: Path | None, as_json: bool, **arguments: Any) -> None:
    """Make the picture in FILE again from the recipe inside, and say whether all bits agree.

    \b
    headrace reproduce cat.png
    headrace reproduce beside.png --ref a.png --ref b.png -o again.png

    What the recipe knows only by hash is asked for: references, LoRAs, and the source and mask of an edit, in any
    order. A marked picture is marked again before it is compared. The exit code is 1 where bits differ.
    """
    if output is not None:
        check_output(output)
    read_recipe(picture)  # what cannot be reproduced is refused before torch is imported

    from headrace.reproduction import reproduce as make_again

    made = make_again(picture, **arguments)
    if output is not None:
        save_picture(made.image, made.recipe, output)
    if as_json:
        result = {
            "path": str(picture),
            "same": made.same,
            "watermark": None if made.watermark is None else f"{made.watermark:04x}",
            "largest_difference": made.largest_difference,
            "notes": list(made.notes),
        }
        click.echo(json.dumps(result | ({} if output is None else {"output": str(output)})))
    else:
        for note in made.notes:
            click.echo(printable(note), err=True)
        marked = "" if made.watermark is None else f", watermark {made.watermark:04x} included"
        agree = f"all bits agree{marked}" if made.same else f"bits differ, by up to {made.largest_difference} of 255"
        click.echo(printable(f"{picture}: {agree}"))
        if output is not None:
            click.echo(f"wrote {output}")
    if not made.same:
        click.get_current_context().exit(1)


reproduce = with_options(_reproduce, _PARTS)
