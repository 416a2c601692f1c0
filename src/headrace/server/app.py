"""The HTTP application: all dialects, what surrounds them, and the house kept in order."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace import __version__
from headrace.errors import HeadraceError
from headrace.server import logs, traces
from headrace.server.dialects import a1111, bfl, comfy, openai, own, replicate
from headrace.server.dialects.context import Caller, Context
from headrace.server.doors import Doors
from headrace.server.files import Files
from headrace.server.jobs import Jobs
from headrace.server.metrics import Metrics
from headrace.server.moderation import load_policies
from headrace.server.refusals import Refused
from headrace.server.settings import Settings
from headrace.server.store import Store

MAX_BODY_BYTES = 64 * 2**20
HOUSEKEEPING_SECONDS = 5.0

_log = logs.logger("api")


def create_app(settings: Settings, store: Store) -> FastAPI:
    """The application over an open store."""
    files = Files(settings.data, settings.public_url, store.secret("links"))
    policies = load_policies(settings.blocklist, settings.policy)
    jobs = Jobs(store, files, policies, settings.internal_urls)
    metrics = Metrics(store, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        keeping = asyncio.create_task(_keep_house(settings, jobs))
        yield
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping

    # No pages of documentation: they would be fetched from elsewhere.
    app = FastAPI(title="Headrace", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.context = Context(settings, jobs, Doors(store))
    for dialect in (bfl, own, openai, replicate, a1111, comfy):
        app.include_router(dialect.router)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(DBAPIError, _database_error)
    app.add_exception_handler(HeadraceError, _failed)

    @app.get("/healthz", tags=["headrace"])
    async def healthz() -> dict[str, str]:
        """This process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["headrace"])
    def readyz() -> JSONResponse:
        """The database answers, and a worker gives signs of life."""
        workers = len(store.workers(settings.lease_seconds))
        return JSONResponse({"workers": workers, "models": len(store.models())}, 200 if workers else 503)

    @app.get("/metrics", tags=["headrace"])
    def read_metrics(_: Caller) -> PlainTextResponse:
        """For Prometheus; with a key where the server has keys."""
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_middleware(_Surroundings, metrics=metrics)
    return app


async def _keep_house(settings: Settings, jobs: Jobs) -> None:
    """Jobs of workers that are gone go back into the queue; jobs older than they are kept for are forgotten."""
    while True:
        try:
            lost = await asyncio.to_thread(jobs.store.reap, settings.lease_seconds)
            if lost:
                _log.warning("jobs of silent workers went back into the queue", extra={"jobs": lost})
            await asyncio.to_thread(_forget_old, settings, jobs)
        except Exception as error:  # the database may be away for a while
            _log.warning("housekeeping failed", extra={"reason": type(error).__name__})
        await asyncio.sleep(min(HOUSEKEEPING_SECONDS, settings.lease_seconds / 2))


def _forget_old(settings: Settings, jobs: Jobs) -> None:
    for job_id in jobs.store.ended_before(time.time() - settings.keep_seconds):
        jobs.remove(job_id)


class _Surroundings:
    """Around every request: an id, a bounded body, a line in the log, the metrics, a span."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        began = time.perf_counter()
        status = 0
        seconds = 0.0
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, f"The request has more than {MAX_BODY_BYTES // 2**20} MiB.")
            return message

        async def marked(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.perf_counter() - began
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        with traces.tracer.start_as_current_span("request") as span:
            try:
                await self._app(scope, bounded, marked)
            except Exception:
                _log.exception("failed", extra={"request": request_id})
                if status == 0:
                    await _answer(500, f"Something in the server went wrong (request {request_id}).")(
                        scope, receive, marked
                    )
            route = getattr(scope.get("route"), "path", "none")
            span.set_attributes({"http.route": route, "http.response.status_code": status, "request.id": request_id})
        self._metrics.count(route, status, seconds)
        if route not in ("/healthz", "/readyz", "/metrics", "/v1/get_result") or status >= 400:
            facts = {"method": scope["method"], "route": route, "status": status, "ms": round(seconds * 1000, 1)}
            _log.info("request", extra={"request": request_id, **facts})


def _answer(
    status: int, sentence: str, retry_after: int | None = None, detail: Sequence[Any] | None = None
) -> JSONResponse:
    """An error as every dialect's clients read it: `detail`, `message`, and OpenAI's `error`."""
    body = {
        "detail": sentence if detail is None else detail,
        "message": sentence,
        "error": {"message": sentence, "type": "invalid_request_error" if status < 500 else "server_error"},
    }
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return JSONResponse(body, status, headers)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    if error.status == 422:
        entry = {"loc": ["body"], "msg": str(error), "type": "value_error"}
        return _answer(422, str(error), detail=[entry])
    return _answer(error.status, str(error), error.retry_after)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    # Without what was sent, which is private and may be long.
    entries = [{"loc": list(e["loc"]), "msg": e["msg"], "type": e["type"]} for e in error.errors()]
    sentence = "; ".join(f"{'.'.join(map(str, e['loc'][1:])) or 'body'}: {e['msg']}" for e in entries[:5])
    return _answer(422, sentence, detail=entries)


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    response = _answer(error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def _database_error(_: Request, error: Exception) -> JSONResponse:
    _log.error("the database fails", extra={"reason": type(error).__name__})
    return _answer(503, "The database cannot be reached or written to; try again soon.", retry_after=2)


async def _failed(_: Request, error: Exception) -> JSONResponse:
    """What the request did not cause, as a full disk."""
    return _answer(503, str(error), retry_after=10)
