"""`headrace bench`."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from headrace import catalog
from headrace.catalog import PublishedModel
from headrace.cli.terminal import print_table, readable_bytes
from headrace.recipe import parse_size


class Blocks(click.ParamType[tuple[int, int]]):
    """How many double-stream and single-stream blocks, written `1+4`."""

    name = "DOUBLES+SINGLES"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,3})\+(\d{1,3})", str(value))
        if match is None or match.groups() == ("0", "0"):
            self.fail(f"{value!r} is not a number of blocks of both kinds; write it like 1+4.", param, ctx)
        return int(match.group(1)), int(match.group(2))


PRECISIONS = ("fp32", "bf16", "fp8", "int8")
PUBLISHED = click.argument("model", type=click.Choice([published.name for published in catalog.PUBLISHED]))
SIZES = click.option("--size", "sizes", multiple=True, metavar="WxH", help="Repeatable. Default: three squares.")
ROUNDS = click.option("--rounds", type=click.IntRange(1, 100), default=3, show_default=True, help="Of every size.")
FOLDER = click.option(
    "--folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where weights are written for the time being. Default: the system's folder for temporary files.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
SQUARES = ("256x256", "512x512", "1024x1024")


@click.group()
def bench() -> None:
    """Measure this machine, and what Headrace does on it."""


@bench.command()
@PUBLISHED
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--precision", type=click.Choice(PRECISIONS), default="bf16", show_default=True)
def checkpoint(model: str, folder: Path, precision: str) -> None:
    """Write random weights in MODEL's shapes into DIR, with a working tokenizer: for runs of its size without it.

    The text encoder is written up to the last layer that is used.
    """
    from headrace.bench.checkpoint import write_checkpoint

    total = write_checkpoint(_published(model), folder, precision)
    click.echo(f"wrote {folder} ({readable_bytes(total)})")


@bench.command()
@PUBLISHED
@click.option("--blocks", type=Blocks(), help="So many of each kind only, like 1+4. Default: all.")
@SIZES
@click.option("--precision", "precisions", type=click.Choice(PRECISIONS), multiple=True, help="Repeatable.")
@ROUNDS
@FOLDER
@JSON
def step(
    model: str,
    blocks: tuple[int, int] | None,
    sizes: tuple[str, ...],
    precisions: tuple[str, ...],
    rounds: int,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Time one denoising step of MODEL's shape on the CPU, all weights in memory, those being random.

    The share is that of the rate of plain bf16 products measured beside it, all operations of the step counted; the
    speed-up is over diffusers' step in bf16 with the same weights, where diffusers is installed.
    """
    from headrace.bench.blocks import reduced
    from headrace.bench.steps import compare_steps

    published = reduced(_published(model), blocks)
    chosen = [parse_size(size) for size in sizes or SQUARES]
    with TemporaryDirectory(dir=folder, prefix="headrace-") as temporary:
        rows = list(compare_steps(published, Path(temporary), chosen, precisions or ("bf16", "int8", "fp8"), rounds))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))
        return
    print_table(
        ("size", "step", "seconds", "of product rate", "speed-up"),
        [
            (
                f"{row.width}x{row.height}",
                row.what,
                f"{row.seconds:.2f}",
                f"{row.share:.1%}",
                "" if row.speedup is None else f"{row.speedup:.2f}",
            )
            for row in rows
        ],
    )


