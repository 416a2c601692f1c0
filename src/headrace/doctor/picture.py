"""A picture by sprite, made here, beside the one that was stored with its weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from headrace.bench.quality import as_tensor, psnr
from headrace.checkpoints import open_checkpoint
from headrace.checkpoints.open import BUNDLED_MODELS
from headrace.doctor.finding import Finding, Subject, judged, told
from headrace.doctor.precisions import REMEDY, label, not_offered
from headrace.errors import HeadraceError
from headrace.pictures import open_picture
from headrace.pipeline import Pipeline
from headrace.provenance.metadata import read_recipe

# Made in fp32 on a CPU with the weights beside it; the recipe is inside.
EXPECTED = BUNDLED_MODELS / "sprite" / "expected.png"

# The least PSNR in dB. fp32: 1/255 at every pixel is 48.1. The others: the worst of sixteen pictures
# (benchmarks/quality.md) was at 53.5, 40.1 and 47.4, and products in fp8 add as much error again as its weights.
PICTURE_BOUNDS = {"fp32": 48.0, "bf16": 42.0, "fp8 weight-only": 34.0, "fp8 W8A8": 31.0, "int8": 40.0}


def picture_findings(precision: str, device: torch.device, expected: Path = EXPECTED) -> Iterator[Finding]:
    """How far sprite's picture is from the stored one. Raises HeadraceError where that is of other weights."""
    subject = Subject("sprite's picture", str(device), label(precision, device))
    refusal = not_offered(precision, device)
    if refusal is not None:
        yield told(subject, refusal)
        return
    recipe = read_recipe(expected)
    picture = Pipeline(open_checkpoint("sprite"), precision, str(device)).generate(
        recipe.prompt,
        size=(recipe.width, recipe.height),
        steps=recipe.steps,
        guidance=recipe.guidance,
        seed=recipe.seed,
        convention=recipe.convention,
    )
    if picture.recipe.model_hash != recipe.model_hash:
        raise HeadraceError(
            f"sprite's weights are not those that {expected.name} was made with: install headrace anew, or, where they "
            "were trained anew, make that picture again (docs/training-sprite.md)."
        )
    stored = as_tensor(open_picture(expected, kind="expected picture"))
    yield judged(subject, psnr(as_tensor(picture.image), stored), "dB", PICTURE_BOUNDS[subject.precision], REMEDY)
