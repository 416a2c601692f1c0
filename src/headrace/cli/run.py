"""`headrace run`."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.terminal import print_table
from headrace.errors import RequestError
from headrace.pictures import read_file

if TYPE_CHECKING:
    from headrace.comfy.graph import Graph
    from headrace.comfy.workflow import Workflow

_MAX_VALUE = 60


@click.command()
@click.argument("workflow", type=click.Path(path_type=Path), metavar="WORKFLOW")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NODE.INPUT=VALUE",
    help="Set a value; NODE is an id, or a title or class that only one node has. Given again for more.",
)
@click.option("--to-api", is_flag=True, help="Print the workflow in ComfyUI's API format; loads nothing.")
@click.option("--list", "list_", is_flag=True, help="List what --set can set; loads nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --list: print JSON instead of a table.")
def run(workflow: Path, assignments: tuple[str, ...], to_api: bool, list_: bool, as_json: bool) -> None:
    """Read a ComfyUI workflow: what its page saves, its API format, or a picture that carries one; - is standard input.

    Sub-graphs are unfolded, and whatever only draws is gone, as when ComfyUI's page sends a workflow to be run.
    """
    from headrace.comfy.workflow import assign

    read = _read(workflow)
    graph = read.graph
    for assignment in assignments:
        graph = assign(graph, assignment)
    if list_:
        _list(graph, as_json)
    elif to_api:
        for node in read.unread:
            warnings.warn(
                f"The class of {node} is not known, and its values were saved without names: they are left out.",
                stacklevel=1,
            )
        click.echo(json.dumps(graph.to_api(), indent=2))
    else:
        raise click.UsageError("Give --to-api or --list.")


def _read(path: Path) -> Workflow:
    from headrace.comfy.workflow import MAX_WORKFLOW_BYTES, read_workflow

    if path != Path("-"):
        return read_workflow(read_file(path, "workflow", MAX_WORKFLOW_BYTES), str(path))
    if sys.stdin is None:
        raise RequestError("There is no standard input to read the workflow from.")
    data = sys.stdin.buffer.read(MAX_WORKFLOW_BYTES + 1)
    if len(data) > MAX_WORKFLOW_BYTES:
        raise RequestError(f"The workflow has more than {MAX_WORKFLOW_BYTES // 2**20} MiB, the most that is read.")
    return read_workflow(data, "Standard input")


def _list(graph: Graph, as_json: bool) -> None:
    from headrace.comfy.workflow import settings

    found = list(settings(graph))
    if as_json:
        rows = [
            {
                "node": setting.node.id,
                "title": setting.node.title,
                "class": setting.node.class_type,
                "input": setting.input.name,
                "type": setting.input.type,
                "value": setting.value,
                "minimum": setting.input.minimum,
                "maximum": setting.input.maximum,
                "options": list(setting.input.options) or None,
            }
            for setting in found
        ]
        click.echo(json.dumps({"settings": rows}))
        return
    rows_shown = [
        (setting.node.id, setting.node.title, setting.input.name, setting.input.type, _shown(setting.value))
        for setting in found
    ]
    print_table(("node", "title", "input", "type", "value"), rows_shown)


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 3] + "..."
