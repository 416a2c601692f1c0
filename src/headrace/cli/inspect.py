"""`headrace inspect`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from headrace.cli.terminal import print_table, printable, readable_bytes

if TYPE_CHECKING:
    from headrace.checkpoints.inspect import Inspection, Network

# How many names of missing or unused tensors are shown; --json lists all.
MAX_NAMES = 8
# The same for what a header says beside its tensors: torchao's has an entry for every layer, ComfyUI's one of all.
MAX_METADATA, MAX_CHARACTERS = 20, 200
NUMBER = re.compile(r"\.\d+\.")


@click.command()
@click.argument("path", type=click.Path(), metavar="FILE|FOLDER")
@click.option("--json", "as_json", is_flag=True, help="Print everything, every tensor included, as JSON instead.")
def inspect(path: str, as_json: bool) -> None:
    """Say what a model file or folder holds: networks, shapes, precision layer by layer, what is missing or unused.

    Reads headers and configurations only, however large the files are.
    """
    from headrace.checkpoints.inspect import inspect as inspect_checkpoint

    found = inspect_checkpoint(path)
    if as_json:
        click.echo(json.dumps(found.as_dict()))
        return
    _show(found)


def _show(found: Inspection) -> None:
    size = readable_bytes(found.bytes)
    _say(f"{found.path}: {found.kind}, {found.tensors:,} tensors ({_counts(found.dtypes)}), {size}")
    for name, value in list(found.metadata.items())[:MAX_METADATA]:
        more = len(value) - MAX_CHARACTERS
        _say(f"  {name}: {value[:MAX_CHARACTERS]}" + (f" … and {more:,} characters more" if more > 0 else ""))
    if len(found.metadata) > MAX_METADATA:
        _say(f"  and {len(found.metadata) - MAX_METADATA:,} more")
    if found.networks:
        columns = "network", "layout", "precision", "parameters", "bytes", "shapes of"
        print_table(columns, [_row(network) for network in found.networks])
    if found.lora is not None:
        lora = found.lora
        names = f"names of {'diffusers' if lora.layout == 'diffusers' else 'Black Forest Labs'}"
        _say(f"{lora.kinds}, for {len(lora.layers)} layers; {names}" + (f" after {lora.prefix}" if lora.prefix else ""))
        _say(f"fits {', '.join(lora.models) or 'no published model'}")
        if lora.unused:
            _say(f"not applied: {lora.unused}")
    for network in found.networks:
        if network.config is not None:
            _say(f"{network.kind}: " + ", ".join(f"{name} {value}" for name, value in network.config.items()))
        for line in _formats(network.formats):
            _say(f"{network.kind}: {line}")
        _names(f"{network.kind}: missing", network.missing)
        _names(f"{network.kind}: unused", network.unused)
        for problem in network.problems:
            _say(problem)
    _names("unused", found.unused)
    for problem in found.problems:
        _say(problem)


def _row(network: Network) -> tuple[str, ...]:
    return (
        network.kind,
        network.layout,
        _counts(network.dtypes),
        f"{network.parameters:,}",
        f"{network.bytes:,}",
        ", ".join(network.models) or "no published model",
    )


def _formats(formats: Mapping[str, str]) -> Iterator[str]:
    """The layers of each format, blocks counted together: "12 layers in fp8: double_blocks.*.img_mlp.0 (5), …"."""
    for name in sorted(set(formats.values())):
        kinds = Counter(NUMBER.sub(".*.", layer) for layer, form in formats.items() if form == name)
        yield f"{kinds.total():,} layers in {name}: " + ", ".join(f"{kind} ({count})" for kind, count in kinds.items())


def _counts(dtypes: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {dtype}" for dtype, count in sorted(dtypes.items()))


def _names(label: str, names: tuple[str, ...]) -> None:
    if names:
        rest = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
        _say(f"{label}: {', '.join(names[:MAX_NAMES])}{rest}")


def _say(line: str) -> None:
    click.echo(printable(line))
