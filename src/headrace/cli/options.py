"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

_PARTS = (
    click.option(
        "--autoencoder",
        metavar="FILE|FOLDER",
        help="For a transformer that comes alone, or instead of the model's own.",
    ),
    click.option(
        "--text-encoder",
        metavar="FILE|FOLDER",
        help="For a transformer that comes alone, or instead of the model's own.",
    ),
    click.option("--tokenizer", metavar="FOLDER", help="The text encoder's, where its file comes without."),
    click.option(
        "--variant",
        type=click.Choice(["base", "distilled", "kv"]),
        help="Which klein this is, where the model does not say.",
    ),
)
_PRECISION = click.Choice(("auto", "fp32", "bf16", "fp8", "int8", "stored"))
_OPTIONS = (
    click.option("--precision", type=_PRECISION, default="auto", show_default=True),
    click.option("--text-precision", type=_PRECISION, help="The text encoder's. Default: as --precision."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True),
    click.option(
        "--memory",
        metavar="SIZE",
        help="What the run may take at most, as 6GB or 6GiB: of memory, or of the GPU's. Default: what is free less a "
        "margin.",
    ),
    click.option(
        "--host-memory",
        metavar="SIZE",
        help="With a GPU: what may be pinned of the host's memory, for weights the GPU has no room for. Default: half "
        "of what is free.",
    ),
)


def with_options(command: Callable[..., Any], options: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """The command with these options and arguments, listed in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def checkpoint_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--autoencoder, --text-encoder, --tokenizer and --variant, in this order."""
    return with_options(command, _PARTS)


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--precision, --text-precision, --device, --memory and --host-memory, in this order."""
    return with_options(command, _OPTIONS)
