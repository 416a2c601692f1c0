"""Pictures to be scored: those that a pipeline makes, and those that the world draws, through an autoencoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from headrace.checkpoints import Checkpoint, load_autoencoder
from headrace.evals.score import Generate
from headrace.flow.latents import from_tokens
from headrace.flow.references import encode_picture, tensor_to_image
from headrace.pipeline import Pipeline
from headrace.world.draw import Pixels, draw, picture
from headrace.world.tasks import Sample, untouched
from headrace.world.wording import Edit

AT_ONCE = 16
"""Pictures asked for in one call, so that progress is seen."""

MARGIN = 6
"""Pixels by which a mask is wider than what changes: nobody paints one to the pixel."""


def from_pipeline(
    pipeline: Pipeline,
    *,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    masked: bool = False,
) -> Generate:
    """Pictures as any client gets them; those of a suite have the noise of ``seed``, ``seed`` + 1, ...

    masked: whether edits are told by a mask too, see `edit_mask`; the picture to be edited is then a reference as well.
    """

    def through_mask(sample: Sample, edit: Edit, number: int) -> Pixels:
        made = pipeline.generate(
            sample.caption,
            references=[picture(reference) for reference in sample.references],
            image=picture(edit.before),
            mask=edit_mask(edit),
            seed=seed + number,
            steps=steps,
            guidance=guidance,
        )
        return np.asarray(made.image)

    def generate(asked: Sequence[Sample]) -> Iterator[Pixels]:
        if masked and asked[0].edit is not None:
            yield from (through_mask(one, one.edit, number) for number, one in enumerate(asked) if one.edit is not None)
            return
        for start in range(0, len(asked), AT_ONCE):
            part = asked[start : start + AT_ONCE]
            made = pipeline.generate(
                [sample.caption for sample in part],
                references=[[picture(reference) for reference in sample.references] for sample in part],
                seed=[seed + start + index for index in range(len(part))],
                size=(part[0].target.width, part[0].target.height),
                steps=steps,
                guidance=guidance,
            )
            yield from (np.asarray(one.image) for one in made)

    return generate


def edit_mask(edit: Edit) -> Image.Image:
    """White where somebody who wants this edit would paint: over the background, or a box around what changes."""
    changed = ~untouched(edit)
    if edit.kind != "background":
        rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
        top, left = max(0, rows[0] - MARGIN), max(0, columns[0] - MARGIN)
        changed[top : rows[-1] + MARGIN + 1, left : columns[-1] + MARGIN + 1] = True
    return Image.fromarray(np.uint8(255) * changed.astype(np.uint8))


def drawn(asked: Sequence[Sample]) -> Iterator[Pixels]:
    """The very pictures that are asked for."""
    return (draw(sample.target) for sample in asked)


class RoundTrip:
    """Pictures encoded and decoded by a model's autoencoder, in float32."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> None:
        self.autoencoder = load_autoencoder(checkpoint, torch.float32, device)
        self.token_size = checkpoint.autoencoder_config.token_size

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> Pixels:
        tokens = encode_picture(image, self.autoencoder)
        latent = from_tokens(tokens, image.height // self.token_size, image.width // self.token_size)
        return np.asarray(tensor_to_image(self.autoencoder.decode(latent), rounds=True))

    def targets(self, asked: Sequence[Sample]) -> Iterator[Pixels]:
        """The pictures that are asked for, as good as this autoencoder can have them."""
        return (self(picture(sample.target)) for sample in asked)

    def edited(self, asked: Sequence[Sample]) -> Iterator[Pixels]:
        """The pictures that are to be edited."""
        return (self(picture(sample.references[0])) for sample in asked)
