"""OpenAI's Images API, and Together's on the same address: generate, edit, streams of partial pictures, models.

Fields as in openai 3.54 (types/image_generate_params.py, image_edit_params.py) and together 3.1. Both clients post to
/v1/images/generations; what only one of them sends does not disturb the other.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from headrace.server.dialects.bfl import FORMATS
from headrace.server.dialects.context import Caller, Context, Here
from headrace.server.files import as_format
from headrace.server.jobs import Ask
from headrace.server.refusals import Refused
from headrace.server.store import Job, Key

router = APIRouter(tags=["openai"])

MAX_COUNT = 10
MAX_PARTIAL = 3
MAX_IMAGES = 16
MAX_PROMPT = 32_000
# An answer that comes in one piece; a client that waits longer should stream, or use the other dialects.
LONGEST_SECONDS = 3600.0


class Images(BaseModel):
    """Both dialects' fields that have a meaning here."""

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)]
    model: str | None = None
    n: Annotated[int | None, Field(ge=1, le=MAX_COUNT)] = 1
    size: Annotated[str | None, Field(max_length=20)] = "auto"
    output_format: Literal["png", "jpeg", "jpg", "webp"] | None = None
    response_format: Literal["url", "b64_json", "base64"] | None = None
    stream: bool | None = False
    partial_images: Annotated[int | None, Field(ge=0, le=MAX_PARTIAL)] = 0
    seed: Annotated[int | None, Field(ge=0, lt=2**63)] = None
    steps: Annotated[int | None, Field(ge=1, le=1000)] = None
    num_inference_steps: Annotated[int | None, Field(ge=1, le=1000)] = None
    guidance: Annotated[float | None, Field(ge=0, le=100)] = None
    guidance_scale: Annotated[float | None, Field(ge=0, le=100)] = None
    width: Annotated[int | None, Field(ge=0, le=65536)] = None
    height: Annotated[int | None, Field(ge=0, le=65536)] = None
    image_url: str | None = None
    reference_images: Annotated[list[str], Field(max_length=MAX_IMAGES)] | None = None


def _ask(body: Images) -> Ask:
    width, height = body.width, body.height
    if body.size not in (None, "auto", ""):
        match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", body.size)
        if match is None:
            raise Refused(400, f"The size {body.size!r} is not auto or WIDTHxHEIGHT.")
        width, height = int(match[1]), int(match[2])
    references = [*(body.reference_images or ()), *([body.image_url] if body.image_url else ())]
    return Ask(
        model=body.model or "",
        prompt=body.prompt,
        references=references,
        width=width,
        height=height,
        seed=body.seed,
        steps=body.steps or body.num_inference_steps,
        guidance=body.guidance if body.guidance is not None else body.guidance_scale,
        output_format=FORMATS[body.output_format or "png"],
        strict=False,  # clients send names of OpenAI's models whatever they are pointed at
    )


@router.get("/v1/models")
def models(_: Caller, here: Here) -> dict[str, Any]:
    """The models of this server, as OpenAI lists them."""
    listed = [
        {"id": model.name, "object": "model", "created": 0, "owned_by": "headrace"}
        for model in here.jobs.store.models()
    ]
    return {"object": "list", "data": listed}


@router.post("/v1/images/generations", response_model=None)
async def generate(body: Images, key: Caller, here: Here) -> Response:
    """Pictures from a prompt; Together's clients may add reference pictures."""
    return await _answer(body, _ask(body), key, here, "image_generation")


@router.post("/v1/images/edits", response_model=None)
async def edit(request: Request, key: Caller, here: Here) -> Response:
    """Pictures from pictures: references, or with a mask the part of the first that is transparent in the mask."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refused(400, "An edit is sent as multipart/form-data, with its pictures as image or image[].")
    async with request.form(max_files=MAX_IMAGES + 1, max_fields=100) as form:
        pictures = [
            await value.read()
            for name, value in form.multi_items()
            if isinstance(value, UploadFile) and re.fullmatch(r"image(\[\d*\])?", name)
        ]
        mask = form.get("mask")
        mask_data = await mask.read() if isinstance(mask, UploadFile) else None
        body = _from_form(form)
    if not pictures:
        raise Refused(400, "There is no picture to edit; send it as image.")
    ask = _ask(body)
    if mask_data is None:
        ask = replace(ask, references=pictures)
    else:
        painted = await asyncio.to_thread(_mask_from_alpha, mask_data)
        ask = replace(ask, image=pictures[0], references=pictures[1:], mask=painted, width=None, height=None)
    return await _answer(body, ask, key, here, "image_edit")


def _from_form(form: FormData) -> Images:
    """The fields of a form, whose values are all text."""
    values = {name: value for name, value in form.items() if isinstance(value, str) and value not in ("", "null")}
    try:
        return Images.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise Refused(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from error


def _mask_from_alpha(data: bytes) -> bytes:
    """OpenAI's mask (transparent: to be made) as ours (white: to be made). Raises Refused (422)."""
    from PIL import ImageOps

    from headrace.errors import RequestError
    from headrace.pictures import encode_picture, open_bounded

    try:
        image = open_bounded(data, "mask")
        if not image.has_transparency_data:
            raise Refused(422, "The mask has no transparency; make transparent what is to be made anew.")
        alpha = image.convert("RGBA").getchannel("A")
    except RequestError as error:
        raise Refused(422, str(error)) from error
    except OSError as error:
        raise Refused(422, "The mask is a damaged picture file.") from error
    return encode_picture(ImageOps.invert(alpha), "PNG", {})


