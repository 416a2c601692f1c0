"""Where a server's database is, for the commands that look into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.options import with_options
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.server.store import Store

_OPTIONS = (
    click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="The server's folder. Default: ~/.local/share/headrace.",
    ),
    click.option("--database", metavar="URL", help="postgresql://USER@HOST/NAME. Default: a file in the folder."),
)


def store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--data and --database."""
    return with_options(command, _OPTIONS)


@contextmanager
def opened_store(data: Path | None, database: str | None) -> Iterator[Store]:
    """Raises HeadraceError where the extra `serve` is missing or the database cannot be opened."""
    check_installed()
    from headrace.server.start import DATA, open_store
    from headrace.server.store import database_url

    store = open_store(database_url(database, data or DATA), data or DATA)
    try:
        yield store
    finally:
        store.close()


def check_installed() -> None:
    """Raises HeadraceError without the extra `serve`."""
    if not all(find_spec(name) for name in ("dbos", "fastapi", "sqlalchemy")):
        raise HeadraceError("Serving needs more packages; install them with pip install 'headrace[serve]'.")
