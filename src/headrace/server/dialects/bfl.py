"""Black Forest Labs' API (api.bfl.ai, OpenAPI of September 2026): submit, poll, fetch from a link.

Fields, limits and defaults are the schema's; what clients send beyond it is accepted where it has a meaning here
(aspect_ratio, input_image_9 and _10) and ignored elsewhere, as the schema does.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import AfterValidator, BaseModel, Field

from headrace.server.dialects.context import Caller, CallerIfAny, Here
from headrace.server.jobs import Ask
from headrace.server.prices import THOUSANDTHS, cost
from headrace.server.refusals import Refused
from headrace.server.results import STATUS, not_found, task
from headrace.server.store import Job

router = APIRouter()

FORMATS = {"jpeg": "JPEG", "jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
FLUX_2 = (
    "flux-2-klein-4b",
    "flux-2-klein-9b",
    "flux-2-klein-9b-preview",
    "flux-2-pro",
    "flux-2-pro-preview",
    "flux-2-flex",
    "flux-2-max",
)
# Older names that clients still send, answered by a FLUX.2 model.
FLUX_1 = ("flux-dev", "flux-pro", "flux-pro-1.1", "flux-pro-1.1-ultra", "flux-kontext-pro", "flux-kontext-max")
NAMES = FLUX_2 + FLUX_1
MAX_REFERENCES = 10
UNCOUNTED = 1e9


def _side(value: int | None) -> int | None:
    if value is not None and value != 0 and value < 64:
        raise ValueError("Input should be greater than or equal to 64, or 0 to have it chosen")
    return value


Side = Annotated[int | None, Field(le=65536), AfterValidator(_side)]
Picture = Annotated[str | None, Field(description="base64, a data URI or an http(s) URL")]


class Inputs(BaseModel):
    """What every FLUX.2 route takes."""

    prompt: str
    input_image: Picture = None
    input_image_2: Picture = None
    input_image_3: Picture = None
    input_image_4: Picture = None
    input_image_5: Picture = None
    input_image_6: Picture = None
    input_image_7: Picture = None
    input_image_8: Picture = None
    input_image_9: Picture = None
    input_image_10: Picture = None
    seed: Annotated[int | None, Field(ge=0, lt=2**64)] = None
    width: Side = 0
    height: Side = 0
    aspect_ratio: Annotated[str | None, Field(max_length=20)] = None
    safety_tolerance: Annotated[int, Field(ge=0, le=6)] = 2
    output_format: Literal["jpeg", "jpg", "png", "webp"] | None = "jpeg"
    webhook_url: Annotated[str | None, Field(min_length=1, max_length=2083)] = None
    webhook_secret: Annotated[str | None, Field(max_length=1000)] = None
    user: Annotated[str | None, Field(min_length=1, max_length=256)] = None


class FlexInputs(Inputs):
    """[flex] opens steps and guidance; the model's own where none are given."""

    guidance: Annotated[float | None, Field(ge=1.5, le=10)] = None
    steps: Annotated[int | None, Field(ge=1, le=50)] = None


class OlderInputs(Inputs):
    """FLUX.1's routes."""

    prompt: str = ""
    image_prompt: Picture = None
    guidance: Annotated[float | None, Field(ge=0, le=100)] = None
    steps: Annotated[int | None, Field(ge=1, le=100)] = None


class Submitted(BaseModel):
    """AsyncResponse and AsyncWebhookResponse in one: clients read the fields they know."""

    id: str
    polling_url: str
    status: str
    cost: float | None
    input_mp: float | None
    output_mp: float | None
    webhook_url: str | None = None


class ResultResponse(BaseModel):
    id: str
    status: Literal["Task not found", "Pending", "Request Moderated", "Content Moderated", "Ready", "Error"]
    result: Any = None
    progress: float | None = None
    details: dict[str, Any] | None = None
    preview: dict[str, Any] | None = None
    cost: float | None = None
    input_mp: float | None = None
    output_mp: float | None = None


class InputSize(BaseModel):
    width: Annotated[int, Field(ge=1, le=65536)]
    height: Annotated[int, Field(ge=1, le=65536)]


