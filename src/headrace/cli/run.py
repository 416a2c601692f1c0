"""`headrace run`."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.options import device_options
from headrace.cli.terminal import print_table, printable, progress_bar
from headrace.errors import RequestError
from headrace.memory.process import peak_bytes
from headrace.memory.sizes import parse_bytes
from headrace.pictures import read_file

if TYPE_CHECKING:
    from headrace.comfy.graph import Graph
    from headrace.comfy.run import Job, Prepared
    from headrace.comfy.workflow import Workflow

_MAX_VALUE = 60

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("workflow", type=click.Path(path_type=Path), metavar="WORKFLOW")
@click.option(
    "--models",
    type=_FOLDER,
    default=Path(),
    metavar="DIR",
    help="ComfyUI's folder, or its models folder. Default: the current folder.",
)
@click.option(
    "--input",
    "inputs",
    type=_FOLDER,
    metavar="DIR",
    help="Where LoadImage looks. Default: input in the models' folder, else the workflow's folder.",
)
@click.option(
    "--output", type=_FOLDER, default=Path(), metavar="DIR", help="Where pictures go. Default: the current folder."
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NODE.INPUT=VALUE",
    help="Set a value; NODE is an id, or a title or class that only one node has. Given again for more.",
)
@click.option("--only", multiple=True, metavar="NODE", help="The id of a node that saves; leave out all others.")
@device_options
@click.option("--to-api", is_flag=True, help="Print the workflow in ComfyUI's API format; loads nothing.")
@click.option("--list", "list_", is_flag=True, help="List what --set can set; loads nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print files, plans, timings and peak memory as JSON instead.")
def run(
    workflow: Path,
    models: Path,
    inputs: Path | None,
    output: Path,
    assignments: tuple[str, ...],
    only: tuple[str, ...],
    precision: str,
    text_precision: str | None,
    device: str,
    memory: str | None,
    host_memory: str | None,
    to_api: bool,
    list_: bool,
    as_json: bool,
) -> None:
    """Run a ComfyUI workflow: what its page saves, its API format, or a picture that carries one; - is standard input.

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
        from headrace.comfy.folders import check_files, model_folders
        from headrace.comfy.graph import check

        budget = None if memory is None else parse_bytes(memory)
        host_budget = None if host_memory is None else parse_bytes(host_memory)
        checked = check(graph, only)
        folders = model_folders(models)
        check_files(checked, folders)

        # What can be refused without computing has been; only now is torch imported.
        from headrace.comfy.engine import Settings
        from headrace.comfy.run import Job

        settings = Settings(precision, text_precision, device, budget, host_budget)
        place = inputs or _usual_input(models, workflow)
        _run(Job(checked, folders, place, output, settings, graph.to_api(), read.saved), as_json)


def _usual_input(models: Path, workflow: Path) -> Path:
    beside = (models / "input", models.parent / "input")
    return next((folder for folder in beside if folder.is_dir()), workflow.parent)


def _run(job: Job, as_json: bool) -> None:
    from headrace.comfy.run import prepare

    started = time.monotonic()
    prepared = prepare(job)
    for report in prepared.loras:
        click.echo(printable(report), err=True)
    opened = time.monotonic()
    files, plans = _carry_out(prepared, as_json)
    if as_json:
        document = {
            "images": [str(file) for file in files],
            "plans": plans,
            "timings": {"prepare": opened - started, "run": time.monotonic() - opened},
            "peak_memory_bytes": peak_bytes(),
        }
        click.echo(json.dumps(document))


def _carry_out(prepared: Prepared, as_json: bool) -> tuple[list[Path], list[dict[str, object]]]:
    """Runs it with a progress bar and a line for each file, unless JSON is wanted."""
    from headrace.comfy.run import run as run_prepared

    with progress_bar("steps", total=prepared.steps) as (advance, say):
        files, plans = run_prepared(prepared, advance, lambda file: None if as_json else say(f"wrote {file}"))
    return files, [plan.as_dict() for plan in plans]


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
