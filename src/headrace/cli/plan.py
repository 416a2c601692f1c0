"""`headrace plan`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from headrace.cli.options import checkpoint_options
from headrace.cli.terminal import print_table, readable_bytes

if TYPE_CHECKING:
    from headrace.memory.plan import Plan

COMPONENTS = {"transformer": "transformer", "text_encoder": "text encoder", "autoencoder": "autoencoder"}


@click.command()
@click.argument("model", default="sprite", metavar="NAME|FOLDER|FILE|HUB_ID")
@click.option("--memory", metavar="SIZE", help="The budget, as 12GB or 12GiB. Default: what is free less a tenth.")
@click.option(
    "--host-memory",
    metavar="SIZE",
    help="For a GPU, whose memory --memory then is: how much of the host's may be pinned for what does not fit there.",
)
@click.option("--size", metavar="WxH", help="Multiples of 16. Default: the model's.")
@click.option("--refs", "references", type=click.IntRange(0), default=0, metavar="N", help="References of 1 MP each.")
@checkpoint_options
@click.option("--lora", "loras", multiple=True, metavar="PLACE", help="A LoRA, as for generate. Given again for more.")
@click.option(
    "--precision", metavar="NAME", help="auto, fp32, bf16, fp8, int8 or stored. Default: a row for each that differs."
)
@click.option("--text-precision", metavar="NAME", help="The text encoder's. Default: as --precision.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON instead.")
def plan(
    model: str,
    memory: str | None,
    host_memory: str | None,
    size: str | None,
    references: int,
    autoencoder: str | None,
    text_encoder: str | None,
    tokenizer: str | None,
    variant: str | None,
    loras: tuple[str, ...],
    precision: str | None,
    text_precision: str | None,
    as_json: bool,
) -> None:
    """Say what a picture with MODEL needs, and how it fits into memory, before anything is downloaded or loaded.

    \b
    headrace plan klein-4b --memory 4GB --size 1024x1024 --refs 2
    headrace plan dev --precision fp8 --memory 12GB --host-memory 32GB
    headrace plan flux2-dev-Q4_K_M.gguf --autoencoder ae.safetensors --text-encoder mistral.gguf --memory 12GB

    Weights that stay in memory are resident; the others are streamed from disk, block by block, in every step; to a
    GPU, from the host's memory as far as they fit there. The peak is that of the whole process, Python and torch
    included; on a GPU it is device memory.
    """
    from headrace.memory.plan import PRECISIONS
    from headrace.memory.plan import plan as make_plan
    from headrace.memory.rates import CPU_RATES, GPU_RATES

    def planned(name: str) -> Plan:
        return make_plan(
            model,
            memory=memory,
            host_memory=host_memory,
            size=size,
            references=references,
            precision=name,
            text_precision=text_precision,
            loras=loras,
            variant=variant,
            autoencoder=autoencoder,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )

    names = list(PRECISIONS)
    first = planned(precision or "auto")
    others = [name for name in PRECISIONS if name not in (first.precision, "stored")]
    plans = [first] if precision else sorted([first, *map(planned, others)], key=lambda row: names.index(row.precision))
    if as_json:
        rows = {} if precision else {"precisions": {row.precision: row.as_dict() for row in plans}}
        click.echo(json.dumps({**first.as_dict(), **rows}))
        return
    reference_text = f" with {references} reference{'s' if references > 1 else ''} of 1 MP" if references else ""
    click.echo(f"{first.model}, {first.width}x{first.height}{reference_text}, in {readable_bytes(first.memory_bytes)}")
    click.echo()
    places = ("resident", "streamed") if host_memory is None else ("resident", "streamed", "host memory")
    print_table(("weights of", *COMPONENTS.values(), *places), [_weights(row, len(places)) for row in plans])
    click.echo()
    columns = "run in", "activations", "peak", "smallest budget", "fits", "s/step", "bound by"
    print_table(columns, [_run(row) for row in plans])
    click.echo()
    rates = CPU_RATES if host_memory is None else GPU_RATES
    machine = "two server cores" if host_memory is None else "a GPU like an RTX 4090"
    link = "" if rates.link is None else f", {rates.link / 1e9:g} GB/s over the host link"
    products = ", ".join(f"{rates.products[row.precision] / 1e12:g} ({row.precision})" for row in plans)
    click.echo(
        f"Seconds are for {machine} at {products} TFLOP/s{link} and {rates.disk / 1e9:g} GB/s from disk: constants, "
        "not measured here."
    )


def _weights(row: Plan, places: int) -> tuple[str, ...]:
    sizes = (row.components[name].bytes for name in COMPONENTS)
    return row.precision, *map(
        readable_bytes, (*sizes, *(row.resident_bytes, row.streamed_bytes, row.host_bytes)[:places])
    )


def _run(row: Plan) -> tuple[str, ...]:
    sizes = map(readable_bytes, (row.activation_bytes, row.peak_bytes, row.minimum_bytes))
    return row.precision, *sizes, "yes" if row.fits else "no", f"{row.seconds_per_step:.3g}", row.bound
