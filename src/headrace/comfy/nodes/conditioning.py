"""Words, and what goes with them."""

from __future__ import annotations

from dataclasses import replace

import torch

from headrace.comfy.models import TextEncoder
from headrace.comfy.session import Function, Session
from headrace.comfy.values import Condition, Latent


def clip_text_encode(session: Session, text: str, clip: TextEncoder) -> tuple[Condition]:
    """A prompt, which may be empty, as the model reads it."""
    return (Condition(session.stage.encode_prompt(clip, text), clip),)


def conditioning_zero_out(conditioning: Condition) -> tuple[Condition]:
    """No words at all; references and guidance stay."""
    return (replace(conditioning, context=torch.zeros_like(conditioning.context)),)


def flux_guidance(conditioning: Condition, guidance: float) -> tuple[Condition]:
    """The guidance of a model that embeds it."""
    return (replace(conditioning, guidance=guidance),)


def flux_disable_guidance(conditioning: Condition) -> tuple[Condition]:
    """No embedded guidance."""
    return (replace(conditioning, guidance=None),)


def reference_latent(conditioning: Condition, latent: Latent | None = None) -> tuple[Condition]:
    """One more reference, after those that are there."""
    if latent is None:
        return (conditioning,)
    return (replace(conditioning, references=(*conditioning.references, latent.samples)),)


def reference_method(conditioning: Condition, reference_latents_method: str) -> tuple[Condition]:
    """How references are placed."""
    method = "uxo" if reference_latents_method == "uxo/uno" else reference_latents_method
    return (replace(conditioning, method=method),)


PLAIN: dict[str, Function] = {
    "ConditioningZeroOut": conditioning_zero_out,
    "FluxGuidance": flux_guidance,
    "FluxDisableGuidance": flux_disable_guidance,
    "ReferenceLatent": reference_latent,
    "FluxKontextMultiReferenceLatentMethod": reference_method,
}
WITH_SESSION: dict[str, Function] = {"CLIPTextEncode": clip_text_encode}
