"""Denoising as ComfyUI does it: guidance between finished latents, one conditioning a branch, references by method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from headrace.comfy.values import Condition, Guider
from headrace.flow.denoise import Denoised, Step, inpainting, solve
from headrace.flow.latents import (
    from_tokens,
    picture_positions,
    reference_positions,
    text_positions,
    to_tokens,
)
from headrace.nn.transformer import KeyValue

Forward = Callable[..., Tensor]

STILL = "index_timestep_zero"


def draw(seed: int | None, shape: Sequence[int]) -> Tensor:
    """Noise for a whole batch from one generator on the CPU, in float32; zeros where there is no seed."""
    if seed is None:
        return torch.zeros(*shape)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sample(
    forward: Forward, guider: Guider, noise: Tensor, latent: Tensor, sigmas: Sequence[float], mask: Tensor | None
) -> Iterator[Step]:
    """From `latent` (B, C, h, w) with noise at `sigmas[0]` step by step to `sigmas[-1]`; of the same device and shape.

    forward: the transformer's, in whatever precision. mask: see `inpainting`. The last step's latent is scaled back to
    what it would be without noise, where the last sigma is not 0.
    """
    denoised = _guided(forward, guider, latent)
    if mask is not None:
        denoised = inpainting(denoised, noise, latent, _fitted(mask, latent))
    state = sigmas[0] * noise + (1 - sigmas[0]) * latent
    yield from solve(denoised, state, sigmas)


def _fitted(mask: Tensor, latent: Tensor) -> Tensor:
    """(B', 1, H, W) -> (B, 1, h, w)."""
    fitted = F.interpolate(mask.float(), size=latent.shape[2:], mode="bilinear").to(latent.device)
    return repeat_to(fitted, latent.shape[0])


def repeat_to(tensor: Tensor, count: int) -> Tensor:
    """The rows of `tensor`, from the beginning again and again, `count` of them."""
    return tensor.repeat(-(-count // tensor.shape[0]), *[1] * (tensor.dim() - 1))[:count]


def _guided(forward: Forward, guider: Guider, latent: Tensor) -> Denoised:
    """What the guider foresees as the finished latent."""
    still = guider.model.caches_references
    if guider.negative is None or math.isclose(guider.cfg, 1.0):
        alone = _finished(forward, [guider.positive], latent, still)
        return lambda state, sigma: alone(state, sigma)[0]
    both = [guider.negative, guider.positive]
    together = _layout(both[0]) == _layout(both[1]) and _same_references(*both)
    groups = [both] if together else [[condition] for condition in both]
    forwards = [_finished(forward, group, latent, still) for group in groups]

    def denoised(state: Tensor, sigma: float) -> Tensor:
        negative, positive = (part for finished in forwards for part in finished(state, sigma))
        return negative + (positive - negative) * guider.cfg

    return denoised


def _layout(condition: Condition) -> tuple[object, ...]:
    return condition.context.shape, condition.guidance, condition.method


def _same_references(first: Condition, second: Condition) -> bool:
    pairs = zip(first.references, second.references, strict=False)
    return len(first.references) == len(second.references) and all(
        one is other or torch.equal(one, other) for one, other in pairs
    )


def _finished(
    forward: Forward, conditions: Sequence[Condition], latent: Tensor, caches: bool
) -> Callable[[Tensor, float], Sequence[Tensor]]:
    """The finished latents that a state and time foresee, one for every condition, all computed in one forward.

    The conditions have the same layout and references. caches: keys and values of the references are those of the first
    call in all later ones.
    """
    batch, _, rows, columns = latent.shape
    first, device = conditions[0], latent.device
    context = torch.cat([condition.context.expand(batch, -1, -1) for condition in conditions]).to(device)
    ids = picture_positions(rows, columns).to(device)
    text_ids = text_positions(context.shape[1]).to(device)
    guidance = None if first.guidance is None else torch.tensor([first.guidance], device=device)
    method = first.method or (STILL if caches else "index")
    references, reference_ids = None, None
    if first.references:
        tokens = [repeat_to(to_tokens(reference), batch) for reference in first.references]
        references = torch.cat(tokens, dim=1).repeat(len(conditions), 1, 1).to(device)
        sizes = [(reference.shape[2], reference.shape[3]) for reference in first.references]
        reference_ids = place_references(method, (rows, columns), sizes).to(device)
    kept: list[KeyValue] = []

    def finished(state: Tensor, sigma: float) -> Sequence[Tensor]:
        cached = bool(kept)
        velocity = forward(
            to_tokens(state).repeat(len(conditions), 1, 1),
            ids,
            torch.tensor([sigma], device=device),
            context,
            text_ids,
            guidance,
            references=None if cached else references,
            reference_ids=None if cached else reference_ids,
            reference_cache=kept if cached else None,
            still_references=method == STILL,
            kept_references=kept if caches and not cached and references is not None else None,
        )
        velocities = from_tokens(velocity.float(), rows, columns).chunk(len(conditions))
        return [state - part * sigma for part in velocities]

    return finished


def place_references(method: str, picture: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Positions of all reference tokens, in order; `picture` and `sizes` are (height, width) in tokens.

    index, index_timestep_zero: each at a time of its own. offset: all at time 1, put side by side, the longer side of
    what there is so far growing as little as possible. uxo: at time 0, one after another along the diagonal after the
    picture. Method names and rules are those of ComfyUI's Flux model.
    """
    if method in ("index", STILL):
        return reference_positions(list(sizes))
    placed = []
    height, width = picture if method == "uxo" else (0, 0)
    for rows, columns in sizes:
        if method == "uxo":
            top, left = height, width
            height, width = height + rows, width + columns
        else:
            top, left = (0, width) if rows + height > columns + width else (height, 0)
            height, width = max(height, rows + top), max(width, columns + left)
        positions = picture_positions(rows, columns, 0 if method == "uxo" else 1)
        placed.append(positions + torch.tensor([0.0, top, left, 0.0]))
    return torch.cat(placed)
