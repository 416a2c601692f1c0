"""Trains the autoencoder on what the world draws: answers to requests, and the references they speak of."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from headrace.nn.autoencoder import Autoencoder, patchify
from headrace.nn.config import AutoencoderConfig
from headrace.train import run, shards
from headrace.train.loop import Loop, learn
from headrace.world.draw import picture
from headrace.world.layout import scene
from headrace.world.tasks import sample

CROP = 64
"""Side of the crops in pixels: most of a picture is plain, so crops around objects teach more per pixel."""

WHOLE_EVERY = 3
"""Every third step sees whole pictures instead of crops: group norm must know their statistics too."""

TEXT_SHARE = 0.2
"""So many of the pictures are sure to have words: letters are the smallest things that must be seen."""

STATISTICS_PICTURES = 1024
"""Over which the latent's mean and variance are measured."""

ADAM_ONLY = ("conv_in.weight", "decoder.conv_out.weight")
"""Layers that touch pixels or the latent directly, which Muon's even-handed updates do not suit."""


@dataclass(frozen=True)
class AutoencoderTraining:
    """A run. The loop's batch counts crops of 64x64; ``noise`` is a share of each latent channel's deviation."""

    network: AutoencoderConfig
    loop: Loop
    noise: float
    edge_weight: float


def train(
    config: AutoencoderTraining, folder: Path, *, resume: bool = False, report: Callable[[str], None] = print
) -> None:
    """Trains to the end and leaves the state in ``folder``; see `loop.learn`."""
    torch.manual_seed(config.loop.seed)
    model = initial(config.network)
    learn(
        model,
        functools.partial(_losses, model, config),
        config.loop,
        folder,
        adam_only=ADAM_ONLY,
        settings=dataclasses.asdict(config),
        resume=resume,
        report=report,
    )


def initial(config: AutoencoderConfig) -> Autoencoder:
    """An untrained autoencoder; residual branches start at zero, so that the first steps already reach every layer."""
    model = Autoencoder(config)
    for name, parameter in model.named_parameters():
        if ".conv2." in name or ".proj_out." in name:
            nn.init.zeros_(parameter)
    return model


def batch(config: AutoencoderTraining, step: int) -> Tensor:
    """The pictures of one step, (B, 3, H, W) in [-1, 1]: a pure function of the run's seed and the step."""
    whole = step % WHOLE_EVERY == WHOLE_EVERY - 1
    count = max(1, config.loop.batch // 4) if whole else config.loop.batch
    return run.to_tensor(
        [_picture(config.loop.seed * 1_000_000_007 + step * config.loop.batch + i, whole) for i in range(count)]
    )


def _picture(seed: int, whole: bool) -> Image.Image:
    chance = random.Random(f"crop/{seed}")
    shown = sample(seed, task="scene", kind="text") if chance.random() < TEXT_SHARE else sample(seed)
    size = shown.target.width, shown.target.height
    pictures = (shown.target, *shown.references)
    drawn = chance.choice([one for one in pictures if not whole or (one.width, one.height) == size])
    image = picture(drawn)
    if whole:
        return image
    left, top = chance.randrange(drawn.width - CROP + 1), chance.randrange(drawn.height - CROP + 1)
    return image.crop((left, top, left + CROP, top + CROP))


def _losses(model: Autoencoder, config: AutoencoderTraining, step: int) -> list[shards.Loss]:
    images = batch(config, step).to(memory_format=torch.channels_last)
    parts = images.chunk(config.loop.shards)
    generators = [
        run.step_generator(config.loop.seed, step * config.loop.shards + index) for index in range(len(parts))
    ]
    return [functools.partial(_loss, model, *part, config=config) for part in zip(parts, generators, strict=True)]


def _loss(
    model: Autoencoder, images: Tensor, generator: torch.Generator, config: AutoencoderTraining
) -> tuple[Tensor, dict[str, float]]:
    with torch.autocast("cpu", torch.bfloat16):
        latent, _ = model.encode_moments(images)
        # Noise in proportion to each channel's own spread: the decoder forgives small errors of the transformer, and no
        # channel can escape the noise by growing or die by shrinking.
        spread = latent.detach().float().std(dim=(0, 2, 3), keepdim=True)
        noisy = latent + config.noise * spread * torch.randn(latent.shape, generator=generator)
        decoded = model.decode_latent(noisy)
    difference = decoded.float() - images
    error = difference.square().mean()
    edges = (difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()) / 2
    scale = latent.float().square().mean()
    loss = difference.abs().mean() + 2 * error + config.edge_weight * edges + 1e-5 * scale
    return loss, {"decibel": 10 * math.log10(4 / error.item())}


@torch.no_grad()
def measure_statistics(model: Autoencoder, *, seed: int) -> None:
    """Sets the model's batch-norm statistics from scenes, so that ``encode`` gives zero mean and unit variance."""
    total = torch.zeros(model.config.token_channels, dtype=torch.float64)
    squares, count = total.clone(), 0
    for start in range(0, STATISTICS_PICTURES, 64):
        images = run.to_tensor([_picture(seed * 1_000_000_007 + start + i, True) for i in range(64)])
        tokens = patchify(model.encode_moments(images)[0]).double().transpose(0, 1).flatten(1)
        total += tokens.sum(1)
        squares += tokens.square().sum(1)
        count += tokens.shape[1]
    mean = total / count
    model.bn.running_mean.copy_(mean)
    model.bn.running_var.copy_(squares / count - mean.square())


@torch.no_grad()
def decibels(model: Autoencoder, *, pictures: int = 256) -> float:
    """Mean peak signal-to-noise ratio in dB of held-out whole pictures sent through encoder and decoder."""
    ratios = []
    for start in range(0, pictures, 32):
        images = run.to_tensor([picture(scene(start + i, side="eval")) for i in range(32)])
        decoded = model.decode(model.encode(images)).clamp(-1, 1)
        ratios.append(10 * torch.log10(4 / F.mse_loss(decoded, images, reduction="none").mean(dim=(1, 2, 3))))
    return float(torch.cat(ratios).mean())


def finish(folder: Path) -> Autoencoder:
    """The trained autoencoder of a run folder with its latent statistics, rounded to bf16 as it will be shipped.

    The result is kept in the folder until the run goes on, so that latents, training and export all see the same
    numbers. Raises RequestError where nothing was trained.
    """
    step, config = run.described(folder, AutoencoderTraining)
    model = Autoencoder(config.network).eval().requires_grad_(False)
    file = folder / f"autoencoder-{step}.safetensors"
    if not file.exists():
        model.load_state_dict(run.read_average(folder))
        _round(model)
        measure_statistics(model, seed=config.loop.seed + 1)
        _round(model)
        run.save_tensors(model.state_dict(), {}, file)
    model.load_state_dict(load_file(file))
    return model


def _round(model: Autoencoder) -> None:
    for tensor in model.state_dict().values():
        tensor.copy_(tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor)
