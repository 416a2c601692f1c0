"""Starting and ending a server: which parts of it run in this process, and beside it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from headrace.errors import HeadraceError, RequestError
from headrace.server.doors import LOOPBACK
from headrace.server.settings import ServedModel, Settings
from headrace.server.store import ModelFacts, Store

DATA = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "headrace"


def open_store(url: str, data: Path) -> Store:
    """The database of a server. Raises HeadraceError where it cannot be opened."""
    from sqlalchemy.exc import DBAPIError

    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return Store(url)
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise HeadraceError(f"The database cannot be opened ({reason}).") from error


def describe(models: Sequence[ServedModel]) -> list[ModelFacts]:
    """What clients' requests are completed with; opens every model, and loads none. Raises RequestError."""
    from headrace.checkpoints import open_checkpoint

    opened = {spec: open_checkpoint(spec) for spec in {model.spec for model in models}}
    return [
        ModelFacts(
            name=model.name,
            spec=model.spec,
            steps=checkpoint.steps,
            guidance=checkpoint.guidance,
            default_size=checkpoint.default_size,
            reference_limit=checkpoint.reference_limit,
            distilled=checkpoint.variant in ("klein", "klein-kv"),
        )
        for model in models
        for checkpoint in [opened[model.spec]]
    ]


def check_marks(signer: tuple[Path, Path] | None) -> None:
    """Raises RequestError where pictures could not be marked."""
    from headrace.provenance.certificates import need_extra, open_signer

    need_extra()
    if not find_spec("imwatermark"):
        raise RequestError("Watermarks need the package invisible-watermark; install it, or serve with --no-marks.")
    if signer is not None:
        open_signer(*signer)


def check_host(host: str, store: Store) -> None:
    """Raises RequestError where everybody on a network could come in without a key."""
    if host not in LOOPBACK and not store.has_keys():
        raise RequestError(
            f"On {host} others can reach this server, and it has no keys; make one with headrace keys add."
        )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises RequestError."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RequestError(f"The server cannot listen on {host}, port {port} ({reason}).") from error
    return bound


def serve_api(settings: Settings, store: Store, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Answers requests until the process is told to end."""
    import uvicorn

    from headrace.server.app import create_app

    config = uvicorn.Config(
        create_app(settings, store),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
        lifespan="on",
    )
    ready()
    with contextlib.suppress(KeyboardInterrupt):  # raised again by uvicorn once it has ended in order
        uvicorn.Server(config).run(sockets=[listening])


def wait_for_end() -> None:
    """Returns when the process is told to end."""
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    while not told.wait(1.0):
        pass