class PricingInputs(BaseModel):
    model: str
    width: Annotated[int, Field(ge=1, le=65536)] = 1024
    height: Annotated[int, Field(ge=1, le=65536)] = 1024
    input_images: Annotated[list[InputSize], Field(max_length=MAX_REFERENCES)] = []


def parse_ratio(text: str | None) -> tuple[int, int] | None:
    """`"16:9"` -> (16, 9). Raises Refused (422) for what is none, or longer than 8 to 1."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,5})\s*[:/x]\s*(\d{1,5})\s*", text)
    across, down = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (across and down and max(across, down) <= 8 * min(across, down)):
        raise Refused(422, f"The aspect_ratio {text!r} is not WIDTH:HEIGHT between 1:8 and 8:1.")
    return across, down


def to_ask(model: str, body: Inputs) -> Ask:
    names = ["input_image", *(f"input_image_{index}" for index in range(2, MAX_REFERENCES + 1))]
    pictures = [getattr(body, name) for name in names] + [getattr(body, "image_prompt", None)]
    return Ask(
        model=model,
        prompt=body.prompt,
        references=[picture for picture in pictures if picture],
        width=body.width,
        height=body.height,
        aspect=parse_ratio(body.aspect_ratio),
        seed=body.seed,
        steps=getattr(body, "steps", None),
        guidance=getattr(body, "guidance", None),
        output_format=FORMATS[body.output_format or "jpeg"],
        safety_tolerance=min(body.safety_tolerance, 5),
        webhook_url=body.webhook_url,
        webhook_secret=body.webhook_secret,
    )


def submitted(job: Job, here: Here) -> Submitted:
    return Submitted(
        id=job.id,
        polling_url=here.jobs.files.polling_url(job.id),
        status=STATUS[job.state],
        cost=job.cost / THOUSANDTHS,
        input_mp=job.input_mp,
        output_mp=job.output_mp,
        webhook_url=job.webhook_url,
    )


def _add_route(name: str, inputs: type[Inputs]) -> None:
    def generate(body: inputs, key: Caller, here: Here) -> Submitted:  # type: ignore[valid-type]
        return submitted(here.jobs.submit(key, to_ask(name, body)), here)

    # The annotation is a value here, which FastAPI cannot look up by its name.
    generate.__annotations__["body"] = inputs
    identifier = re.sub(r"\W", "_", name)
    router.add_api_route(f"/v1/{name}", generate, methods=["POST"], tags=["bfl"], operation_id=f"generate_{identifier}")


for _name in NAMES:
    _add_route(_name, FlexInputs if _name == "flux-2-flex" else OlderInputs if _name in FLUX_1 else Inputs)


@router.get("/v1/get_result", tags=["bfl"])
def get_result(
    key: CallerIfAny,
    here: Here,
    job_id: Annotated[str, Query(alias="id", max_length=100)],
    token: Annotated[str | None, Query(max_length=100)] = None,
) -> ResultResponse:
    """A task by its id: to the key that it belongs to, and to whoever has its polling URL."""
    job = here.jobs.store.job(job_id)
    by_url = token is not None and here.jobs.files.is_token(job_id, token)
    if job is None or not (by_url or (key is not None and key.id == job.key_id)):
        return ResultResponse(**not_found(job_id))
    return ResultResponse(**task(job, here.jobs.files))


@router.get("/v1/credits", tags=["bfl"])
def get_credits(key: Caller) -> dict[str, float]:
    """What the key has left; a thousand million where its credits are not counted, as clients expect a number."""
    return {"credits": UNCOUNTED if key.balance is None else key.balance / THOUSANDTHS}


@router.post("/v1/pricing", tags=["bfl"])
def pricing(body: PricingInputs, key: Caller, here: Here) -> dict[str, float | str]:
    """What a picture would cost, and how many megapixels that is."""
    model = here.jobs.model(body.model)
    price = cost(model.name, body.width, body.height, [(image.width, image.height) for image in body.input_images])
    return {
        "model": model.name,
        "cost": price.credits,
        "cost_usd": price.credits / 100,
        "input_mp": price.input_mp,
        "output_mp": price.output_mp,
    }
