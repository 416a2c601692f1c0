"""What differs between the programs that run FLUX.2, gathered in one value.

The same weights and seed give different pictures in diffusers, ComfyUI and Black Forest Labs' own code, because they
draw and round the noise, pad the text and scale references differently. Sources: diffusers 0.42.1's Flux2Pipeline,
ComfyUI's Flux2 model and sampler nodes, and `sampling.py` and `util.py` of Black Forest Labs' repository.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headrace.errors import RequestError


@dataclass(frozen=True)
class Convention:
    """One program's choices.

    noise: where the noise is drawn: on the CPU in float32, or on the device in the model's precision.
    rounds_noise: the noise is rounded to the model's precision before the first step.
    rounds_steps: the solver's state and time are rounded to the model's precision at every step.
    pads_text: with the hidden states of pad tokens, or (for models whose text is padded on the left) with zeros.
    single_reference_area: the largest area, in pixels, of a reference that is alone; several have 1 MP each.
    rounds_pixels: pixel values are rounded to the nearest of 256, or cut off.
    rounds_times: the schedule is computed in float32 throughout, not only rounded to it.
    solves_for: Euler's step is computed from the velocity, or from the finished latent that it foresees, as k-diffusion
    does; the same but for rounding.
    """

    name: str
    noise: Literal["cpu", "device"]
    rounds_noise: bool
    rounds_steps: bool
    pads_text: Literal["tokens", "zeros"]
    single_reference_area: int
    rounds_pixels: bool
    rounds_times: bool
    solves_for: Literal["velocity", "denoised"]


MEGAPIXEL = 1024 * 1024
FULL_AREA = 2024 * 2024

CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention("diffusers", "cpu", True, False, "tokens", MEGAPIXEL, True, False, "velocity"),
        Convention("comfy", "cpu", False, False, "zeros", MEGAPIXEL, False, True, "denoised"),
        Convention("bfl", "device", True, True, "tokens", FULL_AREA, False, False, "velocity"),
    )
}


def find_convention(name: str) -> Convention:
    """The convention of that name. Raises RequestError."""
    if name not in CONVENTIONS:
        raise RequestError(f"There is no convention {name!r}; choose {', '.join(CONVENTIONS)}.")
    return CONVENTIONS[name]
