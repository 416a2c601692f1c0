"""AUTOMATIC1111's web API as far as its clients need it (webuiapi 0.9.17): txt2img, img2img, progress, interrupt."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from headrace.server.dialects.context import Caller, Context, Here
from headrace.server.dialects.openai import finished_picture
from headrace.server.fetch import picture_bytes
from headrace.server.files import as_format, check_picture
from headrace.server.jobs import Ask
from headrace.server.refusals import Refused
from headrace.server.store import Job, Key

router = APIRouter(prefix="/sdapi/v1", tags=["a1111"])

MAX_COUNT = 16
# What the web UI sends where nobody moved the sliders: taken as "the model's own".
USUAL_STEPS = 20
USUAL_SCALE = 7.0


class Txt2Img(BaseModel):
    model_config = ConfigDict(extra="ignore")

    prompt: str = ""
    seed: Annotated[int, Field(ge=-1, lt=2**63)] = -1
    steps: Annotated[int, Field(ge=1, le=150)] = USUAL_STEPS
    cfg_scale: Annotated[float, Field(ge=0, le=100)] = USUAL_SCALE
    distilled_cfg_scale: Annotated[float | None, Field(ge=0, le=100)] = None
    width: Annotated[int, Field(ge=64, le=65536)] = 512
    height: Annotated[int, Field(ge=64, le=65536)] = 512
    batch_size: Annotated[int, Field(ge=1, le=MAX_COUNT)] = 1
    n_iter: Annotated[int, Field(ge=1, le=MAX_COUNT)] = 1
    override_settings: dict[str, Any] | None = None


class Img2Img(Txt2Img):
    init_images: Annotated[list[str], Field(max_length=10)] = []
    mask: str | None = None
    inpainting_mask_invert: int = 0
    denoising_strength: Annotated[float, Field(ge=0, le=1)] = 0.75


def _ask(body: Txt2Img) -> Ask:
    settings = body.override_settings or {}
    return Ask(
        model=str(settings.get("sd_model_checkpoint", "")),
        prompt=body.prompt,
        width=body.width,
        height=body.height,
        seed=None if body.seed < 0 else body.seed,
        steps=None if body.steps == USUAL_STEPS else body.steps,
        guidance=None if body.cfg_scale == USUAL_SCALE else body.cfg_scale,
        output_format="PNG",
        strict=False,
    )


@router.post("/txt2img")
async def txt2img(body: Txt2Img, key: Caller, here: Here) -> dict[str, Any]:
    """Pictures from a prompt, as base64 of PNG files."""
    return await _make(_ask(body), body, key, here)


@router.post("/img2img")
async def img2img(body: Img2Img, key: Caller, here: Here) -> dict[str, Any]:
    """A picture made anew from some step on, or where a mask is white."""
    if not body.init_images:
        raise Refused(422, "There is no picture in init_images.")
    if body.mask is not None and body.inpainting_mask_invert:
        raise Refused(422, "Inverted masks are not taken; invert it first.")
    strength = None if body.mask is not None and body.denoising_strength == 1 else body.denoising_strength
    ask = replace(_ask(body), image=body.init_images[0], mask=body.mask, strength=strength)
    return await _make(ask, body, key, here)


async def _make(ask: Ask, body: Txt2Img, key: Key, here: Context) -> dict[str, Any]:
    jobs: list[Job] = []
    try:
        for index in range(min(body.batch_size * body.n_iter, MAX_COUNT)):
            seed = None if ask.seed is None else ask.seed + index
            jobs.append(await asyncio.to_thread(here.jobs.submit, key, replace(ask, seed=seed)))
        ended = [await here.jobs.finished(job.id) for job in jobs]
        files = [await asyncio.to_thread(finished_picture, job, here) for job in ended]
    except (Refused, asyncio.CancelledError):
        for job in jobs:
            here.jobs.store.cancel(job.id)
        raise
    texts = await asyncio.gather(*(asyncio.to_thread(_parameters, data) for data in files))
    info = {
        "prompt": ask.prompt,
        "seed": jobs[0].work.seed,
        "all_seeds": [job.work.seed for job in jobs],
        "all_prompts": [ask.prompt] * len(jobs),
        "width": jobs[0].work.width,
        "height": jobs[0].work.height,
        "steps": jobs[0].work.steps,
        "infotexts": texts,
    }
    images = [base64.b64encode(data).decode() for data in files]
    return {"images": images, "parameters": body.model_dump(exclude={"init_images", "mask"}), "info": json.dumps(info)}


@router.get("/progress")
def progress(key: Caller, here: Here) -> dict[str, Any]:
    """Of the caller's job that is being made."""
    running = here.jobs.store.jobs(key.id, ["running"], limit=1)
    waiting = here.jobs.store.jobs(key.id, ["queued"])
    state = {"job_count": len(running) + len(waiting), "sampling_step": 0, "sampling_steps": 0, "interrupted": False}
    if not running:
        return {"progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}
    job = running[0]
    preview = here.jobs.store.preview(job.id)
    image = None if preview is None else base64.b64encode(as_format(preview[1], "PNG")).decode()
    return {
        "progress": job.step / job.steps,
        "eta_relative": here.jobs.store.turn(job).seconds or 0.0,
        "state": state | {"sampling_step": job.step, "sampling_steps": job.steps},
        "current_image": image,
        "textinfo": None,
    }


@router.post("/interrupt")
def interrupt(key: Caller, here: Here) -> dict[str, Any]:
    """Stops what is being made for the caller."""
    for job in here.jobs.store.jobs(key.id, ["running"]):
        here.jobs.store.cancel(job.id)
    return {}


@router.get("/options")
def options(_: Caller, here: Here) -> dict[str, Any]:
    models = here.jobs.store.models()
    return {"sd_model_checkpoint": models[0].name if models else None, "samples_format": "png"}


@router.post("/options")
def set_options(_: Caller) -> None:
    """Taken and ignored: what a request needs it says itself."""


@router.get("/sd-models")
def sd_models(_: Caller, here: Here) -> list[dict[str, Any]]:
    return [
        {"title": model.name, "model_name": model.name, "hash": None, "sha256": None, "filename": model.name}
        for model in here.jobs.store.models()
    ]


@router.get("/samplers")
def samplers(_: Caller) -> list[dict[str, Any]]:
    return [{"name": "Euler", "aliases": ["euler"], "options": {}}]


@router.get("/schedulers")
def schedulers(_: Caller) -> list[dict[str, Any]]:
    return [{"name": "simple", "label": "Simple", "aliases": None, "default_rho": -1, "need_inner_model": False}]


@router.get("/loras")
def loras(_: Caller) -> list[dict[str, Any]]:
    return []


class PngInfo(BaseModel):
    image: str


@router.post("/png-info")
def png_info(body: PngInfo, _: Caller) -> dict[str, Any]:
    """The recipe that a picture carries, as the web UI writes it."""
    if body.image[:4].lower() == "http":
        raise Refused(422, "The image must be base64.")
    data = picture_bytes(body.image, "image", internal=False)
    check_picture(data, "image")
    return {"info": _parameters(data), "items": {}, "parameters": {}}


def _parameters(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return str(image.info.get("parameters", ""))
