"""Whole pictures beside diffusers' own, on pipelines and requests drawn at random."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import headrace
from reference_pipelines import Kind, random_widths, save_pipeline

KINDS: list[Kind] = ["dev", "klein", "klein-base", "klein-kv"]


def noise_picture(width: int, height: int, seed: int) -> Image.Image:
    """A picture with structure at several scales, so that scaling and cropping mistakes show."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def difference(ours: Image.Image, theirs: Image.Image) -> int:
    assert ours.size == theirs.size
    return int(np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16)).max())


def diffusers_picture(pipeline: Any, kind: Kind, request: dict[str, Any]) -> Image.Image:
    arguments = {
        "prompt": request["prompt"],
        "image": request["references"] or None,
        "width": request["size"][0],
        "height": request["size"][1],
        "num_inference_steps": request["steps"],
        "generator": torch.Generator().manual_seed(request["seed"]),
    }
    if kind != "klein-kv":
        arguments["guidance_scale"] = request["guidance"]
    return pipeline(**arguments).images[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_pictures_are_those_of_diffusers(kind: Kind, seed: int, tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path, kind, seed, **random_widths(seed + 10 * KINDS.index(kind)))
    ours = headrace.load(tmp_path, precision="fp32", device="cpu")
    draw = random.Random(seed)
    for references in (0, 2):
        request = {
            "prompt": "two green trees near the red house, text HELLO",
            "references": [
                noise_picture(draw.randint(64, 130), draw.randint(64, 130), seed + k) for k in range(references)
            ],
            "size": (16 * draw.randint(2, 6), 16 * draw.randint(2, 6)),
            "steps": draw.randint(2, 5),
            "guidance": draw.choice([1.0, 2.5, 4.0]),
            "seed": draw.randrange(2**32),
        }
        expected = diffusers_picture(pipeline, kind, request)
        assert difference(ours.generate(**request).image, expected) <= 1


def test_a_reference_over_a_megapixel_is_scaled_as_diffusers_scales_it(tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path, "klein", channels=(8, 8, 8, 8), norm_groups=2)
    request = {
        "prompt": "a red apple",
        "references": [noise_picture(1500, 777, 3)],
        "size": (64, 64),
        "steps": 1,
        "guidance": 1.0,
        "seed": 7,
    }
    picture = headrace.load(tmp_path, precision="fp32", device="cpu").generate(**request)
    assert difference(picture.image, diffusers_picture(pipeline, "klein", request)) <= 1
    assert (picture.recipe.references[0].width, picture.recipe.references[0].height) == (1408, 736)


def test_without_a_size_the_first_reference_decides_as_in_diffusers(tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path, "klein")
    reference = noise_picture(100, 75, 5)
    theirs = pipeline(
        prompt="a cat", image=[reference], num_inference_steps=1, generator=torch.Generator().manual_seed(1)
    )
    ours = headrace.load(tmp_path, device="cpu").generate("a cat", references=[reference], steps=1, seed=1)
    assert difference(ours.image, theirs.images[0]) <= 1


def test_bf16_stays_near_diffusers_in_bf16(tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path, "klein")
    request: dict[str, Any] = {
        "prompt": "a cat", "references": [], "size": (64, 64), "steps": 4, "guidance": 1.0, "seed": 3,
    }  # fmt: skip
    exact = np.asarray(diffusers_picture(pipeline, "klein", request), np.float32)
    rounded = np.asarray(diffusers_picture(pipeline.to(torch.bfloat16), "klein", request), np.float32)
    ours = headrace.load(tmp_path, precision="bf16", device="cpu").generate(**request)
    own_error = np.abs(np.asarray(ours.image, np.float32) - exact).mean()
    assert own_error <= 1.2 * np.abs(rounded - exact).mean()
