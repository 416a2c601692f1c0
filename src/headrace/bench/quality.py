"""What eight bits cost: pictures and velocities beside those of more exact weights, and the noise floor for scale."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from headrace.checkpoints import Checkpoint, load_language_model, load_transformer
from headrace.checkpoints.load import fill_module
from headrace.flow.conventions import find_convention
from headrace.flow.latents import draw_noise, picture_positions, text_positions, to_tokens
from headrace.nn.transformer import Transformer
from headrace.pipeline import Pipeline
from headrace.quant.apply import quantise
from headrace.quant.formats import EIGHT_BITS, ENCODED, Format, block_linears
from headrace.text.tokens import load_tokenizer

PROMPTS = (
    "a red apple on a blue background",
    "a rocket on a purple background",
    "a cat to the left of a dog on a white background",
    "a large house, green background",
    "a small star above a tree on a black background",
    "a fish on a yellow background",
    "an umbrella in front of a #3366cc background",
    "a clock below a guitar, orange background",
)
# Times of the flow, from noise to picture, at which velocities are compared.
TIMES = (1.0, 0.75, 0.5, 0.25)
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_CONSTANTS = (0.01**2, 0.03**2)


@dataclass(frozen=True)
class PictureRow:
    """How far pictures are from those of bf16: means and worst cases of PSNR in dB (infinite when equal) and SSIM."""

    what: str
    psnr: float
    lowest_psnr: float
    ssim: float
    lowest_ssim: float


@dataclass(frozen=True)
class LayerRow:
    """A choice of layers in eight bits: the velocity's signal to noise in dB, and the bytes as a share of bf16's."""

    bits: str
    layers: str
    decibels: float
    share: float


def compare_pictures(checkpoint: Checkpoint, seeds: int, size: str | None, device: str) -> Iterator[PictureRow]:
    """Paired comparisons with bf16 over `PROMPTS` and `seeds` seeds each: eight bits, then the noise floor.

    size: "WxH", by default the model's. A pair has prompt and seed in common, but for the row "another seed".
    """

    def pictures(precision: str, first_seed: int = 0) -> list[Image.Image]:
        made = Pipeline(checkpoint, precision, device).generate(
            [prompt for prompt in PROMPTS for _ in range(seeds)],
            seed=[first_seed + index for _ in PROMPTS for index in range(seeds)],
            size=size,
        )
        return [picture.image for picture in made]

    expected = pictures("bf16")
    for precision in (*EIGHT_BITS, "fp32"):
        yield picture_row(precision, pictures(precision), expected)
    yield picture_row("bf16, another seed", pictures("bf16", seeds), expected)


def picture_row(what: str, made: list[Image.Image], expected: list[Image.Image]) -> PictureRow:
    """The pairs of two lists of pictures of equal sizes, compared."""
    pairs = [(as_tensor(a), as_tensor(b)) for a, b in zip(made, expected, strict=True)]
    psnrs = [psnr(a, b) for a, b in pairs]
    ssims = [ssim(a, b) for a, b in pairs]
    return PictureRow(what, sum(psnrs) / len(psnrs), min(psnrs), sum(ssims) / len(ssims), min(ssims))


@torch.inference_mode()
def compare_layers(checkpoint: Checkpoint) -> Iterator[LayerRow]:
    """The error of eight bits in the blocks, in modulation as well, and in all linear layers, all else in float32.

    Velocities are compared with those of float32 weights on a CPU, over `PROMPTS` and `TIMES`.
    """
    inputs = _inputs(checkpoint)
    exact = load_transformer(checkpoint, torch.float32, "cpu")
    expected = [_velocity(exact, *one) for one in inputs]
    full = sum(2 * parameter.numel() for parameter in exact.parameters())
    linears = [name for name, part in exact.named_modules() if isinstance(part, nn.Linear)]
    blocks = block_linears({name: tuple(value.shape) for name, value in exact.state_dict().items()})
    choices = {
        "blocks": blocks,
        "blocks and modulation": blocks + [name for name in linears if "modulation" in name],
        "all": linears,
    }
    for bits in EIGHT_BITS:
        for what, chosen in choices.items():
            network = _quantised(checkpoint, dict.fromkeys(chosen, ENCODED[bits]))
            made = [_velocity(network, *one) for one in inputs]
            yield LayerRow(bits, what, decibels(torch.stack(made), torch.stack(expected)), _bytes(network) / full)


def _quantised(checkpoint: Checkpoint, formats: dict[str, Format]) -> Transformer:
    with torch.device("meta"):
        network = Transformer(checkpoint.transformer_config)
    quantise(network, formats)
    fill_module(network, checkpoint.transformer, "cpu")
    return network


def _bytes(network: nn.Module) -> int:
    """Of codes and scales as they are, and of all else as it would be in bf16."""
    plain = sum(2 * parameter.numel() for parameter in network.parameters())
    return plain + sum(buffer.nbytes for buffer in network.buffers())


def _inputs(checkpoint: Checkpoint) -> list[tuple[Tensor, Tensor, Tensor, Tensor, float]]:
    """Noise, its positions, text, its positions and a time, for every prompt and time."""
    language_model = load_language_model(checkpoint, torch.float32, "cpu")
    tokenizer = load_tokenizer(checkpoint.tokenizer_file, checkpoint.text)
    width, height = (side // checkpoint.autoencoder_config.token_size for side in checkpoint.default_size)
    positions = picture_positions(height, width)
    inputs = []
    for seed, prompt in enumerate(PROMPTS):
        tokens = tokenizer(prompt)
        context = language_model.hidden_states(tokens.ids, tokens.mask, checkpoint.text.layers)
        shape = (checkpoint.transformer_config.in_channels, height, width)
        noise = to_tokens(draw_noise(seed, shape, find_convention("diffusers"), torch.empty(0)))
        text_ids = text_positions(context.shape[1])
        inputs += [(noise, positions, context, text_ids, time) for time in TIMES]
    return inputs


def _velocity(
    network: Transformer, noise: Tensor, positions: Tensor, context: Tensor, text_ids: Tensor, time: float
) -> Tensor:
    guidance = torch.tensor([4.0]) if network.config.guidance_embed else None
    return network(noise, positions, torch.tensor([time]), context, text_ids, guidance)


def as_tensor(image: Image.Image) -> Tensor:
    """A picture as (3, H, W) in 0..1."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal to noise in dB, for values in 0..1; infinite when they are equal."""
    error = float((a - b).pow(2).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of (C, H, W) in 0..1, mean over channels and places.

    Wang et al. 2004, IEEE Trans. Image Processing 13(4), with its Gaussian window of 11x11 and its constants.
    """
    # In float64: variances are small differences of large squares.
    a, b = a.double(), b.double()
    distance = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    weights = torch.exp(-distance.pow(2) / (2 * SSIM_SIGMA**2))
    window = torch.outer(weights, weights)[None, None] / weights.sum() ** 2

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x[:, None], window)

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = SSIM_CONSTANTS
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((similarity / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean())


def decibels(made: Tensor, expected: Tensor) -> float:
    """Signal to noise: 10 log10 of the ratio of energies."""
    return float(10 * torch.log10(expected.pow(2).sum() / (made - expected).pow(2).sum()))
