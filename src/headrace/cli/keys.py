"""`headrace keys`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from headrace.cli.store import opened_store, store_options
from headrace.cli.terminal import print_table
from headrace.errors import RequestError


@click.group()
def keys() -> None:
    """Make, list and revoke the keys of a server."""


@keys.command()
@click.argument("name")
@click.option("--active", type=click.IntRange(1, 10**6), default=24, show_default=True, help="Tasks at a time.")
@click.option("--model", "models", multiple=True, metavar="NAME", help="It may use only these. Repeatable.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), default="normal", show_default=True)
@click.option("--credits", "amount", type=click.FloatRange(0, 10**9), help="Counted from the start. Default: no limit.")
@store_options
def add(
    name: str,
    active: int,
    models: tuple[str, ...],
    priority: str,
    amount: float | None,
    data: Path | None,
    database: str | None,
) -> None:
    """Make a key for NAME, and print it: it is shown this once and kept nowhere."""
    with opened_store(data, database) as store:
        from headrace.server.doors import make_key

        shown, key = make_key(name, active, " ".join(models), priority)
        store.add_key(key)
        if amount is not None:
            store.grant(key.id, round(amount * 1000))
    click.echo(shown)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
@store_options
def list_keys(as_json: bool, data: Path | None, database: str | None) -> None:
    """List keys by their ids, which are their first part."""
    with opened_store(data, database) as store:
        from headrace.server.store import PRIORITIES

        names = {number: name for name, number in PRIORITIES.items()}
        found = store.all_keys()
    if as_json:
        rows = [
            {
                "id": key.id,
                "name": key.name,
                "created": key.created,
                "revoked": key.revoked,
                "active_limit": key.active_limit,
                "models": key.models.split(),
                "priority": names[key.priority],
                "credits": None if key.balance is None else key.balance / 1000,
            }
            for key in found
        ]
        click.echo(json.dumps({"keys": rows}))
        return
    columns = "id", "name", "made", "state", "tasks", "models", "priority", "credits"
    print_table(
        columns,
        [
            (
                key.id,
                key.name,
                time.strftime("%Y-%m-%d", time.localtime(key.created)),
                "open" if key.revoked is None else "revoked",
                str(key.active_limit),
                " ".join(key.models.split()) or "all",
                names[key.priority],
                "not counted" if key.balance is None else f"{key.balance / 1000:g}",
            )
            for key in found
        ],
    )


@keys.command()
@click.argument("key_id", metavar="ID")
@store_options
def revoke(key_id: str, data: Path | None, database: str | None) -> None:
    """Have the key with this ID open nothing any more. Its jobs are finished."""
    with opened_store(data, database) as store:
        if not store.revoke_key(key_id.removeprefix("hr_").partition("_")[0]):
            raise RequestError(f"There is no open key with the id {key_id}; headrace keys list shows them.")
