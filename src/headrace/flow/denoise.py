"""From noise to latent: Euler steps along the velocity the transformer gives, with guidance and references.

Whatever looks at a picture on its way, changes it or ends it, does so between these steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.flow.conventions import Convention
from headrace.nn.transformer import KeyValue

Velocity = Callable[[Tensor, float], Tensor]
# From a latent at some time, the finished latent that is foreseen.
Denoised = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Step:
    """One step done. latent: (B, N, C) now, at time `sigma`; predicted: the finished latent as foreseen from here."""

    index: int
    steps: int
    sigma: float
    latent: Tensor
    predicted: Tensor


@dataclass(frozen=True)
class Conditioning:
    """What steers a batch of B pictures.

    context: (B, L, context width) text embeddings; unconditional: the same for the empty prompt, where classifier-free
    guidance is used. references: (B, M, C) with reference_ids (M, 4), or reference_cache in their place.
    """

    context: Tensor
    text_ids: Tensor
    picture_ids: Tensor
    guidance: float
    unconditional: Tensor | None = None
    references: Tensor | None = None
    reference_ids: Tensor | None = None
    reference_cache: Sequence[KeyValue] | None = None


def guided_velocity(forward: Callable[..., Tensor], conditioning: Conditioning, dtype: torch.dtype) -> Velocity:
    """The velocity of a batch as a function of latent (B, N, C) and time, in float32.

    forward: the transformer's, whatever blocks it runs.

    With an unconditional context both branches run in one batch and are combined as
    `unconditional + guidance * (conditional - unconditional)` (Ho and Salimans 2022).
    """
    branches = 1 if conditioning.unconditional is None else 2
    context = conditioning.context
    if conditioning.unconditional is not None:
        context = torch.cat([conditioning.unconditional, context])
    references = conditioning.references
    references = None if references is None else references.repeat(branches, 1, 1)
    guidance = torch.tensor([conditioning.guidance], device=context.device)

    def velocity(latent: Tensor, sigma: float) -> Tensor:
        predicted: Tensor = forward(
            latent.to(dtype).repeat(branches, 1, 1),
            conditioning.picture_ids,
            torch.tensor([sigma], device=context.device),
            context,
            conditioning.text_ids,
            guidance,
            references=references,
            reference_ids=conditioning.reference_ids,
            reference_cache=conditioning.reference_cache,
        )
        if branches == 1:
            return predicted.float()
        unconditional, conditional = predicted.float().chunk(2)
        return unconditional + conditioning.guidance * (conditional - unconditional)

    return velocity


@dataclass(frozen=True)
class Kept:
    """What a batch keeps of a source. original: (1, N, C), and noise: (B, N, C), in float32.

    mask: (1, N, 1), 1 where the picture is to be made, 0 where the source is to be kept.
    """

    original: Tensor
    noise: Tensor
    mask: Tensor

    def over(self, latent: Tensor, sigma: float) -> Tensor:
        """The latent, but where the source is to be kept, this with the noise of that time."""
        return latent * self.mask + noised(self.original, self.noise, sigma) * (1 - self.mask)


def noised(original: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """A finished latent as it is at a time of the flow, where `sigma` of it is noise."""
    return sigma * noise + (1 - sigma) * original


def denoise(
    velocity: Velocity,
    latent: Tensor,
    sigmas: Sequence[float],
    convention: Convention,
    dtype: torch.dtype,
    kept: Kept | None = None,
) -> Iterator[Step]:
    """Euler steps from `sigmas[0]` to `sigmas[-1]`, yielding after each one; to stop early, stop iterating.

    latent: (B, N, C) in float32, noise at `sigmas[0]`, or a source with noise where that is less than 1. State and time
    stay in float32 unless the convention rounds them, and every operation on them, to `dtype`. kept: what is put back
    after every step, as `Flux2KleinInpaintPipeline` does; as ComfyUI does where the convention is its.
    """
    if convention.solves_for == "denoised":
        denoised: Denoised = lambda state, sigma: state - velocity(state, sigma) * sigma  # noqa: E731
        if kept is not None:
            denoised = inpainting(denoised, kept.noise, kept.original, kept.mask)
        yield from solve(denoised, latent, sigmas)
        return
    steps = len(sigmas) - 1
    state = dtype if convention.rounds_steps else torch.float32
    latent = latent.to(state)
    for index, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        slope = velocity(latent.float(), float(torch.tensor(sigma, dtype=state))).to(state)
        predicted = latent - sigma * slope
        latent = latent + (following - sigma) * slope
        if kept is not None:
            latent, predicted = kept.over(latent, following).to(state), kept.over(predicted, 0.0)
        yield Step(index, steps, following, latent.float(), predicted.float())


def solve(denoised: Denoised, latent: Tensor, sigmas: Sequence[float]) -> Iterator[Step]:
    """Euler steps in float32 in the form of k-diffusion, which ComfyUI's are too: `x + (x - x0) / s * (s' - s)`.

    latent: of any shape, at `sigmas[0]`.
    """
    times = torch.tensor(sigmas, dtype=torch.float32)
    for index, (sigma, following) in enumerate(itertools.pairwise(times)):
        predicted = denoised(latent, float(sigma))
        latent = latent + (latent - predicted) / float(sigma) * float(following - sigma)
        yield Step(index, len(sigmas) - 1, float(following), latent, predicted)


def inpainting(denoised: Denoised, noise: Tensor, original: Tensor, mask: Tensor) -> Denoised:
    """Keeps `original` where `mask` (1: to be made, 0: to be kept, broadcast to the latent's shape) says so.

    What is kept enters every step at that step's noise, and comes out as it was.
    """

    def masked(latent: Tensor, sigma: float) -> Tensor:
        kept = noised(original, noise, sigma)
        return denoised(latent * mask + kept * (1 - mask), sigma) * mask + original * (1 - mask)

    return masked


def batch_caches(caches: Sequence[Sequence[KeyValue]]) -> Sequence[KeyValue]:
    """The reference caches of a batch's pictures as one; pictures that share all their references share the cache."""
    if all(cache is caches[0] for cache in caches):
        return caches[0]
    return [
        KeyValue(torch.cat([layer.key for layer in layers]), torch.cat([layer.value for layer in layers]))
        for layers in zip(*caches, strict=True)
    ]
