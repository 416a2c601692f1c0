"""`headrace convert`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from headrace.cli.terminal import printable, progress_bar, readable_bytes

if TYPE_CHECKING:
    from headrace.checkpoints.convert import OutputLayout, Precision


@click.command()
@click.argument("source", metavar="IN")
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp8", "int8", "nvfp4", "stored"]),
    default="fp8",
    show_default=True,
    help="stored leaves every layer in the format it is in.",
)
@click.option(
    "--layout",
    type=click.Choice(["bfl", "diffusers", "comfy"]),
    help="diffusers writes a folder with all that IN has; bfl and comfy write one .safetensors file with the "
    "transformer. Default: bfl for a .safetensors file, else diffusers.",
)
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="PLACE[:STRENGTH]",
    help="A LoRA to merge into the transformer, as for generate. Given again for more.",
)
def convert(source: str, output: Path, precision: str, layout: str | None, loras: tuple[str, ...]) -> None:
    """Write a model in another precision or layout.

    IN is the name of a model, a folder, a transformer file or a hub id. In fp8, int8 and nvfp4 the linear layers of
    the blocks are, and the rest is bf16.

    \b
    headrace convert klein-4b klein-4b-int8 --precision int8
    headrace convert klein-4b klein-4b-fp8.safetensors --precision fp8 --layout comfy
    headrace convert klein-4b styled.safetensors --precision bf16 --lora style.safetensors:0.8
    """
    from headrace.checkpoints.convert import convert as write

    if layout is None:
        layout = "bfl" if output.suffix == ".safetensors" else "diffusers"
    # A percentage, because how many bytes there will be is only known once the source has been found.
    with progress_bar("percent", total=100) as (advance, _):
        shown = 0

        def on_progress(written: int, total: int) -> None:
            nonlocal shown
            percent = 100 * written // total
            advance(percent - shown)
            shown = percent

        def say(report: str) -> None:
            click.echo(printable(report), err=True)

        write(source, output, cast("Precision", precision), cast("OutputLayout", layout), on_progress, loras, say)
    click.echo(f"wrote {output} ({readable_bytes(_size(output))})")


def _size(output: Path) -> int:
    files = output.rglob("*") if output.is_dir() else [output]
    return sum(file.stat().st_size for file in files if file.is_file())
