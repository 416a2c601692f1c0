"""`headrace serve`."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.store import check_installed, store_options
from headrace.errors import RequestError

if TYPE_CHECKING:
    from headrace.server.settings import ServedModel


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; others than loopback need keys.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes any that is free."
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME=SPEC",
    help="What stands behind a name: flux-2-pro=dev, flux-2-klein-4b=klein-4b, mine=./folder. Repeatable; the first "
    "answers for other names too where a dialect has no fixed ones. Default: sprite behind every name.",
)
@click.option("--precision", default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--memory", metavar="SIZE", help="What a worker may take at most, as 12GB.")
@store_options
@click.option(
    "--role",
    type=click.Choice(["all", "api", "worker"]),
    default="all",
    show_default=True,
    help="With PostgreSQL, any number of each on any number of machines.",
)
@click.option("--name", default="1", show_default=True, help="Of this worker, among those of the same machine.")
@click.option("--public-url", metavar="URL", help="How clients reach the server. Default: http://HOST:PORT.")
@click.option(
    "--keep",
    "keep_hours",
    type=click.FloatRange(0),
    default=24,
    show_default=True,
    metavar="HOURS",
    help="How long jobs stay after their end, with prompts and pictures.",
)
@click.option("--blocklist", type=click.Path(path_type=Path), metavar="FILE", help="Words that prompts may not have.")
@click.option("--policy", metavar="MODULE:NAME", help="A content policy of your own (headrace.server.moderation).")
@click.option(
    "--batch",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="On a CPU: how many requests of one size and so many steps run together.",
)
@click.option("--no-marks", is_flag=True, help="Neither watermark nor signature; metadata still says what made it.")
@click.option(
    "--sign-with",
    type=(click.Path(path_type=Path), click.Path(path_type=Path)),
    metavar="CERT KEY",
    help="PEM files to sign pictures with. Default: a test certificate of this server's own.",
)
@click.option("--internal-urls", is_flag=True, help="Fetch pictures and call webhooks within this network too.")
@click.option(
    "--lease",
    type=click.IntRange(2, 3600),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="A worker silent for so long has lost its jobs to others.",
)
@click.option(
    "--stuck",
    type=click.IntRange(5, 86400),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="A worker that makes no step for so long is started anew.",
)
@click.option(
    "--drain",
    type=click.IntRange(0, 86400),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="When told to end: how long a picture that has begun may take. It is not lost.",
)
def serve(
    host: str,
    port: int,
    models: tuple[str, ...],
    precision: str,
    device: str,
    memory: str | None,
    data: Path | None,
    database: str | None,
    role: str,
    name: str,
    public_url: str | None,
    keep_hours: float,
    blocklist: Path | None,
    policy: str | None,
    batch: int,
    no_marks: bool,
    sign_with: tuple[Path, Path] | None,
    internal_urls: bool,
    lease: int,
    stuck: int,
    drain: int,
) -> None:
    """Make pictures for others, over HTTP, in the dialects that clients speak.

    \b
    headrace serve
    headrace serve --model flux-2-klein-4b=klein-4b --model flux-2-pro=dev --memory 20GB
    headrace serve --role api --database postgresql://headrace@db/headrace --data /shared --host 0.0.0.0
    headrace serve --role worker --database postgresql://headrace@db/headrace --data /shared
    """
    check_installed()
    from headrace.memory.sizes import parse_bytes
    from headrace.server import logs, start, traces
    from headrace.server.settings import Settings
    from headrace.server.store import database_url
    from headrace.server.supervisor import Supervisor

    if memory is not None:
        parse_bytes(memory)
    if role != "api" and not no_marks:
        start.check_marks(sign_with)
    served = _models(models)
    facts = [] if role == "api" else start.describe(served)
    folder = data or start.DATA
    url = database_url(database, folder)
    with contextlib.ExitStack() as ending:
        store = ending.enter_context(contextlib.closing(start.open_store(url, folder)))
        listening = None
        if role != "worker":
            start.check_host(host, store)
            listening = ending.enter_context(contextlib.closing(start.bind(host, port)))
            port = listening.getsockname()[1]
        settings = Settings(
            data=folder,
            database=url,
            public_url=public_url or f"http://{f'[{host}]' if ':' in host else host}:{port}",
            models=served,
            precision=precision,
            device=device,
            memory=memory,
            keep_seconds=round(keep_hours * 3600),
            lease_seconds=lease,
            stuck_seconds=stuck,
            batch=batch,
            internal_urls=internal_urls,
            blocklist=blocklist,
            policy=policy,
            marks=not no_marks,
            signer=None if sign_with is None else (str(sign_with[0]), str(sign_with[1])),
        )
        logs.set_up()
        traces.set_up(role)
        if role != "api":
            store.publish(facts)
            supervisor = Supervisor(settings, f"{socket.gethostname()}-{name}"[:120])
            supervisor.start()
            ending.callback(supervisor.stop, drain)
        if listening is None:
            click.echo("working", err=True)
            start.wait_for_end()
        else:
            where = f"listening on {settings.public_url if public_url is None else f'http://{host}:{port}'}"
            start.serve_api(settings, store, listening, lambda: click.echo(where, err=True))


def _models(given: tuple[str, ...]) -> tuple[ServedModel, ...]:
    from headrace.server.dialects.bfl import NAMES
    from headrace.server.settings import ServedModel

    if not given:
        return tuple(ServedModel(name, "sprite") for name in ("sprite", *NAMES))
    models = []
    for text in given:
        name, equals, spec = text.partition("=")
        if not (name and (spec or not equals)) or " " in name:
            raise RequestError(f"The model {text!r} is not NAME=SPEC, as flux-2-klein-4b=klein-4b.")
        models.append(ServedModel(name, spec or name))
    if len({model.name for model in models}) < len(models):
        raise RequestError("A name is given to two models.")
    return tuple(models)
