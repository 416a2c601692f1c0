"""Nodes for ComfyUI that run Headrace inside it: load, prompt, references, sample, decode, within a memory budget.

ComfyUI loads them from the folder `comfyui_headrace` of the repository. Nothing here imports ComfyUI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from headrace.checkpoints import open_checkpoint
from headrace.comfy.models import Model, TextEncoder
from headrace.comfy.sampling import draw
from headrace.comfy.stages import CONVENTION, Stages
from headrace.comfy.values import Condition, Guider
from headrace.device import choose_device
from headrace.errors import RequestError
from headrace.flow.references import prepare_references
from headrace.flow.schedule import schedule
from headrace.memory.claims import claimed
from headrace.memory.plan import PRECISIONS, Plan, Work
from headrace.memory.sizes import parse_bytes
from headrace.recipe import MAX_GUIDANCE, MAX_SEED, MAX_STEPS, check_prompt, check_seed, check_size, check_steps

VARIANTS = ("auto", "base", "distilled", "kv")
MAX_SIDE = 16_384


@dataclass(frozen=True)
class Prompt:
    """A prompt and its references in order, RGB (HEADRACE_PROMPT)."""

    text: str
    references: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class SampledLatent:
    """What a model made, to be decoded by it (HEADRACE_LATENT): (1, C, h, w)."""

    stages: Stages
    samples: Tensor


def load(model: str, variant: str, precision: str, device: str, memory: str) -> tuple[Stages]:
    """Opens a model: a name from the catalogue, a folder, a file or a hub id; its networks come when they are needed.

    memory: what a run may take at most, as "6GB"; empty: what is free less a margin.
    """
    checkpoint = open_checkpoint(model, variant=None if variant == "auto" else variant)
    budget = parse_bytes(memory) if memory.strip() else None
    return (Stages(checkpoint, precision, None, choose_device(device), budget),)


def prompt(text: str) -> tuple[Prompt]:
    """Says what the picture should show."""
    return (Prompt(check_prompt(text)),)


def references(prompt: Prompt, images: Tensor) -> tuple[Prompt]:
    """Adds reference pictures, (B, H, W, 3) in 0..1, after those that the prompt has."""
    levels = (images[..., :3] * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return (replace(prompt, references=(*prompt.references, *map(Image.fromarray, levels))),)


def sample(
    model: Stages, prompt: Prompt, width: int, height: int, steps: int, guidance: float, seed: int
) -> tuple[SampledLatent, str]:
    """Makes a picture's latent, as ComfyUI's own nodes would: the same noise, times and rounding.

    width, height: 0 for the first reference's, or the model's own; steps, guidance: 0 for the model's. Also gives the
    plan that was followed, as text. Raises RequestError where the budget is too small, before anything is loaded.
    """
    checkpoint = model.checkpoint
    if len(prompt.references) > checkpoint.reference_limit:
        raise RequestError(
            f"{len(prompt.references)} references were given; this model takes at most {checkpoint.reference_limit}."
        )
    token = model.token_size
    pictures = prepare_references(list(prompt.references), CONVENTION, token)
    default = pictures[0].size if pictures else checkpoint.default_size
    width, height = check_size(width or default[0], height or default[1], multiple=token)
    guidance, steps = guidance or checkpoint.guidance, check_steps(steps or checkpoint.steps)
    cfg = guidance if checkpoint.variant == "klein-base" else 1.0
    source = Model(Path(checkpoint.source), caches_references=checkpoint.variant == "klein-kv")

    sizes = tuple(picture.size for picture in pictures)
    work = Work(width, height, sizes, guided=cfg > 1, prompts=2 if cfg > 1 else 1)
    kept = sum(width * height for width, height in sizes) // token**2 if source.caches_references else 0
    with _within(model, work, kept) as plan:
        encoded = tuple(model.encode_pixels(_pixels(picture)) for picture in pictures)

        def condition(text: str) -> Condition:
            encoder = TextEncoder(Path(checkpoint.source))
            return Condition(model.encode_prompt(text), encoder, guidance, encoded)

        guider = Guider(source, condition(prompt.text), condition("") if cfg > 1 else None, cfg)
        rows, columns = height // token, width // token
        empty = torch.zeros(1, checkpoint.transformer_config.in_channels, rows, columns)
        times = schedule(rows * columns, steps, rounds_times=True)
        made, _ = model.sample(guider, draw(check_seed(seed), empty.shape), empty, times)
    return SampledLatent(model, made), described(plan)


def decode(latent: SampledLatent) -> tuple[Tensor]:
    """The picture, (1, H, W, 3) in 0..1."""
    (_, _, rows, columns), token = latent.samples.shape, latent.stages.token_size
    with _within(latent.stages, Work(columns * token, rows * token)):
        return (latent.stages.decode(latent.samples),)


def described(plan: Plan) -> str:
    """A plan in a few lines."""
    parts = [
        f"{name}: {part.bytes / 1e9:.2f} GB, {part.streamed_bytes / 1e9:.2f} GB of it streamed"
        for name, part in plan.components.items()
    ]
    first = f"{plan.model} in {plan.precision} at {plan.width}x{plan.height}, {plan.references} references"
    peak = f"peak {plan.peak_bytes / 1e9:.2f} GB of {plan.memory_bytes / 1e9:.2f} GB"
    return "\n".join([first, *parts, f"{peak}; at least {plan.minimum_bytes / 1e9:.2f} GB"])


@contextmanager
def _within(stages: Stages, work: Work, kept_tokens: int = 0) -> Iterator[Plan]:
    """The networks as the plan for this work has them. Raises RequestError where it does not fit."""
    with (
        claimed(stages, lambda budget: (stages.plan([work], budget, kept_tokens), None)) as (plan, _),
        stages.within(plan),
        torch.inference_mode(),
    ):
        yield plan


def _pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture, dtype=np.float32) / 255)[None]


def _node(
    function: Callable[..., tuple[Any, ...]], inputs: Mapping[str, tuple[Any, ...]], outputs: tuple[str, ...]
) -> type:
    """A node class as ComfyUI takes it. outputs: their names and types as "name:TYPE"."""
    return type(
        f"Headrace_{function.__name__}",
        (),
        {
            "INPUT_TYPES": classmethod(lambda cls: {"required": dict(inputs)}),
            "RETURN_TYPES": tuple(output.partition(":")[2] for output in outputs),
            "RETURN_NAMES": tuple(output.partition(":")[0] for output in outputs),
            "FUNCTION": "run",
            "CATEGORY": "Headrace",
            "DESCRIPTION": (function.__doc__ or "").strip(),
            "run": staticmethod(function),
        },
    )


_SIDE = ("INT", {"default": 0, "min": 0, "max": MAX_SIDE, "step": 16})
NODE_CLASS_MAPPINGS = {
    "HeadraceLoad": _node(
        load,
        {
            "model": ("STRING", {"default": "sprite"}),
            "variant": (VARIANTS, {}),
            "precision": (("auto", *PRECISIONS), {}),
            "device": (("auto", "cpu", "cuda", "mps"), {}),
            "memory": ("STRING", {"default": ""}),
        },
        ("model:HEADRACE_MODEL",),
    ),
    "HeadracePrompt": _node(
        prompt, {"text": ("STRING", {"multiline": True, "default": ""})}, ("prompt:HEADRACE_PROMPT",)
    ),
    "HeadraceReferences": _node(
        references, {"prompt": ("HEADRACE_PROMPT",), "images": ("IMAGE",)}, ("prompt:HEADRACE_PROMPT",)
    ),
    "HeadraceSample": _node(
        sample,
        {
            "model": ("HEADRACE_MODEL",),
            "prompt": ("HEADRACE_PROMPT",),
            "width": _SIDE,
            "height": _SIDE,
            "steps": ("INT", {"default": 0, "min": 0, "max": MAX_STEPS}),
            "guidance": ("FLOAT", {"default": 0.0, "min": 0.0, "max": MAX_GUIDANCE, "step": 0.1}),
            "seed": ("INT", {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True}),
        },
        ("latent:HEADRACE_LATENT", "plan:STRING"),
    ),
    "HeadraceDecode": _node(decode, {"latent": ("HEADRACE_LATENT",)}, ("image:IMAGE",)),
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "HeadraceLoad": "Headrace: load model",
    "HeadracePrompt": "Headrace: prompt",
    "HeadraceReferences": "Headrace: add references",
    "HeadraceSample": "Headrace: sample",
    "HeadraceDecode": "Headrace: decode",
}
