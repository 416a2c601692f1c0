"""What every route needs: the jobs, the doors, the settings; and who is asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader

from headrace.server.doors import Doors, presented
from headrace.server.jobs import Jobs
from headrace.server.settings import Settings
from headrace.server.store import Key

# Only so that the OpenAPI page says it; the doors read the header themselves, and others too.
_scheme = APIKeyHeader(name="x-key", auto_error=False)


@dataclass(frozen=True)
class Context:
    settings: Settings
    jobs: Jobs
    doors: Doors


def context(request: Request) -> Context:
    found = request.app.state.context
    assert isinstance(found, Context)
    return found


def _caller(request: Request, _: Annotated[str | None, Depends(_scheme)]) -> Key:
    return context(request).doors.admit(request.headers)


def _caller_if_any(request: Request, _: Annotated[str | None, Depends(_scheme)]) -> Key | None:
    here = context(request)
    if presented(request.headers) is None and here.jobs.store.has_keys():
        return None
    return here.doors.admit(request.headers)


Caller = Annotated[Key, Depends(_caller)]
CallerIfAny = Annotated[Key | None, Depends(_caller_if_any)]
Here = Annotated[Context, Depends(context)]
