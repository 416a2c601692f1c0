"""What ComfyUI's API nodes ask of its proxy (comfy_api_nodes/nodes_bfl.py), with `--comfy-api-base` set to this server.

They post like clients of Black Forest Labs, then poll the polling URL without a key.
"""

from __future__ import annotations

import re

from fastapi import APIRouter

from headrace.server.dialects.bfl import NAMES, Inputs, OlderInputs, Submitted, submitted, to_ask
from headrace.server.dialects.context import Caller, Here
from headrace.server.dialects.openai import router as openai_router

router = APIRouter(tags=["comfy"])


def _add_route(name: str) -> None:
    def generate(body: OlderInputs, key: Caller, here: Here) -> Submitted:
        return submitted(here.jobs.submit(key, to_ask(name, Inputs.model_validate(body.model_dump()))), here)

    identifier = re.sub(r"\W", "_", name)
    router.add_api_route(
        f"/proxy/bfl/{name}/generate", generate, methods=["POST"], operation_id=f"comfy_generate_{identifier}"
    )


for _name in NAMES:
    _add_route(_name)

# Its OpenAI nodes post to /proxy/openai/images/...
router.include_router(openai_router, prefix="/proxy/openai", include_in_schema=False)
