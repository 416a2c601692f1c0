"""What flows through a graph beside numbers and texts.

Pictures (IMAGE) are (B, H, W, 3) in 0..1, masks (MASK) (B, H, W), times (SIGMAS) one-dimensional. Tensors are float32
on the CPU, as in ComfyUI; while a graph is rehearsed, those that a network would make are on the meta device.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from headrace.comfy.models import Model, TextEncoder

# What a model that embeds its guidance gets where a graph sets none.
DEFAULT_GUIDANCE = 3.5


@dataclass(frozen=True)
class Condition:
    """A prompt and what goes with it (CONDITIONING).

    context: (1, L, width) embeddings from `encoder`. guidance: None where it is switched off. references: latents
    (B, C, h, w) in order. method: how references are placed, one of ComfyUI's names; None: as the model does.
    """

    context: Tensor
    encoder: TextEncoder
    guidance: float | None = DEFAULT_GUIDANCE
    references: tuple[Tensor, ...] = ()
    method: str | None = None


@dataclass(frozen=True)
class Latent:
    """Latents (LATENT): (B, C, h, w), one value of which stands for pixels_a_side² pixels.

    mask: (B, 1, H, W), 1 where something is to be made, of any size; None: everywhere.
    """

    samples: Tensor
    pixels_a_side: int = 16
    mask: Tensor | None = None


@dataclass(frozen=True)
class Noise:
    """Where noise comes from (NOISE); None: there is none."""

    seed: int | None


@dataclass(frozen=True)
class Guider:
    """A model and what steers it (GUIDER)."""

    model: Model
    positive: Condition
    negative: Condition | None
    cfg: float


@dataclass(frozen=True)
class Sampler:
    """A solver by ComfyUI's name (SAMPLER)."""

    name: str
