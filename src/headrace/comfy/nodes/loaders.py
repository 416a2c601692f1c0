"""Model files, and what is changed about a model before it runs. Nothing is loaded here."""

from __future__ import annotations

from dataclasses import replace

from headrace.comfy.models import Model, TextEncoder, Vae, open_loras
from headrace.comfy.session import Function, Session
from headrace.errors import RequestError


def unet_loader(session: Session, unet_name: str, weight_dtype: str = "default") -> tuple[Model]:
    """A transformer. The fp8 weight types give Headrace's own fp8, which has a scale for every row."""
    file = session.model_file("diffusion_models", unet_name)
    return (Model(file, "auto" if weight_dtype == "default" else "fp8"),)


def clip_loader(session: Session, clip_name: str, type: str, device: str = "default") -> tuple[TextEncoder]:  # noqa: A002
    """A text encoder; which one it is, its file says."""
    if type not in ("flux2", "flux"):
        raise RequestError(f"The workflow loads {clip_name} as a text encoder of type {type!r}; choose flux2.")
    return (TextEncoder(session.model_file("text_encoders", clip_name)),)


def vae_loader(session: Session, vae_name: str) -> tuple[Vae]:
    """An autoencoder."""
    return (Vae(session.model_file("vae", vae_name)),)


def lora_loader_model_only(session: Session, model: Model, lora_name: str, strength_model: float) -> tuple[Model]:
    """A model with one LoRA more beside its weights; at strength 0 the model as it is.

    Raises RequestError for a LoRA that is not for this model.
    """
    if strength_model == 0:
        return (model,)
    added = replace(model, loras=(*model.loras, (session.model_file("loras", lora_name), strength_model)))
    open_loras(added)
    return (added,)


def lora_loader(
    session: Session, model: Model, clip: TextEncoder, lora_name: str, strength_model: float, strength_clip: float
) -> tuple[Model, TextEncoder]:
    """As `lora_loader_model_only`; LoRAs for FLUX.2 have nothing for the text encoder."""
    return (*lora_loader_model_only(session, model, lora_name, strength_model), clip)


def flux_kv_cache(model: Model) -> tuple[Model]:
    """Keys and values of references are computed in the first step and kept."""
    return (replace(model, caches_references=True),)


def model_sampling_flux(model: Model, max_shift: float, base_shift: float, width: int, height: int) -> tuple[Model]:
    """The shift of BasicScheduler and KSampler by size: on the line from base at 256 tokens to max at 4096."""
    slope = (max_shift - base_shift) / (4096 - 256)
    return (replace(model, shift=width * height / 256 * slope + (base_shift - slope * 256)),)


PLAIN: dict[str, Function] = {"FluxKVCache": flux_kv_cache, "ModelSamplingFlux": model_sampling_flux}
WITH_SESSION: dict[str, Function] = {
    "UNETLoader": unet_loader,
    "UnetLoaderGGUF": unet_loader,
    "CLIPLoader": clip_loader,
    "CLIPLoaderGGUF": clip_loader,
    "VAELoader": vae_loader,
    "LoraLoader": lora_loader,
    "LoraLoaderModelOnly": lora_loader_model_only,
}
