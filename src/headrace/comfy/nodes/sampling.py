"""Noise, times, guiders and samplers. Times (SIGMAS) are float32 on the CPU, from noise (1) to the picture (0)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from headrace.comfy.models import Model, open_transformer
from headrace.comfy.nodes.latent import fitted
from headrace.comfy.sampling import draw
from headrace.comfy.session import Function, Session
from headrace.comfy.values import Condition, Guider, Latent, Noise, Sampler
from headrace.errors import RequestError
from headrace.flow.schedule import schedule, shifted_float32

SAMPLER = "euler"
# How finely ComfyUI divides time for the schedules that pick from a table.
TABLE_STEPS = 10_000
# Above it KSampler takes a schedule as it comes, which for ddim_uniform may have a step more than asked for.
WHOLE = 0.9999


def random_noise(noise_seed: int) -> tuple[Noise]:
    return (Noise(noise_seed),)


def disable_noise() -> tuple[Noise]:
    return (Noise(None),)


def ksampler_select(sampler_name: str) -> tuple[Sampler]:
    """Raises RequestError for any solver but Euler's."""
    if sampler_name != SAMPLER:
        raise RequestError(
            f"The workflow uses the sampler {sampler_name!r}, which Headrace has not; choose {SAMPLER}, which FLUX.2's "
            f"own code uses (headrace run --set NODE.sampler_name={SAMPLER})."
        )
    return (Sampler(sampler_name),)


def flux2_scheduler(steps: int, width: int, height: int) -> tuple[Tensor]:
    """FLUX.2's own times, shifted by the size."""
    return (torch.tensor(schedule(round(width * height / 256), steps, rounds_times=True)),)


def basic_scheduler(model: Model, scheduler: str, steps: int, denoise: float) -> tuple[Tensor]:
    """Times with the model's constant shift; with `denoise` below 1, only the last `steps` of as many more."""
    if denoise <= 0:
        return (torch.empty(0),)
    total = int(steps / denoise) if denoise < 1 else steps
    return (_times(scheduler, total, model.shift)[-(steps + 1) :],)


def _times(scheduler: str, steps: int, shift: float) -> Tensor:
    """As ComfyUI's schedules of these names pick them."""
    table = shifted_float32(torch.arange(1, TABLE_STEPS + 1) / TABLE_STEPS, shift)
    if scheduler == "simple":
        picked = [table[-(1 + int(index * (TABLE_STEPS / steps)))] for index in range(steps)]
        return torch.tensor([*map(float, picked), 0.0])
    if scheduler == "ddim_uniform":
        return torch.tensor([*map(float, table[1 :: max(TABLE_STEPS // steps, 1)].flip(0)), 0.0])
    first, last = float(table[-1]), float(table[0])
    if scheduler == "normal":
        return torch.cat([shifted_float32(torch.linspace(first, last, steps), shift), torch.zeros(1)])
    if scheduler == "sgm_uniform":
        return torch.cat([shifted_float32(torch.linspace(first, last, steps + 1)[:-1], shift), torch.zeros(1)])
    raise RequestError(
        f"The workflow uses the schedule {scheduler!r}, which Headrace has not; use Flux2Scheduler, or one of simple, "
        "normal, sgm_uniform and ddim_uniform."
    )


def split_sigmas(sigmas: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """The times up to a step, and from there on."""
    return sigmas[: step + 1], sigmas[step:]


def split_sigmas_denoise(sigmas: Tensor, denoise: float) -> tuple[Tensor, Tensor]:
    """The times before the last part of all steps, and those of that part."""
    last = round(max(len(sigmas) - 1, 0) * denoise)
    return sigmas[:-last], sigmas[-(last + 1) :]


def basic_guider(model: Model, conditioning: Condition) -> tuple[Guider]:
    return (Guider(model, conditioning, None, 1.0),)


def cfg_guider(model: Model, positive: Condition, negative: Condition, cfg: float) -> tuple[Guider]:
    return (Guider(model, positive, negative, cfg),)


def sampler_custom_advanced(
    session: Session,
    noise: Noise,
    guider: Guider,
    sampler: Sampler,
    sigmas: Tensor,
    latent_image: Latent,
) -> tuple[Latent, Latent]:
    """The latent at the last time, and the finished one foreseen there."""
    return sampled(session, guider, noise, sigmas, latent_image)


def ksampler(
    session: Session,
    model: Model,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Condition,
    negative: Condition,
    latent_image: Latent,
    denoise: float,
) -> tuple[Latent]:
    """Noise, times, guider and sampler in one."""
    ksampler_select(sampler_name)
    if denoise > WHOLE:
        sigmas = _times(scheduler, steps, model.shift)
    else:
        (sigmas,) = basic_scheduler(model, scheduler, steps, denoise)
    made, _ = sampled(session, Guider(model, positive, negative, cfg), Noise(seed), sigmas, latent_image)
    return (made,)


def sampled(session: Session, guider: Guider, noise: Noise, sigmas: Tensor, latent: Latent) -> tuple[Latent, Latent]:
    """Raises RequestError where times do not fall."""
    times: list[float] = sigmas.tolist()
    if any(later >= earlier for earlier, later in itertools.pairwise(times)):
        raise RequestError("The workflow samples at times that do not fall; check its scheduler and its steps.")
    _, config = open_transformer(guider.model.file)
    latent = fitted(latent, config.in_channels)
    if len(times) < 2:
        return latent, latent
    drawn = draw(noise.seed, latent.samples.shape)
    made, foreseen = session.stage.sample(guider, drawn, latent.samples, times, latent.mask)
    return replace(latent, samples=made), replace(latent, samples=foreseen)


PLAIN: dict[str, Function] = {
    "RandomNoise": random_noise,
    "DisableNoise": disable_noise,
    "KSamplerSelect": ksampler_select,
    "Flux2Scheduler": flux2_scheduler,
    "BasicScheduler": basic_scheduler,
    "SplitSigmas": split_sigmas,
    "SplitSigmasDenoise": split_sigmas_denoise,
    "BasicGuider": basic_guider,
    "CFGGuider": cfg_guider,
}
WITH_SESSION: dict[str, Function] = {"SamplerCustomAdvanced": sampler_custom_advanced, "KSampler": ksampler}
