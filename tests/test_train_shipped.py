"""The sprite in the package: diffusers reads it and makes the same pictures, and they show what was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline

import headrace
from headrace.checkpoints import load_autoencoder, open_checkpoint
from headrace.train.autoencoder import decibels
from headrace.world import colors, objects
from headrace.world.draw import draw
from headrace.world.scene import ORDINARY, Box, Group, Scene, plain

SPRITE = Path(headrace.__file__).parent / "models" / "sprite"
MAX_BYTES = 32_000_000

PROMPTS = {
    "a rocket on a purple background": ("rocket", "purple"),
    "a cat on a blue background": ("cat", "blue"),
    "an apple on a pink background": ("apple", "pink"),
    "a robot on a green background": ("robot", "green"),
}


@pytest.fixture(scope="module")
def sprite() -> headrace.Pipeline:
    return headrace.load("sprite", precision="fp32")


def test_sprite_is_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in SPRITE.rglob("*") if file.is_file()) <= MAX_BYTES


def test_diffusers_makes_the_same_picture(sprite: headrace.Pipeline) -> None:
    pipeline = Flux2KleinPipeline.from_pretrained(SPRITE, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    checkpoint = open_checkpoint("sprite")
    prompt, (width, height) = "a crown on a red background", checkpoint.default_size
    expected = pipeline(
        prompt=prompt,
        width=width,
        height=height,
        num_inference_steps=checkpoint.steps,
        guidance_scale=checkpoint.guidance,
        generator=torch.Generator().manual_seed(3),
        max_sequence_length=checkpoint.text.length,
        text_encoder_out_layers=checkpoint.text.layers,
    ).images[0]
    found = sprite.generate(prompt, seed=3).image
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 1


def test_autoencoder_keeps_held_out_pictures() -> None:
    autoencoder = load_autoencoder(open_checkpoint("sprite"), torch.float32, torch.device("cpu"))
    # It was trained on a plainer world, without words, stripes and checks: there it kept 31 dB.
    assert decibels(autoencoder, pictures=32) >= 26


@pytest.mark.parametrize("prompt", PROMPTS)
def test_sprite_draws_the_object_on_the_background(sprite: headrace.Pipeline, prompt: str) -> None:
    name, color = PROMPTS[prompt]
    image = np.asarray(sprite.generate(prompt, seed=0).image, float)
    edges = np.concatenate([image[:4].reshape(-1, 3), image[-4:].reshape(-1, 3)])
    assert np.abs(edges.mean(0) - colors.NAMED[color]).max() < 24
    likeness = {kind.name: _likeness(image, kind.name, colors.NAMED[color]) for kind in objects.kinds()}
    assert name in sorted(likeness, key=likeness.__getitem__)[:3], likeness


def _likeness(image: np.ndarray, name: str, background: colors.RGB) -> float:
    """Mean squared difference from the object drawn large in the middle, at the best of some small shifts."""
    height, width, _ = image.shape
    side = round(0.72 * min(width, height))
    left, top = (width - side) // 2, (height - side) // 2
    placed = Group(name, ORDINARY, "large", (Box(left, top, left + side, top + side),))
    drawn = draw(Scene(width, height, plain(background), (placed,))).astype(float)
    shifts = range(-6, 7, 2)
    return min(float(np.square(np.roll(drawn, (y, x), (0, 1)) - image).mean()) for y in shifts for x in shifts)
