"""`headrace bench`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import click

from headrace import catalog
from headrace.cli.terminal import print_table, readable_bytes


@click.group()
def bench() -> None:
    """Measure this machine, and what Headrace does on it."""


@bench.command()
@click.argument("model", type=click.Choice([published.name for published in catalog.PUBLISHED]))
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp8", "int8"]), default="bf16", show_default=True)
def checkpoint(model: str, folder: Path, precision: str) -> None:
    """Write random weights in MODEL's shapes into DIR, with a working tokenizer: for runs of its size without it.

    The text encoder is written up to the last layer that is used.
    """
    from headrace.bench.checkpoint import write_checkpoint

    published = next(entry for entry in catalog.PUBLISHED if entry.name == model)
    total = write_checkpoint(published, folder, precision)
    click.echo(f"wrote {folder} ({readable_bytes(total)})")


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


def _finite(row: dict[str, str | float]) -> dict[str, str | float | None]:
    # JSON has no number for the PSNR of equal pictures; null stands for it.
    return {name: None if value == math.inf else value for name, value in row.items()}
