"""What people see: tables, progress and messages on a terminal; plain text, or nothing, on a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

import click


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is a terminal; where it was closed, Python has None for it."""
    return stream is not None and stream.isatty()


def printable(text: str) -> str:
    """The text without control characters, which a file's names and values could otherwise play on a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def readable_bytes(count: int) -> str:
    """`12_345_678` -> `"12.3 MB"`; units of 1000."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output: folded to the width of a terminal, else aligned columns."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if is_terminal(sys.stdout):
        from rich.box import SIMPLE
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[tuple[Callable[[int], None], Callable[[str], None]]]:
    """A bar of `total` units on standard error while the block runs, where that is a terminal.

    Gives two functions: one that advances the bar, and one that prints a line of results to standard output.
    """
    if not is_terminal(sys.stderr):
        yield lambda _: None, click.echo
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        task = progress.add_task(label, total=total)

        def say(line: str) -> None:
            if is_terminal(sys.stdout):  # the same terminal: above the bar, not through it
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                click.echo(line)

        yield lambda units: progress.advance(task, units), say
