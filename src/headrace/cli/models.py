"""`headrace models`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from headrace.cli.terminal import print_table, readable_bytes

if TYPE_CHECKING:
    from headrace.checkpoints import ListedModel


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the catalogue, with defaults and sizes, as JSON instead.")
def models(as_json: bool) -> None:
    """List the models Headrace knows: exact parameter counts, bytes, defaults, licences.

    A text encoder is counted up to the last layer that FLUX.2 reads; the layers above are never loaded.
    """
    from headrace.checkpoints import listed_models

    listed = listed_models()
    if as_json:
        click.echo(json.dumps({"models": [model.as_dict() for model in listed]}))
        return
    columns: tuple[str, ...] = "parameters of", "transformer", "text encoder", "autoencoder", "bf16", "fp32"
    print_table(columns, [_sizes(model) for model in listed])
    click.echo()
    columns = "use of", "kind", "steps", "guidance", "references", "licence", "source"
    print_table(columns, [_use(model) for model in listed])


def _sizes(model: ListedModel) -> tuple[str, ...]:
    parameters = model.parameters
    return (
        model.name,
        f"{parameters.transformer:,}",
        f"{parameters.text_encoder:,}",
        f"{parameters.autoencoder:,}",
        readable_bytes(model.bytes["bf16"]),
        readable_bytes(model.bytes["fp32"]),
    )


def _use(model: ListedModel) -> tuple[str, ...]:
    licence = model.licence or "not stated"
    return (
        model.name,
        model.variant,
        str(model.steps),
        f"{model.guidance:g}",
        str(model.reference_limit),
        f"{licence} (no commercial use)" if model.commercial_use is False else licence,
        model.source,
    )
