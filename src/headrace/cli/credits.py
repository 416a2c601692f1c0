"""`headrace credits`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from headrace.cli.store import opened_store, store_options
from headrace.cli.terminal import print_table
from headrace.errors import RequestError


@click.group("credits")
def credits() -> None:  # noqa: A001 (the command's name)
    """Grant credits to keys, and show what became of them. A credit is one US cent."""


@credits.command()
@click.argument("key_id", metavar="ID")
@click.argument("amount", type=float)
@click.option("--note", default="", help="Kept beside it.")
@store_options
def grant(key_id: str, amount: float, note: str, data: Path | None, database: str | None) -> None:
    """Add AMOUNT credits to the key with this ID, from then on counted; a negative AMOUNT takes them away."""
    if not -1e9 <= amount <= 1e9:
        raise RequestError(f"{amount} credits cannot be granted at once.")
    with opened_store(data, database) as store:
        from headrace.server.refusals import Refused

        try:
            balance = store.grant(key_id, round(amount * 1000), note)
        except Refused as error:
            raise RequestError(f"{error} headrace keys list shows them.") from error
    click.echo(f"{key_id} has {balance / 1000:g} credits")


@credits.command()
@click.argument("key_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
@store_options
def show(key_id: str, as_json: bool, data: Path | None, database: str | None) -> None:
    """Show every grant, charge and refund of the key with this ID, and what is left."""
    with opened_store(data, database) as store:
        key = store.key(key_id)
        if key is None:
            raise RequestError(f"There is no key with the id {key_id}; headrace keys list shows them.")
        entries = store.entries(key_id)
    if as_json:
        rows = [
            {"at": at, "reference": reference, "credits": amount / 1000, "note": note}
            for at, reference, amount, note in entries
        ]
        balance = None if key.balance is None else key.balance / 1000
        click.echo(json.dumps({"id": key.id, "credits": balance, "entries": rows}))
        return
    print_table(
        ("when", "credits", "for", "note"),
        [
            (time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)), f"{amount / 1000:+g}", reference, note)
            for at, reference, amount, note in entries
        ],
    )
    click.echo("not counted" if key.balance is None else f"{key.balance / 1000:g} credits left")