async def _answer(body: Images, ask: Ask, key: Key, here: Context, kind: str) -> Response:
    count = body.n or 1
    if body.stream and count > 1:
        raise Refused(400, "A stream has one picture; leave n at 1.")
    jobs = await asyncio.to_thread(_submit, here, key, ask, count)
    if body.stream:
        return StreamingResponse(_events(jobs[0], here, kind, body.partial_images or 0), media_type="text/event-stream")
    try:
        ended = [await here.jobs.finished(job.id, LONGEST_SECONDS) for job in jobs]
    except asyncio.CancelledError:  # the client has gone, and nobody else can fetch the pictures
        for job in jobs:
            here.jobs.store.cancel(job.id)
        raise
    data = [await asyncio.to_thread(_entry, job, here, body.response_format) for job in ended]
    first = ended[0]
    assert first is not None
    return JSONResponse({"created": int(time.time()), "data": data, **_facts(first), "usage": _usage(jobs)})


def _submit(here: Context, key: Key, ask: Ask, count: int) -> list[Job]:
    """So many jobs of one request, or none: those already taken are cancelled where a later one is refused."""
    jobs: list[Job] = []
    try:
        for index in range(count):
            seed = None if ask.seed is None else ask.seed + index
            jobs.append(here.jobs.submit(key, replace(ask, seed=seed)))
    except Refused:
        for job in jobs:
            here.jobs.store.cancel(job.id)
        raise
    return jobs


def finished_picture(job: Job | None, here: Context) -> bytes:
    """The file of a job that has ended well. Raises Refused."""
    if job is None or job.result is None:
        if job is not None and job.state.endswith("moderated"):
            raise Refused(400, "The request was not carried out: the content policy of this server forbids it.")
        raise Refused(500 if job is None or job.ended else 504, (job.reason if job else None) or "It took too long.")
    return here.jobs.files.result(job.result.file)


def _entry(job: Job | None, here: Context, response_format: str | None) -> dict[str, Any]:
    data = finished_picture(job, here)
    assert job is not None
    assert job.result is not None
    if response_format == "url":
        return {"url": here.jobs.files.link(job.result.file), "index": 0, "revised_prompt": None}
    return {"b64_json": base64.b64encode(data).decode(), "index": 0, "revised_prompt": None}


def _facts(job: Job) -> dict[str, Any]:
    work = job.work
    return {
        "background": "opaque",
        "output_format": work.output_format.lower(),
        "quality": "high",
        "size": f"{work.width}x{work.height}",
    }


def _usage(jobs: Sequence[Job]) -> dict[str, Any]:
    """Tokens as this kind of model has them: one for each 16x16 pixels of a picture."""
    made = sum(job.work.width * job.work.height // 256 for job in jobs)
    shown = sum(round(job.input_mp * 10**6) // 256 for job in jobs)
    text = 512 * len(jobs)
    return {
        "input_tokens": text + shown,
        "output_tokens": made,
        "total_tokens": text + shown + made,
        "input_tokens_details": {"text_tokens": text, "image_tokens": shown},
    }


async def _events(job: Job, here: Context, kind: str, partial: int) -> AsyncIterator[str]:
    """Previews of so many steps, spread evenly, and the picture; an error event where there is none."""
    steps = job.steps
    wanted = [steps * (index + 1) // (partial + 1) for index in range(partial)]
    sent = 0
    async for state, step in here.jobs.watch(job.id):
        if state != "running" or sent >= len(wanted) or step < max(1, wanted[sent]):
            continue
        preview = await asyncio.to_thread(here.jobs.store.preview, job.id)
        if preview is None:
            continue
        size = job.work.width, job.work.height
        data = await asyncio.to_thread(as_format, preview[1], job.work.output_format, size)
        yield _event(f"{kind}.partial_image", job, data, partial_image_index=sent)
        sent += 1
    ended = await asyncio.to_thread(here.jobs.store.job, job.id)
    try:
        data = await asyncio.to_thread(finished_picture, ended, here)
    except Refused as error:
        yield f"event: error\ndata: {json.dumps({'type': 'error', 'error': {'message': str(error), 'code': None}})}\n\n"
        return
    yield _event(f"{kind}.completed", job, data, usage=_usage([job]))


def _event(name: str, job: Job, data: bytes, **more: Any) -> str:
    body = {"type": name, "b64_json": base64.b64encode(data).decode(), "created_at": int(time.time()), **_facts(job)}
    return f"event: {name}\ndata: {json.dumps(body | more)}\n\n"
