"""The times at which the flow is evaluated: evenly spaced, then shifted towards noise by the number of tokens."""

from __future__ import annotations

import math

import torch

# Fitted by Black Forest Labs at 10 and at 200 steps: (slope, intercept) of mu over the number of picture tokens
# (`compute_empirical_mu` in `sampling.py` of black-forest-labs/flux2).
MU_AT_10_STEPS = (8.73809524e-05, 1.89833333)
MU_AT_200_STEPS = (0.00016927, 0.45666666)
LARGEST_FITTED_TOKENS = 4300


def empirical_mu(tokens: int, steps: int) -> float:
    """How far the schedule is shifted, for a picture of `tokens` tokens (references do not count) in `steps` steps."""
    at_200 = MU_AT_200_STEPS[0] * tokens + MU_AT_200_STEPS[1]
    if tokens > LARGEST_FITTED_TOKENS:
        return at_200
    at_10 = MU_AT_10_STEPS[0] * tokens + MU_AT_10_STEPS[1]
    slope = (at_200 - at_10) / 190
    return slope * steps + at_200 - 200 * slope


def shifted(time: float, mu: float) -> float:
    """`e^mu / (e^mu + 1/t - 1)`: a time in 0..1 moved towards 1."""
    return 0.0 if time == 0 else math.exp(mu) / (math.exp(mu) + 1 / time - 1)


def shifted_float32(times: torch.Tensor, mu: float) -> torch.Tensor:
    """`shifted` of every time, in float32 throughout, as ComfyUI computes it."""
    return math.exp(mu) / (math.exp(mu) + (1 / times - 1))


def schedule(tokens: int, steps: int, rounds_times: bool = False) -> list[float]:
    """The `steps + 1` sigmas from 1 (noise) down to 0 (picture); rounds_times: computed in float32 throughout."""
    mu = empirical_mu(tokens, steps)
    if rounds_times:
        sigmas: list[float] = shifted_float32(torch.linspace(1, 0, steps + 1), mu).tolist()
        return sigmas
    return [shifted(1 - index / steps, mu) for index in range(steps + 1)]
