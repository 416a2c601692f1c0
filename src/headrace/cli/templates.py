"""`headrace templates`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from headrace.cli.terminal import print_table
from headrace.errors import RequestError
from headrace.pictures import write_file

STANDARD = Path("-")


@click.command()
@click.argument("name", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to write the template called NAME; - is standard output. Default: NAME.json.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON instead of a table.")
def templates(name: str | None, output: Path | None, as_json: bool) -> None:
    """List workflows that are ready for headrace run and for ComfyUI, or write the one called NAME."""
    from headrace.comfy import shelf

    if name is None:
        if output is not None:
            raise click.UsageError("Name the template to write", click.get_current_context())
        found = shelf.templates()
        if as_json:
            rows = [{"name": one.name, "description": one.description, "source": one.source} for one in found]
            click.echo(json.dumps({"templates": rows}))
        else:
            print_table(("name", "description", "from"), [(one.name, one.description, one.source) for one in found])
        return
    data = shelf.read_template(shelf.find_template(name))
    if output == STANDARD:
        click.echo(data, nl=False)
        return
    target = output or Path(f"{name}.json")
    if output is None and target.exists():
        raise RequestError(f"{target} is there already; name another file with -o.")
    write_file(target, data)
    click.echo(f"wrote {target}")
