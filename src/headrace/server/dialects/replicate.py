"""Replicate's predictions, for models of Black Forest Labs (replicate 1.0.7; black-forest-labs/flux-2-pro's fields)."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from headrace.server.dialects.bfl import FORMATS, MAX_REFERENCES, parse_ratio
from headrace.server.dialects.context import Caller, Context, Here
from headrace.server.jobs import Ask
from headrace.server.refusals import Refused
from headrace.server.store import Job

router = APIRouter(tags=["replicate"])

STATUS = {
    "queued": "starting",
    "running": "processing",
    "ready": "succeeded",
    "error": "failed",
    "cancelled": "canceled",
    "request_moderated": "failed",
    "content_moderated": "failed",
}
MEGAPIXELS = {"0.5 MP": 0.5, "1 MP": 1.0, "2 MP": 2.0, "4 MP": 4.0}
# How long "Prefer: wait" waits where it does not say.
WAIT_SECONDS = 60


class Input(BaseModel):
    model_config = ConfigDict(extra="ignore")

    prompt: str
    input_images: Annotated[list[str], Field(max_length=MAX_REFERENCES)] = []
    images: Annotated[list[str], Field(max_length=MAX_REFERENCES)] = []
    aspect_ratio: Annotated[str, Field(max_length=20)] | None = None
    resolution: Annotated[str, Field(max_length=20)] | None = None
    width: Annotated[int | None, Field(ge=0, le=65536)] = None
    height: Annotated[int | None, Field(ge=0, le=65536)] = None
    seed: Annotated[int | None, Field(ge=0, lt=2**64)] = None
    steps: Annotated[int | None, Field(ge=1, le=1000)] = None
    guidance: Annotated[float | None, Field(ge=0, le=100)] = None
    safety_tolerance: Annotated[int, Field(ge=0, le=6)] = 2
    output_format: Literal["webp", "jpg", "jpeg", "png"] = "webp"


class Prediction(BaseModel):
    input: Input
    webhook: Annotated[str | None, Field(max_length=2083)] = None
    webhook_events_filter: list[str] | None = None


def _ask(model: str, body: Input) -> Ask:
    custom = body.aspect_ratio in (None, "custom", "match_input_image")
    aspect = None if custom else parse_ratio(body.aspect_ratio)
    width, height = (body.width, body.height) if body.aspect_ratio in (None, "custom") else (None, None)
    if body.resolution in MEGAPIXELS and not (width and height):
        across, down = aspect or (1, 1)
        side = (MEGAPIXELS[body.resolution] * 2**20 / (across * down)) ** 0.5
        width, height = int(side * across) // 16 * 16, int(side * down) // 16 * 16
    return Ask(
        model=model,
        prompt=body.prompt,
        references=[*body.input_images, *body.images],
        width=width,
        height=height,
        aspect=aspect,
        seed=body.seed,
        steps=body.steps,
        guidance=body.guidance,
        output_format=FORMATS[body.output_format],
        safety_tolerance=min(body.safety_tolerance, 5),
    )


def _prediction(job: Job, here: Context) -> dict[str, Any]:
    files = here.jobs.files
    base = files.url(f"/v1/predictions/{job.id}")
    output = None if job.result is None else files.link(job.result.file)
    return {
        "id": job.id,
        "model": f"black-forest-labs/{job.model}",
        "version": "headrace",
        "input": {"prompt": job.work.prompt, "seed": job.work.seed},
        "output": output,
        "logs": "",
        "error": job.reason,
        "status": STATUS[job.state],
        "source": "api",
        "created_at": _time(job.created),
        "started_at": _time(job.started),
        "completed_at": _time(job.finished),
        "metrics": {"predict_time": job.finished - job.started} if job.finished and job.started else {},
        "urls": {"get": base, "cancel": f"{base}/cancel"},
    }


def _time(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")


@router.post("/v1/models/{owner}/{name}/predictions", status_code=201)
async def create(
    owner: Annotated[str, Path(max_length=100)],
    name: Annotated[str, Path(max_length=100)],
    body: Prediction,
    key: Caller,
    here: Here,
    prefer: Annotated[str | None, Header(max_length=100)] = None,
) -> JSONResponse:
    """Starts a prediction; with "Prefer: wait" the answer comes with its end."""
    if body.webhook is not None:
        raise Refused(422, "Webhooks of predictions are not sent here; poll urls.get, or use /v1/flux-2-pro.")
    job: Job | None = await asyncio.to_thread(here.jobs.submit, key, _ask(name, body.input))
    assert job is not None
    wait = re.fullmatch(r"\s*wait(?:\s*=\s*(\d{1,3}))?\s*", prefer or "")
    if wait is not None:
        job = await here.jobs.finished(job.id, min(int(wait[1] or WAIT_SECONDS), WAIT_SECONDS))
        assert job is not None
    return JSONResponse(_prediction(job, here), status_code=201)


@router.get("/v1/predictions/{job_id}")
def get(job_id: Annotated[str, Path(max_length=100)], key: Caller, here: Here) -> dict[str, Any]:
    return _prediction(here.jobs.own(key, job_id), here)


@router.post("/v1/predictions/{job_id}/cancel")
def cancel(job_id: Annotated[str, Path(max_length=100)], key: Caller, here: Here) -> dict[str, Any]:
    here.jobs.store.cancel(here.jobs.own(key, job_id).id)
    return _prediction(here.jobs.own(key, job_id), here)