@bench.command()
@PUBLISHED
@click.option("--blocks", type=Blocks(), help="So many of each kind only, like 1+4. Default: all.")
@SIZES
@click.option("--precision", type=click.Choice(PRECISIONS), default="bf16", show_default=True)
@click.option("--memory", metavar="SIZE", help="Within this budget; without one no block stays in memory.")
@ROUNDS
@FOLDER
@JSON
def stream(
    model: str,
    blocks: tuple[int, int] | None,
    sizes: tuple[str, ...],
    precision: str,
    memory: str | None,
    rounds: int,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Time one denoising step of MODEL's shape on the CPU, its random weights streamed from disk.

    They are written first, if the disk has room for them, and deleted afterwards. The floor is the larger of the time
    that reading them takes by itself and the time that all operations take at the rate of plain bf16 products.
    """
    from headrace.bench.blocks import reduced
    from headrace.bench.streaming import measure_streaming
    from headrace.memory.sizes import parse_bytes

    published = reduced(_published(model), blocks)
    chosen = [parse_size(size) for size in sizes or SQUARES]
    budget = None if memory is None else parse_bytes(memory)
    with TemporaryDirectory(dir=folder, prefix="headrace-") as temporary:
        measured = measure_streaming(published, Path(temporary), precision, chosen, budget, rounds)
    if as_json:
        click.echo(json.dumps(asdict(measured)))
        return
    reading = measured.reading
    click.echo(
        f"{readable_bytes(reading.bytes)} a step, read at {reading.raw / 1e9:.2f} GB/s from beginning to end and at "
        f"{reading.share:.0%} of that block by block"
    )
    print_table(
        ("size", "seconds", "reading", "arithmetic", "over floor", "over resident", "peak"),
        [
            (
                f"{row.width}x{row.height}",
                f"{row.seconds:.2f}",
                f"{row.reading:.2f}",
                f"{row.arithmetic:.2f}",
                f"{row.over_floor:.2f}",
                "" if row.over_resident is None else f"{row.over_resident:.3f}",
                readable_bytes(row.peak),
            )
            for row in measured.rows
        ],
    )


@bench.command()
@click.option("--model", default="sprite", show_default=True, metavar="NAME|FOLDER|FILE|HUB_ID")
@click.option("--seeds", type=click.IntRange(1, 100), default=2, show_default=True, help="Of each of eight prompts.")
@click.option("--size", metavar="WxH", help="Default: the model's.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print both tables as JSON instead.")
def quality(model: str, seeds: int, size: str | None, device: str, as_json: bool) -> None:
    """Compare pictures in fp8 and int8 with those in bf16, and which layers eight bits cost most in.

    The first table has paired PSNR in dB and SSIM at the same prompts and seeds, and for scale fp32 against bf16 and
    another seed. The second has the signal to noise of one velocity against float32, in dB, and the transformer's bytes
    against bf16.
    """
    from headrace.bench.quality import compare_layers, compare_pictures
    from headrace.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(model)
    pictures = list(compare_pictures(checkpoint, seeds, size, device))
    layers = list(compare_layers(checkpoint))
    if as_json:
        click.echo(
            json.dumps({"pictures": [_finite(asdict(row)) for row in pictures], "layers": list(map(asdict, layers))})
        )
        return
    print_table(
        ("against bf16", "PSNR", "lowest", "SSIM", "lowest"),
        [
            (row.what, f"{row.psnr:.2f}", f"{row.lowest_psnr:.2f}", f"{row.ssim:.4f}", f"{row.lowest_ssim:.4f}")
            for row in pictures
        ],
    )
    click.echo()
    print_table(
        ("bits", "layers", "velocity dB", "bytes"),
        [(row.bits, row.layers, f"{row.decibels:.1f}", f"{row.share:.1%}") for row in layers],
    )


@bench.command()
@click.argument("model", metavar="NAME|FOLDER|FILE|HUB_ID")
@click.option(
    "--memory",
    "memories",
    multiple=True,
    metavar="SIZE",
    help="A budget, as 6GB; again for more. Default: where everything stays, half way, the smallest, and a tenth less.",
)
@click.option("--size", default="512x512", show_default=True, metavar="WxH")
@click.option("--steps", type=click.IntRange(1), default=2, show_default=True)
@click.option("--ref", "references", multiple=True, metavar="WxH", help="A reference of this size; again for more.")
@click.option("-n", "--count", type=click.IntRange(1), default=1, show_default=True, help="Pictures in a run.")
@click.option("--precision", default="auto", show_default=True, metavar="NAME")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON instead.")
def budget(
    model: str,
    memories: tuple[str, ...],
    size: str,
    steps: int,
    references: tuple[str, ...],
    count: int,
    precision: str,
    as_json: bool,
) -> None:
    """Make the same pictures on the CPU within several budgets: peak foreseen and measured, and whether bits agree."""
    from headrace.bench.budget import measure_budgets
    from headrace.memory.sizes import parse_bytes

    amounts = [parse_bytes(memory) for memory in memories]
    rows = list(
        measure_budgets(model, amounts, size=size, steps=steps, references=references, count=count, precision=precision)
    )
    if as_json:
        click.echo(json.dumps({"budgets": list(map(asdict, rows))}))
        return
    print_table(
        ("budget", "blocks kept", "peak foreseen", "measured", "off by", "same bits", "seconds"),
        [
            (
                readable_bytes(row.memory_bytes),
                str(row.resident_blocks),
                readable_bytes(row.predicted_bytes),
                "refused" if row.measured_bytes is None else readable_bytes(row.measured_bytes),
                "" if row.measured_bytes is None else f"{row.predicted_bytes / row.measured_bytes - 1:+.1%}",
                "" if row.same_pictures is None else "yes" if row.same_pictures else "no",
                "" if row.seconds is None else f"{row.seconds:.1f}",
            )
            for row in rows
        ],
    )


@bench.command()
@click.option("--size", default="2048x2048", show_default=True, metavar="WxH")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="bf16", show_default=True)
@click.option("--encoder", is_flag=True, help="Measure the encoder of references instead.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON instead.")
def decoder(size: str, precision: str, encoder: bool, as_json: bool) -> None:
    """Compare the autoencoder's peak memory, time and picture with those of diffusers, untiled.

    Both run on a CPU, with the same random weights in the published shape, each in a process of its own. Differences
    are in steps of 1/255 (of the encoder in units of the latent).
    """
    from headrace.bench.decoder import compare, has_diffusers
    from headrace.recipe import parse_size

    rows = list(compare("encoder" if encoder else "decoder", *parse_size(size), precision))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))
    else:
        print_table(
            (precision, "peak", "before", "seconds", "largest difference", "mean"),
            [
                (
                    row.what,
                    readable_bytes(row.peak_bytes),
                    readable_bytes(row.start_bytes),
                    f"{row.seconds:.1f}",
                    f"{row.largest:.4g}",
                    f"{row.mean:.4g}",
                )
                for row in rows
            ],
        )
    if not has_diffusers():
        click.echo("diffusers is not installed: there is nothing to compare with.", err=True)


def _published(name: str) -> PublishedModel:
    return next(entry for entry in catalog.PUBLISHED if entry.name == name)


def _finite(row: dict[str, str | float]) -> dict[str, str | float | None]:
    # JSON has no number for the PSNR of equal pictures; null stands for it.
    return {name: None if value == math.inf else value for name, value in row.items()}


@bench.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR")
@click.option("--model", type=click.Choice([published.name for published in catalog.PUBLISHED]), default="klein-4b")
@click.option("--doubles", type=click.IntRange(0, 100), default=1, show_default=True, help="Double-stream blocks.")
@click.option("--singles", type=click.IntRange(0, 100), default=2, show_default=True, help="Single-stream blocks.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON instead.")
def formats(folder: Path, model: str, doubles: int, singles: int, as_json: bool) -> None:
    """Load a transformer from every stored format: its file's bytes, those in memory, the peak, and the time.

    Random weights in MODEL's shapes, with fewer blocks, are written into DIR, one file at a time.
    """
    from headrace.bench.formats import compare_formats

    published = next(entry for entry in catalog.PUBLISHED if entry.name == model)
    rows = list(compare_formats(published.transformer, doubles, singles, folder))
    if as_json:
        click.echo(json.dumps(list(map(asdict, rows))))
        return
    print_table(
        ("format", "file", "in memory", "peak", "peak / file", "seconds"),
        [
            (
                row.name,
                *map(readable_bytes, (row.file, row.weights, row.peak)),
                f"{row.peak / row.file:.3f}",
                f"{row.seconds:.2f}",
            )
            for row in rows
        ],
    )


@bench.command()
@click.option("--model", default="sprite", show_default=True, metavar="NAME|FOLDER")
@click.option("--feather", "feathers", type=click.IntRange(0, 128), multiple=True, help="Repeatable. Default: 0, 4, 8.")
@JSON
def seams(model: str, feathers: tuple[int, ...], as_json: bool) -> None:
    """Measure how visible the edges of masks are where pictures by MODEL are made anew in part."""
    from headrace.bench.seams import measure_seams
    from headrace.pipeline import load

    rows = list(measure_seams(load(model), feathers or (0, 4, 8)))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))
        return
    cells = [(row.mask, str(row.feather), f"{row.source:.2f}", f"{row.edited:.2f}") for row in rows]
    print_table(("mask", "feather", "in the source", "edited"), cells)


@bench.command()
@PUBLISHED
@click.option("--layers", type=click.IntRange(1, 40), default=4, show_default=True, help="Of the language model.")
@click.option("--tokens", type=click.IntRange(16, 2048), default=512, show_default=True, help="Before those written.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="bf16", show_default=True)
@ROUNDS
@FOLDER
@JSON
def writing(
    model: str, layers: int, tokens: int, precision: str, rounds: int, folder: Path | None, as_json: bool
) -> None:
    """Time some layers of MODEL's language model on the CPU, reading a text and writing on, in memory and streamed.

    Random weights are written first, and deleted afterwards. Reading is bounded by matrix products; writing, where each
    token needs all weights once, by how fast memory or disk give them.
    """
    from headrace.bench.writing import measure_writing

    with TemporaryDirectory(dir=folder, prefix="headrace-") as temporary:
        rows = measure_writing(_published(model), Path(temporary), layers, tokens, precision, rounds)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))
        return
    print_table(
        ("work", "tokens/s", "bounded by", "which allows", "share"),
        [(row.what, f"{row.rate:.3g}", row.bound_by, f"{row.bound:.3g}", f"{row.share:.0%}") for row in rows],
    )


@bench.command()
@click.argument("photographs", type=click.Path(path_type=Path), nargs=-1, metavar="[FILE]...")
@click.option("--side", "sides", type=click.IntRange(128, 2048), multiple=True, help="Repeatable. Default: 512.")
@click.option(
    "--count", type=click.IntRange(1, 4), default=3, show_default=True, help="Scenes, and pictures by sprite."
)
@JSON
def marks(photographs: tuple[Path, ...], sides: tuple[int, ...], count: int, as_json: bool) -> None:
    """Measure watermarks: what they cost, and what they outlive, in FILEs, in drawn scenes and in pictures by sprite.

    Pictures are brought to squares of each side. The cells say which share of the 64 bits is right, and in how many
    pictures the identifier was found.
    """
    from headrace.bench.marks import Cost, make_pictures, measure_marks
    from headrace.pictures import open_picture
    from headrace.pipeline import load

    opened, pipeline = [open_picture(path, kind="picture") for path in photographs], load("sprite")
    rows = {side: list(measure_marks(make_pictures(opened, pipeline, count, side), side)) for side in sides or (512,)}
    if as_json:
        click.echo(json.dumps([asdict(row) for measured in rows.values() for row in measured]))
        return
    for side, measured in rows.items():
        costs = [row for row in measured if isinstance(row, Cost)]
        cells: dict[str, list[str]] = {
            "PSNR, lowest": [f"{row.psnr:.1f}, {row.lowest_psnr:.1f}" for row in costs],
            "seconds, most": [f"{row.seconds:.2f}, {row.longest:.2f}" for row in costs],
            "s to search": [f"{row.searching:.2f}" for row in costs],
            "found in none": [f"{row.false} of {row.searched}" for row in costs],
        }
        for row in measured:
            if not isinstance(row, Cost):
                cells.setdefault(row.harm, []).append(f"{row.accuracy:.1%} {row.found} of {row.pictures}")
        print_table((f"{side}x{side}", *(row.kind for row in costs)), [(name, *row) for name, row in cells.items()])


@bench.command()
@click.option("--jobs", type=click.IntRange(10, 100_000), default=100, show_default=True)
@click.option("--clients", type=click.IntRange(1, 1000), default=200, show_default=True, help="That look on.")
@click.option("--size", default="256x256", show_default=True, metavar="WxH")
@click.option("--steps", type=click.IntRange(1, 1000), default=8, show_default=True)
@JSON
def serve(jobs: int, clients: int, size: str, steps: int, as_json: bool) -> None:
    """Measure a server with sprite on this machine under load, beside the library's own loop."""
    from headrace.bench.serving import measure
    from headrace.cli.store import check_installed

    check_installed()
    load = measure(jobs, clients, *parse_size(size), steps)
    if as_json:
        click.echo(json.dumps(load.as_dict()))
        return
    rows = [
        ("library, seconds a picture", f"{load.library:.4f}"),
        ("server, seconds a picture", f"{load.served:.4f}"),
        ("overhead", f"{load.overhead:+.1%}"),
        ("requests meanwhile", f"{load.requests:,}"),
        ("median, 99th percentile of these", f"{load.control_p50:.1f} ms, {load.control_p99:.1f} ms"),
        ("memory early, late", f"{readable_bytes(load.memory_early)}, {readable_bytes(load.memory_late)}"),
    ]
    print_table((f"{load.jobs} pictures of {load.size}, {load.steps} steps, {load.clients} clients", ""), rows)
