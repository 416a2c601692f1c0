"""Headrace's own routes: what the studio needs and no known API has."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response, StreamingResponse

from headrace.server.dialects.context import Caller, CallerIfAny, Context, Here
from headrace.server.files import MEDIA_TYPES
from headrace.server.prices import THOUSANDTHS
from headrace.server.refusals import Refused
from headrace.server.results import STATUS, task
from headrace.server.store import Job, Key

router = APIRouter(tags=["headrace"])

JobId = Annotated[str, Path(max_length=100)]


def _listed(job: Job, here: Context) -> dict[str, Any]:
    turn = None if job.ended else here.jobs.store.turn(job)
    return task(job, here.jobs.files) | {
        "model": job.model,
        "prompt": job.work.prompt,
        "width": job.work.width,
        "height": job.work.height,
        "seed": job.work.seed,
        "step": job.step,
        "steps": job.steps,
        "created": job.created,
        "cost": job.cost / THOUSANDTHS,
        "position": None if turn is None else turn.position,
        "seconds_left": None if turn is None else turn.seconds,
    }


@router.get("/v1/jobs")
def list_jobs(
    key: Caller,
    here: Here,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> dict[str, Any]:
    """The caller's jobs, the newest first."""
    return {"jobs": [_listed(job, here) for job in here.jobs.store.jobs(key.id, limit=limit, offset=offset)]}


@router.get("/v1/jobs/{job_id}")
def get_job(job_id: JobId, key: Caller, here: Here) -> dict[str, Any]:
    """One job, with its place in the queue and the seconds it will take, as predicted."""
    return _listed(here.jobs.own(key, job_id), here)


@router.post("/v1/jobs/{job_id}/cancel")
def cancel_job(job_id: JobId, key: Caller, here: Here) -> dict[str, Any]:
    """Ends a job that waits, and stops one that is being made at its next step."""
    here.jobs.store.cancel(here.jobs.own(key, job_id).id)
    return _listed(here.jobs.own(key, job_id), here)


@router.delete("/v1/jobs/{job_id}")
def delete_job(job_id: JobId, key: Caller, here: Here) -> dict[str, bool]:
    """Removes an ended job: its prompt, its inputs, its picture."""
    if not here.jobs.remove(here.jobs.own(key, job_id).id):
        raise Refused(409, "This task has not ended; cancel it first.")
    return {"deleted": True}


@router.get("/v1/jobs/{job_id}/events", response_model=None)
async def events(
    job_id: JobId, key: CallerIfAny, here: Here, token: Annotated[str | None, Query(max_length=100)] = None
) -> StreamingResponse:
    """Server-sent events: `progress` with step, preview and place in the queue; at the end `result`, as get_result."""
    await asyncio.to_thread(_check_may_see, job_id, key, token, here)
    return StreamingResponse(
        _events(job_id, here), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


def _check_may_see(job_id: str, key: Key | None, token: str | None, here: Context) -> None:
    if token is None or not here.jobs.files.is_token(job_id, token):
        if key is None:
            raise Refused(403, "Not authenticated; send your key in the header x-key.")
        here.jobs.own(key, job_id)


async def _events(job_id: str, here: Context) -> AsyncIterator[str]:
    async for state, step in here.jobs.watch(job_id):
        if STATUS[state] != "Pending":
            break
        yield _event("progress", await asyncio.to_thread(_progress, job_id, step, here))
    job = await asyncio.to_thread(here.jobs.store.job, job_id)
    if job is not None:
        yield _event("result", task(job, here.jobs.files))


def _progress(job_id: str, step: int, here: Context) -> dict[str, Any]:
    job = here.jobs.store.job(job_id)
    preview = here.jobs.store.preview(job_id) if step else None
    turn = None if job is None or job.ended else here.jobs.store.turn(job)
    return {
        "id": job_id,
        "step": step,
        "steps": job.steps if job else None,
        "progress": step / job.steps if job else None,
        "position": turn.position if turn else None,
        "seconds_left": turn.seconds if turn else None,
        "preview": "data:image/jpeg;base64," + base64.b64encode(preview[1]).decode() if preview else None,
    }


def _event(name: str, body: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(body)}\n\n"


@router.get("/results/{name}", response_model=None)
def result(
    name: Annotated[str, Path(max_length=100, pattern=r"^[0-9a-f-]{36}-\d{1,9}\.(png|jpeg|webp)$")],
    here: Here,
    expires: Annotated[str, Query(max_length=20)] = "",
    signature: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """A picture, to whoever has its link, for ten minutes."""
    data = here.jobs.files.open_link(name, expires, signature)
    ending = name.rpartition(".")[2].upper()
    headers = {"Cache-Control": "private, max-age=600", "X-Content-Type-Options": "nosniff"}
    return Response(data, media_type=MEDIA_TYPES[ending], headers=headers)
