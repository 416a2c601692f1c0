"""`headrace chat`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.chat import Wanted, answer, open_session
from headrace.cli.graphics import picture_viewer
from headrace.cli.options import device_options
from headrace.cli.terminal import is_terminal, printable, progress_bar
from headrace.cli.upsampling import Upsampling, check_after, check_before, rewritten, upsampling_options
from headrace.errors import HeadraceError, RequestError
from headrace.memory.sizes import parse_bytes

if TYPE_CHECKING:
    from PIL import Image

    from headrace.pipeline import Pipeline

PROMPT = "> "
MAX_LINE = 100_000


@click.command()
@click.option(
    "--session",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("headrace-chat"),
    show_default=True,
    metavar="FOLDER",
    help="Where pictures and history are kept; a session that is there already is gone on with.",
)
@click.option("--model", default="sprite", show_default=True, metavar="NAME|FOLDER|FILE|HUB_ID")
@click.option("--autoencoder", metavar="FILE|FOLDER", help="For a transformer that comes alone.")
@click.option("--text-encoder", metavar="FILE|FOLDER", help="For a transformer that comes alone.")
@click.option("--variant", type=click.Choice(["base", "distilled", "kv"]), help="Which klein this is.")
@upsampling_options
@device_options
def chat(
    folder: Path,
    model: str,
    autoencoder: str | None,
    text_encoder: str | None,
    variant: str | None,
    upsampling: Upsampling,
    precision: str,
    text_precision: str | None,
    device: str,
    memory: str | None,
    host_memory: str | None,
) -> None:
    """Make pictures line by line, each from a prompt and from those before it.

    \b
    > a red apple on a blue background
    > a green pear
    > $1 $2 put image 1 beside image 2
    > again

    help lists what else can be typed.
    """
    budget = None if memory is None else parse_bytes(memory)
    host_budget = None if host_memory is None else parse_bytes(host_memory)
    session = open_session(folder)

    from headrace.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(model, variant=variant, autoencoder=autoencoder, text_encoder=text_encoder)
    if upsampling.own or upsampling.checked:
        from headrace.checkpoints.writer import open_writer

        open_writer(checkpoint)

    from headrace.pipeline import Pipeline

    pipeline = Pipeline(
        checkpoint, precision, device, text_precision=text_precision, memory=budget, host_memory=host_budget
    )
    for note in checkpoint.notes:
        click.echo(note, err=True)
    show = picture_viewer(sys.stderr) if is_terminal(sys.stderr) else None
    make = _maker(pipeline, upsampling, show)
    if is_terminal(sys.stdin):
        click.echo(
            f"{checkpoint.name}, {folder}: {len(session.turns)} pictures; help says what can be typed.", err=True
        )
    failed = False
    with _history(folder):
        for line in _lines():
            try:
                session, said = answer(session, line, make)
            except HeadraceError as error:
                click.echo(f"headrace: {printable(str(error))}", err=True)
                failed = True
                continue
            if said:
                click.echo("\n".join(map(printable, said.splitlines())))
    if failed and not is_terminal(sys.stdin):
        raise RequestError("Some lines could not be answered.")


def _maker(
    pipeline: Pipeline, upsampling: Upsampling, show: Callable[[Image.Image], None] | None
) -> Callable[[Wanted, Path], tuple[str, str]]:
    """Makes pictures with the pipeline; see `headrace.chat.Make`."""

    def make(wanted: Wanted, target: Path) -> tuple[str, str]:
        from headrace.pictures import open_picture

        references = [open_picture(path) for path in wanted.references]
        prompt = rewritten(wanted.prompt, upsampling, pipeline, references, wanted.seed)
        if upsampling.checked:
            check_before(pipeline, prompt, references)
        with progress_bar("steps", total=pipeline.checkpoint.steps) as (advance, _):
            picture = pipeline.generate(
                prompt,
                references=references,
                seed=wanted.seed,
                size=wanted.size or None,
                on_step=lambda _: advance(1),
            )
        if upsampling.checked:
            check_after(pipeline, [picture])
        picture.save(target)
        if show is not None:
            show(picture.image)
        return prompt, f"{picture.recipe.width}x{picture.recipe.height}"

    return make


def _lines() -> Iterator[str]:
    """What is typed, until quit or the end."""
    if sys.stdin is None:
        return
    terminal = is_terminal(sys.stdin)
    while True:
        try:
            line = input(PROMPT) if terminal else sys.stdin.readline(MAX_LINE)
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise RequestError("What is typed is not UTF-8 text.") from error
        if not terminal and not line:
            return
        if line.strip() in ("quit", "exit"):
            return
        yield line


@contextlib.contextmanager
def _history(folder: Path) -> Iterator[None]:
    """Lines typed in a terminal can be called back, also in the next session."""
    readline: Any = None
    if is_terminal(sys.stdin):
        with contextlib.suppress(ImportError):  # Windows
            import readline
    if readline is None:
        yield
        return
    file = folder / "history"
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(file)
